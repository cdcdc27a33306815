"""A call that is planned for the native path launches what it launches through Python: the same kernels in the same
order, with the same arguments. On CPU tensors, against a stand-in for the driver: nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._dynamo.guards import _empty_strided_cpu  # pyright: ignore[reportAttributeAccessIssue]

import convgap
from convgap import fast, plans, selection
from convgap.torch_op import kernels
from cupy_impl.launch import Launch
from runtime import native
from tests.runtime.stand_in import CPU, Driver

ARGUMENTS = 16
"""Of a launch, from the first on, that are compared: all pointers and numbers, and some sizes."""

POINTERS = {
    "multiply_gap": 5,
    "multiply_gap_flat": 5,
    "band_sums": 4,
    "contract": 7,
    "planes_contract": 7,
    "expand": 5,
    "band_fill": 2,
    "weight_grad": 6,
}
"""How many of a kernel's first arguments are addresses."""

WORKSPACE = {"multiply_gap": (2, 3), "multiply_gap_flat": (2, 3), "band_sums": (2, 3), "contract": (4, 5)}
WORKSPACE |= {"planes_contract": (4, 5), "expand": (3, 4), "weight_grad": (4, 5)}
"""Which of these are of partial results and counters. A launch that has none is given any address."""

Noted = tuple[str, list[int]]
"""A kernel, and its arguments as words."""


class Both:
    """Either way for the same calls, and what it launches."""

    def __init__(self, module: ModuleType, driver: Driver, patch: pytest.MonkeyPatch) -> None:
        self._module, self._driver, self._patch = module, driver, patch
        self._kernels: list[str] = []
        self._python: list[Noted] = []
        self._kept: list[Any] = []  # so that no two tensors have one address
        driver.set(launches=0, device=0, capturing=0, status=0, context_status=0, parameters=ARGUMENTS)
        native.configure(
            module, plans.tail, plans.chain, plans.backward, driver=str(driver.path), device_type=CPU,
            empty_strided=self._empty, room=self._room,
        )  # fmt: skip
        # No probe: what computes nothing gives no right answer.
        chosen = selection.kernel_set("cupy")
        patch.setattr(selection, "chosen", lambda *_: "cupy")
        patch.setattr(kernels, "serve", lambda _, device, operator, run, check=None: run(chosen))
        patch.setattr(Launch, "handle", lambda launch, device: self._handle(launch))
        patch.setattr(Launch, "__call__", lambda launch, device, stream, *given: self._note(launch, given))

    def _empty(self, *given: Any) -> Tensor:
        self._kept.append(_empty_strided_cpu(*given))
        return self._kept[-1]

    def _room(self, stream: int, counters: int, space: int) -> tuple[Tensor, Tensor, int, int]:
        room = torch.zeros(counters + 1, dtype=torch.int32), torch.empty(space + 1, dtype=torch.uint8)
        self._kept += room
        return *room, counters, space

    def _handle(self, launch: Launch) -> tuple[int, int, int]:
        self._kernels.append(launch.kernel)
        return len(self._kernels), launch.threads, launch.shared

    def _note(self, launch: Launch, arguments: tuple[Any, ...]) -> None:
        self._kept += arguments
        given = [a.data_ptr() if isinstance(a, Tensor) else a for a in (*arguments, *launch.sizes, 0, 0)]
        words = [int.from_bytes(pack("d" if isinstance(a, float) else "q", a), "little") for a in given]
        self._python.append((launch.kernel, words[:ARGUMENTS]))

    def switch(self) -> None:
        """Let the native path answer what it can, from now on."""
        for name in ("tail", "chain", "backward"):
            self._patch.setattr(fast, name, getattr(self._module, name))

    def served(self) -> int:
        """Calls that the native path has served."""
        return self._module.counts()[0]

    def launched(self) -> tuple[list[Noted], list[Noted]]:
        """What was launched natively, and through Python, since this was last asked."""
        done = [(self._kernels[one.function - 1], list(one.parameter)[:ARGUMENTS]) for one in self._driver.launched()]
        python, self._python = self._python, []
        return done, python


@pytest.fixture
def both(module: ModuleType, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    yield Both(module, Driver(library), monkeypatch)
    module.clear()


def assert_same(one: list[Noted], other: list[Noted], inputs: list[Tensor]) -> None:
    """Numbers are equal, inputs have their own addresses, and what one launch makes and the next one reads has one
    address there as here. Kernels are in order for each name, for the two ways may take turns."""
    one, other = (sorted(noted, key=lambda launch: launch[0]) for noted in (one, other))
    assert [kernel for kernel, _ in one] == [kernel for kernel, _ in other]
    known = {tensor.data_ptr(): tensor.data_ptr() for tensor in inputs}
    for (kernel, words), (_, others) in zip(one, other, strict=True):
        for at, (word, found) in enumerate(zip(words, others, strict=True)):
            if at in WORKSPACE.get(kernel, ()):
                continue
            pointer = at < POINTERS[kernel]
            assert found == (known.setdefault(word, found) if pointer else word), (kernel, at)
    assert len(known) == len(set(known.values())), "two addresses there are one here"


# Who wants a gradient, and how many of two calls, forward and backward, are served natively. The gradient of a
# multiplier is made in Python, as is that of a bias alone.
WANTED = (
    ("", 1), ("x", 2), ("weight", 2), ("bias", 1), ("x weight", 2), ("x bias", 1), ("weight bias", 2),
    ("x weight bias", 2), ("multiplier", 0), ("x weight bias multiplier", 1),
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("multiplied", ["number", "tensor"])
@pytest.mark.parametrize(("wanted", "served"), WANTED, ids=[wanted or "none" for wanted, _ in WANTED])
def test_chain(both: Both, dtype: torch.dtype, multiplied: str, wanted: str, served: int) -> None:
    if "multiplier" in wanted and multiplied == "number":
        pytest.skip("a number wants no gradient")
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 6, 7, 5), "weight": (6, 40, 3, 2), "bias": (80,), "multiplier": (80, 1, 1)}
    given = {name: torch.rand(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    given["multiplier"] = given["multiplier"].float()  # the accumulator's dtype, or Python converts it
    leaves = [given[name].requires_grad_() for name in wanted.split()]
    multiplier: Any = given["multiplier"] if multiplied == "tensor" else 0.5

    def call() -> list[Tensor]:
        out = convgap.conv_transpose2d_multiply_gap(
            given["x"], given["weight"], given["bias"], multiplier=multiplier, stride=2, padding=1, groups=2,
            backend="cupy",
        )  # fmt: skip
        return [out, *(torch.autograd.grad(out.sum(), leaves) if leaves else ())]

    made = call()
    none, python = both.launched()
    assert python and not none
    both.switch()
    before = both.served()
    for _ in range(2):  # planned, and found
        again = call()
        for one, other in zip(made, again, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        done, rest = both.launched()
        assert_same(python, done + rest, list(given.values()))
    assert both.served() - before == 2 * served


@pytest.mark.parametrize("wanted", [False, True], ids=["", "differentiated"])
@pytest.mark.parametrize("multiplied", ["number", "tensor"])
def test_tail(both: Both, multiplied: str, wanted: bool) -> None:
    y, tensor = torch.rand(2, 6, 7, 5).requires_grad_(wanted), torch.rand(6, 1, 1)
    multiplier = tensor if multiplied == "tensor" else 0.5
    convgap.multiply_gap(y, multiplier, backend="cupy")
    _, python = both.launched()
    both.switch()
    before = both.served()
    for _ in range(2):
        assert convgap.multiply_gap(y, multiplier, backend="cupy").requires_grad == wanted
        done, rest = both.launched()
        assert not rest
        assert_same(python, done, [y, tensor])
    assert both.served() - before == 2
