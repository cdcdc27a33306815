"""Whom the native call path leaves alone: listeners, transforms, threads in other states, extraordinary tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runtime import native
from tests.runtime.stand_in import ONE, Calls, plan, y_like


class Listener(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


LISTENING = pytest.mark.parametrize(
    "listening",
    [
        lambda: torch.autocast("cpu"), Listener, torch.autograd.forward_ad.dual_level, torch.autograd.profiler.profile,
        torch._C._AutoDispatchBelowAutograd, FunctionMode,
    ],
    ids=["autocast", "dispatch mode", "forward mode", "profiler", "below autograd", "function mode"],
)  # fmt: skip


@LISTENING
@pytest.mark.parametrize("direct", [True, False], ids=["read", "asked for"])
def test_nothing_goes_past_a_listener(
    path: Calls, listening: Callable[[], AbstractContextManager[Any]], direct: bool
) -> None:
    if not direct:
        path.module.read_torch()
    assert path.module.reads_torch() == direct
    path.plan = plan(ONE)
    y = y_like()
    assert path.module.tail(y, 0.5, "auto") is not None
    with listening():
        assert path.module.tail(y, 0.5, "auto") is None
    assert path.module.tail(y, 0.5, "auto") is not None
    assert len(path.driver.launched()) == 2


@pytest.mark.parametrize("listening", [lambda: torch.autocast("cpu"), Listener], ids=["autocast", "dispatch mode"])
def test_each_thread_has_keys_of_its_own(path: Calls, listening: Callable[[], AbstractContextManager[Any]]) -> None:
    path.plan = plan(ONE)
    y, found = y_like(), []

    def work() -> None:
        found.append(path.module.tail(y, 0.5, "auto"))
        with listening():
            entered.wait()
            found.append(path.module.tail(y, 0.5, "auto"))
            left.wait()

    entered, left = Barrier(2), Barrier(2)
    thread = Thread(target=work)
    thread.start()
    entered.wait()
    here = path.module.tail(y, 0.5, "auto")
    left.wait()
    thread.join()
    assert here is not None and found[0] is not None and found[1] is None


@pytest.mark.parametrize("wrong", ["_thread_keys", "keys_of"])
def test_what_is_stored_in_another_way_is_asked_for(path: Calls, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Python is right: where the module would read something else in torch's libraries, it asks."""
    assert path.module.reads_torch()
    # One state's keys, or one tensor's, for all.
    if wrong == "keys_of":
        seen = native.private.keys_of(torch.ones(1))
        monkeypatch.setattr(native.private, wrong, lambda _: seen)
    else:
        keys = native._thread_keys()
        monkeypatch.setattr(native, wrong, lambda: keys)
    Calls(path.module, path.driver)
    assert not path.module.reads_torch()


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.functionalize])
def test_nothing_goes_past_a_transform(path: Calls, transform: Callable[..., Any]) -> None:
    path.plan = plan(ONE)

    def function(y: Tensor) -> Tensor:
        assert path.module.tail(y, 0.5, "auto") is None
        return y.sum()

    transform(function)(torch.rand(2, 2, 3, 4))
    assert not path.planned


@pytest.mark.filterwarnings("ignore:Named tensors")
@pytest.mark.parametrize("direct", [True, False], ids=["read", "asked for"])
def test_calls_that_are_not_ordinary(path: Calls, direct: bool) -> None:
    if not direct:
        path.module.read_torch()
    path.plan = plan(ONE)
    y = y_like()
    complexes = torch.complex(torch.zeros_like(y), -y).conj()
    negated = complexes.imag
    assert negated.is_neg()
    leaked: list[Tensor] = []
    torch.vmap(lambda one: leaked.append(one) or one)(torch.rand(1, 2, 3, 4, 5))
    torch.func.grad(lambda one: leaked.append(one) or one.sum())(y)
    odd: Any = torch
    leaked += [odd._to_functional_tensor(y), odd._efficientzerotensor((2, 3, 4, 5))]
    if hasattr(y, "refine_names"):
        leaked.append(odd.Tensor.refine_names(y, *"NCHW"))
    strange: list[tuple[Any, ...]] = [
        (y, torch.rand(3, 1, 1, requires_grad=True), "auto"), (Subclass(y), 0.5, "auto"), (negated, 0.5, "auto"),
        (y.to("meta"), 0.5, "auto"), (y.to_sparse(), 0.5, "auto"), (complexes, 0.5, "auto"), (y, True, "auto"),
        *((tensor, 0.5, "auto") for tensor in leaked), (torch.empty(0, 3, 4, 5), 0.5, "auto"), (y, "0.5", "auto"),
        (y, 2**2000, "auto"), (y, 0.5, "Auto"), (y, 0.5, None), ("y", 0.5, "auto"), (None, 0.5, "auto"),
        (torch.rand(1, 1, 1, 1, 1), 0.5, "auto"), (y, 0.5), (y, 0.5, "auto", 1), (),
    ]  # fmt: skip
    for call in strange:
        assert path.module.tail(*call) is None, call
    assert not path.planned and not path.driver.launched()
    with torch.no_grad():
        assert path.module.tail(torch.nn.Parameter(y), 0.5, "auto") is not None
    with torch.inference_mode():
        assert path.module.tail(y, 0.5, "auto") is not None
        assert path.module.tail(y_like(), 0.5, "auto") is not None
    path.driver.launched()
    for change in ({"capturing": 1}, {"device": 1}, {"context_status": 201}, {"status": 700}):
        path.driver.set(**change)
        assert path.module.tail(y, 0.5, "auto") is None
        path.driver.set(capturing=0, device=0, context_status=0, status=0)
    assert not path.driver.launched()
