"""nextpixel sample"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import (
    CELL_PIXELS,
    PictureFiles,
    check_drawing,
    drawing_facts,
    load_model,
    show_pictures,
    write_pictures,
)
from nextpixel.cli.hints import to_complete
from nextpixel.cli.sharing import Share, ShareOptions, chunks, shared_drawing
from nextpixel.config import ModelOptions, OutputOptions, SamplingConfig
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.drawing.sampling import Drawing

GRID_AT_MOST = 1024
PICTURES_PER_TASK = 64
COPIES_FROM = 16  # pictures above which their copies are counted


@dataclass(frozen=True)
class Sample:
    """Draw new pictures, and write them to one grid."""

    caption: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CAPTION]")] = None
    """What to draw, for a model with words: up to 16 tags in any order, as in "long red hair, glasses"; `nextpixel info
    MODEL --words` lists the words."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """Number of pictures."""
    out: Path = Path("samples.png")
    """The grid, a PNG file."""
    show: bool = False
    """Show the result in the terminal."""
    no_copies: bool = False
    """Draw others instead of copies of training pictures, for a model of exact colours."""
    tile: bool = False
    """Draw textures that repeat without a seam, by a model that was trained with --augment wrap: borders are redrawn
    where they meet. Prints the nats per pixel across the border and inside."""
    files: PictureFiles = field(default_factory=PictureFiles)
    share: ShareOptions = field(default_factory=ShareOptions)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Sample, "sample", argv)
    check_drawing(args)
    alone = "`tile`" if args.tile else "`no_copies`" if args.no_copies else None
    share = Share(args, alone)
    model = load_model(share.join(args.model))
    from nextpixel.drawing.copies import draw_without_copies, find_copies
    from nextpixel.drawing.sampling import caption_tags, draw
    from nextpixel.drawing.tiles import draw_tiles
    from nextpixel.evaluation.likelihood import image_nats
    from nextpixel.evaluation.seams import measure_seam
    from nextpixel.images import grid, save_png
    from nextpixel.representation.extraction import model_hash

    shown = min(args.n, GRID_AT_MOST)
    if shown < args.n:
        say(f"{args.out} shows the first {shown:,} of {args.n:,} pictures; --each FOLDER writes all")

    def draw_more(n: int, first: int) -> Drawing:
        if args.tile:
            return draw_tiles(model, n, args.sampling, args.caption, first)
        return draw(model, None, n=n, sampling=args.sampling, caption=args.caption, first=first, of=args.n)

    if args.tile and "wrap" not in str(model.facts.get("augment", "")):
        say("The model was trained without --augment wrap: expect seams, and textures unlike those it was trained on")
    if share.active:
        facts, parts = [model_hash(model), args.n, args.caption, args.sampling], chunks(args.n, PICTURES_PER_TASK)
        drawing = shared_drawing(share, lambda rows: draw_more(rows.stop - rows.start, rows.start), parts, facts)
        redrawn = 0
    elif args.no_copies:
        drawing, redrawn = draw_without_copies(model, args.n, draw_more)
    else:
        drawing, redrawn = draw_more(args.n, 0), 0
    copies = find_copies(model, drawing.images) if args.n > COPIES_FROM or args.output.json else None
    nats, seam = drawing.nats, None
    if args.tile:
        tags = caption_tags(model, args.caption, args.sampling)
        nats, seam = image_nats(model, drawing.images, tags=tags), measure_seam(model, drawing.images, tags)
    shown = min(shown, len(drawing.images))
    columns = math.ceil(math.sqrt(shown))
    rows = [list(drawing.images[i : min(i + columns, shown)]) for i in range(0, shown, columns)]
    save_png(grid(rows, zoom=max(1, CELL_PIXELS // drawing.images.shape[1])), args.out)
    files = write_pictures(args.files, model, drawing, [f"seed{args.sampling.seed}"] * len(drawing.images))
    share.clean()
    show_pictures(rows, args)
    if args.output.json:
        print_json(
            {
                "out": str(args.out),
                **files,
                **drawing_facts(args, drawing),
                "nats_per_pixel": nats.tolist(),
                **({} if seam is None else {"seam": asdict(seam)}),
                **({} if copies is None else {"copies": copies.figures() | {"redrawn": redrawn}}),
            }
        )
    else:
        show(args.out, *args.files.written())
        for figures in (seam, copies):
            if figures is not None:
                show(figures)
    if redrawn:
        say(f"{redrawn:,} copies were drawn and left out")
    if len(drawing.images) < args.n:
        say(f"only {len(drawing.images):,} of {args.n:,} pictures are not copies; train on more pictures or less long")
    if args.output.verbose:
        say(f"drawn with {drawing.mode}")
    say(f"For other pictures: --seed {args.sampling.seed + 1}")
    say(to_complete(model, args.model.model))
