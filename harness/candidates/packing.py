"""Arguments of any shape as JSON and bytes: tensors go as their storages, lists, tuples and dicts as what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, slot: str, blobs: list[memoryview]) -> Any:
    """The value as JSON; the bytes of its tensors go to `blobs`. TypeError for what is neither data nor tensor."""
    if isinstance(value, Tensor):
        blobs.append(storage(value))
        return {"tensor": spec(value, f"{slot}{len(blobs)}")}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [pack(item, slot, blobs) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, slot, blobs)] for key, item in value.items()]}
    if isinstance(value, PLAIN):
        return {"plain": value}
    raise TypeError(f"expected numbers, texts, tensors, or lists, tuples and dicts of them, got {type(value).__name__}")


def unpack(packed: Any, put: Callable[[Any, Any], Tensor], blobs: list[Any]) -> Any:
    """The value again; `put` makes a tensor from its spec and bytes, which are taken from the front of `blobs`."""
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return put(value, blobs.pop(0))
    if kind == "dict":
        return {key: unpack(item, put, blobs) for key, item in value}
    if kind == "plain":
        return value
    return {"list": list, "tuple": tuple}[kind](unpack(item, put, blobs) for item in value)


def storage(tensor: Tensor) -> memoryview:
    """All bytes that a tensor's storage holds, those between its elements too."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # pyright: ignore[reportArgumentType]
    return memoryview(whole.numpy())  # pyright: ignore[reportArgumentType]


def spec(tensor: Tensor, slot: str) -> dict[str, Any]:
    """How to make the tensor again from its storage's bytes."""
    return {
        "slot": slot,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "offset": tensor.storage_offset(),
    }
