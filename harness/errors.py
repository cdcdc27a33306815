"""The one kind of error that a command line answers with a line of text and exit code 2, and others' last words."""

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as a shell reports it."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why in one line."""


def last_line(text: str) -> str:
    """The last line of what a process wrote to stderr, where Python puts the exception."""
    return (text.strip().splitlines() or ["no message"])[-1]


def one_line(error: BaseException) -> str:
    """An exception in one line of at most 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}..."
