"""The known-wrong implementations: the judge must condemn every one of them. docs/checking.md shows the score."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from harness.mutants import around, launches
from harness.mutants.interpose import with_arguments
from harness.mutants.mutant import Mutant
from harness.mutants.source import both
from harness.numerics.examine import BATCH_INVARIANT

MUTANTS: tuple[Mutant, ...] = (
    # Where the taps land
    Mutant("crop-top", "the rows cropped at the top count", problem=launches.crop_forgotten(0, 0)),
    Mutant("crop-bottom", "the rows cropped at the bottom count", problem=launches.crop_forgotten(0, 1)),
    Mutant("crop-left", "the columns cropped at the left count", problem=launches.crop_forgotten(1, 0)),
    Mutant("crop-right", "the columns cropped at the right count", problem=launches.crop_forgotten(1, 1)),
    Mutant("crop-all", "every tap sees the whole plane: the published shortcut", problem=launches.no_crop),
    Mutant("kernel-flipped", "a convolution for a transposed one", around.change_weight(lambda w: w.flip(2, 3))),
    Mutant("kernel-rows-flipped", "kernel rows bottom up", around.change_weight(lambda w: w.flip(2))),
    Mutant("kernel-columns-flipped", "kernel columns right to left", around.change_weight(lambda w: w.flip(3))),
    Mutant(
        "kernel-transposed",
        "kernel rows and columns swapped",
        around.change_weight(lambda w: w.transpose(2, 3).contiguous().view(w.shape)),
    ),
    Mutant("stride-other-axis", "row stride for columns and vice versa", around.other_axis("stride")),
    Mutant("padding-other-axis", "row padding for columns and vice versa", around.other_axis("padding")),
    Mutant("dilation-other-axis", "row dilation for columns and vice versa", around.other_axis("dilation")),
    Mutant("stride-ignored", "stride 1", around.change_sizes(lambda s: {"stride": (1, 1)})),
    Mutant("padding-ignored", "padding 0", around.change_sizes(lambda s: {"padding": (0, 0)})),
    Mutant("dilation-ignored", "dilation 1", around.change_sizes(lambda s: {"dilation": (1, 1)})),
    Mutant("output-padding-ignored", "output_padding 0", around.change_sizes(lambda s: {"output_padding": (0, 0)})),
    # Which plane meets which
    Mutant("groups-first", "every group reads the first group's planes", around.one_group_for_all),
    Mutant("groups-interleaved", "input planes dealt out to the groups in turn", around.groups_interleaved),
    Mutant(
        "weight-out-in",
        "the weight read as [Cout, Cin]",
        around.change_weight(lambda w: w.reshape(w.shape[1], w.shape[0], *w.shape[2:]).transpose(0, 1).contiguous()),
    ),
    Mutant("input-channel-off", "each input plane meets its neighbour's weights",
           around.change_x(lambda x: x.roll(1, 1))),
    Mutant("output-channel-off", "answers one channel off", around.change_answer(lambda a: a.roll(1, 1))),
    Mutant("sample-off", "answers one sample off", around.change_answer(lambda a: a.roll(1, 0))),
    Mutant("first-sample", "every sample gets the first one's answer",
           around.change_answer(lambda a: a[:1].expand_as(a))),
    Mutant("last-channel", "the last channel gets its neighbour's answer", around.change_answer(
        lambda a: torch.cat([a[:, :-1], a[:, -2:-1] if a.shape[1] > 1 else a[:, -1:]], 1)
    )),
    Mutant("ignores-x", "the same answer whatever x", around.changed(x=lambda i: torch.full_like(i.x, 0.5))),
    Mutant("batch-mean", "every sample gets the batch's mean", around.changed(
        x=lambda i: i.x.float().mean(0, keepdim=True).to(i.x.dtype).expand_as(i.x)
    )),
    Mutant("contiguous-assumed", "strides taken for those of a contiguous x", around.as_if_contiguous),
    # Which elements are read
    Mutant("first-element-dropped", "element (0, 0) of each plane", around.change_x(around.put(0, ..., 0, 0))),
    Mutant("last-element-dropped", "the last element of each plane", around.change_x(around.put(0, ..., -1, -1))),
    Mutant("last-row-dropped", "the last row of each plane", around.change_x(around.put(0, ..., -1, slice(None)))),
    Mutant("last-column-dropped", "the last column of each plane", around.change_x(around.put(0, ..., -1))),
    Mutant("element-twice", "the middle element counts twice", around.change_x(
        lambda x: around.put(2 * x[..., x.shape[2] // 2, x.shape[3] // 2], ..., x.shape[2] // 2, x.shape[3] // 2)(x)
    )),
    Mutant("tile-of-columns-dropped", "columns past the last multiple of 4", around.change_x(
        lambda x: around.put(0, ..., slice(x.shape[3] // 4 * 4, None))(x)
    )),
    Mutant("tile-of-rows-dropped", "rows past the last multiple of 8", around.change_x(
        lambda x: around.put(0, ..., slice(x.shape[2] // 8 * 8, None), slice(None))(x)
    )),
    Mutant("last-plane-dropped", "the last input plane", around.change_x(around.put(0, slice(None), -1))),
    Mutant("border-subtracted", "whole plane minus border, not a sum of what is inside", around.border_subtracted),
    # Scale and bias
    Mutant("divisor-input-plane", "mean over H*W for Hout*Wout",
           around.mean_times(around.input_plane_over_output_plane)),
    Mutant("divisor-one-less", "divided by one element fewer", around.mean_times(
        lambda i: (n := prod(around.pooled_plane(i))) / max(n - 1, 0.5)
    )),
    Mutant("divisor-square", "divided by Hout*Hout", around.mean_times(
        lambda i: around.pooled_plane(i)[1] / around.pooled_plane(i)[0]
    )),
    Mutant("divisor-missing", "a sum, not a mean", around.mean_times(lambda i: prod(around.pooled_plane(i)))),
    Mutant("multiplier-ignored", "multiplier 1", around.changed(multiplier=lambda i: 1.0)),
    Mutant("multiplier-twice", "multiplied twice", around.changed(multiplier=lambda i: i.multiplier * i.multiplier)),
    Mutant("multiplier-half", "the multiplier through bfloat16", around.changed(
        multiplier=lambda i: m.bfloat16().float() if isinstance(m := i.multiplier, Tensor)
        else torch.tensor(m).bfloat16().item()
    )),
    Mutant("multiplier-first", "the first channel's multiplier for all", launch=launches.argument(
        "mult_c", lambda named: 0
    )),
    Mutant("multiplier-strides", "the multiplier's strides over samples and channels swapped", launch=(
        with_arguments(launches.multiplier_strides_swapped)
    )),
    Mutant("bias-scale", "the bias not scaled", launch=launches.argument("bias_scale", lambda named: 1.0)),
    Mutant("bias-forgotten", "no bias", around.change_bias(lambda i, b: None)),
    Mutant("bias-multiplied-twice", "multiplier applied to the bias again", around.change_bias(
        lambda i, b: (b * m.flatten() if isinstance(m := i.multiplier, Tensor) else b * m).to(b.dtype)
    )),
    Mutant("bias-not-multiplied", "the bias added after the multiplication", around.change_bias(
        lambda i, b: (b / m.flatten() if isinstance(m := i.multiplier, Tensor) else b / m if m else b + 1).to(
            b.dtype
        )
    )),
    Mutant("bias-divided", "the bias divided by Hout*Wout",
           around.change_bias(lambda i, b: b / prod(around.pooled_plane(i)))),
    Mutant("bias-channel-off", "each channel gets its neighbour's bias", around.change_bias(lambda i, b: b.roll(1))),
    # Arithmetic
    Mutant("tf32", "x and weight rounded to TF32", around.tf32),
    Mutant("inputs-float16", "x and weight through float16", around.inputs_through(torch.float16)),
    Mutant("inputs-bfloat16", "x and weight through bfloat16", around.inputs_through(torch.bfloat16)),
    Mutant("accumulator-float16", "sums kept in float16", around.accumulated_in(torch.float16)),
    Mutant("accumulator-bfloat16", "sums kept in bfloat16", around.accumulated_in(torch.bfloat16)),
    Mutant("float64-in-float32", "float64 computed in float32", around.float64_in_float32),
    Mutant("answer-float16", "the answer rounded through float16", around.answer_through(torch.float16)),
    Mutant("answer-bfloat16", "the answer rounded through bfloat16", around.answer_through(torch.bfloat16)),
    Mutant("answer-truncated", "half precision cut off, not rounded", around.truncated),
    Mutant("scale-half", "1/(Hout*Wout) through bfloat16: the reciprocal of a fast-math unit, at its worst",
           launch=launches.argument("scale", lambda named: torch.tensor(named["scale"]).bfloat16().item())),
    # Not a number, and numbers
    Mutant("nan-answer", "the last answer is NaN",
           around.change_answer(lambda a: around.put(torch.nan, -1, -1)(a.clone()))),
    Mutant("nonfinite-swallowed", "Inf and NaN in x read as 0", around.change_x(lambda x: x.nan_to_num(0, 0, 0))),
    Mutant("nonfinite-hidden", "Inf and NaN never come out", around.change_answer(lambda a: a.nan_to_num())),
    Mutant("nan-clipped", "NaN in x passed through a maximum that drops it", around.change_x(
        lambda x: torch.fmax(x, torch.full_like(x, -torch.finfo(x.dtype).max))
    )),
    # Launches and memory
    Mutant("unwritten", "the last answer is never stored", around.unwritten),
    Mutant("last-block-missing", "a grid one block short", launch=launches.last_block_missing),
    Mutant("finished-early", "the sum is taken one block before the last has come", launch=launches.finished_early),
    Mutant("last-sample-missing", "the contraction stops one sample early", launch=launches.argument(
        "N", lambda named: named["N"] - 1, "contract"
    )),
    Mutant("writes-its-input", "the input is scaled in place", around.writes_its_input),
    Mutant("stale", "the answer of the call before", around.Stale()),
    Mutant("unordered", "right, but other bits each time, as with atomics", around.Unordered()),
    Mutant("batch-dependent", "right, but the bits depend on the batch",
           around.depends_on_batch, only=BATCH_INVARIANT),
    # In the kernels' text
    Mutant("source-band-end", "bands end one row and column later", source=both(
        (r"size - pick\(AFTER, band\)", "size - pick(AFTER, band) + 1", 1),
        (r"(rest - after|[HW] - after_[hw]\[\w+\])(?=,| &&|;)", r"\1 + 1", 4)
    )),
    Mutant("source-band-start", "bands start one row and column early", source=both(
        (r"clip\(pick\(BEFORE, band\)", "clip(pick(BEFORE, band) - 1", 1),
        (r"(\bbefore|before_[hw]\[\w+\])(?= - start| &&)", r"\1 - 1", 5)
    )),
    Mutant("source-fold", "of the weights of taps with equal bands, one stands for all", source=both(
        (r"tl\.sum\((tl\.where\(\w+ == band, kernels, 0\), 2\))", r"tl.max(\1", 2),
        (r"(band_w\.of\[.*\]\]) \+=(\s+)widen", r"\1 =\2widen", 2)
    )),
)  # fmt: skip


def of(backend: str) -> Sequence[Mutant]:
    """The mutants that a backend has."""
    return [mutant for mutant in MUTANTS if backend in mutant.backends()]
