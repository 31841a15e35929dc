"""The two errors a user is meant to read: bad input, and work that could not be finished.

A message names Python arguments: the one it is about as `argument`, others within the sentence in backticks, bare or
with a value (`shard`, `augment=orient`). The command line writes them as its options.
"""


class _UserError(Exception):
    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.argument = argument

    def __str__(self) -> str:
        return self.message if self.argument is None else f"{self.argument}: {self.message}"


class InputError(_UserError, ValueError):
    """Bad input: the message names the file or argument, what was expected, what came and what to do."""


class WorkError(_UserError, RuntimeError):
    """Work that started well and could not be finished: a full disk, a loss that is no number."""
