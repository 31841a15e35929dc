"""nextpixel complete"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import (
    GRID_PIXELS,
    PictureFiles,
    check_drawing,
    check_sources,
    load_model,
    read_pictures,
    say_changed,
    show_pictures,
    shown_in_grid,
    write_pictures,
)
from nextpixel.config import KeepSide, ModelOptions, OutputOptions, SamplingConfig, check_numbers
from nextpixel.progress import duration, say


@dataclass(frozen=True)
class Complete:
    """Complete pictures: keep the top rows of each and draw the rest, several times.

    Writes a grid of the given part, the completions with their nats per pixel (lower is more likely), and the original.
    Completions are neither sorted nor selected, as selection by likelihood would not be sampling.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PICTURES]")] = ()
    """Picture files, folders, or other sources of images; default: the cat that the package brings."""
    keep: float = 0.5
    """Fraction of the rows to keep, or of the columns with --keep-side left or right."""
    keep_side: KeepSide = "top"
    """The side to keep; all but top need a model trained with --augment orient."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Completions per picture."""
    caption: str | None = None
    """What the pictures show, for a model with words, see nextpixel sample."""
    split: str | None = None
    """The split to use, if the source has several (train, test)."""
    out: Path = Path("completions.png")
    """The grid, a PNG file."""
    show: bool = False
    """Show the result in the terminal."""
    files: PictureFiles = field(default_factory=PictureFiles)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        check_numbers(self, below_one="keep")


def run(argv: Sequence[str]) -> None:
    args = parse(Complete, "complete", argv)
    images = args.images or (str(resources.files("nextpixel") / "assets" / "pictures" / "cat.jpg"),)
    check_drawing(args, images)
    check_sources(*images)
    began = time.perf_counter()
    model = load_model(args.model)
    import numpy as np

    from nextpixel.drawing.sampling import draw
    from nextpixel.images import grid, save_png

    squares, names, unreadable = read_pictures(model, images, args.split)
    pictures, columns = shown_in_grid(args, len(squares), "completions")
    loaded = time.perf_counter()
    drawing = draw(
        model, squares, keep=args.keep, n=args.n, sampling=args.sampling, keep_side=args.keep_side, caption=args.caption
    )
    drawn = time.perf_counter()
    changed = say_changed(model, squares, np.broadcast_to(drawing.kept, squares.shape[:3]))

    rows, captions = [], []
    hidden = np.array([225, 225, 225, 255], np.uint8)[: drawing.images.shape[3]]
    for i, square in enumerate(squares[:pictures]):
        mine = slice(i * args.n, i * args.n + columns)
        given = np.where(drawing.kept[..., None], drawing.images[mine.start], hidden)
        rows.append([given, *drawing.images[mine], square])
        captions.append([None, *(f"{nats:.2f}" for nats in drawing.nats[mine]), None])
    titles = ["given", *(str(k + 1) for k in range(columns)), "original"]
    save_png(
        grid(rows, zoom=max(1, GRID_PIXELS // drawing.images.shape[1]), titles=titles, captions=captions), args.out
    )
    stems = [f"{Path(name).stem}_{k}" for name in names for k in range(args.n)]
    files = write_pictures(args.files, model, drawing, stems)
    show_pictures(rows, args)
    if args.output.json:
        print_json(
            {
                "out": str(args.out),
                **files,
                "kept_rows": int(drawing.kept.any(1).sum()),
                "kept_columns": int(drawing.kept.any(0).sum()),
                "changed_pixels": changed,
                "caption": args.caption,
                "guidance": args.sampling.guidance,
                "seed": args.sampling.seed,
                "speed": {"asked": args.sampling.speed, "mode": drawing.mode},
                "seconds": {"load": loaded - began, "draw": drawn - loaded},
                "pictures": [
                    {"file": name, "nats_per_pixel": drawing.nats[i * args.n : (i + 1) * args.n].tolist()}
                    for i, name in enumerate(names)
                ],
                "unreadable": unreadable,
            }
        )
    else:
        for i, name in enumerate(names):
            nats = " ".join(f"{value:.3f}" for value in drawing.nats[i * args.n : (i + 1) * args.n])
            show(f"{name}: nats per pixel {nats}")
        for path in (args.out, args.files.sheet, args.files.gif):
            if path is not None:
                show(path)
    if args.output.verbose:
        say(f"loaded in {duration(loaded - began)}, drew {len(drawing.images)} in {drawn - loaded:.1f} s")
        say(f"drawn with {drawing.mode}")
    say(f"For other completions: --seed {args.sampling.seed + 1}. To keep more of the picture: --keep 0.75")
