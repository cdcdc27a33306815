"""The cases as data, each with its reason. Layers of models are in harness/cases/models.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from harness.cases.case import Case, shrink
from harness.cases.models import MODELS
from reference.problem import Chain, Problem, Tail


def _x2(n: int, c_in: int, c_out: int, h: int, w: int, groups: int = 1, bias: bool = True) -> Chain:
    """The headline's upsampling by two: kernel 3, stride 2, padding 1, output_padding 1."""
    return Chain(n, c_in, c_out, h, w, (3, 3), (2, 2), (1, 1), (1, 1), groups=groups, bias=bias)


_HEADLINE_CHAIN = _x2(16, 64, 128, 128, 128)
_HEADLINE_TAIL = Tail(16, 128, 256, 256)


def _large(name: str, reason: str, problem: Problem, **fields: str) -> Case:
    return Case(name, problem, reason, twin=shrink(problem), **fields)  # pyright: ignore[reportArgumentType]


HEADLINE: tuple[Case, ...] = (
    _large("chain/headline", "KernelBench level 2 problem 44 as it stands today", _HEADLINE_CHAIN),
    _large("tail/headline", "the convolution output of the headline chain", _HEADLINE_TAIL),
)

GRID: tuple[Case, ...] = (
    _large("chain/headline-float16", "half the bytes", _HEADLINE_CHAIN, dtype="float16"),
    _large("chain/headline-bfloat16", "half the bytes, 8 bits of precision", _HEADLINE_CHAIN, dtype="bfloat16"),
    _large(
        "chain/headline-channels_last",
        "the layout of mixed-precision training",
        _HEADLINE_CHAIN,
        layout="channels_last",
    ),
    _large(
        "chain/kernelbench-old",
        "the problem's older shape: many samples, 3 channels",
        _x2(128, 3, 16, 32, 32),
    ),
    _large("chain/batch1", "inference: one sample must still fill the device", _x2(1, 64, 128, 128, 128)),
    _large("chain/batch128", "training batch of mid-sized planes", _x2(128, 16, 32, 64, 64)),
    _large(
        "chain/image512",
        "stride 1 on large RGB planes: several parts a plane",
        Chain(4, 3, 64, 512, 512, (3, 3), padding=(1, 1)),
    ),
    _large("chain/plane256", "planes above one block's share", _x2(16, 64, 32, 256, 256)),
    _large(
        "chain/dcgan16",
        "generator layer: 512 channels, kernel 4 stride 2, tiny planes",
        Chain(8, 512, 256, 16, 16, (4, 4), (2, 2), (1, 1)),
    ),
    _large(
        "chain/dcgan8",
        "8 x 8 planes, many of them: contraction outweighs reading",
        Chain(128, 512, 64, 8, 8, (4, 4), (2, 2), (1, 1)),
    ),
    _large(
        "chain/unet-k2s2",
        "taps do not overlap, nothing is cropped: one band",
        Chain(16, 256, 128, 64, 64, (2, 2), (2, 2)),
    ),
    _large("chain/k5s3", "kernel 5, stride 3: uneven overlap", Chain(16, 48, 24, 56, 56, (5, 5), (3, 3), (2, 2))),
    _large(
        "chain/k7s4",
        "kernel 7, stride 4: the most bands of the grid",
        Chain(16, 32, 32, 64, 64, (7, 7), (4, 4), (3, 3)),
    ),
    _large(
        "chain/k4s4",
        "patch expansion: stride equals kernel, 3 output channels",
        Chain(8, 128, 3, 64, 64, (4, 4), (4, 4)),
    ),
    _large(
        "chain/dilated",
        "kernel 3, dilation 2: rims two rows deep",
        Chain(16, 64, 64, 64, 64, (3, 3), padding=(2, 2), dilation=(2, 2)),
    ),
    _large("chain/groups4", "four groups", _x2(16, 64, 128, 64, 64, groups=4)),
    _large(
        "chain/depthwise",
        "one input channel a group: no sum over channels",
        _x2(16, 128, 128, 64, 64, groups=128),
    ),
    _large(
        "chain/rectangular",
        "rows and columns with different kernel, stride and padding",
        Chain(16, 64, 64, 96, 160, (3, 5), (2, 1), (1, 2), (1, 0)),
    ),
    _large("chain/nobias", "no bias", _x2(16, 32, 64, 64, 64, bias=False)),
    _large("tail/7x7", "classifier head: 49 elements a plane, odd", Tail(256, 2048, 7, 7)),
    _large("tail/4x4", "planes of one 64-byte line", Tail(1024, 1024, 4, 4)),
    _large("tail/14x14", "196 elements: no power of two", Tail(128, 512, 14, 14)),
    _large("tail/16x16", "one kilobyte a plane", Tail(64, 512, 16, 16)),
    _large("tail/64x64", "one block a plane is about right", Tail(16, 128, 64, 64)),
    _large("tail/1024", "few large planes: split or starve", Tail(1, 128, 1024, 1024)),
    _large("tail/2048", "three planes for a whole device", Tail(1, 3, 2048, 2048)),
    _large("tail/headline-channels_last", "a column reduction", _HEADLINE_TAIL, layout="channels_last"),
    _large("tail/7x7-channels_last", "columns of 49", Tail(256, 2048, 7, 7), layout="channels_last"),
    _large("tail/32x32-channels_last", "columns of 1024", Tail(64, 512, 32, 32), layout="channels_last"),
    _large("tail/headline-float16", "half the bytes", _HEADLINE_TAIL, dtype="float16"),
    _large("tail/headline-bfloat16", "half the bytes, 8 bits of precision", _HEADLINE_TAIL, dtype="bfloat16"),
)

EDGE: tuple[Case, ...] = (
    Case("chain/edge/1x1", _x2(2, 3, 4, 1, 1), "one element: every tap sees it or nothing"),
    Case("chain/edge/1x1-k1", Chain(2, 3, 4, 1, 1, (1, 1)), "nothing but the product with the weight"),
    Case("chain/edge/7x7", _x2(2, 5, 3, 7, 7), "odd plane", multiplier=0.1),
    Case("chain/edge/prime", Chain(3, 5, 7, 31, 37, (3, 3), (2, 2), (1, 1)), "no size divides a tile"),
    Case("chain/edge/1x1000", _x2(2, 2, 3, 1, 1000), "one row: no core of rows to stream"),
    Case("chain/edge/1000x1", _x2(2, 2, 3, 1000, 1), "one column"),
    Case("chain/edge/1x100000", _x2(1, 2, 3, 1, 100_000), "a row longer than any block", gpu_only=True),
    Case("chain/edge/100000x1", _x2(1, 2, 3, 100_000, 1), "more rows than a grid's y", gpu_only=True),
    Case(
        "chain/edge/stride1",
        Chain(2, 3, 4, 9, 8, (3, 3), padding=(1, 1)),
        "stride 1: bands lose one row a tap",
    ),
    Case("chain/edge/stride2", Chain(2, 3, 4, 9, 8, (5, 5), (2, 2), (2, 2), (1, 0)), "stride 2, kernel 5"),
    Case("chain/edge/stride3", Chain(2, 3, 4, 9, 8, (4, 4), (3, 3), (2, 2), (2, 1)), "stride 3, kernel 4"),
    Case("chain/edge/stride4", Chain(2, 3, 4, 9, 8, (3, 3), (4, 4), (1, 1), (3, 2)), "gaps: bias-only outputs"),
    Case("chain/edge/stride-1-4", Chain(2, 3, 4, 9, 8, (3, 2), (1, 4), (2, 0)), "strides of the axes differ"),
    Case(
        "chain/edge/one-tap-left",
        Chain(2, 3, 4, 1, 1, (3, 3), (2, 2), (1, 1), (0, 0), (3, 3)),
        "taps land on -1, 2, 5 of five rows: only the middle counts",
    ),
    Case(
        "chain/edge/no-band",
        Chain(2, 3, 4, 1, 1, (2, 2), (4, 4), (1, 1), (0, 0), (2, 2)),
        "taps land on -1 and 1 of one row and column: the output is multiplier * bias",
    ),
    Case(
        "chain/edge/no-band-rows",
        Chain(2, 3, 4, 1, 6, (2, 3), (4, 1), (1, 0), (0, 0), (2, 1)),
        "no band of rows, though there are bands of columns",
    ),
    Case(
        "chain/edge/no-band-nobias",
        Chain(2, 3, 4, 1, 1, (2, 2), (4, 4), (1, 1), (0, 0), (2, 2), bias=False),
        "nothing at all: zeros",
    ),
    Case("chain/edge/crop-deep", Chain(2, 3, 4, 12, 13, (3, 3), padding=(4, 5)), "rows that no tap sees"),
    Case(
        "chain/edge/kernel-over-input",
        Chain(2, 3, 4, 2, 3, (7, 5), padding=(3, 2)),
        "kernel larger than input",
    ),
    Case(
        "chain/edge/rectangular",
        Chain(2, 3, 4, 6, 11, (2, 5), (3, 1), (1, 2), (2, 0), (1, 2)),
        "axes differ in all",
    ),
    Case(
        "chain/edge/no-core",
        Chain(2, 3, 4, 5, 6, (3, 3), padding=(4, 4), dilation=(4, 4)),
        "first and last band do not meet: no core",
    ),
    Case(
        "chain/edge/output-padding",
        Chain(2, 3, 4, 5, 6, (2, 2), (2, 1), (0, 1), (3, 2), (4, 3)),
        "output_padding reaches max(stride, dilation) - 1 through the dilation",
    ),
    Case("chain/edge/groups3", _x2(2, 6, 9, 8, 7, groups=3), "groups of 2 -> 3 channels"),
    Case("chain/edge/depthwise", _x2(2, 5, 5, 8, 7, groups=5), "one channel a group"),
    Case("chain/edge/depthwise-multiplier", _x2(2, 5, 15, 8, 7, groups=5), "1 -> 3 channels a group"),
    Case("chain/edge/batch0", _x2(0, 3, 4, 8, 8), "an empty batch is an answer, not an error"),
    Case("chain/edge/batch1", _x2(1, 3, 4, 8, 8), "one sample"),
    Case("chain/edge/single-channel", _x2(2, 1, 1, 8, 8), "one channel in, one out"),
    Case("chain/edge/rgb", _x2(4, 3, 16, 16, 16), "3 channels: no power of two"),
    Case("chain/edge/many-channels", _x2(1, 130, 129, 3, 3), "channels just past a tile of 128"),
    Case("chain/edge/many-samples", _x2(33, 8, 70, 3, 3), "samples and outputs just past those of a block"),
    Case("chain/edge/sliced-samples", _x2(130, 2, 3, 3, 3), "samples enough to add up in slices, and some more"),
    Case("chain/edge/latent", Chain(3, 9, 140, 1, 1, (4, 4)), "one element a plane, and outputs in slices"),
    Case(
        "chain/edge/k5-channels",
        Chain(2, 90, 65, 3, 3, (5, 5), (2, 2), (2, 2), (1, 1)),
        "more taps than registers hold, and channels in slices",
    ),
    Case(
        "chain/edge/k7-channels",
        Chain(2, 9, 40, 3, 3, (7, 7), (2, 2), (3, 3)),
        "a large kernel of several channels a step",
    ),
    Case("chain/edge/long-row", Chain(2, 3, 4, 1, 601, (1, 4), (1, 2), (0, 1)), "a plane of one long row"),
    Case("chain/edge/long-column", Chain(2, 3, 4, 601, 1, (4, 1), (2, 1), (1, 0)), "a plane of one long column"),
    Case("chain/edge/nobias", _x2(2, 3, 4, 8, 8, bias=False), "no bias"),
    Case("chain/edge/multiplier-tensor", _x2(2, 3, 4, 8, 8), "one multiplier a channel", multiplier=None),
    Case("chain/edge/multiplier-zero", _x2(2, 3, 4, 8, 8), "zero is not absent", multiplier=0.0),
    Case("chain/edge/signed", _x2(2, 3, 4, 16, 17), "both signs", values="normal", multiplier=-1.7),
    Case("chain/edge/huge", _x2(2, 3, 4, 9, 10), "1e30 everywhere", values="huge"),
    Case(
        "chain/edge/huge-border",
        Chain(2, 3, 4, 9, 10, (3, 3), padding=(3, 3)),
        "1e30 only where it is cropped: total minus border would lose the rest",
        values="huge_border",
    ),
    Case(
        "chain/edge/subnormal",
        _x2(2, 3, 4, 9, 10),
        "flush to zero is allowed, garbage is not",
        values="subnormal",
    ),
    Case("chain/edge/cancelling", _x2(2, 4, 4, 16, 16), "the sum is far below its terms", values="cancelling"),
    Case(
        "chain/edge/nonfinite",
        _x2(4, 3, 4, 9, 10),
        "Inf, -Inf and NaN reach what they must",
        values="nonfinite",
    ),
    Case(
        "chain/edge/nonfinite-cropped",
        Chain(2, 3, 4, 9, 10, (3, 3), padding=(3, 3)),
        "Inf and NaN in cropped rows and columns reach nothing",
        values="nonfinite_cropped",
    ),
    Case(
        "chain/edge/past-2**31",
        Chain(1, 1, 1, 46_400, 46_300, (2, 1), padding=(1, 0)),
        "64-bit element numbers; equal rows keep the memory small",
        layout="expanded_rows",
        gpu_only=True,
    ),
    Case("tail/edge/1x1", Tail(3, 5, 1, 1), "one element a plane"),
    Case("tail/edge/7x7", Tail(3, 5, 7, 7), "odd plane", multiplier=0.1),
    Case("tail/edge/prime", Tail(3, 5, 31, 37), "no size divides a tile"),
    Case("tail/edge/1x1000", Tail(2, 3, 1, 1000), "one row"),
    Case("tail/edge/1000x1", Tail(2, 3, 1000, 1), "one column"),
    Case("tail/edge/1x100000", Tail(1, 3, 1, 100_000), "a row longer than any block", gpu_only=True),
    Case("tail/edge/many-planes", Tail(3, 1031, 2, 2), "more planes than elements in one"),
    Case("tail/edge/batch0", Tail(0, 3, 4, 5), "an empty batch is an answer, not an error"),
    Case("tail/edge/single", Tail(1, 1, 64, 65), "one plane"),
    Case("tail/edge/multiplier-tensor", Tail(2, 3, 8, 8), "one multiplier a channel", multiplier=None),
    Case("tail/edge/signed", Tail(2, 3, 16, 17), "both signs", values="normal", multiplier=-1.7),
    Case(
        "tail/edge/transposed",
        Tail(2, 3, 16, 17),
        "wide loads along the rows of several columns: two axes of a tile to add up",
        layout="transposed",
        values="normal",
    ),
    Case("tail/edge/huge", Tail(2, 3, 9, 10), "1e30 everywhere", values="huge"),
    Case(
        "tail/edge/subnormal",
        Tail(2, 3, 9, 10),
        "flush to zero is allowed, garbage is not",
        values="subnormal",
    ),
    Case("tail/edge/cancelling", Tail(2, 4, 16, 16), "the sum is far below its terms", values="cancelling"),
    Case("tail/edge/nonfinite", Tail(4, 3, 9, 10), "Inf, -Inf and NaN reach what they must", values="nonfinite"),
    Case(
        "tail/edge/past-2**31",
        Tail(1, 1, 46_400, 46_300),
        "64-bit element numbers inside one plane",
        layout="expanded_rows",
        gpu_only=True,
    ),
    Case(
        "tail/edge/past-2**31-real",
        Tail(1, 1, 46_342, 46_342),
        "4 GiB really read from one plane",
        dtype="float16",
        gpu_only=True,
    ),
    Case(
        "tail/edge/past-2**31-batch",
        Tail(33_000, 64, 32, 32),
        "64-bit sample offsets",
        layout="expanded",
        gpu_only=True,
    ),
)

SETS = {"headline": HEADLINE, "grid": GRID, "models": MODELS, "edge": EDGE}

TIMED = ("headline", "grid", "models")
"""The sets that are about speed."""


def select(
    patterns: Iterable[str] = TIMED,
    *,
    op: str | None = None,
    gpu: bool = True,
    sets: Mapping[str, tuple[Case, ...]] = SETS,
) -> tuple[Case, ...]:
    """Cases named by set (a key of `sets`), by name, or by glob ("tail/*"), in house order.

    `op` keeps one operator's only; `gpu` False leaves out the cases that only a GPU can run; `sets` are those of chain
    and tail unless another operator's are given. Raises ValueError for a pattern that names nothing.
    """
    cases = [case for group in sets.values() for case in group]
    wanted: set[str] = set()
    for pattern in patterns:
        group = sets.get(pattern) or [case for case in cases if fnmatchcase(case.name, pattern)]
        if not group:
            near = get_close_matches(pattern, [*sets, *(case.name for case in cases)], n=3, cutoff=0.4)
            raise ValueError(f"cases: no case or set is named {pattern!r}; near it: {', '.join(near) or 'nothing'}")
        wanted.update(case.name for case in group)
    return tuple(case for case in cases if case.name in wanted and op in (None, case.op) and (gpu or not case.gpu_only))
