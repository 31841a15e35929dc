"""The suggested next command that each verb prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from nextpixel.config import side_text, to_size

if TYPE_CHECKING:
    from nextpixel.network.model import ImageGPT


def command(verb: str, *arguments: object, split: str | None = None, model: str | Path | None = None) -> str:
    """A shell command, with --split and --model if they are not None."""
    options = {"--split": split, "--model": model}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["nextpixel", verb, *map(str, arguments), *given])


def placing(options: object) -> list[str]:
    """--fit, --range and the like, which decide what a model sees of the same files, as they were given."""
    words: list[str] = []
    for name in ("fit", "range", "bands", "anchor", "slice", "scale"):
        if (value := getattr(options, name, None)) is not None:
            words += [f"--{name}", side_text(to_size(value)) if name == "slice" else str(value)]
    return words


def first_use(model: ImageGPT, path: str | Path | None) -> str:
    """What to try with the model at `path`; None is the embedded model."""
    if model.config.classes and path is not None:
        return f"To classify new images: {command('predict', path, 'new/', '--out', 'predictions.csv')}"
    if model.config.objective == "masked":
        return f"To extract features: {command('features', 'photos/', model=path)}"
    return to_complete(model, path) if model.words is None else to_draw(model, path)


def to_draw(model: ImageGPT, path: str | Path | None) -> str:
    if model.words is None:
        return f"To draw pictures: {command('sample', model=path)}"
    return f"To draw from a caption: {command('sample', model.words.table[0], model=path)}"


def to_complete(model: ImageGPT, path: str | Path | None) -> str:
    picture = "sprite.png" if model.fit == "place" else "photo.jpg"
    return f"To complete a picture: {command('complete', picture, model=path)}"
