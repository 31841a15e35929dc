#!/usr/bin/env python3
"""Measure the seams of drawn textures: with and without `--augment wrap` in training and `--tile` in drawing.

    python benchmarks/tile_seam.py

takes about two minutes of one CPU core. The textures are brick walls of 16 x 16 pixels that repeat, by a formula; of
the drawn ones it prints the mean nats of the pixels across their border and inside, see evaluation/seams.py. All are
scored by the model trained with wrap, which knows textures at every offset.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nextpixel
from nextpixel.config import SamplingConfig
from nextpixel.drawing.sampling import draw
from nextpixel.drawing.tiles import draw_tiles
from nextpixel.evaluation.seams import measure_seam
from nextpixel.progress import quiet

SIDE, COURSE = 16, 4  # pixels of a wall, and of a row of bricks
MORTAR = (60, 50, 50, 255)
BRICKS = np.array([(170, 70, 50, 255), (200, 150, 90, 255), (120, 120, 130, 255)], np.uint8)
SETTINGS: dict[str, Any] = {
    "palette": "exact", "preset": "modern", "layers": 3, "width": 64, "heads": 2, "batch_images": 16,
    "sample_images": 0, "validation_images": 50, "threads": 1, "compile": "off", "dtype": "fp32", "device": "cpu",
}  # fmt: skip


def walls(count: int, seed: int) -> NDArray[np.uint8]:
    """uint8 (count, SIDE, SIDE, 4): one brick a course, of a random colour with darker specks, every second one split
    by the border."""
    rng = np.random.default_rng(seed)
    found = np.empty((count, SIDE, SIDE, 4), np.uint8)
    for wall in found:
        for top in range(0, SIDE, COURSE):
            colour = BRICKS[rng.integers(len(BRICKS))]
            wall[top : top + COURSE] = colour
            specks = rng.random((COURSE, SIDE)) < 0.05
            wall[top : top + COURSE][specks] = colour // 2 | np.array([0, 0, 0, 255], np.uint8)
            wall[top], wall[top : top + COURSE, top // COURSE % 2 * SIDE // 2] = MORTAR, MORTAR
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tiles", type=int, default=64, help="drawn of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    models = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        for augment in ("wrap", "none"):
            out = Path(folder) / augment
            settings = SETTINGS | {"steps": args.steps, "evaluate_every_steps": args.steps, "seed": args.seed}
            models[augment] = nextpixel.pretrain(walls(1_000, args.seed), out=out, augment=augment, **settings)
    sampling, judge = SamplingConfig(seed=args.seed), models["wrap"]
    rows = [("real textures", "", walls(args.tiles, args.seed + 1))]
    for augment, model in models.items():
        rows.append((f"--augment {augment}", "", draw(model, None, n=args.tiles, sampling=sampling).images))
        rows.append((f"--augment {augment}", "--tile", draw_tiles(model, args.tiles, sampling).images))
    print("| textures | drawn with | across the border | inside |\n|---|---|---:|---:|")
    for what, how, images in rows:
        seam = measure_seam(judge, images)
        print(f"| {what} | {how} | {seam.across:.3f} | {seam.inside:.3f} |")


if __name__ == "__main__":
    main()
