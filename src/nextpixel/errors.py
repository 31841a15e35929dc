"""Errors with messages for the user: invalid input, and work that failed.

Messages name Python arguments: the invalid one as `argument`, others in backticks, optionally with a value (`shard`,
`augment=orient`). The command line writes them as its options.
"""

from collections.abc import Iterator
from contextlib import contextmanager

MESSAGE_LETTERS = 1_000  # values from data can have millions


def clipped(text: str, at_most: int = MESSAGE_LETTERS) -> str:
    """Cut the middle out of a long text: a message starts with what is wrong and ends with what to do."""
    tail = at_most // 3
    return text if len(text) <= at_most else f"{text[: at_most - tail - 5]} ... {text[-tail:]}"


def shortened(value: object, at_most: int = 60) -> str:
    """A short repr of any value, even of an integer with too many digits for repr()."""
    try:
        text = repr(value)
    except ValueError:
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= at_most else f"{text[: at_most - 3]}..."


def reason_of(error: BaseException) -> str:
    """The text of an error in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class _UserError(Exception):
    everywhere = False
    """Under torchrun: whether every process that raises it prints it, or only the first one."""

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        message = clipped(message)
        super().__init__(message)
        self.message = message
        self.argument = argument

    def __str__(self) -> str:
        return self.message if self.argument is None else f"{self.argument}: {self.message}"


class InputError(_UserError, ValueError):
    """Invalid input. The message names the file or argument, what was expected, what was given and what to do."""


@contextmanager
def model_argument(name: str) -> Iterator[None]:
    """Errors about the argument `model` are about `name` instead."""
    try:
        yield
    except InputError as error:
        if error.argument == "model":
            error.argument = name
        raise


class WorkError(_UserError, RuntimeError):
    """Work that failed after it started, as for a full disk or a loss that is NaN."""
