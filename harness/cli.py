"""The command line. A command is a module with SUMMARY, add_arguments(parser) and run(args) -> exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from harness.commands import COMMANDS
from harness.errors import INTERRUPTED, UsageError, one_line
from runtime.names import INSTALLED, importable

# Nothing here needs more than Python itself before main() is there to answer what is missing, or an interruption.

PROGRAM = "convgap" if INSTALLED else "bench.py"
DEFAULT = "compare"
CLOSED_PIPE = 141
OWN_OPTIONS = ("-h", "--help", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    2, after one line on standard error, for bad usage and for what this machine lacks (a module, memory, a disk with
    room); 130 and 141, as a shell says of a process that Ctrl-C or a closed pipe ended, after the one and when nobody
    reads on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0] not in COMMANDS and arguments[0] not in OWN_OPTIONS):
        arguments.insert(0, DEFAULT)
    command = arguments[0]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as `>&-` leaves it: nobody wants to read
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (until the process ends)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print(f"{PROGRAM} {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except UsageError as error:
        message = str(error)
    except (ImportError, OSError, MemoryError) as error:
        message = one_line(error)
    print(f"{PROGRAM} {command}: {message}", file=sys.stderr)
    return 2


def _run(arguments: Sequence[str]) -> int:
    _interpret_without_gpu()
    from runtime.plan import VARIABLE, PlanError

    if os.environ.get(VARIABLE):
        # Commands start processes in other folders.
        os.environ[VARIABLE] = os.path.abspath(os.environ[VARIABLE])
    try:
        args = _parser().parse_args(arguments)
        return args.run(args)
    except PlanError as error:
        raise UsageError(str(error)) from None


def _interpret_without_gpu() -> None:
    """Triton decides when a kernel is decorated whether to interpret it: call before anything imports it.

    convgap does import it, by way of torch's counter of operations, so this file imports convgap only afterwards.
    UsageError where bench.py is run by a Python without what the project needs.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if INSTALLED:
            raise
        raise UsageError(f"this Python has no {error.name}: use `uv run bench.py`, which brings it") from None

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _parser() -> argparse.ArgumentParser:
    import convgap

    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Compare the backends of one operator: are they right, and how fast are they?",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {convgap.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, module in COMMANDS.items():
        command = import_module(importable(module))
        sub = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, default=sub.get_default)
    return parser
