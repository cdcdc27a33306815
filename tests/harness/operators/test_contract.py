"""What an operator's object must say, and that nothing else of the lab asks for an operator by its name."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
import torch

from harness.cases import operators
from harness.cases.inputs import Arguments
from harness.cases.spelling import parse, spell
from harness.errors import UsageError
from reference.problem import Chain, Tail

ROOT = Path(__file__).parents[3]

KITS = re.compile(
    r"operators/|mutants/|candidates/|tuning/|entries/|machine/compile|cases/(operators|catalogue|models|case)\.py"
    r"|numerics/(properties|symmetries|strange|example)\.py"
)
"""Files that are about chain and tail: their objects, and the cases, entries, properties, mutants and machine code that
these objects name; the judge of their kernels, and the launch constants of these."""


def test_only_the_operators_own_files_name_them() -> None:
    named = re.compile(r"\b(Chain|Tail)\b|[\"'](chain|tail)[\"']")
    found = [
        str(path.relative_to(ROOT / "harness"))
        for path in (ROOT / "harness").rglob("*.py")
        if named.search(path.read_text(encoding="utf-8"))
    ]
    assert found and [path for path in found if not KITS.match(path)] == []


@pytest.mark.parametrize("operator", operators.built_in(), ids=lambda operator: operator.name)
def test_an_operators_random_sizes_are_its_own(operator) -> None:
    rng = Random(0)
    for _ in range(50):
        problem = operator.draw(rng)
        assert operators.of(problem) is operator
        assert parse(spell(problem)) == problem
        assert operator.batched(problem, 5).in_shape == (5, *problem.in_shape[1:])
        assert operators.of(operator.resized(problem, 3)) is operator
        assert operator.resized(problem, 3) != problem


def test_chain_and_tail_share_the_catalogue_between_them() -> None:
    chain, tail = operators.built_in()
    assert (chain.sizes, tail.sizes) == (Chain, Tail)
    assert all(case.op == "chain" for group in chain.cases.values() for case in group)
    assert len(chain.cases["headline"]) == len(tail.cases["headline"]) == 1


def test_sizes_of_no_operator_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected sizes of a known operator \(Chain, Tail"):
        operators.of((1, 2, 3))


def test_arguments_are_told_by_their_tensors() -> None:
    given = Arguments(torch.ones(2, 3))
    tracked, leaves = given.tracked()
    assert list(given.tensors()) == list(leaves) == ["x"]
    assert tracked.x.requires_grad and not given.x.requires_grad


OWN = """
from dataclasses import dataclass
from harness.operators.contract import Operator

@dataclass(frozen=True)
class Sizes:
    n: int

class Own(Operator):
    name, sizes = {name!r}, Sizes

OPERATOR = Own()
"""


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "expected OPERATOR to be an Operator, got nothing of that name"),
        ("OPERATOR = 3", "expected OPERATOR to be an Operator, got int"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (OWN.format(name="chain"), "expected a name of its own, got 'chain'"),
        (OWN.format(name="Soft max"), "name: expected lower-case letters, got 'Soft max'"),
        (OWN.format(name=""), "name: expected lower-case letters, got ''"),
    ],
)
def test_a_file_that_is_no_operator_is_refused(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "_own", {})
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)):
        operators.load(tmp_path / "own.py")
    assert operators.known() == operators.built_in()


def test_a_file_is_loaded_once_and_its_shapes_are_spelled_by_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "_own", {})
    (tmp_path / "own.py").write_text(OWN.format(name="own"))
    own = operators.load(tmp_path / "own.py")
    assert operators.load(tmp_path / "own.py") is own
    assert own.usage == "own:N" and parse("own:3") == own.sizes(3)
    with pytest.raises(ValueError, match="expected 1 sizes first: own:N"):
        parse("own:x")
