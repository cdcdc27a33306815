"""Two processes: DTensor's placements, and a DDP step that matches one process.

Gloo on the CPU, NCCL on two GPUs; and a DDP step of two processes that share one GPU, by Gloo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

import convgap

GPUS = torch.cuda.device_count()
KINDS = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(GPUS < 2, reason="NCCL between two processes takes two GPUs")),
]
SHARED = pytest.param("shared", marks=pytest.mark.skipif(GPUS < 1, reason="two processes that share a GPU take a GPU"))
# Equal to float64's rounding: the ranks add partial sums in another order.
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}


def _join(rank: int, kind: str, store: str) -> torch.device:
    torch.set_num_threads(1)
    device = {
        "cpu": torch.device("cpu"),
        "cuda": torch.device("cuda", rank),
        "shared": torch.device("cuda", 0),
    }[kind]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=2)
    return device


def _tensors(device: torch.device, groups: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 4, 5, 6), (4, 6 // groups, 3, 2), (6,), (4, 6, 1, 1)
    return [torch.rand(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]


def _sharded(rank: int, kind: str, store: str) -> None:
    device = _join(rank, kind, store)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    import convgap.torch_op.sharding

    mesh = init_device_mesh(kind, (2,))
    whole, batch, channel = Replicate(), Shard(0), Shard(1)
    ways = {
        "replicated": ([whole] * 4, whole, 2),
        "batch": ([batch, whole, whole, batch], batch, 2),
        "Cout": ([whole, channel, batch, channel], channel, 1),
        "Cin": ([channel, batch, whole, whole], Partial(), 1),
    }
    options: dict[str, Any] = {"stride": 2, "padding": 1}
    for name, (placements, expected_placement, groups) in ways.items():
        for scaled_by_tensor in (False, True):
            plain = [tensor.requires_grad_() for tensor in _tensors(device, groups)]
            shards = [
                distribute_tensor(tensor.detach(), mesh, [where]).requires_grad_()
                for tensor, where in zip(plain, placements, strict=True)
            ]
            outs: list[Any] = []
            gradients: list[Any] = []
            for x, weight, bias, multiplier in (plain, shards):
                wanted = [x, weight, bias, multiplier] if scaled_by_tensor else [x, weight, bias]
                out = convgap.conv_transpose2d_multiply_gap(
                    x,
                    weight,
                    bias,
                    multiplier=multiplier if scaled_by_tensor else 0.5,
                    groups=groups,
                    **options,
                )
                outs.append(out)
                gradients.append(torch.autograd.grad(out.square().sum(), wanted))
                with torch.no_grad():  # the one operator, instead of its differentiable parts
                    outs.append(
                        convgap.conv_transpose2d_multiply_gap(
                            x, weight, bias, multiplier=multiplier if scaled_by_tensor else 0.5, groups=groups,
                            **options,
                        )
                    )  # fmt: skip
            expected, fused, got, got_fused = outs
            assert got.placements == got_fused.placements == (expected_placement,), name
            torch.testing.assert_close(got.full_tensor(), expected, **CLOSE)
            torch.testing.assert_close(got_fused.full_tensor(), fused, **CLOSE)
            for a, b in zip(gradients[1], gradients[0], strict=True):
                torch.testing.assert_close(a.full_tensor(), b, **CLOSE)
    # Channels of a grouped convolution stay whole: x is gathered first, and the answer is right.
    x, weight, bias, _ = _tensors(device, 2)
    shard = distribute_tensor(x, mesh, [channel])
    others = [distribute_tensor(tensor, mesh, [whole]) for tensor in (weight, bias)]
    got: Any = convgap.conv_transpose2d_multiply_gap(shard, *others, groups=2, **options)
    expected = convgap.conv_transpose2d_multiply_gap(x, weight, bias, groups=2, **options)
    torch.testing.assert_close(got.full_tensor(), expected, **CLOSE)
    for where in (batch, channel):
        y = distribute_tensor(x, mesh, [where]).requires_grad_()
        out: Any = convgap.multiply_gap(y, 0.5)
        assert out.placements == (where,)
        torch.testing.assert_close(out.full_tensor(), convgap.multiply_gap(x, 0.5), **CLOSE)
        gradient: Any = torch.autograd.grad(out.sum(), y)[0]
        torch.testing.assert_close(gradient.full_tensor(), torch.full_like(x, 0.5 / (5 * 6)), **CLOSE)
    dist.destroy_process_group()


def _data_parallel(rank: int, kind: str, store: str) -> None:
    device = _join(rank, kind, store)
    x = _tensors(device)[0]

    def module() -> torch.nn.Module:
        torch.manual_seed(1)
        multiplier = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        return convgap.ConvTranspose2dMultiplyGAP(4, 6, 3, 2, 1, 1, multiplier).to(device, torch.float64)

    def step(model: torch.nn.Module, part: Tensor) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(part).square().mean().backward()
            optimizer.step()

    alone, together = module(), module()
    step(alone, x)
    parallel = torch.nn.parallel.DistributedDataParallel(
        together, device_ids=None if device.index is None else [device.index]
    )
    step(parallel, x[2 * rank : 2 * rank + 2])
    for got, expected in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)
    assert len(list(together.parameters())) == 3
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_dtensor(kind: str, tmp_path: Path) -> None:
    spawn(_sharded, (kind, str(tmp_path / "store")), nprocs=2)


@pytest.mark.parametrize("kind", [*KINDS, SHARED])
def test_ddp_matches_one_process(kind: str, tmp_path: Path) -> None:
    spawn(_data_parallel, (kind, str(tmp_path / "store")), nprocs=2)
