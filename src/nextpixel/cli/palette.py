"""nextpixel palette"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import check_file
from nextpixel.cli.hints import command
from nextpixel.config import Levels, OutputOptions, Size, side_text, to_size
from nextpixel.errors import InputError
from nextpixel.progress import say

SWATCH_COLUMNS = 32


@dataclass(frozen=True)
class PaletteArguments:
    """Fit a palette to your images by k-means, and compare its error with that of OpenAI's palette."""

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, an array, a parquet file or a hub name."""
    colors: int = 512
    """Number of colours."""
    out: Path = Path("palette.npy")
    """The palette, float32 (colours, 3) in [-1, 1]; a .png of the colours is written next to it."""
    side: int | Size = 32
    """Side that images are resized to, or rows x columns as in 24x16."""
    split: str | None = None
    """The split to use, if the source has several (train, test)."""
    range: str | None = None
    """LOW,HIGH: the values shown as black and white where the format does not define them (more than 8 bits, floats,
    DICOM without a window); default: the range of the images."""
    bands: str | None = None
    """R,G,B: the bands to use of pictures with more than three, counted from 1; default: the first three."""
    seed: int = 0
    """Random seed of k-means."""
    cache: str | None = None
    """Folder for decoded images; default: the user's cache folder."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(PaletteArguments, "palette", argv)
    swatch = args.out.with_suffix(".png")
    check_file(args.out, ".npy", [args.images])
    check_file(swatch, ".png", [args.images])
    if not 2 <= args.colors <= 65_000:
        raise InputError(f"--colors: expected 2 to 65000, got {args.colors}")
    size = to_size(args.side)
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed: expected 0 to {2**32 - 1}, got {args.seed}")
    import numpy as np

    from nextpixel.data.decoded import decode
    from nextpixel.images import grid, save_png
    from nextpixel.tokens.palette import Palette, psnr, save_palette

    levels = Levels.of(args.range, args.bands)
    images = decode(args.images, size, split=args.split, cache=args.cache, levels=levels)
    rng = np.random.default_rng(args.seed)
    squares = images.images[np.sort(rng.permutation(len(images))[:20_000])]
    palette = Palette.fit(squares, args.colors, args.seed)
    own, openai = psnr(squares, palette), psnr(squares, Palette.openai())
    by_light = palette.rgb[np.argsort(palette.rgb @ np.array([0.299, 0.587, 0.114]))]
    cells = [list(by_light[i : i + SWATCH_COLUMNS, None, None]) for i in range(0, len(by_light), SWATCH_COLUMNS)]
    save_png(grid(cells, zoom=20, gap=2), swatch)
    save_palette(palette, args.out)
    figures = {"out": str(args.out), "swatch": str(swatch), "psnr_db": own, "psnr_db_openai": openai}
    if args.output.json:
        print_json(figures)
    else:
        show(
            f"{args.out}: {args.colors} colours, PSNR {own:.2f} dB on {len(squares)} images; OpenAI's 512: {openai:.2f}"
        )
        print(swatch)
    words = (args.images, "--palette", args.out, "--side", side_text(size), "--out", "run")
    say(f"To train with it: {command('pretrain', *words, split=args.split)}")
