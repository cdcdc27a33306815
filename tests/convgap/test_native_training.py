"""Training through the native path: what it makes is a node of autograd, with the gradients that Python gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import convgap
from convgap import fast, plans
from convgap.torch_op.derivatives import ChainNode, TailNode, straight
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from tests.usable import require


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_what_the_native_path_has_made_is_differentiated(tensor: bool) -> None:
    """The node's output is what the launches made, whatever that is, and its gradient is the tail's."""
    y = torch.rand(2, 3, 4, 5, requires_grad=True)
    given = torch.rand(3, 1, 1) if tensor else None
    answer = torch.rand(2, 3, 1, 1)
    out = TailNode.apply(y, given, 1.0 if tensor else 0.5, "torch", (answer,))
    assert torch.equal(out, answer) and not out._is_view()
    (grad,) = torch.autograd.grad(out.sum(), y)
    # One product and one quotient, each rounded once.
    expected = 0.5 if given is None else given.expand(2, 3, 1, 1)
    torch.testing.assert_close(grad, (torch.as_tensor(expected) / 20).expand_as(y), rtol=2**-22, atol=0)


@pytest.mark.parametrize("wanted", [("x",), ("x", "weight", "bias")], ids="+".join)
def test_the_gradients_of_the_native_path_are_those_of_the_chain(
    wanted: tuple[str, ...], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node takes the outputs that were made, and hands on the gradients that the native backward gives; where
    that gives none, they are made in Python."""
    (case,) = select(["chain/edge/7x7"])
    inputs = make_inputs(case, device)
    leaves = [getattr(inputs, name).requires_grad_() for name in wanted]
    problem: Any = case.problem
    kind = straight(problem, inputs.x, inputs.weight, inputs.bias, None, "torch")
    assert kind is not None and kind.wants == (True, len(wanted) > 1, len(wanted) > 1, False)
    made = kind.forward(inputs.x, inputs.weight, inputs.bias, None, 0.5)
    made = made if made[1] is not None else made[:1]
    given = inputs.x, inputs.weight, inputs.bias, None, 0.5, kind
    expected = torch.autograd.grad(ChainNode.apply(*given, None)[0].sum(), leaves)
    asked: list[tuple[Any, ...]] = []

    def native(*call: Any) -> Any:
        asked.append(call)
        return answer

    monkeypatch.setattr(fast, "backward", native)
    answer: Any = None
    out = ChainNode.apply(*given, made)[0]
    assert torch.equal(out, made[0]) and not out._is_view()
    for found, right in zip(torch.autograd.grad(out.sum(), leaves, retain_graph=True), expected, strict=True):
        assert torch.equal(found, right)
    ((number, steps, scale, grad, sums, weight),) = asked
    assert (number, steps, scale) == (kind.number, kind, 0.5) and torch.equal(grad, torch.ones_like(grad))
    assert (sums is None) == (len(wanted) == 1) and weight is inputs.weight
    answer = tuple(None if name not in wanted else getattr(inputs, name) * 2 for name in ("x", "weight", "bias"))
    for found, name in zip(torch.autograd.grad(out.sum(), leaves), wanted, strict=True):
        assert torch.equal(found, getattr(inputs, name) * 2)


def test_kinds_have_numbers_of_their_own() -> None:
    (case,) = select(["chain/edge/7x7"])
    inputs, _ = make_inputs(case, torch.device("cpu")).tracked()
    problem: Any = case.problem
    one, same, other = (
        straight(problem, inputs.x, inputs.weight, bias, None, "torch") for bias in (inputs.bias, inputs.bias, None)
    )
    assert one is not None and other is not None and one is same and one.number != other.number
    with torch.no_grad():
        assert straight(problem, inputs.x, inputs.weight, None, None, "torch") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the native path is for CUDA devices")
@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["chain/edge/7x7", "chain/edge/nobias", "tail/edge/7x7"])
def test_native_training_has_the_bits_of_python(backend: str, dtype: str, name: str, device: torch.device) -> None:
    require(backend, device)
    if fast.wait() != "native":
        pytest.skip(f"no native path: {fast.state()}")
    (case,) = select([name])
    inputs, leaves = make_inputs(case, device, dtype).tracked()

    def step() -> list[Tensor]:
        out = inputs.call(convgap, backend=backend)
        return [out, *torch.autograd.grad(out.sum(), list(leaves.values()))]

    step()  # the probe, which Python makes
    step()  # the first that is planned
    module: Any = fast._module
    before = module.counts()
    native = step()
    after = module.counts()
    # The tail's backward is torch's own operators.
    assert (after[0] - before[0], after[1] - before[1]) == (1 if "tail" in name else 2, 0)
    with fast.off():
        python = step()
    for one, other in zip(native, python, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_a_batch_of_none_has_nothing_to_launch(backend: str, device: torch.device) -> None:
    """There is no plan for it: what kernels divide their blocks by would be zero."""
    require(backend, device)
    (case,) = select(["chain/edge/7x7"])
    inputs, leaves = make_inputs(case, device).tracked()
    torch.autograd.grad(inputs.call(convgap, backend=backend).sum(), list(leaves.values()))  # now it is chosen
    problem: Any = replace(case.problem, n=0)
    x, weight, bias = inputs.x.detach()[:0].requires_grad_(), inputs.weight, inputs.bias
    assert weight is not None
    kind = straight(problem, x, weight, bias, None, backend)
    grad, sums = (torch.empty(shape, device=device) for shape in (problem.out_shape, problem.sums_shape))
    with pytest.raises(LookupError):
        plans.backward(0, kind, 0.5, grad, sums, weight)
    assert plans.chain(x, weight, bias, 0.5, *problem.geometry, "collapsed", backend) is None
