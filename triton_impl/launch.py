"""One Triton kernel with all that fixes its code, and launches of it.

The compiled kernels are launched directly (driver.py): the JIT's own launch binds and inspects every argument
again on each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

from runtime import private
from runtime.prepared import Unlaunchable, check_grid
from runtime.slots import Slots
from triton_impl import driver, kernels
from triton_impl.fixed import FixedSource
from triton_impl.machine_code import machine_code

INTERPRETED = isinstance(kernels.multiply_gap, InterpretedFunction)
"""Whether TRITON_INTERPRET was set when the kernels were decorated: then they run on CPU tensors."""

_interpreter = Lock()
"""Triton's interpreter exchanges parts of triton.language while it runs a kernel: one thread at a time."""


@dataclass(frozen=True, eq=True)
class Specialization:
    """One kernel with all that fixes its code: a kind of call, as far as this kernel goes."""

    kernel: Any
    types: tuple[tuple[str, str], ...]
    """Run-time parameters in order, and their Triton types."""
    constants: tuple[tuple[str, Any], ...]
    """The other parameters."""
    divisible: tuple[tuple[str, int], ...]
    """Parameters known to be multiples of a number, for wide accesses."""
    warps: int
    registers: int | None = None
    """Most registers per thread, or None: what the compiler thinks best."""
    fused: bool = False
    """Whether a product and the sum that takes it are rounded once: in matrix products."""
    sizes: tuple[int, ...] | None = None
    """The sizes, where the code is for just these; None where it is for any."""

    def __hash__(self) -> int:
        # Looked up on every call: worked out once.
        return self._hash

    @cached_property
    def _hash(self) -> int:
        form = self.warps, self.registers, self.fused, self.sizes
        return hash((self.kernel, self.types, self.constants, self.divisible, *form))

    def source(self) -> ASTSource:
        names = self.kernel.arg_names
        constants = dict(self.constants)
        types = dict(self.types) | dict.fromkeys(constants, "constexpr")
        attrs = {(names.index(name),): [["tt.divisibility", by]] for name, by in self.divisible}
        parts = self.kernel, {name: types[name] for name in names}, constants, attrs
        return ASTSource(*parts) if self.sizes is None else FixedSource(*parts, self.sizes)

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compiler options."""
        # A product fused into a sum is one rounding less, but whether that is done depends on what stands between them:
        # nothing, perhaps, once sizes are constants. So only matrix products are fused. More stages would hold operands
        # in shared memory several times; several programs per multiprocessor hide as much, and compile faster.
        return {
            "num_warps": self.warps,
            "num_stages": 1,
            "enable_fp_fusion": self.fused,
            "maxnreg": self.registers,
        }

    def compile(self, target: GPUTarget | None = None) -> Any:
        """The compiled kernel for `target`, or for the current device as Triton sees it."""
        return triton.compile(self.source(), target=target, options=self.options)


class Launch:
    """A prepared launch: which code, how many programs, which sizes.

    Called as launch(device, stream, *tensors, *numbers), in the order of the kernel's parameters.
    """

    def __init__(self, special: Specialization, grid: tuple[int, int], sizes: tuple[int, ...]) -> None:
        check_grid(grid)
        self.special = special
        self.grid = grid
        self.sizes = sizes
        self._slots = Slots(driver.parameters)
        self._loaded: dict[int, driver.Kernel] = {}

    @property
    def kernel(self) -> str:
        return self.special.kernel.__name__

    @property
    def kind(self) -> Specialization:
        return self.special

    @property
    def fixed(self) -> bool:
        """Whether the code is for just these sizes."""
        return self.special.sizes is not None

    def fix(self, device: torch.device) -> None:
        """Compile the code for just these sizes and launch that from now on: the same bits, fewer instructions."""
        special = replace(self.special, sizes=self.sizes)
        if not INTERPRETED:
            with torch.cuda.device(device):
                loaded = {device.index: _compiled(special, device.index)}
            self._loaded = loaded
        self.special = special

    def unfix(self) -> None:
        """Launch the code for any sizes again."""
        self._loaded = {}
        self.special = replace(self.special, sizes=None)

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        if INTERPRETED:
            names = (name for name, _ in self.special.types)
            values = dict(zip(names, (*arguments, *self.sizes), strict=True))
            with _interpreter:
                self.special.kernel[self.grid](**values, **dict(self.special.constants))
            return
        if private.current_device() != device.index:
            with torch.cuda.device(device):
                self(device, stream, *arguments)
            return
        kernel = self._loaded.get(device.index) or self._load(device.index)
        kernel(self.grid, stream, self._slots.fill((*arguments, *self.sizes)))

    def load(self, device: torch.device) -> None:
        """Compile and load, so that no launch with this code has to."""
        if not INTERPRETED:
            with torch.cuda.device(device):
                self._load(device.index)

    def handle(self, device: torch.device) -> tuple[int, int, int]:
        """(CUfunction, threads, bytes of shared memory). Raises RuntimeError on the CPU, where there is none."""
        if INTERPRETED:
            raise RuntimeError("Triton's interpreter has no CUfunction")
        kernel = _kernels.get((self.special, device.index))
        if kernel is None:
            self.load(device)
            kernel = self._loaded[device.index]
        return kernel.handle

    def _load(self, device: int) -> driver.Kernel:
        kernel = self._loaded[device] = _compiled(self.special, device)
        return kernel


_kernels: dict[tuple[Specialization, int], driver.Kernel] = {}
_locks: dict[tuple[Specialization, int], Lock] = {}


def _compiled(special: Specialization, device: int) -> driver.Kernel:
    """The kernel on a device, which has to be the current one. Launches that differ in sizes or grid share
    it, and threads that ask for the same code compile it once."""
    key = special, device
    with _locks.setdefault(key, Lock()):
        if key not in _kernels:
            # Asked of torch: Triton would have a C compiler make a module to ask the driver.
            major, minor = torch.cuda.get_device_capability(device)
            target = GPUTarget("cuda", 10 * major + minor, 32)
            try:
                _kernels[key] = _loaded(special, device, target, anew=False)
            except driver.Unloadable:
                # Machine code cut short on disk, in our file or in Triton's own cache.
                _kernels[key] = _loaded(special, device, target, anew=True)
    return _kernels[key]


def _loaded(special: Specialization, device: int, target: GPUTarget, *, anew: bool) -> driver.Kernel:
    code = machine_code(special.source(), target, special.options, anew=anew)
    return driver.Kernel(device, code.cubin, code.name, code.threads, code.shared)


POINTER = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}
"""Triton's types of tensors."""

WIDE = {"H", "W", "stride_n", "stride_c", "stride_h", "stride_w"}
"""Sizes of 64 bits; divisors, whose names end in _by, have as many. The others have 32."""


def specialize(
    kernel: Any,
    call: Mapping[str, str],
    sizes: Mapping[str, int],
    constants: Mapping[str, Any],
    divisible: Mapping[str, int],
    warps: int,
    registers: int | None = None,
    fused: bool = False,
) -> tuple[Specialization, tuple[int, ...]]:
    """A kind of call and the sizes of this one.

    call: Triton's types of the pointers and numbers of a call. sizes: the sizes; those that are among the
    constants as well are left out. fused: as in Specialization. Raises Unlaunchable for a size that its parameter
    cannot hold.
    """
    types, order = _parameters(kernel, tuple(call.items()), tuple(sizes), tuple(constants))
    values = tuple(sizes[name] for name in order)
    if max(map(abs, values), default=0) >= 2**31:
        for name, value in zip(order, values, strict=True):
            if not -(2**63) <= value < 2**63 or (value >= 2**31 and not _wide(name)):
                raise Unlaunchable(f"sizes: {name} is {value}, more than the Triton kernel {kernel.__name__} can take")
    known = tuple((name, by) for name, by in divisible.items() if by > 1 and name not in constants)
    return _kind(kernel, types, tuple(constants.items()), known, warps, registers, fused), values


_kind = lru_cache(maxsize=4096)(Specialization)
"""One object a kind: the prepared launches of a thousand sizes hold the same few, and Python's collector has no more to
walk over."""


@lru_cache(maxsize=1024)
def _parameters(
    kernel: Any, call: tuple[tuple[str, str], ...], sizes: tuple[str, ...], constants: tuple[str, ...]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Run-time parameters in order with their types, and the sizes among them."""
    kept = set(sizes).difference(constants)
    types = dict(call) | {name: "i64" if _wide(name) else "i32" for name in kept}
    ordered = sorted(types, key=kernel.arg_names.index)
    return tuple((name, types[name]) for name in ordered), tuple(name for name in ordered if name in kept)


def _wide(name: str) -> bool:
    """Whether a size has 64 bits."""
    return name in WIDE or name.endswith("_by")


def divided(**numbers: int) -> dict[str, int]:
    """The numbers, and for each, under its name and _by, what divides by it."""
    return numbers | {f"{name}_by": divisor(d) for name, d in numbers.items()}


def divisor(d: int) -> int:
    """What kernels.quotient takes for i // d, 0 <= i < 2^31: m = ceil(2^s / d) below the shift s, in 32 bits
    each.

    With s = 31 + ceil(log2 d), m fits 32 bits, and i * m / 2^s is less than 1/d above i / d.
    """
    shift = 31 + (d - 1).bit_length()
    return -(-(1 << shift) // d) | shift << 32
