"""Threads, streams, CUDA graphs, several devices. Bits are compared: the same work gives the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import convgap
from convgap.selection import status_of

ROOT = Path(__file__).parents[2]
GPUS = torch.cuda.device_count()
THREADS = 8

gpu = pytest.mark.skipif(not GPUS, reason="streams and graphs take a GPU")


def arguments(device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # On a GPU large enough that a block is not alone, and that the last block of a sample adds.
    shapes = ((4, 16, 96, 80), (16, 24, 3, 3), (24,)) if GPUS else ((2, 3, 8, 7), (3, 4, 3, 3), (4,))
    x, weight, bias = (torch.rand(shape, generator=generator).to(device) for shape in shapes)
    return x, weight, bias


def call(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    return convgap.conv_transpose2d_multiply_gap(
        x, weight, bias, multiplier=0.5, stride=2, padding=1, output_padding=1, backend=backend
    )


def usable(backend: str, device: torch.device) -> str:
    status = status_of(backend, device)
    if not status.usable:
        pytest.skip(f"{backend} is not usable here: {status.reason}")
    return backend


@pytest.mark.parametrize("backend", convgap.BACKENDS if GPUS else ["torch"])
def test_threads(backend: str, device: torch.device) -> None:
    usable(backend, device)
    repeats = 1000 if GPUS else 50
    inputs = [arguments(device, seed) for seed in range(THREADS)]
    expected = [(call(*given, backend), convgap.multiply_gap(given[0], 0.5, backend=backend)) for given in inputs]
    if GPUS:
        torch.cuda.synchronize()

    def work(index: int) -> bool:
        given, (chain, tail) = inputs[index], expected[index]

        def repeat() -> bool:
            same = torch.ones((), dtype=torch.bool, device=device)
            for _ in range(repeats):
                same &= (call(*given, backend) == chain).all()
                same &= (convgap.multiply_gap(given[0], 0.5, backend=backend) == tail).all()
            return bool(same)

        if not GPUS:
            return repeat()
        with torch.cuda.stream(torch.cuda.Stream(device)):
            return repeat()

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(THREADS)))


@gpu
@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_the_current_stream_is_used(backend: str, device: torch.device) -> None:
    usable(backend, device)
    x, weight, bias = arguments(device)
    expected = call(x, weight, bias, backend)
    later = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds: a launch on any other stream would read zeros
        later.copy_(x)
        got = call(later, weight, bias, backend)
    stream.synchronize()
    assert torch.equal(got, expected)


@gpu
@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_capture_and_replay_with_other_inputs(backend: str, device: torch.device) -> None:
    usable(backend, device)
    static = [tensor.clone() for tensor in arguments(device)]
    convgap.warmup(call, *static, backend)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.graph(graph, stream=stream):
        out = call(static[0], static[1], static[2], backend)
        tail = convgap.multiply_gap(static[0], 0.5, backend=backend)
    for seed in (1, 2, 1):
        given = arguments(device, seed)
        for to, tensor in zip(static, given, strict=True):
            to.copy_(tensor)
        torch.cuda.synchronize()
        replayed = torch.cuda.Stream(device)
        with torch.cuda.stream(replayed):
            graph.replay()
        # Eager calls between replays must not disturb them, nor be disturbed.
        eager = call(*given, backend)
        torch.cuda.synchronize()
        assert torch.equal(out, eager)
        assert torch.equal(tail, convgap.multiply_gap(given[0], 0.5, backend=backend))


@gpu
@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_a_training_step_can_be_captured(backend: str, device: torch.device) -> None:
    usable(backend, device)
    module = convgap.ConvTranspose2dMultiplyGAP(16, 24, 3, 2, 1, 1, 0.5, backend=backend).to(device)
    x = arguments(device)[0]
    convgap.warmup(module, x)
    parameters = list(module.parameters())
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch's own warm-up of autograd
        torch.autograd.grad(module(x).square().sum(), parameters)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(module(x).square().sum(), parameters)
    x.copy_(arguments(device, 3)[0])
    graph.replay()
    expected = torch.autograd.grad(module(x).square().sum(), parameters)
    for got, want in zip(captured, expected, strict=True):
        assert torch.equal(got, want)


# After a warm-up nothing is compiled or loaded any more, for any batch size.
CAPTURED = """
def refuse(*args, **kwargs):
    raise AssertionError("compiled or loaded during capture")
import cupy
from triton_impl import driver, machine_code
machine_code.compiled = cupy.RawKernel = driver.Kernel = refuse
for n in BATCHES:
    x = torch.rand(n, *x.shape[1:], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = convgap.conv_transpose2d_multiply_gap(x, w, stride=2, backend=BACKEND)
    x.uniform_()
    graph.replay()
    assert torch.equal(out, convgap.conv_transpose2d_multiply_gap(x, w, stride=2, backend=BACKEND))
"""

IN_A_PROCESS = {
    "warmup": """
BATCHES = 2, 3
x, w = torch.rand(2, 4, 9, 8, device="cuda"), torch.rand(4, 3, 3, 3, device="cuda")
convgap.warmup(convgap.conv_transpose2d_multiply_gap, x, w, stride=2, backend=BACKEND)
"""
    + CAPTURED,
    # The weight is large: contract, which has one form for few products and one for many.
    "warmup, large weight": """
BATCHES = 3, 40
x, w = torch.rand(2, 200, 4, 4, device="cuda"), torch.rand(200, 70, 3, 3, device="cuda")
done = convgap.warmup(convgap.conv_transpose2d_multiply_gap, x, w, stride=2, backend=BACKEND)
assert done.steps[0].kernels == ("band_sums", "contract"), done
"""
    + CAPTURED,
    "no warmup": """
x = torch.rand(2, 4, 9, 8, device="cuda")
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        convgap.multiply_gap(x, 0.5, backend=BACKEND)
except RuntimeError as error:
    assert "convgap.warmup" in str(error), error
else:
    raise AssertionError("captured what was never tried")
convgap.multiply_gap(x, 0.5, backend=BACKEND)
torch.cuda.synchronize()
""",
    "fork": """
import os
x = torch.rand(2, 4, 9, 8, device="cuda")
convgap.multiply_gap(x, 0.5, backend=BACKEND)
child = os.fork()
if child == 0:
    try:
        convgap.multiply_gap(x, 0.5, backend=BACKEND)
    except RuntimeError as error:
        os._exit(0 if "forked subprocess" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
}


@gpu
@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_in_a_fresh_process(name: str, backend: str, device: torch.device) -> None:
    usable(backend, device)
    program = f"import torch, convgap\nBACKEND = {backend!r}\n{IN_A_PROCESS[name]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(GPUS < 2, reason="takes two GPUs")
@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_tensors_on_another_device_than_the_current(backend: str) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    usable(backend, second)
    with torch.cuda.device(first):
        given = [tensor.requires_grad_() for tensor in arguments(second)]
        out = call(given[0], given[1], given[2], backend)
        gradients = torch.autograd.grad(out.square().sum(), given)
        assert torch.cuda.current_device() == 0
    with torch.cuda.device(second):
        expected = call(given[0], given[1], given[2], backend)
        again = torch.autograd.grad(expected.square().sum(), given)
    assert out.device == second
    for got, want in zip((out, *gradients), (expected, *again), strict=True):
        assert torch.equal(got, want)
