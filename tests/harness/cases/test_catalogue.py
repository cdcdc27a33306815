"""The cases are what they say: named once, small where they must be, the same values everywhere."""

from dataclasses import fields
from math import prod

import pytest
import torch

from harness.cases.case import LAYOUTS, SMALL_ELEMENTS, VALUES, Case
from harness.cases.catalogue import EDGE, GRID, HEADLINE, MODELS, select
from harness.cases.inputs import make_inputs
from reference.problem import Chain

ALL = (*HEADLINE, *GRID, *MODELS, *EDGE)


def test_names_are_unique_and_say_the_operator() -> None:
    names = [case.name for case in ALL]
    assert len(set(names)) == len(names)
    assert all(case.name.startswith(case.op + "/") and case.reason for case in ALL)


def test_headline_is_the_published_problem() -> None:
    chain, tail = (case.problem for case in HEADLINE)
    assert isinstance(chain, Chain)
    assert chain.conv_shape == tail.in_shape == (16, 128, 256, 256)
    assert chain.in_shape == (16, 64, 128, 128)
    assert HEADLINE[0].multiplier == 0.5


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_small_twin_has_the_same_structure(case: Case) -> None:
    small = case.small()
    if not case.gpu_only:
        assert prod(small.problem.in_shape) <= SMALL_ELEMENTS
    if isinstance(case.problem, Chain) and isinstance(small.problem, Chain):
        shared = ("kernel", "stride", "padding", "output_padding", "dilation", "bias")
        assert all(getattr(case.problem, name) == getattr(small.problem, name) for name in shared)
        # Grouped stays grouped, depthwise stays depthwise.
        groups = small.problem.groups
        assert groups == min(case.problem.groups, 16)
        assert (small.problem.c_in == groups) == (case.problem.c_in == case.problem.groups)
        # A crop in the large case is a crop in the small one.
        assert all(
            [(lo > 0, hi < size) for lo, hi in case.problem.bands(axis)]
            == [(lo > 0, hi < cut) for lo, hi in small.problem.bands(axis)]
            for axis, size, cut in (
                (0, case.problem.h, small.problem.h),
                (1, case.problem.w, small.problem.w),
            )
        )
    unchanged = {f.name for f in fields(Case)} - {"problem", "twin"}
    assert all(getattr(case, name) == getattr(small, name) for name in unchanged)


@pytest.mark.parametrize("case", [c for c in ALL if c.op == "chain"], ids=lambda case: case.name)
def test_chains_are_valid(case: Case) -> None:
    p = case.problem
    assert isinstance(p, Chain)
    assert p.c_in % p.groups == p.c_out % p.groups == 0
    for axis in (0, 1):
        assert p.out_size(axis) >= 1
        assert p.output_padding[axis] < max(p.stride[axis], p.dilation[axis])


def test_edges_are_there() -> None:
    chains = [case.problem for case in EDGE if isinstance(case.problem, Chain)]
    assert {s for p in chains for s in p.stride} == {1, 2, 3, 4}
    assert any(p.covered(0) == 0 for p in chains)
    assert any(p.covered(0) and p.covered(0) < p.h for p in chains)
    assert any(p.bands(0)[0][0] >= p.bands(0)[-1][1] and p.covered(0) for p in chains), "no core"
    assert any(p.output_padding[0] >= p.stride[0] for p in chains)
    assert {case.values for case in ALL} == set(VALUES)
    assert {case.layout for case in ALL} <= set(LAYOUTS)
    assert any(case.problem.h * case.problem.w > 2**31 and case.layout == "contiguous" for case in EDGE)


def test_select() -> None:
    assert select(["headline"]) == HEADLINE
    assert select(["tail/head*"], op="tail")[0] == HEADLINE[1]
    assert select(["edge", "chain/edge/1x1"]) == EDGE
    assert not any(case.gpu_only for case in select(["*"], gpu=False))
    assert {case.op for case in select(["*"], op="chain")} == {"chain"}
    with pytest.raises(ValueError, match=r"chain/hedline.*chain/headline"):
        select(["chain/hedline"])


@pytest.mark.parametrize("case", [c.small() for c in ALL if not c.gpu_only], ids=lambda case: case.name)
def test_inputs_repeat_and_round(case: Case) -> None:
    one, two = (make_inputs(case, "cpu", "float32") for _ in range(2))
    assert one.x.shape == case.problem.in_shape
    assert torch.equal(one.x.nan_to_num(7), two.x.nan_to_num(7))
    if case.values in ("uniform", "normal"):
        assert torch.equal(make_inputs(case, "cpu", "bfloat16").x, one.x.bfloat16())
    if one.weight is not None and two.weight is not None:
        assert torch.equal(one.weight, two.weight)
        assert one.weight.abs().max() <= prod(one.weight.shape[1:]) ** -0.5


def test_weights_have_the_scale_of_conv_transpose2d() -> None:
    # Both are uniform in +-bound: with 2,304 draws the largest is within 1 % of the bound.
    (case,) = select(["chain/edge/many-channels"])
    assert isinstance(case.problem, Chain)
    weight, peer = make_inputs(case, "cpu").weight, torch.nn.ConvTranspose2d(130, 129, 3).weight
    assert weight is not None
    assert weight.shape == peer.shape
    assert weight.abs().max().item() == pytest.approx(peer.abs().max().item(), rel=0.01)


def test_different_cases_differ_and_seeds_count() -> None:
    a, b = select(["chain/edge/batch1", "chain/edge/1x1"])
    assert not torch.equal(make_inputs(a, "cpu").x.flatten()[:6], make_inputs(b, "cpu").x.flatten()[:6])
    other = Case(a.name, a.problem, a.reason, seed=1)
    assert not torch.equal(make_inputs(a, "cpu").x, make_inputs(other, "cpu").x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    (case,) = select(["tail/edge/prime"])
    _, c, h, w = case.problem.in_shape
    x = make_inputs(case, "cpu", layout=layout).x
    strides = {
        "contiguous": (c * h * w, h * w, w, 1),
        "channels_last": (c * h * w, 1, w * c, c),
        "expanded": (0, h * w, w, 1),
        "expanded_rows": (c * w, w, 0, 1),
        "sliced": (c * h * (2 * w + 1), h * (2 * w + 1), 2 * w + 1, 2),
        "cropped": (c * (h + 2) * (w + 3), (h + 2) * (w + 3), w + 3, 1),
        "offset": (c * h * w, h * w, w, 1),
        "transposed": (c * h * w, h * w, 1, h),
    }
    assert x.stride() == strides[layout]
    assert not x.isnan().any()
    assert (x.storage_offset() == 0) is (layout not in ("sliced", "cropped", "offset"))
    if "expanded" not in layout:
        assert torch.equal(x, make_inputs(case, "cpu", layout="contiguous").x)


def test_unknown_layout_and_values() -> None:
    case = EDGE[0]
    with pytest.raises(ValueError, match=r"layout: .*'diagonal'"):
        make_inputs(case, "cpu", layout="diagonal")
    with pytest.raises(ValueError, match=r"values: .*'zeros'"):
        make_inputs(Case("a", case.problem, "b", values="zeros"), "cpu")
