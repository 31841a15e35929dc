"""Shared by several verbs: loading models and images, checking and writing outputs."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.cli.arguments import joined
from nextpixel.config import ModelOptions, PictureOptions, check_picture_count
from nextpixel.errors import InputError, model_argument
from nextpixel.files import check_model_name
from nextpixel.progress import say, say_left_out

if TYPE_CHECKING:
    from nextpixel.data.decoded import DecodedSet
    from nextpixel.drawing.sampling import Drawing
    from nextpixel.images import Picture
    from nextpixel.network.model import ImageGPT
    from nextpixel.representation.extraction import Backbone
    from nextpixel.representation.probing import LinearProbe
    from nextpixel.tokens import Reconstruction


CELL_PIXELS = 128  # a picture's height in an animation or in the grid of sample
ANIMATED_AT_MOST = 256  # pictures
GRID_PIXELS = 160  # a picture's side in a grid of completions or variations
GRID_AT_MOST = 50  # pictures, and completions or variations of each


@dataclass(frozen=True)
class PictureFiles:
    """Files for other programs, at the model's resolution; a model of exact colours writes exactly its palette."""

    each: Path | None = None
    """Also write each picture to a file in this new folder."""
    sheet: Path | None = None
    """Also write all pictures into this PNG, side by side without gaps, and their positions into a .json file."""
    gif: Path | None = None
    """Also write an animation of the drawing to this .gif file."""
    mp4: Path | None = None
    """Also write it as a video to this .mp4 file; needs ffmpeg."""

    def written(self) -> list[Path]:
        """All that was asked for."""
        index = None if self.sheet is None else self.sheet.with_suffix(".json")
        return [path for path in (self.each, self.sheet, index, self.gif, self.mp4) if path is not None]


def drawing_facts(args: Any, drawing: Drawing) -> dict[str, Any]:
    """What the JSON of every command that draws says."""
    return {
        "caption": args.caption,
        "guidance": args.sampling.guidance,
        "seed": args.sampling.seed,
        "speed": {"asked": args.sampling.speed, "mode": drawing.mode},
    }


def load_model(options: ModelOptions, argument: str = "model") -> ImageGPT:
    """Load the model that the options describe. Errors name `argument`."""
    with model_argument(argument):
        return _load(options, students=False)


def load_features_model(options: PictureOptions) -> Backbone:
    """Load the model for its features; it may also be a convolutional student."""
    return _load(options, students=True)


def _load(options: ModelOptions, *, students: bool) -> Any:
    check_model_name(options.model)
    import torch

    from nextpixel.checkpoints import load, load_backbone
    from nextpixel.devices import choose_device, set_threads

    device, dtype = choose_device(options.device), torch.bfloat16 if options.dtype == "bf16" else torch.float32
    set_threads(options.threads)
    model = (load_backbone if students else load)(options.model, device=device, dtype=dtype)
    if isinstance(options, PictureOptions):
        model.fit, model.levels = options.fit or model.fit, options.levels.over(model.levels)
    return model


def load_classifier(name: str, options: PictureOptions, argument: str = "probe") -> LinearProbe:
    """Load the probe in a folder with its model, or a fine-tuned model as a probe. Errors name `argument`."""
    from nextpixel.files import read_json
    from nextpixel.representation.probing import LinearProbe

    saved = Path(name) / "probe.json"
    if saved.is_file():
        facts = read_json(saved)
        own = replace(options, model=options.model or str(facts.get("model")), fit=options.fit or facts.get("fit"))
        probe = LinearProbe.load(name, model := load_features_model(own))
        model.levels = options.levels.over(probe.levels).over(model.levels)
        return probe
    if options.model is not None:
        raise InputError(
            f"--model: cannot be combined with {name}, which is not the folder of a probe (it has no probe.json)"
        )
    if Path(name).is_dir() or name.count("/") == 1:
        return LinearProbe.of(load_model(replace(options, model=name), argument))
    raise InputError(f"expected the folder of a probe, or a fine-tuned model or run, got {name!r}", argument=argument)


def decode_for(model: Backbone, images: Any, split: str | None = None) -> DecodedSet:
    """Decode the images for the model, report unreadable ones, and keep their range as the model's."""
    from nextpixel.data.decoded import decode

    found = decode(images, model.size, split=split, fit=model.fit, levels=model.levels)
    model.levels = found.levels
    say_left_out(found.unreadable)
    return found


def read_pictures(
    model: ImageGPT, images: Sequence[str], split: str | None
) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """The pictures of one or several sources, their names, and lines for the unreadable ones, which are reported.

    Single files must all be readable.
    """
    from nextpixel.images.sources import load_images, open_source, sprites_of

    source = open_source(joined(images), split)
    if len(source) == len(images):
        squares = load_images(source, model.size, fit=model.fit, levels=model.levels)
        if model.fit == "place":  # whose sheets and animations are several pictures, or none
            source = sprites_of(source, model.size, model.fit, model.levels)
        return squares, list(source.names), []
    found = decode_for(model, source)
    return found.images, list(found.names), found.unreadable


def shown_in_grid(args: Any, count: int, what: str) -> tuple[int, int]:
    """How many pictures the grid shows, and how many `what` of the args.n of each; reports how many it leaves out."""
    pictures, columns = min(count, GRID_AT_MOST), min(args.n, GRID_AT_MOST)
    for name, shown, total in (("pictures", pictures, count), (what, columns, args.n)):
        if shown < total:
            say(f"{args.out} shows the first {shown} of {total:,} {name}; --each FOLDER writes all")
    return pictures, columns


def say_changed(model: ImageGPT, squares: NDArray[np.uint8], kept: NDArray[np.bool_]) -> int:
    """The number of kept pixels (N, H, W) whose colours the model of exact colours lacks; reports it."""
    from nextpixel.tokens.exact import ExactPalette

    if not isinstance(model.tokenizer, ExactPalette):
        return 0
    changed = int((model.tokenizer.changed(squares) & kept).sum())
    if changed:
        say(f"{changed:,} of {kept.sum():,} kept pixels have colours that the model lacks; the nearest replace them")
    return changed


def check_drawing(args: Any, inputs: Sequence[str] = ()) -> None:
    """Check the outputs and the number of pictures of complete and sample."""
    check_file(args.out, ".png", inputs)
    check_folder(args.files.each, "each")
    if args.files.sheet is not None:
        from nextpixel.images.exports import is_index

        check_file(args.files.sheet, ".png", inputs, "sheet")
        index = args.files.sheet.with_suffix(".json")
        check_file(index, ".json", inputs, "sheet")
        if index.exists() and not is_index(index):
            raise InputError(f"{index} exists already, and would be replaced; name another file", argument="sheet")
        if args.files.sheet.resolve() == args.out.resolve():
            raise InputError(f"expected another file than that of `out`, got {args.out}", argument="sheet")
    if args.files.gif is not None:
        check_file(args.files.gif, ".gif", inputs, "gif")
    if args.files.mp4 is not None:
        check_file(args.files.mp4, ".mp4", inputs, "mp4")
        if shutil.which("ffmpeg") is None:
            raise InputError("needs the program ffmpeg, which was not found; install it, or use `gif`", argument="mp4")
    files = [args.out, *(path for path in (args.files.sheet, args.files.gif, args.files.mp4) if path is not None)]
    folders: dict[str, Path | None] = {"each": args.files.each, "full": getattr(args, "full", None)}
    for name, folder in folders.items():
        for file in files:
            if folder is not None and folder.resolve() in (file.resolve(), *file.resolve().parents):
                raise InputError(f"expected a folder without other outputs, got {folder} with {file}", argument=name)
    check_picture_count(args.n)


def check_sources(*images: str | None, model: str | None = None, init: str | None = None) -> None:
    """Raise InputError for images and models that cannot be found, before torch is imported."""
    from nextpixel.images.sources import check_path

    check_model_name(model)
    with model_argument("init"):
        check_model_name(init)
    for name in images:
        if name is not None:
            check_path(name)


def check_file(out: Path, suffix: str, inputs: Sequence[str] = (), argument: str = "out") -> None:
    """Raise InputError unless `out` is a file with this suffix in an existing folder, and not one of the inputs."""
    from nextpixel.files import check_output

    if out.suffix.lower() != suffix:
        raise InputError(f"expected a file name that ends in {suffix}, got {str(out)!r}", argument=argument)
    if out.is_dir():
        raise InputError(f"expected a file, got the folder {out}; name a {suffix} in it", argument=argument)
    resolved = out.resolve()
    given = {Path(name).resolve() for name in inputs}
    if resolved in given or (out.exists() and not given.isdisjoint(resolved.parents)):
        raise InputError(f"{out} is one of the inputs and would be overwritten; name another file", argument=argument)
    check_output(out, argument)


def check_folder(folder: Path | None, argument: str) -> None:
    """Raise InputError unless `folder` is None or can be created."""
    from nextpixel.files import new_output

    if folder is not None:
        new_output(folder, argument)


def auc_text(auc: float | None) -> str:
    return "" if auc is None else f", AUC {auc:.3f}"


def psnr_text(found: Reconstruction) -> str:
    return f"{found.psnr_db:.2f} dB PSNR ({found.psnr_of_mean_error_db:.2f} of the mean error)"


def show_pictures(rows: Iterable[Sequence[NDArray[np.uint8]]], args: Any) -> None:
    """Draw rows of pictures in the terminal, if --show is set."""
    from nextpixel.images import terminal_row

    for row in rows if args.show else ():
        print(terminal_row(row), file=sys.stderr if args.output.json else sys.stdout)


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file of at least one row.

    Text that a spreadsheet would run as a formula is prefixed with an apostrophe.
    """
    from nextpixel.files import write_text

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(_safe_cell, rows[0]))
    writer.writerows(map(_safe_cell, row.values()) for row in rows)
    write_text(out, text.getvalue())


def _safe_cell(value: Any) -> Any:
    from nextpixel.data.labels import FORMULA

    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def write_each(folder: Path | None, images: Iterable[Picture | NDArray[np.uint8]], stems: Sequence[str]) -> list[str]:
    """Write each image as a numbered PNG to the new folder; return the paths."""
    if folder is None:
        return []
    from nextpixel.files import new_folder
    from nextpixel.images import save_png

    names = _numbered(stems)
    with new_folder(folder) as part:
        for name, image in zip(names, images, strict=True):
            save_png(image, part / name)
    return [str(folder / name) for name in names]


def _numbered(stems: Sequence[str]) -> list[str]:
    """File names."""
    from nextpixel.files import clipped

    digits = len(str(len(stems) - 1))
    return [clipped(f"{i:0{digits}d}_{stem}", ".png") for i, stem in enumerate(stems)]


def write_pictures(files: PictureFiles, model: ImageGPT, drawing: Drawing, stems: Sequence[str]) -> dict[str, Any]:
    """Write the files that were asked for; return their paths for JSON. `stems` name the pictures."""
    from nextpixel.drawing.sampling import pictures
    from nextpixel.images import write_animation, write_sheet
    from nextpixel.tokens import exact_colours

    paths: dict[str, Any] = {"each": write_each(files.each, pictures(model, drawing), stems)}
    if files.sheet is not None:
        index = write_sheet(files.sheet, drawing.images, _numbered(stems), exact_colours(model.tokenizer))
        paths |= {"sheet": str(files.sheet), "sheet_index": str(index)}
    zoom = max(1, CELL_PIXELS // drawing.images.shape[1])
    drawn_at = np.broadcast_to(drawing.drawn_at, drawing.images.shape[:3])
    for kind, path in (("gif", files.gif), ("mp4", files.mp4)):
        if path is not None:
            if len(drawing.images) > ANIMATED_AT_MOST:
                say(f"{path} shows the first {ANIMATED_AT_MOST} of {len(drawing.images):,} pictures")
            write_animation(path, drawing.images[:ANIMATED_AT_MOST], drawn_at[:ANIMATED_AT_MOST], zoom)
            paths[kind] = str(path)
    return paths
