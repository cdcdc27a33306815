"""Problems as one word of text, for the command line and for records; cases as the command line of another process.

    tail:N,C,H,W
    chain:N,CIN,COUT,H,W[,kK][,sS][,pP][,opO][,dD][,gG][,nobias]

K, S, P, O, D are one number for both axes or rows x columns, as in k3x5. Left out they are what torch takes:
kernel 1, stride 1, padding 0, output_padding 0, dilation 1, groups 1, and a bias.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import Any

import torch

import convgap
from harness.cases.case import Case
from reference.problem import Chain, Problem, Tail

USAGE = {
    "tail": "tail:N,C,H,W as in tail:16,128,256,256",
    "chain": "chain:N,CIN,COUT,H,W,kK,sS,pP,opO,dD,gG,nobias as in chain:16,64,128,128,128,k3,s2,p1,op1",
}
_PAIRS = {"k": "kernel", "s": "stride", "p": "padding", "op": "output_padding", "d": "dilation"}
_OPTION = re.compile(r"(k|s|p|op|d)(\d+)(?:x(\d+))?")


def parse(text: str) -> Problem:
    """Problem of its spelling; ValueError with one line that says what is wrong."""
    op, _, rest = text.partition(":")
    if op not in USAGE:
        raise ValueError(f"shape {text!r}: expected {USAGE['chain']}, or {USAGE['tail']}")
    words = rest.split(",")
    count = 4 if op == "tail" else 5
    sizes = words[:count]
    if len(sizes) < count or not all(re.fullmatch(r"\d+", word) for word in sizes):
        raise ValueError(f"shape {text!r}: expected {count} sizes first: {USAGE[op]}")
    numbers = [int(word) for word in sizes]
    if op == "tail" and words[count:]:
        raise ValueError(f"shape {text!r}: {words[count]!r} is no part of {USAGE['tail']}")
    problem = _chain(text, numbers, words[count:]) if op == "chain" else Tail(*numbers)
    _check(text, problem)
    return problem


def _chain(text: str, sizes: list[int], words: list[str]) -> Chain:
    n, c_in, c_out, h, w = sizes
    options: dict[str, Any] = {"kernel": (1, 1)}
    seen = set()
    for word in words:
        if word == "nobias":
            key, value = "bias", False
        elif match := re.fullmatch(r"g(\d+)", word):
            key, value = "groups", int(match[1])
        elif match := _OPTION.fullmatch(word):
            key, value = _PAIRS[match[1]], (int(match[2]), int(match[3] or match[2]))
        else:
            raise ValueError(f"shape {text!r}: {word!r} is no part of {USAGE['chain']}")
        if key in seen:
            raise ValueError(f"shape {text!r}: {key} is given twice")
        seen.add(key)
        options[key] = value
    return Chain(n, c_in, c_out, h, w, **options)


def _check(text: str, problem: Problem) -> None:
    """ValueError for a call that the operator refuses: it is asked, with tensors that have sizes and no memory."""
    try:
        if isinstance(problem, Tail):
            convgap.multiply_gap(torch.empty(problem.in_shape, device="meta"), 1.0, backend="torch")
            return
        if problem.groups < 1 or problem.c_out % problem.groups:
            raise ValueError(f"groups: expected a divisor of {problem.c_out} outputs, got {problem.groups}")
        x, weight = (torch.empty(shape, device="meta") for shape in (problem.in_shape, problem.weight_shape))
        bias = torch.empty(problem.c_out, device="meta") if problem.bias else None
        convgap.conv_transpose2d_multiply_gap(
            x, weight, bias, backend="torch", stride=problem.stride, padding=problem.padding,
            output_padding=problem.output_padding, groups=problem.groups, dilation=problem.dilation,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"shape {text!r}: {str(error).splitlines()[0]}") from None


def spell(problem: Problem) -> str:
    """The word that parse() turns into this problem; what equals torch's default is left out."""
    if isinstance(problem, Tail):
        return f"tail:{problem.n},{problem.c},{problem.h},{problem.w}"
    words = [f"{problem.n},{problem.c_in},{problem.c_out},{problem.h},{problem.w}"]
    usual = {"k": (1, 1), "s": (1, 1), "p": (0, 0), "op": (0, 0), "d": (1, 1)}
    for letter, name in _PAIRS.items():
        rows, columns = getattr(problem, name)
        if (rows, columns) != usual[letter]:
            words.append(f"{letter}{rows}" if rows == columns else f"{letter}{rows}x{columns}")
    if problem.groups != 1:
        words.append(f"g{problem.groups}")
    if not problem.bias:
        words.append("nobias")
    return f"chain:{','.join(words)}"


def command(case: Case, backend: str) -> str:
    """The command line that checks the same numbers on one backend; what equals the command's default is left out."""
    words = ["python3 bench.py check", f"--shape {spell(case.problem)}"]
    usual = {"dtype": "float32", "layout": "contiguous", "values": "uniform", "seed": 0}
    words += [f"--{name} {value}" for name in usual if (value := getattr(case, name)) != usual[name]]
    if case.multiplier != 0.5:
        words.append(f"--multiplier={'tensor' if case.multiplier is None else case.multiplier}")
    return " ".join([*words, f"--backends {backend}"])


def variant(case: Case, dtype: str | None, layout: str | None) -> Case:
    """The case in another dtype or layout, and its name, which is part of the seed, says so."""
    dtype, layout = dtype or case.dtype, layout or case.layout
    odd = [new for new, old in ((dtype, case.dtype), (layout, case.layout)) if new != old]
    return replace(case, name="@".join([case.name, *odd]), dtype=dtype, layout=layout)


def own_case(problem: Problem, reason: str) -> Case:
    """The case that `--shape` makes."""
    return Case(f"shape/{spell(problem)}", problem, reason)


_FIELDS = ("name", "dtype", "layout", "multiplier", "values", "seed", "backward")
"""What else makes a case, beside its problem."""


def arguments(case: Case) -> list[str]:
    """The case as words for another process, which case_of() turns back into it."""
    named: dict[str, Any] = {"shape": spell(case.problem)} | {name: getattr(case, name) for name in _FIELDS}
    return [f"--{name}={value}" for name, value in named.items()]


def case_of(words: list[str]) -> tuple[Case, list[str]]:
    """The case of arguments()'s words, and the words that are none of it. Its reason and twin are not passed on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=parse, dest="problem")
    for name in _FIELDS:
        convert = {"seed": int, "multiplier": _number_or_none, "backward": "True".__eq__}.get(name, str)
        parser.add_argument(f"--{name}", type=convert)
    found, others = parser.parse_known_args(words)
    return Case(reason="", **vars(found)), others


def _number_or_none(text: str) -> float | None:
    return None if text == "None" else float(text)
