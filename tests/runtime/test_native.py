"""The native call path on CPU tensors, against a stand-in for the driver: what it launches, what it leaves alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convgap.plans import (
    COUNTERS,
    GRAD,
    INTEGER,
    MEAN,
    MULTIPLIER,
    OUTPUT,
    POINTER,
    SCALE,
    SUMS,
    WEIGHT,
    WORKSPACE,
    X,
)
from tests.runtime.stand_in import ONE, Calls, double, plan, y_like


def test_a_call_is_planned_once_and_launched_every_time(path: Calls) -> None:
    path.plan = plan(ONE)
    y = y_like()
    for scale in (0.5, 3):
        out = path.module.tail(y, scale, "auto")
        assert out.shape == (2, 3, 1, 1) and out.dtype == torch.float32 and out.is_contiguous()
        (launch,) = path.driver.launched()
        assert (launch.function, launch.shared, launch.stream) == (77, 4096, 0)
        assert (tuple(launch.grid), tuple(launch.block)) == ((5, 6, 1), (128, 1, 1))
        given = list(launch.parameter)[:8]
        assert given[:2] == [y.data_ptr(), out.data_ptr()]
        assert given[2:] == [2**64 - 9, double(scale / 20.0), double(scale), 0, 0, 0]
    assert len(path.planned) == 1
    path.module.tail(y.clone(), 0.5, "auto")
    assert len(path.planned) == 1


def test_what_fixes_a_plan_is_told_apart(path: Calls) -> None:
    path.plan = plan(ONE)
    y = torch.rand(2, 3, 4, 8)
    storage = torch.rand(400)
    different: list[tuple[Any, ...]] = [
        (y, 0.5, "auto"), (y, 0.5, "cupy"), (y.double(), 0.5, "auto"), (y[:1], 0.5, "auto"), (y[..., :5], 0.5, "auto"),
        (y[0], 0.5, "auto"), (y, torch.ones(3, 1, 1), "auto"), (y, torch.ones(2, 3, 1, 1), "auto"),
        (storage[1:193].view(2, 3, 4, 8), 0.5, "auto"), (y.contiguous(memory_format=torch.channels_last), 0.5, "auto"),
    ]  # fmt: skip
    for count, call in enumerate(different, 1):
        for _ in range(2):
            assert path.module.tail(*call) is not None
        assert len(path.planned) == count


def test_two_launches_share_a_workspace_that_the_stream_keeps(path: Calls) -> None:
    first = (
        1,
        2,
        1,
        32,
        0,
        ((POINTER, X), (WORKSPACE, 0), (WORKSPACE, 256), (COUNTERS, 0), *[(INTEGER, 0)] * 4),
    )
    second = (
        2,
        3,
        1,
        32,
        0,
        ((WORKSPACE, 0), (POINTER, WEIGHT), (OUTPUT, 0), (POINTER, MULTIPLIER), *[(INTEGER, 0)] * 4),
    )
    path.plan = plan(first, second, workspace=512, counters=3)
    x, weight, multiplier = y_like(), torch.rand(3, 3, 2, 2), torch.rand(3, 1, 1)
    call = x, weight, None, multiplier, 2, (1, 0), 0, 1, 1, "collapsed", "triton"
    spaces = set()
    for _ in range(3):
        out = path.module.chain(*call)
        one, two = path.driver.launched()
        assert (one.function, two.function) == (1, 2)
        space, zeros = one.parameter[1], one.parameter[3]
        assert one.parameter[0] == x.data_ptr() and one.parameter[2] == space + 256
        assert list(two.parameter)[:4] == [space, weight.data_ptr(), out.data_ptr(), multiplier.data_ptr()]
        spaces.add((space, zeros))
    assert len(spaces) == 1 and path.rooms == [(0, 3, 512)]
    # A call that needs more gets more, once; what is large is not kept.
    path.plan = plan(first, workspace=1024, counters=5)
    path.module.tail(x, 0.5, "auto")
    assert path.rooms[1:] == [(0, 5, 1024)]
    path.plan = plan(first, workspace=2 << 20, counters=5)
    for _ in range(2):
        path.module.tail(x[:1], 0.5, "auto")
    assert path.rooms[2:] == [(0, 0, 2 << 20)] * 2


class Listener(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "listening",
    [
        lambda: torch.autocast("cpu"), Listener, torch.autograd.forward_ad.dual_level, torch.autograd.profiler.profile,
        torch._C._AutoDispatchBelowAutograd, FunctionMode,
    ],
    ids=["autocast", "dispatch mode", "forward mode", "profiler", "below autograd", "function mode"],
)  # fmt: skip
def test_nothing_goes_past_a_listener(
    path: Calls, listening: Callable[[], AbstractContextManager[Any]]
) -> None:
    path.plan = plan(ONE)
    y = y_like()
    assert path.module.tail(y, 0.5, "auto") is not None
    with listening():
        assert path.module.tail(y, 0.5, "auto") is None
    assert path.module.tail(y, 0.5, "auto") is not None
    assert len(path.driver.launched()) == 2


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.functionalize])
def test_nothing_goes_past_a_transform(path: Calls, transform: Callable[..., Any]) -> None:
    path.plan = plan(ONE)

    def function(y: Tensor) -> Tensor:
        assert path.module.tail(y, 0.5, "auto") is None
        return y.sum()

    transform(function)(torch.rand(2, 2, 3, 4))
    assert not path.planned


def test_calls_that_are_not_ordinary(path: Calls) -> None:
    path.plan = plan(ONE)
    y = y_like()
    negated = torch.complex(torch.zeros_like(y), -y).conj().imag
    assert negated.is_neg()
    strange: list[tuple[Any, ...]] = [
        (y, torch.rand(3, 1, 1, requires_grad=True), "auto"), (Subclass(y), 0.5, "auto"), (negated, 0.5, "auto"),
        (y.to("meta"), 0.5, "auto"), (y.to_sparse(), 0.5, "auto"), (y, True, "auto"), (y, "0.5", "auto"),
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


def test_settings_of_the_chain_that_are_not_plain(path: Calls) -> None:
    path.plan = plan(ONE)
    x, weight = y_like(), torch.rand(3, 3, 2, 2)
    usual = [x, weight, None, 0.5, 2, 0, 0, 1, 1, "collapsed", "auto"]
    assert path.module.chain(*usual) is not None
    for at, value in (
        (1, "weight"), (2, 0), (4, [2, 2]), (4, (2, 2, 2)), (4, (2,)), (4, True), (4, (2, True)), (4, 2.0), (4, 2**70),
        (5, None), (8, "1"), (8, True), (9, "tail"), (9, None), (10, 3),
    ):  # fmt: skip
        assert path.module.chain(*usual[:at], value, *usual[at + 1 :]) is None, (at, value)
    assert path.module.chain(*usual[:-1]) is None
    assert len(path.planned) == 1
    for options in ((2, 2), 0, 0, 1), (2, (0, 0), 0, 1), (2, 0, 0, (1, 1)):
        assert path.module.chain(*usual[:4], *options, *usual[8:]) is not None
    assert len(path.planned) == 1, "an int and a pair of it are one setting"
    for at, value in ((4, 3), (5, 1), (6, 1), (7, 2), (8, 3)):
        path.module.chain(*usual[:at], value, *usual[at + 1 :])
    assert len(path.planned) == 6


def test_a_planner_that_has_no_plan_is_asked_once(path: Calls) -> None:
    y = y_like()
    for _ in range(3):
        assert path.module.tail(y, 0.5, "auto") is None
    assert len(path.planned) == 1


def test_a_planner_that_fails_is_asked_again_and_an_interrupt_is_not_lost(path: Calls) -> None:
    y = y_like()
    path.plan = ValueError("planted")
    for _ in range(3):
        assert path.module.tail(y, 0.5, "auto") is None
    assert len(path.planned) == 3
    path.plan = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        path.module.tail(y, 0.5, "auto")
    arguments: tuple[Any, ...] = ((99, 0),), ((POINTER, 4),), ((INTEGER, 0),) * 65
    of_launches = [plan((1, 1, 1, 1, 0, wrong)) for wrong in arguments]
    for wrong in ((), "plan", plan(), plan(*[ONE] * 5), plan((1, 2)), *of_launches):
        path.plan = wrong
        assert path.module.tail(y, 0.5, "auto") is None
    path.plan = plan(ONE)
    assert path.module.tail(y, 0.5, "auto") is not None


def with_sums(node: Any) -> Any:
    """A chain that keeps its band sums: two launches, two outputs."""
    sums = (OUTPUT, 1)
    first = (1, 2, 1, 32, 0, ((POINTER, X), sums, *[(INTEGER, 0)] * 6))
    ends = (OUTPUT, 0), (MEAN, 0), (SCALE, 0)
    second = (2, 3, 1, 32, 0, (sums, (POINTER, WEIGHT), *ends, *[(INTEGER, 0)] * 3))
    outputs = ((2, 3, 1, 1), (3, 1, 1, 1), torch.float32), ((2, 3, 2, 2), (12, 4, 2, 1), torch.float64)
    return outputs, 20.0, 0, 0, (first, second), node


def test_a_call_that_wants_gradients_becomes_a_node(path: Calls) -> None:
    """The launches are those of the plan; what they made goes to the node, whose first output is the answer."""
    noted: list[tuple[Any, ...]] = []

    def apply(*given: Any) -> Any:
        noted.append(given)
        return given[-1]

    path.plan = with_sums((apply, "kind"))
    x, weight, multiplier = y_like().requires_grad_(), torch.rand(3, 3, 2, 2), torch.rand(3, 1, 1)
    options = 2, 0, 0, 1, 1, "collapsed", "auto"
    for given, scale in ((3, 3.0), (0.5, 0.5), (multiplier, 1.0)):
        out = path.module.chain(x, weight, None, given, *options)
        one, two = path.driver.launched()
        (inputs,) = noted
        tensor = given if isinstance(given, Tensor) else None
        assert inputs[0] is x and inputs[1] is weight and inputs[3] is tensor
        assert inputs[2] is None and inputs[4:6] == (scale, "kind")
        assert inputs[6][0] is out and (inputs[6][1].shape, inputs[6][1].dtype) == (
            (2, 3, 2, 2),
            torch.float64,
        )
        assert list(one.parameter)[:2] == [x.data_ptr(), inputs[6][1].data_ptr()]
        assert list(two.parameter)[2:5] == [out.data_ptr(), double(scale / 20.0), double(scale)]
        noted.clear()
        del inputs
        assert sys.getrefcount(out) == 2
    # Where one output is made it comes in a tuple too.
    path.plan = plan(ONE, node=(apply, "kind"))
    out = path.module.tail(x, 0.5, "auto")
    ((y, tensor, scale, kind, made),) = noted
    assert y is x and (tensor, scale, kind) == (None, 0.5, "kind") and made[0] is out and len(made) == 1


def test_which_gradients_are_wanted_is_part_of_the_key(path: Calls) -> None:
    path.plan = with_sums((lambda *given: given[-1], None))
    x, weight, bias, multiplier = y_like(), torch.rand(3, 3, 2, 2), torch.rand(3), torch.rand(3, 1, 1)
    options = 2, 0, 0, 1, 1, "collapsed", "auto"
    for count, wanted in enumerate(([], [x], [weight], [bias], [x, weight], [x, weight, bias]), 1):
        for tensor in (x, weight, bias):
            tensor.requires_grad_(any(tensor is one for one in wanted))
        for _ in range(2):
            assert path.module.chain(x, weight, bias, multiplier, *options) is not None
        assert len(path.planned) == count
    with torch.no_grad():
        path.module.chain(x, weight, bias, multiplier, *options)
    assert len(path.planned) == count, "as if none were wanted"
    # That of a multiplier is made in Python.
    multiplier.requires_grad_()
    assert path.module.chain(x, weight, bias, multiplier, *options) is None
    assert path.module.tail(x.detach(), multiplier, "auto") is None
    assert len(path.planned) == count


def test_a_node_that_fails_leaves_the_call_to_python(path: Calls) -> None:
    def apply(*_: Any) -> Any:
        raise error

    path.plan = plan(ONE, node=(apply, None))
    y = y_like().requires_grad_()
    error: BaseException = ValueError("planted")
    assert path.module.tail(y, 0.5, "auto") is None
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        path.module.tail(y, 0.5, "auto")
    for wrong in ("node", (), (1,), (1, 2, 3)):
        path.plan = plan(ONE, node=wrong)
        path.module.clear()
        assert path.module.tail(y, 0.5, "auto") is None


def test_a_backward_is_found_by_its_number(path: Calls) -> None:
    """One launch for two of three gradients; the third, which is not wanted, is None."""
    launch = 1, 2, 1, 32, 0, ((POINTER, GRAD), (POINTER, SUMS), (POINTER, WEIGHT), (OUTPUT, 1), (OUTPUT, 2), (MEAN, 0),
                              (SCALE, 0), (INTEGER, 1))  # fmt: skip
    outputs = None, ((3, 3, 2, 2), (12, 4, 2, 1), torch.float32), ((3,), (1,), torch.float32)
    path.plan = outputs, 20.0, 0, 0, (launch,), None
    grad, sums, weight = torch.rand(2, 3, 1, 1), torch.rand(2, 3, 2, 2), torch.rand(3, 3, 2, 2)
    call = 5, "kind", 0.5, grad, sums, weight
    assert path.module.backward(*call) is None and not path.planned, "it may be differentiated itself"
    with torch.no_grad():
        for _ in range(100):
            dx, dw, db = path.module.backward(*call)
            assert dx is None and (dw.shape, db.shape) == (weight.shape, (3,))
            assert sys.getrefcount(dw) == sys.getrefcount(db) == 2
            (done,) = path.driver.launched()
            given = [*(t.data_ptr() for t in (grad, sums, weight, dw, db)), double(0.5 / 20), double(0.5), 1]
            assert list(done.parameter)[:8] == given
        assert path.planned == [call]
        other = 6, "kind", 0.5, grad, sums, weight
        assert path.module.backward(*other) is not None and len(path.planned) == 2
        expanded = torch.rand(1, 1, 1, 1).expand(2, 3, 1, 1)
        assert path.module.backward(5, "kind", 0.5, expanded, sums, weight) is not None
        assert len(path.planned) == 3, "the strides of the gradient are part of the key"
        assert path.module.backward(5, "kind", 0.5, grad, None, weight) is not None
        assert path.planned[3][4] is None, "without band sums it is another call"
        for at, wrong in ((0, "5"), (0, 5.0), (0, 2**70), (2, 1), (2, "0.5"), (3, None), (3, Subclass(grad)),
                          (4, 0), (5, None), (5, weight.to("meta"))):  # fmt: skip
            assert path.module.backward(*call[:at], wrong, *call[at + 1 :]) is None, (at, wrong)
        assert path.module.backward(*call[:-1]) is None
        # An output that is not made has no address.
        path.plan = outputs, 20.0, 0, 0, ((1, 2, 1, 32, 0, ((OUTPUT, 0),)),), None
        assert path.module.backward(7, *call[1:]) is None
        for wrong in (outputs * 2, ()):
            path.plan = wrong, 20.0, 0, 0, (launch,), None
            assert path.module.backward(7, *call[1:]) is None
