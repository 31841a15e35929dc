"""nextpixel sample"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.drawings import check_file, check_folder, check_number, load_model, write_each
from nextpixel.cli.hints import command
from nextpixel.config import ModelOptions, OutputOptions, SamplingConfig
from nextpixel.progress import say

CELL_PIXELS = 96
GRID_AT_MOST = 1024


@dataclass(frozen=True)
class Sample:
    """Draw pictures from nothing, into one grid."""

    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """How many."""
    out: Path = Path("samples.png")
    """The grid, a PNG file."""
    each: Path | None = None
    """Also write every picture as a file of its own into this new folder, at the model's side."""
    show: bool = False
    """Draw the result in the terminal."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Sample, "sample", argv)
    check_file(args.out, ".png")
    check_folder(args.each, "each")
    check_number(args.n)
    model = load_model(args.model)
    from nextpixel.drawing.sampling import draw
    from nextpixel.images import grid, save_png, terminal_row

    shown = min(args.n, GRID_AT_MOST)
    if shown < args.n:
        say(f"{args.out} shows the first {shown:,} of {args.n:,} pictures; --each FOLDER writes them all")
    drawing = draw(model, None, n=args.n, sampling=args.sampling)
    columns = math.ceil(math.sqrt(shown))
    rows = [list(drawing.images[i : min(i + columns, shown)]) for i in range(0, shown, columns)]
    save_png(grid(rows, zoom=max(1, CELL_PIXELS // drawing.images.shape[1])), args.out)
    files = write_each(args.each, drawing.images, [f"seed{args.sampling.seed}"] * args.n)
    if args.show:
        for row in rows:
            print(terminal_row(row), file=sys.stderr if args.output.json else sys.stdout)
    if args.output.json:
        print_json(
            {
                "out": str(args.out),
                "each": files,
                "seed": args.sampling.seed,
                "speed": {"asked": args.sampling.speed, "mode": drawing.mode},
                "nats_per_pixel": drawing.nats.tolist(),
            }
        )
    else:
        show(args.out)
    if args.output.verbose:
        say(f"drawn with {drawing.mode}")
    say(f"Other draws: the same command with --seed {args.sampling.seed + 1}")
    say(f"Half of your own picture: {command('complete', 'photo.jpg', model=args.model.model)}")
