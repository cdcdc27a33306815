"""Bounds that are estimated: honest float32 is within, coarser arithmetic is not, and what jumps is told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.numerics.budget import budget
from harness.numerics.estimate import Estimate, estimate

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(2))
W = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(3))

HONEST: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "gelu, whose tail cancels": (F.gelu, (X,)),
    "softmax": (lambda x: F.softmax(x, 1), (X,)),
    "layer norm far from zero": (lambda x: F.layer_norm(x + 10, (256,)), (X,)),
    "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), (IMAGE,)),
    "product": (lambda x: x @ x.t(), (X,)),
    "convolution": (F.conv2d, (IMAGE, W)),
    "transposed convolution": (lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1), stride=2), (IMAGE, W)),
    "one sum of all": (torch.sum, (X,)),
    "running sums": (lambda x: x.cumsum(1), (X,)),
    "variance": (lambda x: x.var(1), (X,)),
    "average pooling": (lambda x: F.avg_pool2d(x, 3), (IMAGE,)),
    "maximum pooling": (lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "cross entropy": (lambda x: F.cross_entropy(x, torch.arange(64)), (X,)),
    "attention": (lambda x: F.scaled_dot_product_attention(x[None], x[None].flip(1), x[None]), (X,)),
    "kink": (lambda x: torch.where(x > 0, x, 0.0).mean(1), (X,)),
}


def estimated(f: Callable[..., Any], values: tuple[Tensor, ...], dtype: str = "float32") -> Estimate:
    def run(prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [f(*(prepare(v.double() if v.is_floating_point() else v) for v in values))]

    return estimate(run, dtype, seed=7)


@pytest.mark.parametrize("name", HONEST)
def test_float32_is_within_and_float16_is_not(name: str) -> None:
    f, values = HONEST[name]
    found = estimated(f, values)
    assert found.apart == 0 and not found.why and not found.unseen
    honest = found.compare([f(*values)])
    # Half of it: room for a kernel that sums in a worse order than torch does.
    assert honest.passed and honest.worst < 0.5, honest.message
    coarse = f(*(v.half().float() if v.is_floating_point() else v for v in values))
    assert not found.compare([coarse]).passed


def test_a_left_to_right_sum_is_within_and_one_term_less_is_not() -> None:
    x = X.abs().numpy()
    total = np.zeros(64, np.float32)
    for column in range(256):
        total += x[:, column]
    found = estimated(lambda x: x.sum(1), (X.abs(),))
    assert found.compare([torch.from_numpy(total)]).passed
    assert not found.compare([torch.from_numpy(total - x[:, 0])]).passed


def test_the_estimated_bound_of_a_sum_is_tighter_than_the_derived_one_and_not_ten_times_wider() -> None:
    """The derived one holds for every order of every number: n u sum |x|; the other for numbers in no order."""
    found = estimated(lambda x: x.sum(1), (X,)).outputs[0]
    derived = budget(X.double().sum(1).numpy(), X.double().abs().sum(1).numpy(), "float32", 256)
    ratio = found.bound / derived
    # sqrt(n/2) u sqrt(n) 10/sqrt(3) over n u 0.8 n: 0.02 for n = 256, less where the sum happens to be small.
    assert ratio.min() > 0.005 and ratio.max() < 0.1


def test_what_jumps_is_told_apart_and_the_rest_is_judged() -> None:
    x = X.clone()
    x[0, :10] = 0.3  # rounding decides on which side of the threshold these fall
    found = estimated(lambda x: torch.where(x > 0.3, 100.0, x), (x,))
    assert found.outputs[0].apart[0, :10].all() and found.apart < 0.01
    assert found.why[0].startswith("discontinuity")
    answer = torch.where(x > 0.3, 100.0, x)
    answer[0, :10] = 100.0
    assert found.compare([answer]).passed
    answer[5, 5] += 0.01
    assert not found.compare([answer]).passed


def test_an_argmax_of_equals_is_told_apart() -> None:
    x = X.clone()
    x[3, 7] = x[3, 9] = 10.0
    found = estimated(lambda x: x.argmax(1), (x,))
    assert found.outputs[0].apart.nonzero()[0].tolist() == [3]
    assert found.compare([x.argmax(1)]).passed
    assert not found.compare([x.argmax(1) + 1]).passed


def test_random_outputs_have_no_bound() -> None:
    found = estimated(lambda x: F.dropout(x, 0.5), (X,))
    assert found.apart == 1 and found.why[0].startswith("random")


def test_an_operator_whose_inside_is_not_seen_is_named() -> None:
    found = estimated(lambda x: torch.fft.rfft(x).abs(), (X,))
    assert found.unseen == ("_fft_r2c",) and found.compare([torch.fft.rfft(X).abs()]).passed


def test_casts_to_the_working_format_do_not_round_the_truth() -> None:
    found = estimated(lambda x: (x.float() / 3).sum(1), (X,))
    np.testing.assert_allclose(found.outputs[0].expected, (X.double() / 3).sum(1).numpy(), rtol=1e-15, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_formats_keep_sums_in_float32(dtype: str) -> None:
    x = X.to(getattr(torch, dtype))
    found = estimated(lambda x: x.square().sum(1), (x,), dtype)
    honest = x.square().float().sum(1).to(x.dtype)
    total = torch.zeros(64, dtype=x.dtype)
    for column in range(256):
        total += x[:, column].square()
    assert found.compare([honest]).passed and not found.compare([total]).passed


def test_the_answer_has_to_have_the_form_of_the_truth() -> None:
    found = estimated(F.relu, (X,))
    assert "shape" in found.compare([X[:1]]).message and "dtype" in found.compare([X.double()]).message
    assert "2 outputs, expected 1" in found.compare([X, X]).message
    bad = F.relu(X)
    bad[0, 0] = torch.nan
    assert found.compare([bad]).worst == np.inf
