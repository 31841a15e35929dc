"""nextpixel tokenizer"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from nextpixel.cli.arguments import Images, joined, parse, print_json, show
from nextpixel.cli.common import psnr_text
from nextpixel.cli.hints import command
from nextpixel.config import Levels, OutputOptions, Size, check_numbers, side_text, to_size
from nextpixel.errors import InputError
from nextpixel.progress import say

FITTED_AT_MOST = 20_000  # images
HELD_OUT_AT_MOST = 1_000
SHOWN = 16


@dataclass(frozen=True)
class TokenizerArguments:
    """Fit a tokenizer whose tokens are patches of pixels, for pictures that are too large for a token a pixel.

    Prints the PSNR of held-out images decoded from their tokens, and the share of the codes that they use; the folder
    also shows some of them, with their reconstructions below.
    """

    images: Images
    """Picture files, folders, arrays, parquet files or hub names; several are concatenated."""
    kind: Literal["patches"] = "patches"
    """patches: the nearest of the patches that k-means finds in the images."""
    patch: int = 4
    """Pixels along each side of a patch: 2 or 4."""
    codes: int = 4_096
    """Size of the vocabulary, up to 16,384."""
    out: Path = Path("tokenizer")
    """The new folder of the tokenizer."""
    side: int | Size = 64
    """Side that images are resized to, or rows x columns as in 48x64; multiples of the patch."""
    split: str | None = None
    """The split to use, if the source has several (train, test)."""
    range: str | None = None
    """LOW,HIGH: the values shown as black and white where the format does not define them (more than 8 bits, floats,
    DICOM without a window); default: the range of the images."""
    bands: str | None = None
    """R,G,B: the bands to use of pictures with more than three, counted from 1; default: the first three."""
    validation_fraction: float = 0.1
    """Fraction of the images held out."""
    seed: int = 0
    """Random seed of k-means and of the held-out images."""
    cache: str | None = None
    """Folder for decoded images; default: the user's cache folder."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(TokenizerArguments, "tokenizer", argv)
    check_numbers(args, fraction="validation_fraction")
    size, levels = to_size(args.side), Levels.of(args.range, args.bands)
    from nextpixel.tokens.patches import CODES_AT_MOST, SIDES, Patches

    if args.patch not in SIDES:
        raise InputError(f"expected 2 or 4, got {args.patch}", argument="patch")
    if size[0] % args.patch or size[1] % args.patch:
        raise InputError(f"expected multiples of {args.patch}, got {side_text(size)}", argument="side")
    if not 2 <= args.codes <= CODES_AT_MOST:
        raise InputError(f"expected 2 to {CODES_AT_MOST}, got {args.codes}", argument="codes")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"expected 0 to {2**32 - 1}, got {args.seed}", argument="seed")
    from nextpixel.data.decoded import decode, split_indices
    from nextpixel.files import new_output
    from nextpixel.images import grid, save_png
    from nextpixel.tokens import reconstruct, reconstruction, save_tokenizer

    new_output(args.out)
    images = decode(joined(args.images), size, split=args.split, cache=args.cache, levels=levels)
    train, held = (
        images.images[np.sort(np.random.default_rng(args.seed).permutation(rows)[:most])]
        for rows, most in zip(
            split_indices(len(images), args.validation_fraction, args.seed), (FITTED_AT_MOST, HELD_OUT_AT_MOST)
        )
    )
    tokenizer = Patches.fit(train, args.codes, args.patch, args.seed)
    found = reconstruction(tokenizer, held)
    facts = {"side": args.side, "images": len(train), "held_out_images": len(held), **asdict(found)}
    save_tokenizer(tokenizer, args.out, {"fitted": {"source": ", ".join(args.images), "seed": args.seed, **facts}})
    shown = held[:SHOWN]
    picture = args.out / "reconstructions.png"
    save_png(grid([list(shown), list(reconstruct(tokenizer, shown))], zoom=max(1, 128 // size[0])), picture)
    if args.output.json:
        print_json({"out": str(args.out), "sha256": tokenizer.hash, "codes": len(tokenizer), **facts})
    else:
        show(
            f"{args.out}: {len(tokenizer):,} patches of {args.patch} x {args.patch} pixels; {psnr_text(found)} and "
            f"{found.codes_used:.1%} of them used on {len(held):,} held-out images"
        )
        print(picture)
    words = (*args.images, "--tokenizer", args.out, "--side", side_text(size), "--out", "run")
    say(f"To train with it: {command('pretrain', *words, split=args.split)}")
