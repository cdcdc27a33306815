"""What only a GPU shows: graphs, streams, waiting, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import convgap
from convgap.selection import BACKENDS
from harness.cases.case import Case
from harness.cases.inputs import make_inputs
from tests.convgap.answers import REPEATED, named
from tests.usable import require

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the CPU has neither streams nor graphs")


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
