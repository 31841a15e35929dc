"""The two errors a user is meant to read: bad input, and work that could not be finished."""


class InputError(ValueError):
    """Bad input: the message names the file or option, what was expected, what came and what to do."""


class WorkError(RuntimeError):
    """Work that started well and could not be finished: a full disk, a loss that is no number."""
