"""Private names of torch: each is taken away in turn, and everything still works, only slower."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest

from runtime import private

ROOT = Path(__file__).parents[2]
SOURCE = Path(private.__file__).read_text()
# The one left out is of a type of C's, from which nobody can take a name.
NAMES = (
    *(name for name in re.findall(r'_find\("([\w.]+)"\)', SOURCE) if name != "Tensor._make_wrapper_subclass"),
    "autograd.forward_ad._current_level",
)

# torch is imported once; then a child process for each name takes it away and imports convgap, as a fresh one would.
PROGRAM = """
import functools, json, os, sys, threading, traceback
import torch, torch.autograd.forward_ad, torch.utils.flop_counter, torch._dynamo  # that torch needs names itself

for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print("" if os.waitpid(child, 0)[1] == 0 else "failed", flush=True)
else:
    sys.exit()

def leave(*error):
    traceback.print_exception(*error, file=sys.stdout)
    sys.stdout.flush()
    os._exit(1)

sys.excepthook = leave
*parents, name = line.strip().split(".")
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
# As small as two groups, a cropped border and different axes allow: every element is asked for its derivatives.
x, w, b, m = make(1, 4, 2, 3), make(4, 1, 2, 1), make(2), make(1, 2, 1, 1)
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
layers = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 3, 2), torch.nn.AdaptiveAvgPool2d(1)).double()
given = x.detach()
torch.testing.assert_close(convgap.fuse(layers).model(given), layers(given))
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, text=True, cwd=ROOT) as process:
        yield process
        process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]


def run(process: subprocess.Popen[str], name: str) -> Any:
    """What the program finds without that name; "" is none."""
    assert process.stdin and process.stdout
    print(name, file=process.stdin, flush=True)
    said: list[str] = []
    while (line := process.stdout.readline()) not in ("", "\n", "failed\n"):
        said.append(line)
    assert line == "\n", "".join(said)[-2000:]
    return json.loads(said[-1])


def test_all_are_there_and_no_thread_is_started(process: subprocess.Popen[str]) -> None:
    assert run(process, "") == {"missing": [], "ordinary": True, "nodes": True, "threads": 1}


# One of each use: what is ordinary, nodes, launches.
USUAL = ("_C.DispatchKeySet", "autograd.function._SingleLevelFunction", "_C._cuda_getCurrentRawStream")


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_without_one(process: subprocess.Popen[str], name: str) -> None:
    found = run(process, name)
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
