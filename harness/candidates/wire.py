"""Messages between the judge and the process of a candidate: a header in JSON, then raw bytes. No pickle.

A message is the header's length in eight bytes, the header, and the blobs whose lengths the header lists. Nothing that
arrives is executed, and nobody has to hold more than the reader allows.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

LONGEST_HEADER = 1 << 20


class WireError(RuntimeError):
    """What arrived is no message, or a longer one than was allowed."""


def send(channel: socket.socket, header: dict[str, Any], blobs: Sequence[Any] = ()) -> None:
    """Send one message; `blobs` are objects with the buffer protocol. OSError if the other end is gone."""
    views = [memoryview(blob).cast("B") if len(memoryview(blob)) else memoryview(b"") for blob in blobs]
    head = json.dumps(header | {"blobs": [len(view) for view in views]}).encode()
    channel.sendall(len(head).to_bytes(8, "little") + head)
    for view in views:
        channel.sendall(view)


def receive(channel: socket.socket, most: int) -> tuple[dict[str, Any], list[bytearray]]:
    """Receive one message of at most `most` bytes of blobs.

    EOFError if the other end closed, TimeoutError after the socket's timeout, WireError for what is no message.
    """
    length = int.from_bytes(_exactly(channel, 8), "little")
    if not 2 <= length <= LONGEST_HEADER:
        raise WireError(f"a header of {length} bytes")
    try:
        header = json.loads(bytes(_exactly(channel, length)))
    except ValueError as error:
        raise WireError(f"a header that is not JSON: {error}") from None
    sizes = header.get("blobs") if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise WireError("a header without the lengths of what follows")
    if sum(sizes) > most:
        raise WireError(f"{sum(sizes)} bytes, where at most {most} were to come")
    return header, [_exactly(channel, size) for size in sizes]


def _exactly(channel: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = channel.recv_into(view)
        if not got:
            raise EOFError("the other end closed the channel")
        view = view[got:]
    return data
