"""A kernel whose sizes are constants, from the same text as the one that takes any sizes.

The constants take the places of the sizes before anything is optimized, so both forms do the same arithmetic in
the same types and in the same order; what is left out follows from the sizes alone. The parameters stay, unread:
both forms are launched alike.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import Any

from triton._C.libtriton import ir, passes
from triton.compiler import ASTSource


class FixedSource(ASTSource):
    """The source of a kernel, with `sizes` in the places of its last run-time parameters."""

    def __init__(
        self,
        kernel: Any,
        signature: dict[str, str],
        constants: dict[str, Any],
        attributes: dict[Any, Any],
        sizes: tuple[int, ...],
    ) -> None:
        super().__init__(kernel, signature, constants, attributes)
        self.sizes = sizes

    def hash(self) -> str:
        return sha256(f"{super().hash()}-{self._constants()}".encode()).hexdigest()

    def make_ir(self, *arguments: Any, **named: Any) -> Any:
        """Triton's own first form of the kernel, with the constants put in."""
        module = super().make_ir(*arguments, **named)
        # Names that Triton does not promise to keep. Without them the sizes are read: more instructions, the same bits.
        with suppress(AttributeError):
            _put(module, self._constants())
            _settle(module)
        return module

    def _constants(self) -> list[int | None]:
        """The sizes; None for a stride that happens to be 1 or 0. It would offer the compiler an axis to run along
        beside the one that the kind of call has chosen, and another axis is another order of additions."""
        names = [name for name, kind in self.signature.items() if kind != "constexpr"][-len(self.sizes) :]
        return [
            None if size in (0, 1) and name.startswith("stride_") else size
            for name, size in zip(names, self.sizes, strict=True)
        ]


def _put(module: Any, sizes: list[int | None]) -> None:
    """Put constants in the places of the last parameters of the module's kernel; None: leave that one."""
    kernel = module.get_function(module.get_entry_func_name())
    operations: list[Any] = []
    module.walk(operations.append)
    builder = ir.builder(module.context)
    # The kernel is the module's first function.
    builder.set_insertion_point_to_start(operations[0].get_block())
    first = kernel.get_num_args() - len(sizes)
    for place, size in enumerate(sizes, first):
        if size is None:
            continue
        parameter = kernel.args(place)
        builder.set_loc(parameter.get_loc())
        wide = parameter.get_type().is_integer(64)
        parameter.replace_all_uses_with(builder.get_int64(size) if wide else builder.get_int32(size))


def _settle(module: Any) -> None:
    """Work out what follows from the constants. Triton's own order of passes may leave a branch that is never taken,
    and the pass that chooses layouts stops at a load in one."""
    steps = ir.pass_manager(module.context)
    passes.common.add_inliner(steps)
    for _ in range(2):
        passes.common.add_canonicalizer(steps)
        passes.common.add_cse(steps)
        passes.common.add_sccp(steps)
    steps.run(module, "settle")
