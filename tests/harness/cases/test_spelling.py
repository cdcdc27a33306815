"""Problems and cases as text, and back."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace

import pytest

from harness.cases import spelling
from harness.cases.case import Case
from harness.cases.catalogue import EDGE, GRID, HEADLINE, MODELS
from harness.options import add_case_options, chosen_cases
from reference.problem import Chain, Tail


@pytest.mark.parametrize("case", [*HEADLINE, *GRID, *MODELS, *EDGE], ids=lambda case: case.name)
def test_every_problem_has_a_spelling(case: Case) -> None:
    assert spelling.parse(spelling.spell(case.problem)) == case.problem


def test_shapes_by_hand() -> None:
    assert spelling.parse("tail:16,128,256,256") == Tail(16, 128, 256, 256)
    assert spelling.parse("chain:16,64,128,96,160,k3x5,s2x1,p1x2,op1x0,d1,g4,nobias") == Chain(
        16, 64, 128, 96, 160, (3, 5), (2, 1), (1, 2), (1, 0), (1, 1), 4, False
    )


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "expected chain:"),
        ("tail:1,2,3,x", "4 sizes first"),
        ("tail:1,0,3,4", "at least one channel"),
        ("tail:1,2,3,4,k3", "no part of"),
        ("chain:1,2,3,4,5,q7", "'q7' is no part of"),
        ("chain:1,2,3,4,5,k3,k5", "given twice"),
        ("chain:1,3,4,5,5,g2", "groups: expected a divisor"),
        ("chain:1,2,2,1,1,k1,p3", "padding: expected an output"),
        ("chain:1,1,1,4,4,k3,op1", "output_padding: expected less"),
        ("chain:1,1,1,4,4,k0", "weight: expected"),
        ("chain:1,2,2,4,4,g0", "groups: expected a divisor"),
        ("chain:1,2,2,4,4,s0", "stride: expected at least 1"),
        ("chain:1,2,3,4,4,g2,nobias", "groups: expected a divisor"),
        (f"tail:1,{2**62},4,4", "."),
        (f"tail:1,{2**70},4,4", "."),
        (f"tail:1,{'9' * 5000},4,4", "."),
    ],
)
def test_bad_shapes(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spelling.parse(text)


@pytest.mark.parametrize(
    "case",
    [
        Case("a name, with words", Tail(2, 3, 4, 5), ""),
        Case("b", Chain(1, 2, 3, 4, 5, (1, 2)), "", "float16", "sliced", None, "normal", 7, backward=True),
        Case("c", Tail(2, 3, 4, 5), "", multiplier=-1.7),
    ],
)
def test_a_case_survives_the_way_to_another_process(case: Case) -> None:
    assert spelling.case_and_entry(spelling.arguments(case, "cub")) == (case, "cub")


def test_the_command_line_of_a_case_makes_it_again() -> None:
    parser = argparse.ArgumentParser()
    add_case_options(parser)
    for case in (
        spelling.own_case(Tail(2, 3, 4, 5), ""),
        replace(spelling.own_case(Tail(2, 3, 4, 5), ""), multiplier=None, seed=3),
        replace(
            spelling.variant(spelling.own_case(Chain(1, 2, 3, 4, 5, (1, 2)), ""), "float16", "sliced"),
            multiplier=-1.7, values="normal",
        ),
    ):  # fmt: skip
        words = shlex.split(spelling.command(case, "torch"))
        assert words[:3] == ["python3", "bench.py", "check"]
        args = parser.parse_args(words[3:])
        assert args.backends == ["torch"]
        (again,) = chosen_cases(args, (), gpu=True)
        assert replace(again, reason="") == case
