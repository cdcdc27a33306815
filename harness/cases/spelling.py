"""Problems as one word of text, for the command line and for records.

    tail:N,C,H,W
    chain:N,CIN,COUT,H,W[,kK][,sS][,pP][,opO][,dD][,gG][,nobias]

K, S, P, O, D are one number for both axes or rows x columns, as in k3x5. Left out they are what torch takes:
kernel 1, stride 1, padding 0, output_padding 0, dilation 1, groups 1, and a bias.
"""

from __future__ import annotations

import re

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
    if min(numbers[1:]) < 1:
        raise ValueError(
            f"shape {text!r}: expected sizes of at least 1 after the batch, got {min(numbers[1:])}"
        )
    if op == "tail":
        if words[count:]:
            raise ValueError(f"shape {text!r}: {words[count]!r} is no part of {USAGE['tail']}")
        return Tail(*numbers)
    n, c_in, c_out, h, w = numbers
    problem = Chain(n, c_in, c_out, h, w, **_options(text, words[count:]))
    _check(text, problem)
    return problem


def _options(text: str, words: list[str]) -> dict:
    options: dict = {"kernel": (1, 1)}
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
    return options


def _check(text: str, chain: Chain) -> None:
    """ValueError for a call that torch would refuse."""
    if chain.groups < 1 or chain.c_in % chain.groups or chain.c_out % chain.groups:
        raise ValueError(
            f"shape {text!r}: groups {chain.groups} do not divide {chain.c_in} and {chain.c_out} channels"
        )
    for axis in range(2):
        stride, dilation, extra = chain.stride[axis], chain.dilation[axis], chain.output_padding[axis]
        if min(chain.kernel[axis], stride, dilation) < 1:
            raise ValueError(f"shape {text!r}: expected kernel, stride and dilation of at least 1")
        if extra >= max(stride, dilation):
            raise ValueError(
                f"shape {text!r}: expected output_padding below max(stride, dilation) = "
                f"{max(stride, dilation)}, got {extra}"
            )
        if chain.out_size(axis) < 1:
            raise ValueError(
                f"shape {text!r}: the convolution output would have {chain.out_size(axis)} rows or columns"
            )


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
