"""A plan: launch constants that were found faster on one card, in place of those that constants.py has.

CONVGAP_PLAN names the file, which `bench.py tune --apply FILE` writes; it is read once. A constant changes how work is
dealt out, and with that the order of additions: so results have the same bits from run to run under one plan, and other
bits under another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

VARIABLE = "CONVGAP_PLAN"
PATH = Path(os.environ[VARIABLE]).absolute() if os.environ.get(VARIABLE) else None
"""The file of this process's plan, None without one; asked once, at import. Empty counts as unset."""

SCHEMA = "convgap-plan-1"
FIELDS = ("schema", "card", "made", "constants")
KERNEL_SETS = ("triton", "cupy")


class PlanError(ValueError):
    """A plan that cannot be used; the message names the file, what was expected and what it has."""


@dataclass(frozen=True)
class Plan:
    """Constants by kernel set and name, and the card that they were measured on."""

    source: str
    """Where it was read from, for people."""
    card: str
    """The name of the card, as CUDA gives it."""
    made: str
    """What made it: versions, date, commit, command."""
    constants: Mapping[str, Mapping[str, int]]

    @property
    def digest(self) -> str:
        """Eight digits that are the same for the same card and constants, whatever the file is called."""
        text = json.dumps([self.card, self.constants], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        return f"{Path(self.source).name} ({self.digest}, for {self.card})"

    def to_json(self) -> str:
        """The text of its file."""
        fields = {"schema": SCHEMA, "card": self.card, "made": self.made, "constants": self.constants}
        return json.dumps(fields, indent=1, sort_keys=False) + "\n"


def active() -> Plan | None:
    """The plan of this process, None where there is none. Raises PlanError if it cannot be read."""
    return None if PATH is None else _kept(PATH)


@cache
def _kept(path: Path) -> Plan:
    return load(path)


def load(path: Path) -> Plan:
    """The plan in a file. Raises PlanError if it cannot be read or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{VARIABLE}: {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{VARIABLE}: {path} is no JSON ({error})") from None
    return _plan(found, path)


def _plan(found: Any, path: Path) -> Plan:
    def require(right: bool, expected: str, got: object) -> None:
        if not right:
            raise PlanError(f"{VARIABLE}: {path}: expected {expected}, got {got!r:.80}")

    require(isinstance(found, dict), "an object", found)
    require(found.get("schema") == SCHEMA, f"schema {SCHEMA!r}", found.get("schema"))
    require(set(found) == set(FIELDS), f"the fields {', '.join(FIELDS)}", sorted(found))
    card, made, constants = found["card"], found["made"], found["constants"]
    require(isinstance(card, str) and card != "", "the name of a card", card)
    require(isinstance(made, str), "in 'made' a text", made)
    require(isinstance(constants, dict), "in 'constants' an object", constants)
    require(set(constants) <= set(KERNEL_SETS), f"constants of {' and '.join(KERNEL_SETS)}", sorted(constants))
    for kernels, values in constants.items():
        require(isinstance(values, dict), f"an object of {kernels}'s constants", values)
        for name, value in values.items():
            require(type(value) is int, f"a whole number for {kernels}'s {name}", value)
    return Plan(str(path), card, made, constants)


def apply(kernels: str, constants: ModuleType, tunable: Mapping[str, tuple[int, ...]]) -> None:
    """Set a kernel set's constants to what the active plan says, if there is one.

    constants  its module of them
    tunable    the constants that a plan may set, each with its values

    Raises PlanError for a constant or a value that is not among them; nothing is set then.
    """
    plan = active()
    chosen = plan.constants.get(kernels, {}) if plan else {}
    for name, value in chosen.items():
        if name not in tunable:
            known = ", ".join(tunable)
            raise PlanError(f"{VARIABLE}: {plan}: expected constants of {kernels} among {known}, got {name}")
        if value not in (*tunable[name], getattr(constants, name)):
            values = ", ".join(map(str, tunable[name]))
            raise PlanError(f"{VARIABLE}: {plan}: expected one of {values} for {kernels}'s {name}, got {value}")
    for name, value in chosen.items():
        setattr(constants, name, value)


def require_card(device: torch.device) -> None:
    """Raise PlanError if the active plan is of another card than a CUDA device.

    On the CPU, where there is no card and kernels are interpreted, a plan holds, so that it can be checked anywhere.
    """
    plan = active()
    if plan is None or device.type != "cuda":
        return
    card = torch.cuda.get_device_name(device)
    if card != plan.card:
        raise PlanError(
            f"{VARIABLE}: expected a plan for {card}, got {plan}: constants found on one card say nothing of another. "
            f"Unset {VARIABLE}, or make a plan here: bench.py tune --apply FILE"
        )
