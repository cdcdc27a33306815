"""Kinds of launches that a kernel set could not compile, load or launch, each with its reason.

What failed once is not tried again: a compiler may take seconds to fail, and the next image has another size but the
same kind of call. A failure that says nothing about the kind is raised as it is and forgotten: memory that ran out, and
a CUDA graph that is captured, during which nothing may be loaded.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from runtime.prepared import Launch, Unlaunchable

_reasons: dict[tuple[Hashable, str], str] = {}


def check(launch: Launch, device: torch.device) -> None:
    """Raise Unlaunchable if a launch of this kind has failed on `device`. Almost always there is nothing to look up."""
    if _reasons:
        reason = _reasons.get((launch.kind, str(device)))
        if reason is not None:
            raise Unlaunchable(reason)


def note(launch: Launch, device: torch.device, error: Exception) -> None:
    """Remember that `launch` failed with `error` on `device`, and raise Unlaunchable, as later launches of its kind do.
    Returns where the failure says nothing about the kind."""
    if isinstance(error, torch.OutOfMemoryError) or "OUT_OF_MEMORY" in str(error):
        return
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    reason = f"{launch.kernel}: {sentence(error)}"
    _reasons[launch.kind, str(device)] = reason
    raise Unlaunchable(reason) from error


def sentence(error: BaseException) -> str:
    """What an exception says, and what caused it, on one line. Banners and blank lines are left out."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    if len(" ".join(lines)) > 300:  # a compiler's output, say
        lines = [line for line in lines if "error" in line.lower()] or lines
    text = " ".join(lines)
    said = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return said if error.__cause__ is None else f"{said} (from {sentence(error.__cause__)})"
