"""Known-wrong implementations: the judge must condemn every one of them. docs/checking.md shows the score.

A mutant is the real implementation with one thing changed, in one of three places:

* around it: other arguments, or another answer (`outside`; every backend);
* between its plan and its launches: other arguments of a kernel, another grid, other bands (`launch`,
  `problem`; the kernel sets, and `bands` for plain torch);
* in the text of the kernels (`source`; a pattern, what replaces it, how often it must be found).
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

import convgap
from harness.cases.inputs import Inputs
from harness.mutants.interpose import Run, interposed, kernel_name, parameters, with_arguments
from harness.numerics.examine import BATCH_INVARIANT, Call
from reference.problem import Band, Chain

Outside = Callable[[Call, Inputs], Tensor]
Bands = Callable[[Chain, int, tuple[Band, ...]], tuple[Band, ...]]


class NotApplicable(Exception):
    """The mutant has nothing to change in this call."""


@dataclass(frozen=True)
class Source:
    """Text to change in one kernel file; it must be found exactly `count` times."""

    pattern: str
    replacement: str
    count: int = 1

    def apply(self, text: str) -> str:
        """The changed text. Raises ValueError unless the pattern is found as often as expected."""
        changed, count = re.subn(self.pattern, self.replacement, text)
        if count != self.count:
            raise ValueError(f"pattern {self.pattern!r}: expected {self.count} matches, found {count}")
        return changed


@dataclass(frozen=True)
class Mutant:
    """One wrong implementation; `wrong` says in a few words what it does instead."""

    name: str
    wrong: str
    outside: Outside | None = None
    launch: Run | None = None
    problem: Callable[[Chain], Chain] | None = None
    bands: Bands | None = None
    source: Mapping[str, Source] = field(default_factory=dict)
    only: tuple[str, ...] = convgap.BACKENDS
    """The backends that promise what an `outside` mutant breaks."""

    def backends(self) -> tuple[str, ...]:
        """The backends that have such a mutant."""
        if self.outside:
            return self.only
        inside = ("triton", "cupy") if self.launch or self.problem else tuple(self.source)
        return (*inside, "torch") if self.bands else inside

    def call(self, backend: str) -> Call:
        """The mutant as an implementation. It raises NotApplicable where there is nothing to change."""

        def right(inputs: Inputs) -> Tensor:
            return inputs.call(convgap, backend=backend)

        def call(inputs: Inputs) -> Tensor:
            # Before anything is changed: a backend is probed once, and must not be found broken.
            convgap.status(inputs.x.device)
            if self.outside:
                return self.outside(right, inputs)
            with self._inside(backend):
                return right(inputs)

        return call

    @contextmanager
    def _inside(self, backend: str) -> Iterator[None]:
        if backend == "torch":
            bands, wrong = Chain.bands, self.bands
            assert wrong
            with mock.patch.object(Chain, "bands", lambda p, axis: wrong(p, axis, bands(p, axis))):
                yield
            return
        run = _from_source(backend, self.source[backend]) if backend in self.source else self.launch
        with interposed(_then_reset(run or _as_it_is), self.problem or (lambda p: p)):
            yield


def _as_it_is(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    launch(device, stream, *arguments)


def _then_reset(run: Run) -> Run:
    """A mutant may leave the launch counters, which later launches share, at something other than 0."""

    def then_reset(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        run(launch, device, stream, *arguments)
        for value in arguments:
            if isinstance(value, Tensor) and value.dtype == torch.int32:
                value.zero_()

    return then_reset


# Around the implementation


def _chain(inputs: Inputs) -> Tensor:
    """The weight; NotApplicable for the tail."""
    if inputs.weight is None:
        raise NotApplicable
    return inputs.weight


def _changed(**changes: Callable[[Inputs], Any]) -> Outside:
    """The real implementation on changed arguments: field of Inputs -> its new value."""
    return lambda call, i: call(replace(i, **{name: change(i) for name, change in changes.items()}))


def _weight(change: Callable[[Tensor], Tensor]) -> Outside:
    return _changed(weight=lambda i: change(_chain(i)))


def _bias(change: Callable[[Inputs, Tensor], Tensor | None]) -> Outside:
    def outside(call: Call, i: Inputs) -> Tensor:
        if i.bias is None:
            raise NotApplicable
        return call(replace(i, bias=change(i, i.bias)))

    return outside


def _sizes(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Outside:
    """Other stride, padding, ...; where the call is refused there is no such mutant."""

    def outside(call: Call, i: Inputs) -> Tensor:
        _chain(i)
        sizes = i.sizes | change(i.sizes)
        if sizes == i.sizes:
            raise NotApplicable
        try:
            return call(replace(i, sizes=sizes))
        except ValueError:
            raise NotApplicable from None

    return outside


def _x(change: Callable[[Tensor], Tensor]) -> Outside:
    return _changed(x=lambda i: change(i.x.clone()))


def _set(value: Any, *index: Any) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x[index] = value
        return x

    return change


def _answer(change: Callable[[Tensor], Tensor]) -> Outside:
    return lambda call, i: change(call(i))


def _tail_plane(inputs: Inputs) -> tuple[int, int]:
    """Rows and columns of the plane that the mean is over."""
    h, w = inputs.x.shape[2:]
    if inputs.weight is None:
        return h, w
    kernel, s = inputs.weight.shape[2:], inputs.sizes
    h, w = (
        (size - 1) * s["stride"][a] - 2 * s["padding"][a] + s["dilation"][a] * (kernel[a] - 1)
        + s["output_padding"][a] + 1
        for a, size in enumerate((h, w))
    )  # fmt: skip
    return h, w


def _mean_times(factor: Callable[[Inputs], float]) -> Outside:
    """The mean (without the bias) off by a factor."""

    def outside(call: Call, i: Inputs) -> Tensor:
        f = factor(i)
        if f == 1:
            raise NotApplicable
        if i.weight is None:
            return (call(replace(i, x=i.x.double())) * f).to(i.x.dtype)
        double = replace(
            i, x=i.x.double(), weight=i.weight.double() * f, bias=None if i.bias is None else i.bias.double()
        )
        return call(double).to(i.x.dtype)

    return outside


def _input_plane_over_output_plane(i: Inputs) -> float:
    _chain(i)
    return prod(_tail_plane(i)) / prod(i.x.shape[2:])


def _one_group_for_all(call: Call, i: Inputs) -> Tensor:
    groups = i.sizes.get("groups", 1)
    if groups == 1:
        raise NotApplicable
    first = i.x.unflatten(1, (groups, -1))[:, :1]
    return call(replace(i, x=first.expand(-1, groups, -1, -1, -1).flatten(1, 2)))


def _groups_interleaved(call: Call, i: Inputs) -> Tensor:
    groups = i.sizes.get("groups", 1)
    if groups in (1, i.x.shape[1]):
        raise NotApplicable
    return call(replace(i, x=i.x.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)))


def _as_if_contiguous(call: Call, i: Inputs) -> Tensor:
    """x read with the strides of a contiguous tensor, whatever its own."""
    n, c, h, w = i.x.shape
    stride = (c * h * w, h * w, w, 1)
    extent = i.x.untyped_storage().nbytes() // i.x.element_size() - i.x.storage_offset()
    if i.x.stride() == stride or n * c * h * w > extent:
        raise NotApplicable
    return call(replace(i, x=i.x.as_strided(i.x.shape, stride)))


def _rounded(value: Tensor, bits: int) -> Tensor:
    """float32 rounded to nearest with `bits` fewer fraction bits."""
    half, mask = 1 << bits - 1, -1 << bits
    return (value.contiguous().view(torch.int32) + half & mask).view(torch.float32)


def _tf32(call: Call, i: Inputs) -> Tensor:
    if i.x.dtype != torch.float32:
        raise NotApplicable
    return call(replace(i, x=_rounded(i.x, 13), weight=None if i.weight is None else _rounded(i.weight, 13)))


def _inputs_through(dtype: torch.dtype) -> Outside:
    def outside(call: Call, i: Inputs) -> Tensor:
        if i.x.dtype.itemsize <= dtype.itemsize:
            raise NotApplicable
        weight = None if i.weight is None else i.weight.to(dtype).to(i.weight.dtype)
        return call(replace(i, x=i.x.to(dtype).to(i.x.dtype), weight=weight))

    return outside


def _answer_through(dtype: torch.dtype) -> Outside:
    def outside(call: Call, i: Inputs) -> Tensor:
        if i.x.dtype.itemsize <= dtype.itemsize:
            raise NotApplicable
        return call(i).to(dtype).to(i.x.dtype)

    return outside


def _all_through(dtype: torch.dtype, call: Call, i: Inputs) -> Tensor:
    """The whole computation in another dtype."""
    cast = {n: v.to(dtype) for n in ("x", "weight", "bias") if (v := getattr(i, n)) is not None}
    return call(replace(i, **cast))


def _float64_in_float32(call: Call, i: Inputs) -> Tensor:
    if i.x.dtype != torch.float64:
        raise NotApplicable
    return _all_through(torch.float32, call, i).double()


def _truncated(call: Call, i: Inputs) -> Tensor:
    """The answer cut off, not rounded, to half precision."""
    if i.x.dtype.itemsize != 2:
        raise NotApplicable
    exact = _all_through(torch.float32, call, i)
    nearest = exact.to(i.x.dtype)
    beyond = nearest.float().abs() > exact.abs()
    return torch.where(beyond, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


def _accumulated_in(dtype: torch.dtype) -> Outside:
    """Sums kept in a half format: each row of the plane is added to a running row of sums."""

    def outside(call: Call, i: Inputs) -> Tensor:
        y, multiplier = i.x, i.multiplier
        if i.weight is not None:
            y = F.conv_transpose2d(y, i.weight, i.bias, *(i.sizes[n] for n in _CONVOLUTION))
        total = torch.zeros_like(y[:, :, 0], dtype=dtype)
        for row in y.unbind(2):
            total += row.to(dtype)
        mean = total.float().sum(-1)[..., None, None] / prod(y.shape[2:])
        return (mean * multiplier).to(i.x.dtype)

    return outside


_CONVOLUTION = ("stride", "padding", "output_padding", "groups", "dilation")


def _border_subtracted(call: Call, i: Inputs) -> Tensor:
    """Each tap's band as the whole plane minus the rows and columns that it does not see."""
    weight = _chain(i).float()
    x = i.x.float()
    n, c_in, h, w = x.shape
    groups = i.sizes["groups"]
    sizes = (i.sizes[name] for name in ("stride", "padding", "output_padding", "dilation"))
    stride, padding, output_padding, dilation = sizes
    kernel = (weight.shape[2], weight.shape[3])
    c_out = weight.shape[1] * groups
    chain = Chain(n, c_in, c_out, h, w, kernel, stride, padding, output_padding, dilation, groups)
    total = x.sum((2, 3))
    bands = []
    for top, bottom in chain.bands(0):
        for left, right in chain.bands(1):
            if top >= bottom or left >= right:
                bands.append(torch.zeros_like(total))
                continue
            outside = x[:, :, :top].sum((2, 3)) + x[:, :, bottom:].sum((2, 3))
            middle = x[:, :, top:bottom]
            outside = outside + middle[..., :left].sum((2, 3)) + middle[..., right:].sum((2, 3))
            bands.append(total - outside)
    sums = torch.stack(bands, 2).unflatten(1, (groups, -1))
    out = torch.einsum("ngik,giok->ngo", sums, weight.flatten(2).unflatten(0, (groups, -1))).flatten(1)
    out = out / prod(_tail_plane(i)) + (0 if i.bias is None else i.bias)
    return (out[..., None, None] * i.multiplier).to(i.x.dtype)


def _unwritten(call: Call, i: Inputs) -> Tensor:
    """The last element is never stored."""
    right = call(i)
    if right.numel() == 0:
        raise NotApplicable
    out = torch.empty(right.shape, dtype=right.dtype, device=right.device)
    out.view(-1)[:-1] = right.flatten()[:-1]
    return out


class _Stale:
    """Every answer is the one before it (the first is right)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, call: Call, i: Inputs) -> Tensor:
        right = call(i)
        key = (*right.shape, right.dtype, right.device)
        kept = self._kept.get(key, right)
        self._kept[key] = right
        return kept


class _Unordered:
    """As with floating-point atomics: right, but added up in another order each time."""

    def __init__(self) -> None:
        self._random = Random(0)

    def __call__(self, call: Call, i: Inputs) -> Tensor:
        x = i.x
        if i.weight is None:
            rows = self._random.sample(range(x.shape[2]), x.shape[2])
            columns = self._random.sample(range(x.shape[3]), x.shape[3])
            return call(replace(i, x=x[:, :, rows][..., columns]))
        if i.sizes["groups"] > 1:
            raise NotApplicable
        planes = self._random.sample(range(x.shape[1]), x.shape[1])
        return call(replace(i, x=x[:, planes], weight=i.weight[planes]))


def _depends_on_batch(call: Call, i: Inputs) -> Tensor:
    """Right, but a sample in a batch is added up in another order than alone."""
    if i.x.shape[0] == 1:
        return call(i)
    if i.weight is None:
        return call(replace(i, x=i.x.flip(2, 3)))
    if i.sizes["groups"] > 1:
        raise NotApplicable
    return call(replace(i, x=i.x.flip(1), weight=i.weight.flip(0)))


def _writes_its_input(call: Call, i: Inputs) -> Tensor:
    """Scales y in place."""
    if i.weight is not None or i.x.numel() == 0 or 0 in i.x.stride():
        raise NotApplicable
    right = call(i)
    i.x.mul_(i.multiplier)
    return right


# Between plan and launch


def _crop_forgotten(axis: int, side: int) -> Mapping[str, Any]:
    """One side's bands reach to the edge of the plane. side 0: top or left, 1: bottom or right."""

    def bands(problem: Chain, a: int, found: tuple[Band, ...]) -> tuple[Band, ...]:
        if a != axis:
            return found
        return tuple((0, hi) if side == 0 else (lo, (problem.h, problem.w)[axis]) for lo, hi in found)

    return {"bands": bands, "problem": lambda right: _uncropped(right, axis, side)}


def _uncropped(right: Chain, axis: int, side: int) -> Chain:
    padding, more = list(right.padding), list(right.output_padding)
    if side == 0:
        # Without padding nothing lands before the output; its end must stay where it was.
        more[axis] -= padding[axis]
        padding[axis] = 0
    else:
        # So large that nothing lands beyond it.
        more[axis] += 1_000_000 + 100 * (right.h, right.w)[axis]
    return replace(right, padding=(padding[0], padding[1]), output_padding=(more[0], more[1]))


def _no_crop() -> Mapping[str, Any]:
    def problem(right: Chain) -> Chain:
        for axis in (0, 1):
            for side in (0, 1):
                right = _uncropped(right, axis, side)
        return right

    return {
        "bands": lambda p, axis, found: ((0, (p.h, p.w)[axis]),) * len(found),
        "problem": problem,
    }


def _argument(name: str, change: Callable[[dict[str, Any]], Any], *kernels: str) -> Run:
    """Another value for one argument of those kernels that have it (or of the kernels given)."""

    def arguments(kernel: str, named: dict[str, Any]) -> None:
        if name in named and (not kernels or kernel in kernels):
            named[name] = change(named)

    return with_arguments(arguments)


@cache
def _prepared(kind: Callable[..., Any], special: Any, grid: tuple[int, int]) -> Any:
    """A launch like those of the kernel sets, kept for the next call: it compiles at the first."""
    return kind(special, grid)


def _multiplier_strides_swapped(kernel: str, named: dict[str, Any]) -> None:
    if "mult_n" in named:
        named["mult_n"], named["mult_c"] = named["mult_c"], named["mult_n"]


def _last_block_missing(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    x, y = launch.grid
    if x > 1:
        _prepared(type(launch), launch.special, (x - 1, y))(device, stream, *arguments)


def _finished_early(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    """The counters start at 1, so that the last block but one takes itself for the last."""
    named = dict(zip(parameters(kernel_name(launch)), arguments, strict=True))
    # Where one block does all, the place of the counters holds something else.
    if "counters" in named and named["counters"].dtype == torch.int32:
        named["counters"] += 1
    launch(device, stream, *arguments)


# In the text of the kernels


def _from_source(backend: str, change: Source) -> Run:
    return _triton_run(change) if backend == "triton" else _cupy_run(change)


@cache
def _triton_run(change: Source) -> Run:
    from triton_impl import kernels

    assert kernels.__file__
    text = change.apply(Path(kernels.__file__).read_text())
    name = f"convgap_mutant_{crc32(text.encode()):x}"
    # A file, for Triton reads a kernel's text from where it was defined.
    file = Path(_folder().name, f"{name}.py")
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        mutated = getattr(module, kernel_name(launch))
        special = replace(launch.special, kernel=mutated)
        _prepared(type(launch), special, launch.grid)(device, stream, *arguments)

    return run


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="convgap-mutants-")


@cache
def _cupy_run(change: Source) -> Run:
    from cupy_impl.launch import OPTIONS, device_source, interpreted, kernel_source

    text = change.apply(kernel_source())

    @cache
    def compiled(special: Any) -> Any:
        import cupy

        return cupy.RawKernel(device_source(special, text), special.kernel, options=OPTIONS)

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        special = launch.special
        pointers = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        if device.type == "cpu":
            interpreted(special, text)(launch.grid, special.threads, pointers)
            return
        with torch.cuda.device(device):
            compiled(special)(launch.grid, (special.threads,), pointers, stream=SimpleNamespace(ptr=stream))

    return run


def _both(triton: tuple[str, str, int], cupy: tuple[str, str, int]) -> Mapping[str, Source]:
    return {"triton": Source(*triton), "cupy": Source(*cupy)}


def _other_axis(name: str) -> Outside:
    return _sizes(lambda s: {name: s[name][::-1]})


MUTANTS: tuple[Mutant, ...] = (
    # Where the taps land
    Mutant("crop-top", "the rows cropped at the top count", **_crop_forgotten(0, 0)),
    Mutant("crop-bottom", "the rows cropped at the bottom count", **_crop_forgotten(0, 1)),
    Mutant("crop-left", "the columns cropped at the left count", **_crop_forgotten(1, 0)),
    Mutant("crop-right", "the columns cropped at the right count", **_crop_forgotten(1, 1)),
    Mutant("crop-all", "every tap sees the whole plane: the published shortcut", **_no_crop()),
    Mutant("kernel-flipped", "a convolution for a transposed one", _weight(lambda w: w.flip(2, 3))),
    Mutant("kernel-rows-flipped", "kernel rows bottom up", _weight(lambda w: w.flip(2))),
    Mutant("kernel-columns-flipped", "kernel columns right to left", _weight(lambda w: w.flip(3))),
    Mutant(
        "kernel-transposed",
        "kernel rows and columns swapped",
        _weight(lambda w: w.transpose(2, 3).contiguous().view(w.shape)),
    ),
    Mutant("stride-other-axis", "row stride for columns and vice versa", _other_axis("stride")),
    Mutant("padding-other-axis", "row padding for columns and vice versa", _other_axis("padding")),
    Mutant("dilation-other-axis", "row dilation for columns and vice versa", _other_axis("dilation")),
    Mutant("stride-ignored", "stride 1", _sizes(lambda s: {"stride": (1, 1)})),
    Mutant("padding-ignored", "padding 0", _sizes(lambda s: {"padding": (0, 0)})),
    Mutant("dilation-ignored", "dilation 1", _sizes(lambda s: {"dilation": (1, 1)})),
    Mutant("output-padding-ignored", "output_padding 0", _sizes(lambda s: {"output_padding": (0, 0)})),
    # Which plane meets which
    Mutant("groups-first", "every group reads the first group's planes", _one_group_for_all),
    Mutant("groups-interleaved", "input planes dealt out to the groups in turn", _groups_interleaved),
    Mutant(
        "weight-out-in",
        "the weight read as [Cout, Cin]",
        _weight(lambda w: w.reshape(w.shape[1], w.shape[0], *w.shape[2:]).transpose(0, 1).contiguous()),
    ),
    Mutant("input-channel-off", "each input plane meets its neighbour's weights", _x(lambda x: x.roll(1, 1))),
    Mutant("output-channel-off", "answers one channel off", _answer(lambda a: a.roll(1, 1))),
    Mutant("sample-off", "answers one sample off", _answer(lambda a: a.roll(1, 0))),
    Mutant("first-sample", "every sample gets the first one's answer", _answer(lambda a: a[:1].expand_as(a))),
    Mutant("last-channel", "the last channel gets its neighbour's answer", _answer(
        lambda a: torch.cat([a[:, :-1], a[:, -2:-1] if a.shape[1] > 1 else a[:, -1:]], 1)
    )),
    Mutant("ignores-x", "the same answer whatever x", _changed(x=lambda i: torch.full_like(i.x, 0.5))),
    Mutant("batch-mean", "every sample gets the batch's mean", _changed(
        x=lambda i: i.x.float().mean(0, keepdim=True).to(i.x.dtype).expand_as(i.x)
    )),
    Mutant("contiguous-assumed", "strides taken for those of a contiguous x", _as_if_contiguous),
    # Which elements are read
    Mutant("first-element-dropped", "element (0, 0) of each plane", _x(_set(0, ..., 0, 0))),
    Mutant("last-element-dropped", "the last element of each plane", _x(_set(0, ..., -1, -1))),
    Mutant("last-row-dropped", "the last row of each plane", _x(_set(0, ..., -1, slice(None)))),
    Mutant("last-column-dropped", "the last column of each plane", _x(_set(0, ..., -1))),
    Mutant("element-twice", "the middle element counts twice", _x(
        lambda x: _set(2 * x[..., x.shape[2] // 2, x.shape[3] // 2], ..., x.shape[2] // 2, x.shape[3] // 2)(x)
    )),
    Mutant("tile-of-columns-dropped", "columns past the last multiple of 4", _x(
        lambda x: _set(0, ..., slice(x.shape[3] // 4 * 4, None))(x)
    )),
    Mutant("tile-of-rows-dropped", "rows past the last multiple of 8", _x(
        lambda x: _set(0, ..., slice(x.shape[2] // 8 * 8, None), slice(None))(x)
    )),
    Mutant("last-plane-dropped", "the last input plane", _x(_set(0, slice(None), -1))),
    Mutant("border-subtracted", "whole plane minus border, not a sum of what is inside", _border_subtracted),
    # Scale and bias
    Mutant("divisor-input-plane", "mean over H*W for Hout*Wout", _mean_times(_input_plane_over_output_plane)),
    Mutant("divisor-one-less", "divided by one element fewer", _mean_times(
        lambda i: (n := prod(_tail_plane(i))) / max(n - 1, 0.5)
    )),
    Mutant("divisor-square", "divided by Hout*Hout", _mean_times(
        lambda i: _tail_plane(i)[1] / _tail_plane(i)[0]
    )),
    Mutant("divisor-missing", "a sum, not a mean", _mean_times(lambda i: prod(_tail_plane(i)))),
    Mutant("multiplier-ignored", "multiplier 1", _changed(multiplier=lambda i: 1.0)),
    Mutant("multiplier-twice", "multiplied twice", _changed(multiplier=lambda i: i.multiplier * i.multiplier)),
    Mutant("multiplier-half", "the multiplier through bfloat16", _changed(
        multiplier=lambda i: m.bfloat16().float() if isinstance(m := i.multiplier, Tensor)
        else torch.tensor(m).bfloat16().item()
    )),
    Mutant("multiplier-first", "the first channel's multiplier for all", launch=_argument(
        "mult_c", lambda named: 0
    )),
    Mutant("multiplier-strides", "the multiplier's strides over samples and channels swapped", launch=(
        with_arguments(_multiplier_strides_swapped)
    )),
    Mutant("bias-scale", "the bias not scaled", launch=_argument("bias_scale", lambda named: 1.0)),
    Mutant("bias-forgotten", "no bias", _bias(lambda i, b: None)),
    Mutant("bias-multiplied-twice", "multiplier applied to the bias again", _bias(
        lambda i, b: (b * m.flatten() if isinstance(m := i.multiplier, Tensor) else b * m).to(b.dtype)
    )),
    Mutant("bias-not-multiplied", "the bias added after the multiplication", _bias(
        lambda i, b: (b / m.flatten() if isinstance(m := i.multiplier, Tensor) else b / m if m else b + 1).to(
            b.dtype
        )
    )),
    Mutant("bias-divided", "the bias divided by Hout*Wout", _bias(lambda i, b: b / prod(_tail_plane(i)))),
    Mutant("bias-channel-off", "each channel gets its neighbour's bias", _bias(lambda i, b: b.roll(1))),
    # Arithmetic
    Mutant("tf32", "x and weight rounded to TF32", _tf32),
    Mutant("inputs-float16", "x and weight through float16", _inputs_through(torch.float16)),
    Mutant("inputs-bfloat16", "x and weight through bfloat16", _inputs_through(torch.bfloat16)),
    Mutant("accumulator-float16", "sums kept in float16", _accumulated_in(torch.float16)),
    Mutant("accumulator-bfloat16", "sums kept in bfloat16", _accumulated_in(torch.bfloat16)),
    Mutant("float64-in-float32", "float64 computed in float32", _float64_in_float32),
    Mutant("answer-float16", "the answer rounded through float16", _answer_through(torch.float16)),
    Mutant("answer-bfloat16", "the answer rounded through bfloat16", _answer_through(torch.bfloat16)),
    Mutant("answer-truncated", "half precision cut off, not rounded", _truncated),
    Mutant("scale-half", "1/(Hout*Wout) through bfloat16: the reciprocal of a fast-math unit, at its worst",
           launch=_argument("scale", lambda named: torch.tensor(named["scale"]).bfloat16().item())),
    # Not a number, and numbers
    Mutant("nan-answer", "the last answer is NaN", _answer(lambda a: _set(torch.nan, -1, -1)(a.clone()))),
    Mutant("nonfinite-swallowed", "Inf and NaN in x read as 0", _x(lambda x: x.nan_to_num(0, 0, 0))),
    Mutant("nonfinite-hidden", "Inf and NaN never come out", _answer(lambda a: a.nan_to_num())),
    Mutant("nan-clipped", "NaN in x passed through a maximum that drops it", _x(
        lambda x: torch.fmax(x, torch.full_like(x, -torch.finfo(x.dtype).max))
    )),
    # Launches and memory
    Mutant("unwritten", "the last answer is never stored", _unwritten),
    Mutant("last-block-missing", "a grid one block short", launch=_last_block_missing),
    Mutant("finished-early", "the sum is taken one block before the last has come", launch=_finished_early),
    Mutant("last-sample-missing", "the contraction stops one sample early", launch=_argument(
        "N", lambda named: named["N"] - 1, "contract"
    )),
    Mutant("writes-its-input", "the input is scaled in place", _writes_its_input),
    Mutant("stale", "the answer of the call before", _Stale()),
    Mutant("unordered", "right, but other bits each time, as with atomics", _Unordered()),
    Mutant("batch-dependent", "right, but the bits depend on the batch", _depends_on_batch, only=BATCH_INVARIANT),
    # In the kernels' text
    Mutant("source-band-end", "bands end one row and column later", source=_both(
        (r"OUT - 1 \+ P\b", "OUT + P", 1), (r"out - 1 \+ p\b", "out + p", 1)
    )),
    Mutant("source-band-start", "bands start a row or column early (rounded down)", source=_both(
        (r", 0\) \+ S - 1\) // S", ", 0)) // S", 1), (r", 0\) \+ s - 1\) / s", ", 0)) / s", 1)
    )),
    Mutant("source-dilation", "kernel indices not multiplied by the dilation", source=_both(
        (r"P - k \* D\b", "P - k", 2), (r"p - k \* d\b", "p - k", 2)
    )),
)  # fmt: skip


def of(backend: str) -> Sequence[Mutant]:
    """The mutants that a backend has."""
    return [mutant for mutant in MUTANTS if backend in mutant.backends()]
