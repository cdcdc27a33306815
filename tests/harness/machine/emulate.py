"""What the compiler made of a Triton kernel, run on the CPU: PTX, instruction by instruction, without a GPU.

A compiler can be wrong where the kernel is right, and no interpreter of kernels sees that. Blocks run one after the
other, and the warps of a block one after the other from barrier to barrier, forwards or backwards. A byte of shared
memory that one warp writes while another reads or changes it, with no barrier between them, is a race and raises
RaceError; so does an access outside the tensors (IndexError) and a misaligned one (ValueError). Only the instructions
that this project's kernels are compiled to are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.harness.machine.ptx_arithmetic import LOGIC, TYPES, UNSIGNED, WIDE, arithmetic, compare, converted

Array = np.ndarray[Any, Any]

LANES = 32
SHARED_BYTES = 100 * 1024
LANE = np.arange(LANES)
_TOGETHER = ("bar", "barrier", "ret", "shfl", "stmatrix", "ldmatrix")
"""Instructions that all lanes of a warp do together, once the last of them has come."""


class RaceError(RuntimeError):
    """Two warps met in shared memory with no barrier between them."""


@dataclass(frozen=True)
class Instruction:
    """`when`: the predicate under which it is done, and whether that has to be true."""

    words: tuple[str, ...]
    operands: tuple[str, ...]
    when: tuple[str, bool] | None
    text: str


@dataclass(frozen=True)
class Program:
    """One kernel. parameters: (type, name) of each."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[tuple[str, str], ...]
    together: Array  # of each instruction, whether all lanes do it together


_INSTRUCTION = re.compile(r"^(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;$")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,\n]*?(\w+_param_\d+)")


def read(ptx: str) -> Program:
    """The only kernel of a PTX text."""
    entry = ptx.index(".visible .entry")
    body = ptx[ptx.index("{", entry) + 1 :]
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in body.splitlines():
        line = line.partition("//")[0].strip()
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            no, predicate, words, rest = found.groups()
            when = (predicate, not no) if predicate else None
            instructions.append(Instruction(tuple(words.split(".")), _operands(rest), when, line))
    parameters = tuple(_PARAMETER.findall(ptx[entry : ptx.index("{", entry)]))
    together = np.array([instruction.words[0] in _TOGETHER for instruction in instructions])
    return Program(tuple(instructions), labels, parameters, together)


def _operands(text: str) -> tuple[str, ...]:
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and not depth:
            found.append(text[start:at].strip())
            start = at + 1
    return (*found, text[start:].strip()) if text else ()


class Memory:
    """Global memory: the bytes of tensors at their own addresses."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Array]] = []

    def add(self, address: int, data: Array) -> None:
        """Let the kernel see these bytes (uint8) at that address."""
        self._parts.append((address, data))

    def at(self, address: int, size: int) -> Array:
        """A view of `size` bytes. IndexError where no tensor has them."""
        for start, data in self._parts:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise IndexError(f"no tensor has {size} bytes at {address:#x}")


class Shared:
    """Shared memory of a block, which notes who touched what since the last barrier."""

    def __init__(self) -> None:
        self._data = np.full(SHARED_BYTES, 0xA5, np.uint8)
        self._written: dict[int, int] = {}
        self._read: dict[int, set[int]] = {}

    def load(self, address: int, size: int, warp: int) -> Array:
        for byte in range(address, address + size):
            if self._written.get(byte, warp) != warp:
                raise RaceError(f"warp {warp} reads byte {byte} that warp {self._written[byte]} wrote")
            self._read.setdefault(byte, set()).add(warp)
        return self._data[address : address + size]

    def store(self, address: int, data: Array, warp: int) -> None:
        old = self._data[address : address + len(data)]
        for byte, before, after in zip(range(address, address + len(data)), old, data, strict=True):
            # Lanes that hold the same number may all store it.
            if before != after and (self._written.get(byte, warp) != warp or self._read.get(byte, set()) - {warp}):
                raise RaceError(f"warp {warp} changes byte {byte} that another warp has in use")
            self._written[byte] = warp
        old[:] = data

    def barrier(self) -> None:
        self._written.clear()
        self._read.clear()


def run(program: Program, arguments: Sequence[int | float], memory: Memory, grid: int, threads: int, *,
        backwards: bool = False) -> None:  # fmt: skip
    """Every block of a launch: one axis of blocks, one of threads."""
    given: dict[str, Array] = {}
    for (kind, name), value in zip(program.parameters, arguments, strict=True):
        number = np.array(value, np.float64 if kind == "f64" else np.int64)
        given[name] = number.reshape(1).view(np.uint64)
    for block in range(grid):
        shared = Shared()
        warps = [Warp(program, given, memory, shared, number, block, grid) for number in range(threads // LANES)]
        while any(not warp.done for warp in warps):
            for warp in reversed(warps) if backwards else warps:
                warp.to_barrier()
            shared.barrier()


class Warp:
    """32 threads in step. Registers hold their bits as uint64, predicates as bool."""

    def __init__(
        self, program: Program, given: dict[str, Array], memory: Memory, shared: Shared, number: int, block: int,
        grid: int,
    ) -> None:  # fmt: skip
        self.program, self.given, self.memory, self.shared = program, given, memory, shared
        self.number, self.done = number, False
        self.at = np.zeros(LANES, int)  # of each lane
        self.active: Array | None = None  # the lanes at the instruction that is done now; None for all
        self.special = {
            "%tid.x": LANE + LANES * number, "%ctaid.x": np.full(LANES, block), "%nctaid.x": np.full(LANES, grid),
            "%nctaid.y": np.ones(LANES, int), "%nctaid.z": np.ones(LANES, int), "%laneid": LANE,
            "global_smem": np.zeros(LANES, int),
        }  # fmt: skip
        self.registers: dict[str, Array] = {}

    def to_barrier(self) -> None:
        """Go on until the next barrier, or the end."""
        while not self.done:
            # Lanes that took different branches meet again because those at the lowest instruction run first, and an
            # instruction that all lanes do together waits for the last of them.
            waits = self.program.together[self.at]
            at = int(self.at[LANE if waits.all() else ~waits].min())
            here = self.at == at
            self.active = None if here.all() else here
            self.at[here] += 1
            now = self.program.instructions[at]
            kind = now.words[0]
            mask = self.active
            if now.when:
                wanted = self.registers[now.when[0]] == now.when[1]
                mask = wanted if mask is None else wanted & mask
            if self.active is not None and waits.all():
                raise NotImplementedError(f"some threads of a warp only: {now.text}")
            if kind in ("bar", "barrier"):
                return
            if kind == "ret":
                self.done = True
            elif kind == "bra":
                self.at[LANE if mask is None else mask] = self.program.labels[now.operands[0]]
            else:
                self._step(kind, now, mask)

    def get(self, name: str, kind: str) -> Array:
        """An operand as 32 numbers of that type."""
        dtype = TYPES[kind]
        unsigned = UNSIGNED[np.dtype(dtype).itemsize]
        if name in self.special:
            return self.special[name].astype(dtype)
        if name.startswith("%"):
            return self.registers[name].astype(unsigned).view(dtype)
        if name.startswith(("0f", "0d")):
            bits = np.full(LANES, int(name[2:], 16), np.uint32 if name[1] == "f" else np.uint64)
            return bits.view(np.float32 if name[1] == "f" else np.float64).astype(dtype)
        size = np.dtype(dtype).itemsize
        return np.full(LANES, int(name.rstrip("U"), 0) % (1 << 8 * size), unsigned).view(dtype)

    def put(self, name: str, value: Array, mask: Array | None = None) -> None:
        if name == "_":
            return
        if value.dtype != bool:
            value = np.ascontiguousarray(value).view(UNSIGNED[value.dtype.itemsize]).astype(np.uint64)
        mask = self.active if mask is None else mask
        if mask is not None:
            value = np.where(mask, value, self.registers.get(name, np.zeros_like(value)))
        self.registers[name] = value

    def flag(self, name: str) -> Array:
        """A predicate, or a number that stands for one."""
        return self.registers[name] if name.startswith("%") else np.full(LANES, int(name) != 0)

    def address(self, text: str) -> Array:
        base, _, offset = text.strip("[] ").partition("+")
        return self.get(base.strip(), "u64").astype(np.int64) + int(offset or 0)

    def _step(self, kind: str, now: Instruction, mask: Array | None) -> None:
        words, to, last = now.words, now.operands, now.words[-1]
        if kind in ("ld", "st", "atom"):
            self._access(kind, now, mask)
        elif kind in ("stmatrix", "ldmatrix"):
            self._matrix(kind, now)
        elif kind == "mov":
            self._move(now, mask)
        elif kind == "setp":
            found = compare(words[1], self.get(to[1], last), self.get(to[2], last))
            self.put(to[0], found if len(to) == 3 else LOGIC[words[2]](found, self.flag(to[3])))
        elif kind == "selp":
            self.put(to[0], np.where(self.flag(to[3]), self.get(to[1], last), self.get(to[2], last)))
        elif kind in ("and", "or", "xor", "not"):
            read: Callable[[str], Array] = self.flag if last == "pred" else lambda name: self.get(name, last)
            self.put(to[0], ~read(to[1]) if kind == "not" else LOGIC[kind](read(to[1]), read(to[2])))
        elif kind == "shfl":
            value, by = self.get(to[1], "b32"), self.get(to[2], "u32").astype(int)
            self.put(to[0].partition("|")[0], value[LANE ^ by if words[2] == "bfly" else by % LANES])
        elif kind == "cvt":
            with np.errstate(all="ignore"):
                read_as = "b16" if last == "bf16" else last
                self.put(to[0], converted([self.get(name, read_as) for name in to[1:]], words))
        elif kind == "createpolicy":  # how long the L2 keeps what is read: no matter here
            self.put(to[0], np.zeros(LANES, np.uint64))
        elif kind not in ("fence", "membar"):
            addend = None
            if kind == "mad" and words[1] == "wide":
                addend = self.get(to[3], WIDE[last])
            shift = kind in ("shl", "shr", "bfe")  # the bits are counted in 32 bits whatever is shifted
            types = (last, *("u32" if shift else last,) * (len(to) - 2))
            operands = [self.get(name, kind_) for name, kind_ in zip(to[1:], types, strict=True)]
            with np.errstate(all="ignore"):
                self.put(to[0], arithmetic(words, operands, addend))

    def _move(self, now: Instruction, mask: Array | None) -> None:
        to, source = now.operands
        if to.startswith("{"):
            parts = _names(to)
            bits = 8 * np.dtype(TYPES[now.words[-1]]).itemsize // len(parts)
            value = self.get(source, now.words[-1])
            for i, name in enumerate(parts):
                piece = value >> value.dtype.type(bits * i) & value.dtype.type((1 << bits) - 1)
                self.put(name, piece.astype(UNSIGNED[bits // 8]))
        elif source.startswith("{"):
            parts = _names(source)
            size = np.dtype(TYPES[now.words[-1]]).itemsize // len(parts)
            pieces = [self.get(name, f"u{8 * size}") for name in parts]
            self.put(to, np.stack(pieces, 1).copy().view(UNSIGNED[size * len(parts)])[:, 0])
        elif now.words[-1] == "pred":
            self.put(to, self.flag(source), mask)
        else:
            self.put(to, self.get(source, now.words[-1]), mask)

    def _access(self, kind: str, now: Instruction, mask: Array | None) -> None:
        words, last = now.words, now.words[-1]
        dtype = np.dtype(TYPES[last])
        if words[1] == "param":
            self.put(now.operands[0], self.given[now.operands[1].strip("[]")].repeat(LANES))
            return
        names = _names(now.operands[1 if kind == "st" else 0])
        at = self.address(now.operands[0 if kind == "st" else 1])
        size = dtype.itemsize * len(names)
        live = LANE if mask is None else LANE[mask]
        if (at[live] % size).any():
            raise ValueError(f"misaligned: {now.text}")
        if kind == "ld":
            found = np.zeros((LANES, len(names)), UNSIGNED[dtype.itemsize])
            for lane in live:
                found[lane] = self._bytes(words[1], int(at[lane]), size).view(found.dtype)
            for i, name in enumerate(names):
                self.put(name, found[:, i], mask)
        elif kind == "st":
            values = np.stack([self.get(name, last) for name in names], 1)
            for lane in live:
                data = np.ascontiguousarray(values[lane]).view(np.uint8)
                if words[1].startswith("shared"):
                    self.shared.store(int(at[lane]), data, self.number)
                else:
                    self.memory.at(int(at[lane]), size)[:] = data
        else:
            before, values = np.zeros(LANES, dtype), self.get(now.operands[2], last)
            for lane in live:
                cell = self.memory.at(int(at[lane]), size).view(dtype)
                before[lane] = cell[0]
                cell[0] += values[lane]
            self.put(names[0], before, mask)

    def _bytes(self, space: str, address: int, size: int) -> Array:
        if space.startswith("shared"):
            return self.shared.load(address, size, self.number)
        return self.memory.at(address, size)

    def _matrix(self, kind: str, now: Instruction) -> None:
        """8 x 8 matrices of 16 bits: lane 8 * m + r has the address of row r of matrix m, lane l its pair l."""
        store = kind == "stmatrix"
        names = _names(now.operands[1 if store else 0])
        rows = self.address(now.operands[0 if store else 1])
        if "trans" in now.words:
            raise NotImplementedError(now.text)
        for m, name in enumerate(names):
            at = rows[8 * m + LANE // 4] + 4 * (LANE % 4)
            if store:
                for lane, data in enumerate(self.get(name, "b32")):
                    self.shared.store(int(at[lane]), data.reshape(1).view(np.uint8), self.number)
            else:
                found = [self.shared.load(int(a), 4, self.number).view(np.uint32)[0] for a in at]
                self.put(name, np.array(found))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{} ").split(",")]
