"""PTX's arithmetic on 32 lanes: what an instruction makes of its operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TYPES: dict[str, Any] = {
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "u8": np.uint8, "b8": np.uint8, "s8": np.int8,
    "u16": np.uint16, "s16": np.int16, "b16": np.uint16, "u32": np.uint32, "s32": np.int32, "b32": np.uint32,
    "u64": np.uint64, "s64": np.int64, "b64": np.uint64,
}  # fmt: skip
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
WIDE = {"s32": "s64", "u32": "u64", "s16": "s32", "u16": "u32"}

LOGIC: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}

_ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def compare(how: str, a: Array, b: Array) -> Array:
    """setp: a comparison that ends in u is true of a NaN, the others are false of it, `ne` included."""
    if how in ("nan", "num"):
        return (np.isnan(a) | np.isnan(b)) == (how == "nan")
    wild = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(len(a), bool)
    if how not in _ORDERED:
        return _ORDERED[how[:-1]](a, b) | wild
    return _ORDERED[how](a, b) & ~wild


def arithmetic(words: tuple[str, ...], operands: list[Array], addend: Array | None) -> Array:
    """The result of an instruction. addend: the last operand of a product that is wider than its factors.

    NotImplementedError for an instruction that is not known.
    """
    kind, last = words[0], words[-1]
    floating = last[0] == "f"
    a, b = operands[0], operands[1] if len(operands) > 1 else operands[0]
    if kind in ("mul", "mad") and not floating:
        return _product(words, operands, addend)
    if kind == "fma":
        # One rounding: a product of two float32 is exact in float64, and nearly so of float64 in 80 bits.
        wide = np.longdouble if last == "f64" else np.float64
        return (a.astype(wide) * b.astype(wide) + operands[2].astype(wide)).astype(a.dtype)
    if kind in ("shl", "shr"):
        return _shifted(kind, a, b.view(UNSIGNED[b.dtype.itemsize]))
    if kind == "bfe":
        start, length = int(b[0]), int(operands[2][0])
        bits = 8 * a.dtype.itemsize
        return a << a.dtype.type(bits - start - length) >> a.dtype.type(bits - length)
    if kind in ("div", "rem") and not floating:
        quotient = np.trunc(a / np.where(b == 0, 1, b)).astype(a.dtype)
        return quotient if kind == "div" else a - quotient * b
    if kind == "prmt":
        return _permuted(a, b, operands[2])
    if found := _SIMPLE.get(kind):
        return found(a, b)
    if kind == "popc":
        return np.array([int(number).bit_count() for number in a], np.uint32)
    raise NotImplementedError(".".join(words))


_SIMPLE: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.fmin,
    "max": np.fmax,
    "neg": lambda a, b: -a,
    "abs": lambda a, b: np.abs(a),
}


def _product(words: tuple[str, ...], operands: list[Array], addend: Array | None) -> Array:
    a, b = operands[:2]
    if words[1] == "wide":
        dtype = TYPES[WIDE[words[-1]]]
        product = a.astype(dtype) * b.astype(dtype)
    elif words[1] == "hi":
        bits = 8 * a.dtype.itemsize
        high = [int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)]
        product = np.array([number % (1 << bits) for number in high], UNSIGNED[a.dtype.itemsize]).view(a.dtype)
    else:
        product = a * b
    if words[0] == "mul":
        return product
    return product + (operands[2] if addend is None else addend)


def _permuted(a: Array, b: Array, selector: Array) -> Array:
    """Four bytes of the eight in b and a; a selector's fourth bit stands for eight copies of the byte's sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    found = np.zeros(len(a), np.uint32)
    for i in range(4):
        which = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = (both >> (which & np.uint32(7)).astype(np.uint64) * np.uint64(8)).astype(np.uint32) & np.uint32(255)
        byte = np.where(which & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        found |= byte.astype(np.uint32) << np.uint32(8 * i)
    return found


def _shifted(kind: str, a: Array, by: Array) -> Array:
    """Shifts by as many bits as there are, or more, leave nothing, or the sign."""
    bits = 8 * a.dtype.itemsize
    found = [
        int(number) << min(int(n), bits) if kind == "shl" else int(number) >> min(int(n), bits)
        for number, n in zip(a, by, strict=True)
    ]
    unsigned = UNSIGNED[a.dtype.itemsize]
    return np.array([number % (1 << bits) for number in found], unsigned).view(a.dtype)


def converted(values: list[Array], words: tuple[str, ...]) -> Array:
    """cvt: rounded to the nearest, integers cut; bfloat16 comes and goes as its bits. x2: the first is the upper half.

    NotImplementedError for other roundings.
    """
    to, source = words[-2], words[-1]
    if {"rz", "rm", "rp", "sat", "relu", "rzi", "rmi", "rpi", "rni"} & set(words):
        raise NotImplementedError(".".join(words))
    if to.endswith("x2"):
        upper, lower = (converted([value], (*words[:-2], to[:-2], source)) for value in values)
        return upper.view(np.uint16).astype(np.uint32) << np.uint32(16) | lower.view(np.uint16)
    (value,) = values
    if source == "bf16":
        value = (value.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if to == "bf16":
        bits = value.astype(np.float32).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        kept = np.where(np.isnan(value), np.uint32(0x7FFF0000), rounded)
        return (kept >> np.uint32(16)).astype(np.uint16)
    return value.astype(TYPES[to])
