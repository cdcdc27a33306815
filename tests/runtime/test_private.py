"""Private names of torch: each is taken away in turn, and everything still works, only slower."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import private

ROOT = Path(__file__).parents[2]
SOURCE = Path(private.__file__).read_text()
NAMES = (*re.findall(r'_find\("([\w.]+)"\)', SOURCE), "autograd.forward_ad._current_level")

PROGRAM = """
import functools, json, sys, threading
import torch, torch.autograd.forward_ad, torch.utils.flop_counter  # that torch needs names itself

*parents, name = sys.argv[1].split(".") if sys.argv[1] else [""]
hidden = []
if name:
    owner = functools.reduce(getattr, parents, torch)
    hidden.append(getattr(owner, name))
    delattr(owner, name)
import convgap
from runtime import private
# Torch itself needs most of them; a torch without a name would have another.
if name:
    setattr(owner, name, hidden[0])

def make(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()

generator = torch.Generator().manual_seed(0)
x, w, b, m = make(2, 4, 5, 6), make(4, 2, 3, 2), make(4), make(2, 4, 1, 1)
options = dict(stride=(2, 1), padding=(1, 0), output_padding=(1, 0), groups=2)

def chain(x, w, b, m):
    return convgap.conv_transpose2d_multiply_gap(x, w, b, multiplier=m, **options)

def right(x, w, b, m):
    return (torch.nn.functional.conv_transpose2d(x, w, b, **options) * m).mean((2, 3), keepdim=True)

found = {"missing": private.MISSING, "ordinary": private.ordinary(x), "nodes": private.NODES,
         "threads": threading.active_count()}
with torch.no_grad():
    torch.testing.assert_close(chain(x, w, b, m), right(x, w, b, m))
    torch.testing.assert_close(convgap.multiply_gap(x, 0.5), 0.5 * x.mean((2, 3), keepdim=True))
assert torch.autograd.gradcheck(chain, (x, w, b, m)) and torch.autograd.gradgradcheck(chain, (x, w, b, m))
scale = make(4, 1, 1)
for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
    assert check(convgap.multiply_gap, (x, scale))
assert torch.autograd.gradcheck(lambda x: convgap.multiply_gap(x, 0.5), (x,))
with torch.autocast("cpu", torch.bfloat16):
    assert chain(x.float(), w.float(), b.float(), 0.5).dtype == torch.bfloat16
if not name or not private.NODES:
    compiled = torch.compile(lambda x: chain(x, w, b, m).sin().sum(), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(right(x, w, b, m).sin().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), expected)
if private.NODES:  # torch.library's own derivatives refuse torch.func
    torch.testing.assert_close(torch.func.grad(lambda x: chain(x, w, b, m).sum())(x.detach()),
                               torch.func.grad(lambda x: right(x, w, b, m).sum())(x.detach()))
print(json.dumps(found))
"""


def run(name: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, name],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_all_are_there_and_no_thread_is_started() -> None:
    assert run("") == {"missing": [], "ordinary": True, "nodes": True, "threads": 1}


# One of each use: what is ordinary, nodes, launches.
USUAL = ("_C.DispatchKeySet", "autograd.function._SingleLevelFunction", "_C._cuda_getCurrentRawStream")


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_without_one(name: str) -> None:
    found = run(name)
    assert found["missing"] == [name]
    # What the test of an ordinary call goes by, and what nodes of our own are made with.
    straight = ("DispatchKey", "DispatchKeySet", "_dispatch_", "_profiler_enabled", "_current_level")
    assert found["ordinary"] != any(word in name for word in straight)
    nodes = ("BelowAutograd", "peek_", "enable_single", "_set_fwd", "_SingleLevel")
    assert found["nodes"] != any(word in name for word in nodes)


def test_no_private_name_is_used_elsewhere() -> None:
    pattern = re.compile(r"torch\._|from torch\._|forward_ad\._|torch\.autograd\.function\._")
    for folder in ("convgap", "runtime", "torch_impl", "triton_impl", "cupy_impl", "reference"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "private.py":
                assert not pattern.search(path.read_text()), path
