"""The next useful command, as each verb prints it: one line, with the command at its end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nextpixel.network.model import ImageGPT


def command(verb: str, *arguments: object, split: str | None = None, model: str | Path | None = None) -> str:
    """A command to paste into a shell, with --split and --model where they were given."""
    options = {"--split": split, "--model": model}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["nextpixel", verb, *map(str, arguments), *given])


def first_use(model: ImageGPT, place: str | Path | None) -> str:
    """What to try with a model that lies there; the embedded one for None."""
    if model.config.classes and place is not None:
        return f"Classify new images: {command('predict', place, 'new/', '--out', 'predictions.csv')}"
    if model.config.objective == "masked":
        return f"What it makes of pictures: {command('features', 'photos/', model=place)}"
    return f"Half of a picture: {command('complete', 'photo.jpg', model=place)}"
