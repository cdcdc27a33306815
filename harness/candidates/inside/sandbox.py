"""What a process can forbid itself for good: large files, core dumps, writing outside its own folder."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Sequence
from pathlib import Path

# Numbers of the Landlock system calls, the same on every architecture of Linux.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
BENEATH = 1
# Access rights of Landlock's first version, as bits.
WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE = 1 << 1, 1 << 4, 1 << 5, 0b1111111 << 6
WRITING = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE
# Rights of later versions: to move a file to another folder, and to cut it.
LATER = {2: 1 << 13, 3: 1 << 14}
VERSION = 1  # the flag that asks which version there is
NO_NEW_PRIVILEGES = 38


def restrict(folder: Path, largest_file: int, writable: Sequence[str] | None) -> bool:
    """No file above `largest_file` bytes, no core dump, and no writing but to `folder`, devices and the files beneath
    `writable`, unless that is None. Returns whether the system (Landlock) keeps to the latter."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if writable is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    rights = WRITING | sum(bits for since, bits in LATER.items() if version >= since)
    attributes = struct.pack("Q", rights)
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    # Devices are written to; a file made there would be memory that nobody counts, but CUDA may want one.
    devices = rights if os.path.exists("/dev/nvidiactl") else WRITE_FILE
    places = {str(folder): rights, "/dev": devices, **dict.fromkeys(writable, WRITE_FILE)}
    for place, allowed in places.items():
        parent = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, parent)
        libc.syscall(ADD_RULE, ruleset, BENEATH, rule, 0)
        os.close(parent)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    failed = libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return not failed
