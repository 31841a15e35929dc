"""Lists of numbers as they are typed."""

from __future__ import annotations

from nextpixel.errors import InputError


def whole_numbers(argument: str, text: str, least: int) -> list[int]:
    """The numbers of "4,25,400", each at least `least`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise InputError(f"expected whole numbers from {least} with commas between, got {text!r}", argument=argument)
    return numbers
