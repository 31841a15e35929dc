#!/usr/bin/env python3
"""Pack pictures for on_gpu.py --data: their tokens under OpenAI's palette, 9 bits a pixel before compression.

    python benchmarks/packed_pictures.py data/cifar10 --split train --side 32 --out cifar10.npz

Exit code 2: something is wrong with the request.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from nextpixel.data.decoded import decode
from nextpixel.errors import InputError
from nextpixel.tokens.palette import Palette


def pack(path: Path, tokens: np.ndarray, columns: int) -> None:
    """Tokens (N, T) below 512 of pictures of so many columns, the last bit of each apart."""
    with path.open("wb") as file:
        np.savez_compressed(
            file, high=(tokens >> 1).astype(np.uint8), low=np.packbits((tokens & 1).astype(bool)), columns=columns
        )


def unpack(path: Path) -> np.ndarray:
    """The pictures in the palette's colours, uint8 (N, H, W, 3), whose tokens are those that were packed."""
    with np.load(path) as arrays:
        high, columns = arrays["high"], int(arrays["columns"])
        low = np.unpackbits(arrays["low"], count=high.size).reshape(high.shape)
    palette = Palette.openai()
    tokens = torch.from_numpy(high.astype(np.int64) * 2 + low)
    return np.concatenate([palette.decode(part, columns) for part in tokens.split(1_000)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--split")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        pictures = decode(args.images, (args.side, args.side), split=args.split).images
        palette = Palette.openai()
        parts = range(0, len(pictures), 1_000)
        tokens = np.concatenate([palette.encode(np.array(pictures[i : i + 1_000])).numpy() for i in parts])
        pack(args.out, tokens, args.side)
    except (InputError, OSError) as error:
        print(f"packed_pictures: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(tokens):,} pictures, {args.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
