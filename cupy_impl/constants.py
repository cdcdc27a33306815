"""Launch constants of the CUDA kernels, with their units. Measured on an H100; docs/experiments.md has the numbers."""

REGISTERS = 65536
"""Registers of a multiprocessor. A kernel that may have R registers a thread may have REGISTERS / R threads a block."""

ACCESS = 16
"""Bytes of the widest load."""

WARP = 32
"""Threads of a warp."""

THREADS = 128
"""Threads of a block that reads planes: small blocks, so that one block's start and end hide behind the others'
streams."""

AHEAD = 8
"""Accesses that a thread has under way at a time: 16 KiB a block, 128 KiB on a multiprocessor with 64 registers a
thread."""

FAR_AHEAD = 16
"""The same where a block only adds up whole planes or parts of them, or has two planes: memory is read fastest by few
blocks that each ask for much."""

WHOLE_THREADS = 256
"""Threads of a block that adds up whole planes, however large, or rows with gaps between them."""

MOST_THREADS = 512
"""Most threads of a block. Rows of which one step takes more are cut."""

SMALL_BYTES = 16 * 1024
"""Most bytes of a plane that a block of SMALL_THREADS contracts."""

SMALL_THREADS = 32
"""Threads of a block that contracts a small plane. What follows the reading takes as many instructions in each warp
however little was read, so there is one warp."""

SMALL_AHEAD = 4
"""Fewest accesses of a thread to a small plane, as far as the plane goes: fewer lanes to add up."""

GROUPS = 32
"""Most planes that a block works on, and most warps of a block: kernels.cu has room for the sums of 32."""

PLANES_SUM_REGISTERS = 72
"""Registers of a thread that sums bands of several neighbouring planes: 64, as elsewhere, are not enough."""

FEW_SUMS = 16
"""Band sums that a thread keeps in registers at a time. With more of them kernels get more registers."""

PART_BYTES = 64 * 1024
"""Bytes of a plane that one block reads: long enough to hide its start and end, short enough that one large sample
already fills the card."""

PLANES_PART_BYTES = 128 * 1024
"""The same for bands of neighbouring planes, since the last block adds all of a block's planes at once."""

FEW_BLOCKS = 16
"""Blocks of a sample with bands of neighbouring planes under which parts are a quarter of that: few samples would not
fill a card."""

WHOLE_BYTES = 256 * 1024
"""Most bytes of a plane that one block reads whole, where a sample has WHOLE_PLANES planes: no block then has to add up
what others left."""

WHOLE_PLANES = 128
"""Planes of a sample from which on one block a plane fills a card."""

LINE_BYTES = 256
"""Bytes of neighbouring planes that a block adds up: two whole lines of the L2."""

BANDS_LINE_BYTES = 128
"""The same where a block sums bands: one line, to have fewer sums."""

PAIRS = 32
"""Pairs of parts of a group from which on float32 planes of at least PART_BYTES are contracted two by two: half as many
blocks with twice the bytes in flight, and half as many rows to finish."""

FUSED_SUMS = 1024
"""Most pairs of bands of a plane that band_sums_contract keeps in shared memory."""

FUSED_ROWS = 16 * 1024
"""Most partial outputs that the last block of band_sums_contract adds up."""

FUSED_BYTES = 24 * 1024
"""Most bytes of weights of one input plane that band_sums_contract keeps in shared memory."""

SHARES = 16
"""Most threads that share a column of partial results, where the last block adds them up."""

FLAT_PLANE = 1024
"""Most elements of a small plane, where small planes lie one behind the other."""

FLAT_ELEMENTS = 2048
"""Most elements of all such planes of a block."""

KEPT = 2048
"""Gradients of band sums that band_fill keeps in shared memory: 8 KiB of float32."""

HELD_TAPS = 25
"""Taps of kernels whose weights a thread holds in registers, a pair of planes at a time; kernels.cu says the same."""

LANE_TAPS = 4
"""Taps of a band for each thread that shares a large kernel's taps."""

PRODUCT_THREADS = 128
"""Threads of a block that multiplies."""

MANY_ROWS = 32
"""Rows of a product (samples, or outputs) of a block in float32 and narrower, where that leaves FILL blocks; half as
many in float64."""

FEW_ROWS = 16
"""The same where MANY_ROWS would leave fewer blocks."""

FILL = 100
"""Blocks from which on a block takes MANY_ROWS: they fill a large card."""

PRODUCT_REGISTERS = 128
"""Registers of a thread that multiplies: four blocks of PRODUCT_THREADS side by side."""

PLANES_REGISTERS = 168
"""The same where it adds up small planes on the way in."""

HELD_FEW = 34
"""32-bit registers for what is on its way to shared memory, up to which such a thread does with PRODUCT_REGISTERS in
float32: two blocks side by side."""

WIDENED = 64
"""Weights of a thread in bfloat16 from which on it takes PLANES_REGISTERS: the compiler makes each a float32 as it
comes."""

PLANES_HELD = 80
"""32-bit registers of a thread of planes_contract for its sums and for what is on its way, in a block of 32 outputs."""

WIDE_PLANES_HELD = 80
"""The same in a block of 64 outputs."""

PLANES_ROWS = 16
"""Samples of a block of planes_contract, except for planes of one element."""

PRODUCT_STEP = 72
"""Products of one output at a step: both operands of them are 28 KiB of shared memory in float32."""

HELD_REGISTERS = 32
"""32-bit registers of a thread for weights that are on their way to shared memory."""

HELD_KERNELS = 8
"""Most pairs of planes of a thread on the way: of more, the small kernels of half formats spill."""

SLICES = 16
"""Most slices that the products of one output are cut into: the last block of an output has to add them up."""

PLANES_SLICES = 32
"""The same where planes_contract reads the planes, for it has few blocks."""

LARGE_SLICES = 32
"""The same of large kernels, whose taps are what takes time."""

MIN_SLICE = 32
"""Fewest input planes of a slice, where kernels are not large."""

MIN_PLANES_SLICE = 8
"""The same where planes_contract reads the planes."""

FEW_PLANES = 128
"""Input planes of a group up to which a slice has FEW_PLANES_SLICE or more."""

FEW_PLANES_SLICE = 64
"""Input planes of a slice where there are few in all: to add up more slices would take as long as the products do."""

GRADIENT_BLOCKS = 264
"""Blocks of expand and of weight_grad that fill a large card, two on each multiprocessor: sums are cut in slices until
there are as many."""

GRADIENT_SLICES = 32
"""Most slices of a sum of expand and of weight_grad."""

GRADIENT_STEPS = 4
"""Fewest steps of samples of a slice of weight_grad: a slice is stored and read once more, and so is as long as one
step."""

SLICE_WEIGHTS = 4 * 1024
"""Fewest weights of a slice of expand: some times as many as the numbers that are stored for a slice. A step of a large
kernel's is a slice in any case, for it takes long."""

BANDS = 32
"""Most pairs of bands that a product takes at a time."""

CUT = 256
"""Most taps that a block of weight_grad stores."""

SMALL_PLANE = 256
"""Most elements of a plane whose band sums planes_contract makes on the way into shared memory."""

PLANE_TILES = 2
"""Most blocks of outputs of planes_contract, for each of them reads x and adds up its bands. Planes of no more than
TINY_PLANE elements may have any number."""

TINY_PLANE = 1
"""Most elements of a plane that is as quickly added up as its sums are read."""
