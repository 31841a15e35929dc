#!/usr/bin/env python3
"""Do drawn photographs show what their captions name? Judged by a network trained on labels, which is not ours.

    python benchmarks/imagenet_extractor.py efficientnet-lite0.onnx
    python benchmarks/shown_things.py data/photos-named efficientnet-lite0.onnx --model photos --out things.json

The judge is a linear classifier of the classes on the ONNX network's features of training pictures. It names held-out
pictures (the ceiling), the same decoded from the model's tokens, and, of each caption, pictures drawn by the model at
each --guidance. Chance is one in the number of classes. With --grid, the first picture of each of --shown captions.

Exit code 2: something is wrong with the request.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

import nextpixel
from nextpixel.config import SamplingConfig
from nextpixel.data.captions import captions_of
from nextpixel.drawing.sampling import draw
from nextpixel.errors import InputError
from nextpixel.images import grid, save_png
from nextpixel.images.sources import open_source
from nextpixel.representation.extractors import onnx_extractor
from nextpixel.representation.logistic import fit_linear
from nextpixel.tokens import reconstruct

STRENGTH = 1e-3  # of the judge's penalty
Z = 1.96  # 95%


def read_set(folder: str, split: str, a_class: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The first pictures of each caption, uint8 (N, H, W, 3), and their captions, in the captions' order."""
    source = open_source(folder, split)
    captions = captions_of(source, "caption")
    chosen = np.concatenate([np.flatnonzero(captions == name)[:a_class] for name in sorted(set(captions))])
    return np.stack([source.image(int(i), size, "crop") for i in chosen]), captions[chosen].astype(str)


def share(hits: np.ndarray) -> str:
    """The share of hits with Wilson's interval."""
    n, p = len(hits), float(hits.mean())
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return f"{p:.1%} ({middle - reach:.1%} to {middle + reach:.1%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with train.parquet and test.parquet, with a column named caption")
    parser.add_argument("network", type=Path, help="an .onnx file, see imagenet_extractor.py")
    parser.add_argument("--model", default="photos")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--train-images", type=int, default=40, help="of each class, for the judge")
    parser.add_argument("--images", type=int, default=5, help="drawn of each caption, and held-out ones of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a .json file of the figures")
    parser.add_argument("--grid", type=Path, help="a .png file")
    parser.add_argument("--shown", nargs="+", default=[], help="captions of the grid")
    args = parser.parse_args()
    try:
        model = nextpixel.load(args.model)
        network = onnx_extractor(args.network, model.size)
        train, names = read_set(args.data, "train", args.train_images, model.size)
        held, held_names = read_set(args.data, "test", args.images, model.size)
        classes, labels = np.unique(names, return_inverse=True)
        judge = fit_linear(network(train), labels, STRENGTH)

        def judged(pictures: np.ndarray, expected: np.ndarray) -> str:
            return share(classes[judge.logits(network(pictures)).argmax(1)] == expected)

        found = {
            "real": judged(held, held_names),
            "real, in tokens": judged(reconstruct(model.tokenizer, held), held_names),
        }
        rows = []
        for guidance in args.guidance:
            sampling = SamplingConfig(seed=args.seed, guidance=guidance, temperature=args.temperature)
            drawn = draw(model, None, n=args.images, sampling=sampling, caption=list(classes)).images
            found[f"drawn, guidance {guidance:g}"] = judged(drawn, classes.repeat(args.images))
            rows.append([drawn[list(classes).index(name) * args.images] for name in args.shown])
    except (InputError, ValueError) as error:
        print(f"shown_things: {error}", file=sys.stderr)
        return 2
    if args.out:
        args.out.write_text(json.dumps(vars(args) | {"found": found}, indent=2, default=str) + "\n")
    if args.grid and args.shown:
        save_png(grid(rows, zoom=2, titles=args.shown), args.grid)
    for what, figure in found.items():
        print(f"{what}: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
