"""nextpixel vary"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import REQUIRED, parse, print_json, show
from nextpixel.cli.common import (
    GRID_PIXELS,
    PictureFiles,
    check_drawing,
    check_sources,
    drawing_facts,
    load_model,
    read_pictures,
    say_changed,
    show_pictures,
    shown_in_grid,
    write_pictures,
)
from nextpixel.config import OutputOptions, Part, PictureOptions, SamplingConfig
from nextpixel.progress import say


@dataclass(frozen=True)
class Vary:
    """Draw variations of pictures: redraw a part of each, and keep the rest.

    Writes a grid of each picture and its variations, with their nats per redrawn pixel.
    """

    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES", help_behavior_hint=REQUIRED)
    ]
    """Picture files, folders, or other sources of images."""
    strength: float = 0.3
    """Fraction of the pixels to redraw, from 0 to 1."""
    part: Part = "random"
    """Where to redraw; random: another rectangle in each variation."""
    colors: str | None = None
    """Draw only with these colours of the model, as in "#ff0000,#aa0000", and with transparency. Pixels of other
    colours are redrawn too: --strength 0 recolours the picture."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """Variations of each picture."""
    caption: str | None = None
    """What the pictures show, for a model with words, see nextpixel sample."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    out: Path = Path("variations.png")
    """The grid, a PNG file."""
    show: bool = False
    """Show the result in the terminal."""
    files: PictureFiles = field(default_factory=PictureFiles)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Vary, "vary", argv)
    check_drawing(args, args.images)
    check_sources(*args.images)
    model = load_model(args.model)
    import numpy as np

    from nextpixel.drawing.variations import draw_variations
    from nextpixel.images import grid, save_png

    squares, names, unreadable = read_pictures(model, args.images, args.split)
    pictures, columns = shown_in_grid(args, len(squares), "variations")
    drawing = draw_variations(
        model, squares, args.strength, args.n, args.part, args.colors, args.sampling, args.caption
    )
    drawn = (drawing.drawn_at > 0).reshape(len(squares), args.n, *squares.shape[1:3])
    changed = say_changed(model, squares, np.invert(drawn.all(1)))
    rows, captions = [], []
    for i, square in enumerate(squares[:pictures]):
        mine = slice(i * args.n, i * args.n + columns)
        rows.append([square, *drawing.images[mine]])
        captions.append([None, *(f"{nats:.2f}" for nats in drawing.nats[mine])])
    titles = ["original", *(str(k + 1) for k in range(columns))]
    zoom = max(1, GRID_PIXELS // drawing.images.shape[1])
    save_png(grid(rows, zoom=zoom, titles=titles, captions=captions), args.out)
    stems = [f"{Path(name).stem}_{k}" for name in names for k in range(args.n)]
    files = write_pictures(args.files, model, drawing, stems)
    show_pictures(rows, args)
    if args.output.json:
        print_json(
            {
                "out": str(args.out),
                **files,
                "strength": args.strength,
                "part": args.part,
                "colors": args.colors,
                "changed_pixels": changed,
                **drawing_facts(args, drawing),
                "pictures": [
                    {
                        "file": name,
                        "nats_per_pixel": drawing.nats[i * args.n : (i + 1) * args.n].tolist(),
                        "redrawn_pixels": drawn[i].sum((1, 2)).tolist(),
                    }
                    for i, name in enumerate(names)
                ],
                "unreadable": unreadable,
            }
        )
    else:
        show(args.out, *args.files.written())
    if args.output.verbose:
        say(f"drawn with {drawing.mode}")
    larger = ". For larger changes: --strength 0.6" if args.strength < 0.6 else ""
    say(f"For other variations: --seed {args.sampling.seed + 1}{larger}")
