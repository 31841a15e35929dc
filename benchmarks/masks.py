"""Fill holes of held-out pictures: particles with and without the guide, and baselines, for seven kinds of masks.

    python benchmarks/masks.py data/cifar10/test.parquet --pictures 8 --grid masks.png

The masks are those usual in the literature at 32 pixels (Lugmayr et al. 2022): thin and thick strokes, every second
line, every second pixel of every second line known, a known centre to expand, the upper half, and a hole in the centre.
Prints a table: the log-evidence of the known pixels with and without the guide, how far colours step across the hole's
rim (mean absolute difference over red, green and blue) beside the originals' own, and the root mean square error in the
hole. Baselines: clamping (one particle), the likeliest of N clamped ones, and the harmonic fill (Laplace's equation).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import nextpixel
from nextpixel.config import SamplingConfig, Size
from nextpixel.drawing.holes import draw_holes
from nextpixel.drawing.sampling import Drawing
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.images import grid, save_png
from nextpixel.images.sources import open_source

KINDS = ("thin strokes", "thick strokes", "lines", "pixels", "expand", "upper half", "centre")
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def make_mask(kind: str, size: Size, rng: np.random.Generator) -> Mask:
    """A mask (H, W) of that kind, True where it is filled; only strokes are random."""
    height, width = size
    mask = np.zeros(size, bool)
    if kind.endswith("strokes"):
        thick = max(1, min(size) // (8 if kind.startswith("thick") else 24))
        while mask.mean() < (0.25 if kind.startswith("thick") else 0.12):
            y, x = rng.uniform(0, height), rng.uniform(0, width)
            angle = rng.uniform(0, 2 * np.pi)
            for _ in range(min(size)):
                top, left = int(y) - thick // 2, int(x) - thick // 2
                mask[max(0, top) : max(0, top + thick), max(0, left) : max(0, left + thick)] = True
                y, x, angle = y + np.sin(angle), x + np.cos(angle), angle + rng.normal(0, 0.2)
    elif kind == "lines":
        mask[1::2] = True
    elif kind == "pixels":
        mask[1::2], mask[:, 1::2] = True, True
    elif kind == "expand":
        mask[:] = True
        mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = False
    elif kind == "upper half":
        mask[: height // 2] = True
    else:
        top, left = height * 11 // 32, width * 11 // 32
        mask[top : height - top, left : width - left] = True
    return mask


def harmonic(pixels: Pixels, mask: Mask) -> Pixels:
    """The hole filled so that each pixel is the mean of its neighbours (Laplace's equation, by iteration)."""
    values = pixels.astype(np.float64)
    values[mask] = values[~mask].mean(0)
    for _ in range(2_000):
        padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]) / 4
        values[mask] = mean[mask]
    return np.rint(values).astype(np.uint8)


def seam(pixels: Pixels, mask: Mask) -> float:
    """The mean absolute difference of neighbours of which one is in the hole, over colours 0 to 255."""
    steps = []
    for axis in (0, 1):
        across = np.diff(mask.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(pixels.astype(np.float64), axis=axis)).mean(-1)[across])
    return float(np.concatenate(steps).mean())


def error(pixels: Pixels, original: Pixels, mask: Mask) -> float:
    """The root mean square difference in the hole."""
    return float(np.sqrt(np.square(pixels.astype(np.float64) - original)[mask].mean()))


def measure(pixels: Pixels, originals: Pixels, masks: Mask) -> dict[str, float]:
    seams = [seam(*pair) for pair in zip(pixels, masks, strict=True)]
    errors = [error(*three) for three in zip(pixels, originals, masks, strict=True)]
    return {"seam": float(np.mean(seams)), "rmse": float(np.mean(errors))}


def evidence(drawing: Drawing) -> float:
    assert drawing.evidence is not None
    return float(drawing.evidence.log_evidence.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grid", type=Path, help="a PNG of the first pictures of each kind")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = nextpixel.load(args.model)
    source = open_source(args.images)
    squares = np.stack([source.image(i, model.size, model.fit) for i in range(args.pictures)])
    tokens = model.tokenizer.encode(squares)
    originals = model.tokenizer.decode(tokens, model.config.columns)
    sampling, rng, rows = SamplingConfig(seed=args.seed), np.random.default_rng(args.seed), []
    for kind in args.kinds:
        masks = np.stack([make_mask(kind, model.size, rng) for _ in squares])
        began = time.perf_counter()
        guided = draw_holes(model, squares, masks, particles=args.particles, sampling=sampling)
        seconds = (time.perf_counter() - began) / args.pictures
        plain = draw_holes(model, squares, masks, particles=args.particles, sampling=sampling, guide=False)
        clamped = draw_holes(model, squares, masks, n=args.particles, particles=1, sampling=sampling, guide=False)
        nats = np.concatenate([x.sum((1, 2)) for x in square_nats(model, clamped.images)])
        best = nats.reshape(args.pictures, -1).argmin(1) + np.arange(args.pictures) * args.particles
        found = {
            "original": measure(originals, originals, masks),
            "guided": measure(guided.images, originals, masks) | {"log_evidence": evidence(guided)},
            "plain": measure(plain.images, originals, masks) | {"log_evidence": evidence(plain)},
            "clamped": measure(clamped.images[:: args.particles], originals, masks),
            "best": measure(clamped.images[best], originals, masks),
            "harmonic": measure(
                np.stack([harmonic(*pair) for pair in zip(originals, masks, strict=True)]), originals, masks
            ),
        }
        print(json.dumps({"mask": kind, "seconds": seconds, **found}), flush=True)
        shown = [np.where(masks[0][..., None], np.uint8(225), originals[0]), guided.images[0], plain.images[0]]
        rows.append([*shown, clamped.images[0], harmonic(originals[0], masks[0]), originals[0]])
    if args.grid is not None:
        titles = ["given", "guided", "plain", "clamped", "harmonic", "original"]
        save_png(grid(rows, zoom=4, titles=titles), args.grid)


if __name__ == "__main__":
    main()
