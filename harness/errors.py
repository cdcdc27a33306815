"""The one kind of error that a command line answers with a line of text and exit code 2."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why in one line."""
