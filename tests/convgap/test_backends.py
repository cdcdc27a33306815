"""Every backend against the oracle: cases, dtypes, layouts, memory, streams, graphs, and the same bits again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import convgap
from convgap.selection import BACKENDS
from harness.cases.case import LAYOUTS, Case, random_chain
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import compare
from harness.numerics.depth import depth
from harness.numerics.examine import guarded
from harness.numerics.truth import Truth, truth
from reference.problem import Chain, Tail
from runtime import call as calls
from runtime.prepared import Prepared
from tests.usable import TRITON, require

GPU = torch.cuda.is_available()
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Planes past 2**31 elements have tests of their own: the oracle would need 40 GiB and minutes for each.
BEYOND = [case for case in select(["*/past-2*"]) if "expanded" in case.layout]
CASES = [case if GPU else case.small() for case in select(["*"], gpu=GPU) if "past-2" not in case.name]
EDGE = [case.name for case in select(["edge"], gpu=False)]
# A kernel is compiled for each dtype, in about a second where it is not interpreted.
SWEPT = EDGE if not GPU else [
    "chain/edge/1x1", "chain/edge/prime", "chain/edge/no-band", "chain/edge/rectangular", "chain/edge/groups3",
    "chain/edge/many-channels", "chain/edge/multiplier-tensor", "chain/edge/subnormal", "chain/edge/nonfinite",
    "tail/edge/1x1", "tail/edge/prime", "tail/edge/many-planes", "tail/edge/multiplier-tensor",
    "tail/edge/subnormal", "tail/edge/nonfinite",
]  # fmt: skip
# Ordinary, cropped with strides that differ by axis, grouped, and the tail; no size divides a tile.
LAID_OUT = ("chain/edge/prime", "chain/edge/rectangular", "chain/edge/groups3", "tail/edge/prime")

needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU: the CPU has neither streams nor graphs")


@lru_cache(maxsize=4)
def known(case: Case, device: torch.device, dtype: str, layout: str) -> tuple[Inputs, Truth]:
    """Inputs and their truth, which the backends share; nobody writes to them."""
    inputs = make_inputs(case, device, dtype, layout)
    return inputs, truth(case.problem, inputs)


def check(backend: str, case: Case, device: torch.device, dtype: str, layout: str) -> None:
    require(backend, device)
    inputs, true = known(case, device, dtype, layout)
    inputs = guarded(inputs)
    out = inputs.call(convgap, backend=backend)
    result = compare(
        out, true.expected, true.magnitude, dtype, additions(backend, case, inputs),
        floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message
    assert out.is_contiguous()


def additions(backend: str, case: Case, inputs: Inputs) -> int:
    """The backend's longest chain of additions for these very inputs."""
    x = inputs.x
    return depth(backend, case.problem, x.dtype, x.stride(), x.data_ptr())


def named(name: str, **changes: object) -> Case:
    (case,) = select([name])
    return replace(case, **changes)  # pyright: ignore[reportArgumentType]


# The uppermost parameter runs fastest: the backends share one truth.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("poisoned")
def test_case(backend: str, case: Case, device: torch.device) -> None:
    check(backend, case, device, case.dtype, case.layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.usefixtures("poisoned")
def test_dtype(backend: str, name: str, dtype: str, device: torch.device) -> None:
    check(backend, named(name), device, dtype, "contiguous")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", LAID_OUT)
@pytest.mark.usefixtures("poisoned")
def test_layout(backend: str, name: str, layout: str, dtype: str, device: torch.device) -> None:
    # float16 has wider vectors.
    check(backend, named(name), device, dtype, layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.usefixtures("poisoned")
def test_random_problem(backend: str, seed: int, device: torch.device) -> None:
    case = Case(
        f"ops-{seed}",
        random_chain(Random(7000 + seed), size=7),
        "drawn",
        values="normal",
        multiplier=(None, -1.7)[seed % 2],
    )
    check(backend, case, device, DTYPES[seed % 4], LAYOUTS[seed % len(LAYOUTS)])


# One of each way through the kernels: planes shared by a block, a plane in several parts (more than
# 64 KiB), channels_last, one launch and two.
def x2(n: int, c_in: int, c_out: int, h: int, w: int) -> Chain:
    return Chain(n, c_in, c_out, h, w, (3, 3), (2, 2), (1, 1), (1, 1))


REPEATED = [
    Case("repeat/tail", Tail(5, 6, 7, 7), "planes share a block", values="normal"),
    Case("repeat/tail-parts", Tail(2, 1, 140, 130), "a plane in parts", values="normal"),
    Case("repeat/tail-channels_last", Tail(3, 8, 6, 5), "columns", layout="channels_last", values="normal"),
    Case("repeat/chain", x2(5, 4, 3, 12, 12), "small weight", values="normal"),
    Case("repeat/chain-parts", x2(2, 1, 2, 140, 130), "a plane in parts", values="normal"),
    Case("repeat/chain-wide", x2(3, 8, 40, 4, 4), "large weight", values="normal"),
    Case("repeat/chain-many", x2(33, 8, 70, 3, 3), "other blocks than for few samples", values="normal"),
    pytest.param(
        Case(
            "repeat/chain-many-k4",
            Chain(33, 8, 70, 3, 3, (4, 4), (2, 2), (1, 1)),
            "wide loads",
            values="normal",
        ),
        marks=TRITON.marks,
    ),
    Case("repeat/chain-channels_last", x2(3, 8, 3, 8, 8), "columns", layout="channels_last", values="normal"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_same_bits_from_run_to_run(backend: str, case: Case, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(case, device)
    first = inputs.call(convgap, backend=backend)
    for _ in range(3 if GPU else 1):
        assert torch.equal(inputs.call(convgap, backend=backend), first)


@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_same_bits_whatever_else_is_in_the_batch(backend: str, case: Case, device: torch.device) -> None:
    # Plain torch promises no such thing: how its sums are split depends on how many there are.
    require(backend, device)
    inputs = make_inputs(case, device)
    together = inputs.call(convgap, backend=backend)
    for n in range(case.problem.n):
        alone = replace(inputs, x=inputs.x[n : n + 1]).call(convgap, backend=backend)
        assert torch.equal(alone[0], together[n])


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_columns_in_a_run_are_read_as_rows(backend: str, device: torch.device) -> None:
    """x stored [N, C, W, H] is the problem with rows and columns swapped, and its answer has the same bits."""
    require(backend, device)
    problem = Chain(2, 3, 4, 24, 40, (3, 2), (2, 1), (1, 0), (1, 0))
    case = Case("chain/swapped", problem, "axes differ in all", values="normal")
    given = make_inputs(case, device, layout="transposed")
    assert given.weight is not None
    swapped = replace(
        make_inputs(replace(case, problem=problem.swapped()), device),
        x=given.x.transpose(2, 3),
        weight=given.weight.transpose(2, 3).contiguous(),
        bias=given.bias,
    )
    assert swapped.x.is_contiguous()
    out = given.call(convgap, backend=backend)
    assert torch.equal(out, swapped.call(convgap, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weight_at_an_odd_address(backend: str, dtype: str, device: torch.device) -> None:
    """A view into other parameters. 4 x 4 taps would be read in accesses of 16 bytes."""
    require(backend, device)
    problem = Chain(3, 8, 40, 4, 4, (4, 4), (2, 2), (1, 1))
    inputs = make_inputs(Case("odd-weight", problem, "large weight", values="normal"), device, dtype)
    assert inputs.weight is not None
    flat = torch.empty(inputs.weight.numel() + 1, dtype=inputs.weight.dtype, device=device)
    odd = flat[1:].view(inputs.weight.shape).copy_(inputs.weight)
    assert odd.is_contiguous() and odd.data_ptr() % 16
    expected = inputs.call(convgap, backend=backend)
    assert torch.equal(replace(inputs, weight=odd).call(convgap, backend=backend), expected)


def test_products_read_from_aligned_addresses() -> None:
    problem = Chain(3, 8, 40, 4, 4, (4, 4), (2, 2), (1, 1), bias=False)
    seen: list[Tensor] = []
    launch: Any = SimpleNamespace(kind=0)
    kernels: Any = SimpleNamespace(prepare_contract=lambda *_: Prepared(launch, 0, 0, ""))
    for first in (0, 1):
        sums, weight = (torch.arange(first + n, dtype=torch.float32)[first:] for n in (3 * 72, 8 * 40 * 16))
        given = sums.view(problem.sums_shape), weight.view(problem.weight_shape)
        with mock.patch.object(calls, "_start", lambda made, device, stream, *a: seen.extend(a[:2])):
            calls.contract(kernels, problem, *given, None, 1.0, None, 0)
        assert [t.data_ptr() % 16 for t in seen] == [0, 0]
        for have, want in zip(seen, given, strict=True):
            assert torch.equal(have, want) and (have is want) == (first == 0)
        seen.clear()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["chain/edge/7x7", "tail/edge/7x7", "chain/edge/multiplier-tensor"])
def test_unbatched(backend: str, name: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(named(name), device)
    one = replace(inputs, x=inputs.x[0])
    out = one.call(convgap, backend=backend)
    expected = replace(inputs, x=inputs.x[:1]).call(convgap, backend=backend)
    assert out.shape == expected.shape[1:]
    assert torch.equal(out, expected[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (2, 1, 1, 1), (2, 4, 1, 1)])
@pytest.mark.parametrize("name", ["chain/edge/batch1", "tail/edge/7x7"])
def test_multiplier_broadcasts(backend: str, name: str, shape: tuple[int, ...], device: torch.device) -> None:
    case = named(name)
    problem = replace(case.problem, n=2) if case.op == "chain" else Tail(2, 4, 7, 7)
    multiplier = torch.rand(shape, generator=torch.Generator().manual_seed(3)).to(device) - 0.5
    require(backend, device)
    case = replace(case, problem=problem)
    inputs = replace(make_inputs(case, device), multiplier=multiplier)
    true = truth(problem, inputs)
    out = inputs.call(convgap, backend=backend)
    result = compare(
        out, true.expected, true.magnitude, "float32", additions(backend, case, inputs),
        floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_multiplier_of_another_dtype_is_not_rounded(backend: str, dtype: str, device: torch.device) -> None:
    # Rounded to y's dtype first, the multiplier would be 1; as it is, it takes y to the next number, 2.
    require(backend, device)
    eps = torch.finfo(getattr(torch, dtype)).eps
    y = torch.full((1, 1, 2, 2), 2 - eps, dtype=getattr(torch, dtype), device=device)
    multiplier = torch.tensor(1 + 0.49 * eps, device=device)
    assert convgap.multiply_gap(y, multiplier, backend=backend).item() == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_strategy_tail_is_the_same_operator(backend: str, device: torch.device) -> None:
    # float64, where the framework's convolution has no TF32 to hide behind.
    require(backend, device)
    inputs, true = known(named("chain/edge/rectangular"), device, "float64", "contiguous")
    out = inputs.call(convgap, backend=backend, strategy="tail")
    assert out.flatten().tolist() == pytest.approx(true.expected.ravel().tolist(), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["chain/edge/prime", "tail/edge/prime"])
def test_inputs_are_not_written(backend: str, name: str, device: torch.device) -> None:
    require(backend, device)
    inputs, again = (make_inputs(named(name), device) for _ in range(2))
    inputs.call(convgap, backend=backend)
    assert torch.equal(inputs.x, again.x)
    if inputs.weight is not None and again.weight is not None:
        assert torch.equal(inputs.weight, again.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_weight_and_bias(backend: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(named("chain/edge/rectangular"), device)
    expected = inputs.call(convgap, backend=backend)
    weight, bias = inputs.weight, inputs.bias
    assert weight is not None
    assert bias is not None
    strided = replace(inputs, weight=weight.mT.contiguous().mT, bias=torch.stack([bias, bias], 1)[:, 0])
    assert torch.equal(strided.call(convgap, backend=backend), expected)


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_graph_replays_on_new_values(backend: str, case: Case, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(case, device)
    fresh = make_inputs(replace(case, seed=1), device)
    expected = fresh.call(convgap, backend=backend)
    out, graph = captured(lambda: inputs.call(convgap, backend=backend))
    for _ in range(3):
        out.fill_(torch.nan)
        inputs.x.copy_(fresh.x)
        for name in ("weight", "bias"):
            if getattr(inputs, name) is not None:
                getattr(inputs, name).copy_(getattr(fresh, name))
        graph.replay()
        assert torch.equal(out, expected)


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_of_a_training_step(backend: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(named("chain/edge/prime"), device)
    assert inputs.weight is not None
    x, weight = inputs.x.requires_grad_(), inputs.weight.requires_grad_()

    def step() -> Tensor:
        out = replace(inputs, x=x, weight=weight).call(convgap, backend=backend)
        return torch.cat([g.flatten() for g in torch.autograd.grad(out.sum(), [x, weight])])

    expected = step()
    out, graph = captured(step)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, expected)


def captured(call: Callable[[], Tensor]) -> tuple[Tensor, torch.cuda.CUDAGraph]:
    """What `call` gives, as a graph: run once before, on the stream of the capture, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = call()
    return out, graph


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_runs_on_the_current_stream(backend: str, case: Case, device: torch.device) -> None:
    # x arrives late on a stream of its own: a launch on any other stream would read NaN.
    require(backend, device)
    inputs = make_inputs(case, device)
    expected = inputs.call(convgap, backend=backend)
    late = replace(inputs, x=torch.full_like(inputs.x, torch.nan))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)  # some 10 ms
        late.x.copy_(inputs.x)
        out = late.call(convgap, backend=backend)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out, expected)


@needs_gpu
@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_streams_do_not_share_workspace(backend: str, case: Case, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(case, device)
    expected = inputs.call(convgap, backend=backend)
    torch.cuda.synchronize()
    outs = []
    streams = [torch.cuda.Stream() for _ in range(4)]
    for _ in range(25):
        for stream in streams:
            with torch.cuda.stream(stream):
                outs.append(inputs.call(convgap, backend=backend))
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected) for out in outs)


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["chain/headline", "tail/7x7"])
def test_no_call_waits_for_the_device(backend: str, name: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(named(name), device)
    inputs.call(convgap, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs.call(convgap, backend=backend)
        # CuPy and Triton are not torch: they show in whether the device is still busy.
        torch.cuda._sleep(200_000_000)  # some 100 ms
        inputs.call(convgap, backend=backend)
        busy = not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert busy


@needs_gpu
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_reads_x_in_place(backend: str, device: torch.device) -> None:
    # A hidden copy of 64 MiB would show beside the few KiB of workspace.
    require(backend, device)
    inputs = make_inputs(named("chain/headline"), device, layout="transposed")
    inputs.call(convgap, backend=backend)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    inputs.call(convgap, backend=backend)
    assert torch.cuda.max_memory_allocated() - before < 2**22


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case.name)
def test_past_2_31_elements(backend: str, case: Case, device: torch.device) -> None:
    # All rows (or samples) are the same ones, so that two of them have the same mean.
    require(backend, device)
    few = {"h": 2} if case.layout == "expanded_rows" else {"n": 2}
    small = replace(case.problem, **few)  # pyright: ignore[reportArgumentType]
    true = truth(small, make_inputs(replace(case, problem=small), "cpu"))
    inputs = make_inputs(case, device)
    out = inputs.call(convgap, backend=backend)
    expected, magnitude = (values[:1].repeat(case.problem.n, 0) for values in (true.expected, true.magnitude))
    result = compare(
        out, expected, magnitude, case.dtype, additions(backend, case, inputs),
        floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message


# Elements past 2**31 are 1 and all others 0: an offset that wraps reads zeros, or crashes.
SIDE = 46_342  # its square is the first past 2**31; 4 GiB in float16


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["tail", "chain"])
def test_past_2_31_elements_really_stored(backend: str, op: str, device: torch.device) -> None:
    require(backend, device)
    y = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float16, device=device)
    ones = SIDE * SIDE - 2**31
    y.view(-1)[2**31 :] = 1
    # Scaled so that the answer is 1, within a rounding of float16.
    factor = SIDE * SIDE / ones
    if op == "tail":
        out = convgap.multiply_gap(y, factor, backend=backend)
    else:
        weight = torch.ones(1, 1, 1, 1, dtype=torch.float16, device=device)
        out = convgap.conv_transpose2d_multiply_gap(y, weight, multiplier=factor, backend=backend)
    assert out.item() == pytest.approx(1, rel=2**-10)


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_past_2_31_elements_really_stored(backend: str, device: torch.device) -> None:
    require(backend, device)
    y = torch.zeros(32_800, 64, 32, 32, dtype=torch.float16, device=device)
    y[-1] = 1
    out = convgap.multiply_gap(y, 3.0, backend=backend).flatten(1)
    assert (out[-1] == 3).all()
    assert not out[:-1].any()
