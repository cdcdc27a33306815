"""The judge itself: worked by hand, against exact rational arithmetic, and its gradients both ways."""

import ast
from fractions import Fraction
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from harness.cases.case import random_chain
from reference import eager, oracle
from reference.problem import Chain

SIZES = ("stride", "padding", "output_padding", "groups", "dilation")


def sizes(chain: Chain) -> dict:
    return {name: getattr(chain, name) for name in SIZES}


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small integers, so that every sum is exact in float64."""
    return rng.integers(-9, 10, shape).astype(np.float64)


def exact(chain: Chain, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, multiplier: Fraction) -> np.ndarray:
    """The operator in rational arithmetic, one scattered product at a time."""
    n_out, c_out, h_out, w_out = chain.conv_shape
    per_in, per_out = chain.c_in // chain.groups, chain.c_out // chain.groups
    result = np.empty(chain.out_shape)
    for n in range(n_out):
        y = [[[Fraction(int(bias[co]))] * w_out for _ in range(h_out)] for co in range(c_out)]
        y = [[list(row) for row in plane] for plane in y]
        for ci, h, w in product(range(chain.c_in), range(chain.h), range(chain.w)):
            for o, kh, kw in product(range(per_out), range(chain.kernel[0]), range(chain.kernel[1])):
                oh = h * chain.stride[0] - chain.padding[0] + kh * chain.dilation[0]
                ow = w * chain.stride[1] - chain.padding[1] + kw * chain.dilation[1]
                if 0 <= oh < h_out and 0 <= ow < w_out:
                    co = ci // per_in * per_out + o
                    y[co][oh][ow] += Fraction(int(x[n, ci, h, w])) * int(weight[ci, o, kh, kw])
        for co in range(c_out):
            total = sum((multiplier * value for row in y[co] for value in row), Fraction(0))
            result[n, co, 0, 0] = float(total / (h_out * w_out))
    return result


def test_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {m.split(".")[0] for m in modules} <= {"numpy", "typing", "math", "collections", "__future__"}


def test_tail_by_hand() -> None:
    y = np.array([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, 1.0], [0.0, 4.0]]]])
    assert oracle.multiply_gap(y, 0.5).tolist() == [[[[1.5]], [[0.5]]]]
    assert oracle.multiply_gap(y, np.array([[[2.0]], [[-1.0]]])).tolist() == [[[[6.0]], [[-1.0]]]]
    assert oracle.multiply_gap(y, -0.5, absolute=True).tolist() == [[[[1.5]], [[0.75]]]]


def test_chain_by_hand() -> None:
    # 2 x 2 input, kernel 3, stride 2, padding 1, output_padding 1: a 4 x 4 output. Tap 0 reaches row -1
    # from row 0, so it keeps input row 1 only; taps 1 and 2 keep both rows. Columns alike.
    x = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])

    def chain(x: np.ndarray, weight: np.ndarray, bias: float, multiplier: float, absolute: bool = False) -> float:
        out = oracle.conv_transpose2d_multiply_gap(
            x, weight, [bias], multiplier=multiplier, stride=2, padding=1, output_padding=1, absolute=absolute
        )
        return out.item()

    seen = {(0, 0): 1000, (0, 1): 1100, (0, 2): 1100, (1, 0): 1010, (2, 0): 1010}
    for tap in product(range(3), range(3)):
        weight = np.zeros((1, 1, 3, 3))
        weight[0, 0, *tap] = 1
        assert chain(x, weight, 5.0, 2.0) == 2 * (5 + seen.get(tap, 1111) / 16)
        assert chain(-x, -weight, -5.0, -2.0, absolute=True) == 2 * (5 + seen.get(tap, 1111) / 16)


@pytest.mark.parametrize("seed", range(60))
def test_chain_is_exact_on_integers(seed: int) -> None:
    # Sums of integers are exact and the division by Hout * Wout rounds once, so equality is asked.
    chain = random_chain(Random(1000 + seed), size=5)
    rng = np.random.default_rng(seed)
    x, weight, bias = (
        integers(rng, *chain.in_shape),
        integers(rng, *chain.weight_shape),
        integers(rng, chain.c_out),
    )
    multiplier = Fraction(int(rng.integers(-8, 9)), 4)
    out = oracle.conv_transpose2d_multiply_gap(x, weight, bias, multiplier=float(multiplier), **sizes(chain))
    np.testing.assert_array_equal(out, exact(chain, x, weight, bias, multiplier))
    magnitude = oracle.conv_transpose2d_multiply_gap(
        x, weight, bias, multiplier=float(multiplier), absolute=True, **sizes(chain)
    )
    np.testing.assert_array_equal(magnitude, exact(chain, abs(x), abs(weight), abs(bias), abs(multiplier)))


@pytest.mark.parametrize("seed", range(40))
def test_gradients_are_those_of_the_literal_operator(seed: int) -> None:
    # Float64 on both sides, sums of at most a few thousand terms: 1e-12 of the magnitude is ample.
    chain = random_chain(Random(2000 + seed))
    torch.manual_seed(seed)
    shapes = (
        chain.in_shape,
        chain.weight_shape,
        (chain.c_out,),
        [(), (chain.c_out, 1, 1), chain.out_shape][seed % 3],
    )
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    grad = torch.randn(chain.out_shape, dtype=torch.float64)
    x, weight, bias, multiplier = leaves
    out = eager.conv_transpose2d_multiply_gap(x, weight, bias, multiplier=multiplier, **sizes(chain))
    expected = torch.autograd.grad(out, leaves, grad)
    arrays = [leaf.detach().numpy() for leaf in (*leaves, grad)]
    actual = oracle.conv_transpose2d_multiply_gap_grad(*arrays, **sizes(chain))
    magnitude = oracle.conv_transpose2d_multiply_gap_grad(*arrays, absolute=True, **sizes(chain))
    for a, e, m in zip(actual, expected, magnitude, strict=True):
        assert a is not None
        assert m is not None
        assert a.shape == tuple(e.shape)
        assert np.all(np.abs(a - e.numpy()) <= 1e-12 * m + 1e-300)
        assert np.all(np.abs(a) <= m * (1 + 1e-12))


def test_gradient_by_hand() -> None:
    # Kernel 1: out = m * (w * mean(x) + b) with m = 3, w = 2, mean(x) = 2.5, b = 7, and grad = 4.
    x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    got = oracle.conv_transpose2d_multiply_gap_grad(x, [[[[2.0]]]], [7.0], 3.0, [[[[4.0]]]])
    assert got.x.tolist() == [[[[6.0, 6.0], [6.0, 6.0]]]]
    assert (got.weight.item(), got.multiplier.item()) == (30.0, 48.0)
    assert got.bias is not None
    assert got.bias.item() == 12.0
    assert oracle.conv_transpose2d_multiply_gap_grad(x, [[[[2.0]]]], None, 3.0, [[[[4.0]]]]).bias is None


def test_tail_gradient_is_that_of_the_literal_operator() -> None:
    torch.manual_seed(0)
    for shape in ((), (3, 1, 1), (2, 3, 1, 1)):
        y = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        multiplier = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(2, 3, 1, 1, dtype=torch.float64)
        expected = torch.autograd.grad(eager.multiply_gap(y, multiplier), (y, multiplier), grad)
        actual = oracle.multiply_gap_grad(y.detach().numpy(), multiplier.detach().numpy(), grad.numpy())
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e.numpy(), rtol=1e-13, atol=1e-14)
            assert a.shape == tuple(e.shape)


def test_not_finite_goes_where_the_scatter_takes_it() -> None:
    # Five rows, kernel 3, padding 3: one output row; tap k sees row 3 - k, so nothing sees rows 0 and 4.
    x, weight = np.ones((5, 2, 5, 5)), np.ones((2, 2, 3, 3))
    weight[0, 1] = 0
    x[1, 0, 2, 2] = np.inf
    x[2, 0, 1, 1], x[2, 1, 2, 3] = np.inf, -np.inf
    x[3, 1, 2, 1] = np.nan
    x[4, 0, 0, :], x[4, 1, :, 4] = np.nan, np.inf
    out = oracle.conv_transpose2d_multiply_gap(x, weight, padding=3)[:, :, 0, 0]
    np.testing.assert_array_equal(out, [[18, 9], [np.inf, np.nan], [np.nan, np.nan], [np.nan, np.nan], [18, 9]])
