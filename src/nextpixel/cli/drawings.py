"""What complete and sample share: the model, and the files they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import ModelOptions
from nextpixel.errors import InputError

if TYPE_CHECKING:
    from nextpixel.model import ImageGPT


def load_model(options: ModelOptions) -> ImageGPT:
    """The model of --model, on --device."""
    from nextpixel.checkpoints import load
    from nextpixel.devices import choose_device, set_threads

    device = choose_device(options.device)
    set_threads(options.threads)
    return load(options.model, device=device)


def output_picture(out: Path, inputs: Sequence[str] = ()) -> Path:
    """Checked before any work: a .png in an existing folder that is none of the inputs."""
    from nextpixel.checkpoints.files import parent_exists

    if out.suffix.lower() != ".png":
        raise InputError(f"--out: expected a file name that ends in .png, got {str(out)!r}")
    if out.is_dir():
        raise InputError(f"--out: expected a file, got the folder {out}; name a .png in it")
    if any(out.resolve() == Path(name).resolve() for name in inputs):
        raise InputError(f"--out: {out} is one of the input pictures; name another file")
    parent_exists(out)
    return out


def offer_each(folder: Path | None) -> None:
    """Checked before any work: --each names a new folder."""
    from nextpixel.checkpoints.files import new_output

    if folder is not None:
        new_output(folder, "--each")


def write_each(folder: Path | None, images: NDArray[np.uint8], stems: Sequence[str]) -> list[str]:
    """Every image as a PNG of that name in the new folder; returns the paths."""
    if folder is None:
        return []
    from nextpixel.checkpoints.files import new_folder
    from nextpixel.images import save_png

    digits = len(str(len(images) - 1))
    names = [f"{i:0{digits}d}_{stem}.png" for i, stem in enumerate(stems)]
    with new_folder(folder) as part:
        for name, image in zip(names, images, strict=True):
            save_png(image, part / name)
    return [str(folder / name) for name in names]
