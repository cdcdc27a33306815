"""Launch constants of the Triton kernels, one a line. Measured on an H100; docs/experiments.md says what else
was tried."""

from __future__ import annotations

ACCESS_BYTES = 16
"""Bytes of the widest access of a thread."""

WARP = 32
"""Threads of a warp."""

# Streams of whole planes (multiply_gap)

GAP_BYTES = 32 * 1024
"""Bytes that a program has in flight: memory is read fastest by few programs that each ask for much."""

WHOLE_WARPS = 16
"""Warps of a program that has whole planes: four accesses of 16 bytes per thread."""

PART_WARPS = 8
"""Warps of a program that has a part of a plane: eight accesses per thread, for its threads have to wait for
the counter."""

GAP_REGISTERS = 64
"""Most registers per thread: two programs of WHOLE_WARPS then fit a multiprocessor, which has 64 KiB in flight."""

UNCUT_BYTES = 256 * 1024
"""Most bytes of a plane that one program reads whole, where a sample has UNCUT_PLANES planes: no program then has to
add up what others left."""

UNCUT_PLANES = 128
"""Planes of a sample from which on one program a plane fills a card."""

PLANES_WARPS = 4
"""Warps where neighbouring planes are read together (channels_last)."""

SHORT_PLANE = 64
"""Most elements of a plane (channels_last) that half of PLANES_WARPS reads, with half the bytes."""

PLANES_LINE_BYTES = 256
"""Bytes of neighbouring planes that a program reads: two lines of the L2."""

GRID_WARPS = 4
"""Warps where rows have gaps between them, or are strided."""

GRID_ACCESSES = 4
"""Accesses of a thread in a step of such rows: each has an address of its own in registers."""

GRID_UNROLL = 2
"""Such steps under way at a time."""

# Small planes in a run (multiply_gap_flat)

FLAT_PLANE = 1024
"""Most elements of a small plane."""

FLAT_BYTES = 4 * 1024
"""Bytes of one program, which is one warp: it needs no barrier."""

FLAT_LEAST = 16
"""Fewest elements that a program sets aside for a plane: with one number for all smaller planes there are few kinds."""

# Parts

PART_BYTES = 64 * 1024
"""Bytes of a plane that one program reads: long enough to hide its start and end, short enough that one large
sample already fills the card."""

# Bands (band_sums, band_sums_contract, band_fill)

BANDS_ELEMENTS = 64
"""Elements of a thread in a step, which one warp makes: it needs no barrier, and what a program does once is
done by fewer threads."""

LARGE_PLANE_BYTES = 32 * 1024
"""Bytes of a plane above which it is long enough for twice the step and two warps."""

BANDS_REGISTERS = 255
"""Most registers per thread: a thread keeps its sums of a whole step to the end."""

BANDS_PLANES_BYTES = 128
"""Bytes of neighbouring planes (channels_last) that a program reads: one line of the L2."""

BANDS_PLANES_COLUMNS = 32
"""Columns of a program that reads neighbouring planes together."""

BANDS_PLANES_ROWS = 4
"""Rows of these under way at a time."""

SHORTEST_LINE = 128
"""Fewest positions of a line: one access of each thread of a warp."""

LONGEST_LINE = 1024
"""Columns of a part: rim rows are loaded whole."""

WHOLE_BYTES = 4 * 1024
"""Bytes, in float32, of the planes of one line that a program reads."""

SMALL_WARPS = 1
"""Warps of a program that reads such planes."""

SMALL_PLANE = 256
"""Most elements of a plane that one step reads: all its bands are summed from what one load brings."""

RIM_ROWS = 4
"""Most accesses of a thread to rim rows that it asks for before it reads the core."""

FINISH = 32
"""Partial results that a thread of the last program loads at a time."""

FINISH_WIDTH = 256
"""Band sums that the last program of a block of planes adds up at a time."""

# The chain in one launch

FOLD_TAPS = 16
"""Taps of a kernel whose taps are added before the product: more would be too much code, or registers."""

OWN_WEIGHTS = 2048
"""Weights that a warp of band_sums_contract keeps in registers: 64 per thread."""

OWN_ROWS = 16 * 1024
"""Most partial outputs of a sample that the last program of band_sums_contract adds up."""

SMALLEST_PLANE = 4
"""Most elements of a plane for planes_contract: more do not fit the registers with all the channels of a product's
step."""

REREAD = 256
"""Elements of a plane times blocks of outputs up to which planes_contract reads x again for each block."""

# Matrix products (contract, planes_contract, expand, weight_grad)

PRODUCT_WARPS = 4
"""Warps of a program."""

FEW_SAMPLES = 16
"""Samples of a program where the batch has no more."""

MANY_SAMPLES = 64
"""Samples of a program otherwise."""

OUTPUTS = 32
"""Outputs of a program."""

CHANNELS = 16
"""Channels of one step of a product: the fewest that Triton multiplies."""

PROGRAMS = 264
"""Programs that fill a card, two on each multiprocessor: outputs are cut in slices of channels until there are 264
programs, whatever the batch."""

SLICES = 32
"""Most slices of an output: the last program has to add them up."""

FOLD_REGISTERS = 255
"""Most registers per thread of a product of folded taps: all there are, for 64 samples spill with fewer."""

MANY_TAPS = 64
"""Taps of a kernel up to which `contract` adds them before the product, where that leaves ENOUGH_PROGRAMS. Larger
kernels fill a card by their taps, each multiplied by itself."""

ENOUGH_PROGRAMS = 16
"""Programs, each of one step of channels, from which on products of more than FOLD_TAPS taps are cut in slices of
channels."""

TAPS_AT_ONCE = 8
"""Most taps of one band that a program loads together, of kernels of more than FOLD_TAPS taps."""

TAP_SAMPLES = 4
"""Samples of a program where taps are multiplied one by one."""

TAP_STEP = 16
"""(channel, tap) pairs of one step: a thread has four neighbours of one output, an access of 16 bytes."""

TAP_STEPS = 4
"""Steps of weights under way."""

LONG_PRODUCT = 16 * 1024
"""(channel, tap) pairs of an output above which they are cut in more slices than SLICES."""

TAP_SLICES = 128
"""Most slices of such an output."""

TAP_REGISTERS = 128
"""Most registers per thread: eight programs on a multiprocessor."""

SLICE_REGISTERS = 128
"""Registers per thread that the last program fills with slices at a time."""

EXPAND_REGISTERS = 255
"""Most registers per thread of `expand`: all there are. Where nothing is said, ptxas makes do with 64, and spills."""

GRADIENT_SLICES = 32
"""Most slices of a sum of expand and of weight_grad, which are cut until there are PROGRAMS programs."""

GRADIENT_STEPS = 4
"""Fewest steps of samples of a slice of weight_grad: a slice is stored and read once more, and so is as long as one
step."""

SLICE_WEIGHTS = 4 * 1024
"""Fewest weights of a slice of expand: some times as many as the numbers that are stored for a slice."""

EXPAND_COLUMNS = 64
"""Most columns of a program of expand."""

EXPAND_WEIGHTS = 8 * 1024
"""Most weights of a step of expand: 64 registers of a thread."""

GRAD_STEP = 64
"""(channel, tap) pairs, and outputs, of a program of weight_grad."""
