"""nextpixel palette"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextpixel.cli.arguments import Images, joined, parse, print_json, show
from nextpixel.cli.common import check_file
from nextpixel.cli.hints import command, placing
from nextpixel.config import ImageGPTConfig, Levels, OutputOptions, Size, check_numbers, side_text, to_size
from nextpixel.errors import InputError
from nextpixel.progress import say, say_left_out

SWATCH_COLUMNS = 32


@dataclass(frozen=True)
class PaletteArguments:
    """Fit a palette to your images by k-means, and compare its error with OpenAI's; or collect their exact colours."""

    images: Images
    """Picture files, folders, arrays, parquet files or hub names; several are concatenated."""
    exact: bool = False
    """Collect the colours that the images have, with their transparency, for pixel art."""
    colors: int | None = None
    """Number of colours; default: 512. With --exact at most so many, by k-means where there are more; default: 1024."""
    out: Path | None = None
    """The palette, float32 (colours, 3) in [-1, 1]; default: palette.npy. With --exact a .gpl, .hex, .pal, .png or .npy
    file; default: palette.gpl. NAME.swatch.png next to it shows the colours, unless the palette is itself a .png."""
    side: int | Size | None = None
    """Side that images are resized to, or rows x columns as in 24x16; default: 32. With --exact that of the
    canvas; default: the size of the largest picture up to 32."""
    split: str | None = None
    """The split to use, if the source has several (train, test)."""
    range: str | None = None
    """LOW,HIGH: the values shown as black and white where the format does not define them (more than 8 bits, floats,
    DICOM without a window); default: the range of the images."""
    bands: str | None = None
    """R,G,B: the bands to use of pictures with more than three, counted from 1; default: the first three."""
    slice: int | Size | None = None
    """With --exact, rows x columns of pixels of the tiles that sheets are cut into, as in 16x16."""
    scale: int | None = None
    """With --exact, the factor by which pixel art is enlarged in its files; default: that common to all."""
    seed: int = 0
    """Random seed of k-means."""
    cache: str | None = None
    """Folder for decoded images; default: the user's cache folder."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(PaletteArguments, "palette", argv)
    check_numbers(args, seed="seed")
    if args.exact:
        _collect(args)
    else:
        _fit(args)


def _collect(args: PaletteArguments) -> None:
    out = args.out or Path("palette.gpl")
    swatch = out if out.suffix.lower() == ".png" else out.with_suffix(".swatch.png")
    from nextpixel.tokens.exact import COLOURS_AT_MOST, ExactPalette

    colors = COLOURS_AT_MOST if args.colors is None else args.colors
    if not 2 <= colors <= COLOURS_AT_MOST:
        raise InputError(f"--colors: expected 2 to {COLOURS_AT_MOST} with --exact, got {colors}")
    from nextpixel.data.decoded import decode
    from nextpixel.images import PALETTE_FORMATS, grid, save_png, write_palette_file
    from nextpixel.images.sources import open_source, with_canvas

    if out.suffix.lower() not in PALETTE_FORMATS:
        raise InputError(f"--out: expected a file that ends in {', '.join(PALETTE_FORMATS)}, got {str(out)!r}")
    check_file(out, out.suffix.lower(), args.images)
    check_file(swatch, ".png", args.images)
    levels = Levels.among(vars(args))
    source, size = with_canvas(open_source(joined(args.images), args.split), args.side, levels)
    images = decode(source, size, cache=args.cache, fit="place", levels=levels)
    say_left_out(images.unreadable)
    palette = ExactPalette.fit(images.images, colors, args.seed)
    write_palette_file(out, palette.rgba)
    if swatch != out:
        save_png(grid(_swatch(palette.rgba), zoom=20, gap=2), swatch)
    clear = int((palette.rgba[:, 3] < 255).sum())
    if args.output.json:
        print_json({"out": str(out), "swatch": str(swatch), "colors": len(palette), "with_transparency": clear})
    else:
        show(f"{out}: {len(palette):,} colours, {clear:,} of them with transparency, of {len(images):,} images")
        if swatch != out:
            print(swatch)
    words = (*args.images, "--palette", out, "--side", side_text(size), *placing(args), "--out", "run")
    say(f"To train with it: {command('pretrain', *words, split=args.split)}")


def _swatch(colours: NDArray[np.uint8]) -> list[list[NDArray[np.uint8]]]:
    """Rows of colours (K, C), as pictures of one pixel."""
    return [list(colours[i : i + SWATCH_COLUMNS, None, None]) for i in range(0, len(colours), SWATCH_COLUMNS)]


def _fit(args: PaletteArguments) -> None:
    out, colors = args.out or Path("palette.npy"), 512 if args.colors is None else args.colors
    swatch = out.with_suffix(".swatch.png")  # not .png: that may be the picture itself
    check_file(out, ".npy", args.images)
    check_file(swatch, ".png", args.images)
    if not 2 <= colors <= 65_000:
        raise InputError(f"--colors: expected 2 to 65000, got {colors}")
    size = to_size(args.side or ImageGPTConfig.side)
    from nextpixel.data.decoded import decode
    from nextpixel.images import grid, save_png
    from nextpixel.tokens import reconstruction
    from nextpixel.tokens.palette import Palette, save_palette

    levels = Levels.among(vars(args))
    images = decode(joined(args.images), size, split=args.split, cache=args.cache, levels=levels)
    say_left_out(images.unreadable)
    rng = np.random.default_rng(args.seed)
    squares = images.images[np.sort(rng.permutation(len(images))[:20_000])]
    palette = Palette.fit(squares, colors, args.seed)
    both = (reconstruction(one, squares) for one in (palette, Palette.openai()))
    own, openai = (found.psnr_of_mean_error_db for found in both)
    by_light = palette.rgb[np.argsort(palette.rgb @ np.array([0.299, 0.587, 0.114]))]
    save_png(grid(_swatch(by_light), zoom=20, gap=2), swatch)
    save_palette(palette, out)
    figures = {"out": str(out), "swatch": str(swatch), "psnr_db": own, "psnr_db_openai": openai}
    if args.output.json:
        print_json(figures)
    else:
        show(f"{out}: {colors} colours, PSNR {own:.2f} dB on {len(squares)} images; OpenAI's 512: {openai:.2f}")
        print(swatch)
    words = (*args.images, "--palette", out, "--side", side_text(size), *placing(args), "--out", "run")
    say(f"To train with it: {command('pretrain', *words, split=args.split)}")
