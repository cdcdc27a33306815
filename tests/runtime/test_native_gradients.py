"""Calls of the native path that want gradients, and their backwards, against a stand-in for the driver."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from convgap.plans import GRAD, INTEGER, MEAN, OUTPUT, POINTER, SCALE, SUMS, WEIGHT, X
from tests.runtime.stand_in import ONE, Calls, double, plan, y_like


class Subclass(Tensor):
    pass


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
