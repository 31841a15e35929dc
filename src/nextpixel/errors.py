"""The two errors a user is meant to read: bad input, and work that could not be finished.

A message names Python arguments: the one it is about as `argument`, others within the sentence in backticks, bare or
with a value (`shard`, `augment=orient`). The command line writes them as its options.
"""

MESSAGE_LETTERS = 1_000  # a value taken from data may have millions


def clipped(text: str, at_most: int = MESSAGE_LETTERS) -> str:
    """A text without its middle where it is longer: a message begins with what is wrong and ends with what to do."""
    tail = at_most // 3
    return text if len(text) <= at_most else f"{text[: at_most - tail - 5]} ... {text[-tail:]}"


def shortened(value: object, at_most: int = 60) -> str:
    """A value in a sentence, however long it is: repr() of a whole number of 5,000 digits fails."""
    try:
        text = repr(value)
    except ValueError:
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= at_most else f"{text[: at_most - 3]}..."


class _UserError(Exception):
    def __init__(self, message: str, *, argument: str | None = None) -> None:
        message = clipped(message)
        super().__init__(message)
        self.message = message
        self.argument = argument

    def __str__(self) -> str:
        return self.message if self.argument is None else f"{self.argument}: {self.message}"


class InputError(_UserError, ValueError):
    """Bad input: the message names the file or argument, what was expected, what came and what to do."""


class WorkError(_UserError, RuntimeError):
    """Work that started well and could not be finished: a full disk, a loss that is no number."""
