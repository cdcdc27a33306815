"""Problems as one word of text, for the command line and for records; cases as the command line of another process.

A problem's word is its operator's name, a colon, and what the operator spells its sizes by: tail:16,128,256,256.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cases import operators
from harness.cases.case import Case


def usage() -> str:
    """How the shapes of the operators of this process are spelled."""
    return ", or ".join(operator.usage for operator in operators.known())


def parse(text: str) -> Any:
    """Problem of its spelling; ValueError with one line that says what is wrong."""
    name, _, rest = text.partition(":")
    operator = next((found for found in operators.known() if found.name == name), None)
    if operator is None:
        raise ValueError(f"shape {text!r}: expected {usage()}")
    problem = operator.parse(text, rest.split(","))
    try:
        operator.check(problem)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"shape {text!r}: {str(error).splitlines()[0]}") from None
    return problem


def spell(problem: Any) -> str:
    """The word that parse() turns into this problem."""
    operator = operators.of(problem)
    return f"{operator.name}:{operator.spell(problem)}"


def command(case: Case, backend: str) -> str:
    """The command line that checks the same numbers on one backend; what equals the command's default is left out."""
    file = operators.of(case.problem).file
    words = [
        "python3 bench.py check",
        *([f"--operator {file}"] if file else []),
        f"--shape {spell(case.problem)}",
    ]
    usual = {"dtype": "float32", "layout": "contiguous", "values": "uniform", "seed": 0}
    words += [f"--{name} {value}" for name in usual if (value := getattr(case, name)) != usual[name]]
    if operators.of(case.problem).multiplied and case.multiplier != 0.5:
        words.append(f"--multiplier={'tensor' if case.multiplier is None else case.multiplier}")
    return " ".join([*words, f"--backends {backend}"])


def variant(case: Case, dtype: str | None, layout: str | None) -> Case:
    """The case in another dtype or layout, and its name, which is part of the seed, says so."""
    dtype, layout = dtype or case.dtype, layout or case.layout
    odd = [new for new, old in ((dtype, case.dtype), (layout, case.layout)) if new != old]
    return replace(case, name="@".join([case.name, *odd]), dtype=dtype, layout=layout)


def own_case(problem: Any, reason: str) -> Case:
    """The case that `--shape` makes."""
    return Case(f"shape/{spell(problem)}", problem, reason)


_FIELDS = ("name", "dtype", "layout", "multiplier", "values", "seed", "backward")
"""What else makes a case, beside its problem."""


def arguments(case: Case, entry: str) -> list[str]:
    """A case and the name of an entry as words for another process, which case_and_entry() turns back into them."""
    named: dict[str, Any] = {"shape": spell(case.problem)} | {name: getattr(case, name) for name in _FIELDS}
    file = operators.of(case.problem).file
    return [
        *([f"--operator={file}"] if file else []),
        *(f"--{name}={value}" for name, value in named.items()),
        f"--entry={entry}",
    ]


def case_and_entry(words: list[str]) -> tuple[Case, str]:
    """The case and the name of the entry of arguments()'s words. The case's reason and twin are not passed on."""
    own = argparse.ArgumentParser(allow_abbrev=False)
    own.add_argument("--operator", type=lambda text: operators.load(Path(text)))
    _, words = own.parse_known_args(words)
    parser = argparse.ArgumentParser()
    parser.add_argument("--entry")
    parser.add_argument("--shape", type=parse, dest="problem")
    for name in _FIELDS:
        convert = {"seed": int, "multiplier": _number_or_none, "backward": "True".__eq__}.get(name, str)
        parser.add_argument(f"--{name}", type=convert)
    found = vars(parser.parse_args(words))
    entry = found.pop("entry")
    return Case(reason="", **found), entry


def _number_or_none(text: str) -> float | None:
    return None if text == "None" else float(text)
