#!/usr/bin/env python3
"""How well each column of `nextpixel score --report` finds odd images, beside the columns that use no model.

    python benchmarks/odd_images.py data --images 1000 --seed 0

`data` holds the folders cifar10, fashion_mnist and rsscn7 as benchmarks/fetch_datasets.py writes them. Printed is
the AUROC of every column, and of nats less the nats of the PNG file, with a 95% bootstrap interval over images, for

    Fashion-MNIST   two classes held out, five pairs: the model as it is, normal images of the other eight
    CIFAR-10        normal, against rsscn7; and rsscn7 normal, against CIFAR-10
    defects         8 x 8 pixels of CIFAR-10 test images replaced: by one colour, by a piece of another image, by their
                    own pixels shuffled. Clean and spoilt images are different ones. For these the AUROC of pixels too,
                    by the nats of each pixel and by what can be made of them

Distances are to training images (never to test images), normal and odd images are test images. The network computes
in bf16 with fp32 weights. With --continue-steps N the model is also continued for N steps of 16 images on the training
images of the eight normal classes of the first pair. A few minutes on one idle core.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from nextpixel import ImageGPT, load
from nextpixel.evaluation.oddness import COLUMNS, Measurements, local_nats, oriented, png_bytes, score_batches, table
from nextpixel.images import fit_image
from nextpixel.images.sources import Source, open_source

PATCH = 8
PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
KINDS = ("one colour", "piece of another image", "shuffled pixels")
RESAMPLINGS = 500
BINS = 1000


@dataclass(frozen=True)
class Scored:
    """Images with what the columns are made of, the nats and the expected nats (entropy) of each pixel, and labels."""

    measured: Measurements
    nats: np.ndarray
    entropy: np.ndarray
    labels: np.ndarray

    def rows(self, chosen: np.ndarray) -> Measurements:
        return Measurements(*(values[chosen] for values in vars(self.measured).values()))


def draw(source: Source, count: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At most that many images of a source as squares, and their labels."""
    chosen = np.sort(rng.permutation(len(source))[:count])
    assert source.labels is not None
    return np.stack([fit_image(source.read(int(i)), (side, side)) for i in chosen]), source.labels[chosen]


def score(model: ImageGPT, squares: np.ndarray, labels: np.ndarray, dtype: str) -> Scored:
    nats, features, entropy = [], [], []
    for part, pooled, logits in score_batches(model, squares, dtype=dtype):
        nats.append(part)
        features.append(pooled)
        logs = logits.float().log_softmax(-1)
        entropy.append(-(logs.exp() * logs).sum(-1).reshape(part.shape).cpu().numpy())
    maps = np.concatenate(nats)
    sizes = np.array([len(png_bytes(square)) for square in squares])
    means, peaks = maps.mean((1, 2), dtype=np.float64), local_nats(maps).max((1, 2)).astype(np.float64)
    return Scored(
        Measurements(squares, means, peaks, np.concatenate(features), sizes), maps, np.concatenate(entropy), labels
    )


def spoil(squares: np.ndarray, others: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The images with one 8 x 8 defect each, and a mask (N, H, W) of where."""
    squares, where = squares.copy(), np.zeros(squares.shape[:3], bool)
    last = squares.shape[1] - PATCH + 1
    for i, square in enumerate(squares):
        y, x = rng.integers(0, last, 2)
        patch = square[y : y + PATCH, x : x + PATCH]
        if kind == "one colour":
            patch[:] = rng.integers(0, 256, 3)
        elif kind == "shuffled pixels":
            patch[:] = rng.permutation(patch.reshape(-1, 3)).reshape(patch.shape)
        else:
            top, left = rng.integers(0, last, 2)
            patch[:] = others[rng.integers(len(others)), top : top + PATCH, left : left + PATCH]
        where[i, y : y + PATCH, x : x + PATCH] = True
    return squares, where


def image_auroc(normal: np.ndarray, odd: np.ndarray, rng: np.random.Generator) -> list[float]:
    """AUROC and its 95% interval over resampled images."""

    def once(a: np.ndarray, b: np.ndarray) -> float:
        return roc_auc_score(np.arange(len(a) + len(b)) >= len(a), np.concatenate([a, b]))

    again = [once(rng.choice(normal, len(normal)), rng.choice(odd, len(odd))) for _ in range(RESAMPLINGS)]
    return [once(normal, odd), *np.quantile(again, [0.025, 0.975]).tolist()]


def pixel_auroc(maps: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> list[float]:
    """AUROC of all pixels together and its 95% interval over resampled images, by BINS quantiles of the values."""
    bins = np.searchsorted(np.quantile(maps, np.linspace(0, 1, BINS)[1:-1]), maps).reshape(len(maps), -1)
    flat = where.reshape(len(maps), -1)
    counts = np.stack(
        [[np.bincount(row[mask == kind], minlength=BINS) for row, mask in zip(bins, flat)] for kind in (False, True)], 1
    )

    def once(rows: np.ndarray) -> float:
        good, bad = counts[rows].sum(0)
        return float((bad * (good.cumsum() - good / 2)).sum() / (good.sum() * bad.sum()))

    every = np.arange(len(maps))
    again = [once(rng.choice(every, len(every))) for _ in range(RESAMPLINGS)]
    return [once(every), *np.quantile(again, [0.025, 0.975]).tolist()]


def columns(normal: Measurements, odd: Measurements, reference: Measurements, seed: int) -> dict[str, list[float]]:
    """Image AUROC of every column with its interval."""
    rng = np.random.default_rng([seed, 2])
    ours, theirs = table(normal, reference), table(odd, reference)
    found = {
        column.title: image_auroc(oriented(name, ours[name]), oriented(name, theirs[name]), rng)
        for name, column in COLUMNS.items()
    }
    return found | {"nats less PNG's": image_auroc(less_png(normal), less_png(odd), rng)}


def less_png(measured: Measurements) -> np.ndarray:
    """Nats per pixel less those of the PNG file, as they stand (Serra et al. 2020)."""
    pixels = measured.images.shape[1] * measured.images.shape[2]
    return measured.nats_per_pixel - measured.png_bytes * 8 * math.log(2) / pixels


def continued(model: ImageGPT, name: str | None, source: Source, steps: int, seed: int) -> ImageGPT:
    """The model after that many steps on the training images outside the first pair of classes."""
    from nextpixel import pretrain

    assert source.labels is not None
    normal = np.flatnonzero(~np.isin(source.labels, PAIRS[0]))
    rows = np.sort(np.random.default_rng([seed, 3]).permutation(normal)[: steps * 16 + 32])
    with tempfile.TemporaryDirectory() as folder:
        squares = np.stack([fit_image(source.read(int(i)), model.size) for i in rows])
        np.save(Path(folder) / "normal.npy", squares)
        return pretrain(
            Path(folder) / "normal.npy", init=name or "embedded", steps=steps, batch_images=16, clip_norm=1.0,
            learning_rate=0.002, validation_images=32, validation_fraction=0.01, sample_images=0,
            evaluate_every_steps=steps, threads=1, seed=seed, out=Path(folder) / "run",
        )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of cifar10, fashion_mnist and rsscn7")
    parser.add_argument("--model", help="the model; default: the embedded one")
    parser.add_argument("--images", type=int, default=1000, help="images a side (default: 1000)")
    parser.add_argument("--continue-steps", type=int, default=0, help="steps on Fashion-MNIST's normal classes")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16", help="type of the matrix products")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    args = parser.parse_args(argv)
    if args.images < 50:
        parser.error(f"--images: expected at least 50, so that every class occurs, got {args.images}")
    start, n, seed = time.monotonic(), args.images, args.seed
    model = load(args.model)
    side = model.size[0]
    rng = np.random.default_rng(seed)

    def read(name: str, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        return draw(open_source(args.data / name, split), count, side, rng)

    def scored(what: str, squares: np.ndarray, labels: np.ndarray, by: ImageGPT = model) -> Scored:
        result = score(by, squares, labels, args.dtype)
        print(f"{time.monotonic() - start:.0f} s: {len(squares):,} images of {what}", file=sys.stderr, flush=True)
        return result

    rows: dict[str, dict[str, list[float]]] = {}
    pixels: dict[str, dict[str, list[float]]] = {}
    cifar_train = scored("CIFAR-10, train", *read("cifar10", "train", n))
    squares, labels = read("cifar10", "test", 2 * n)
    shuffled = rng.permutation(len(squares))
    clean, spoilt = squares[shuffled[:n]], squares[shuffled[n:]]
    cifar_test = scored("CIFAR-10, test", clean, labels[shuffled[:n]])
    for kind in KINDS:
        images, where = spoil(spoilt, cifar_train.measured.images, kind, rng)
        odd = scored(f"CIFAR-10 with defects, {kind}", images, labels[shuffled[n:]])
        rows[f"defect: {kind}"] = columns(cifar_test.measured, odd.measured, cifar_train.measured, seed)
        excess = odd.nats - odd.entropy
        maps = {"nats": odd.nats, "nats, 3 x 3": local_nats(odd.nats), "less entropy": excess,
                "less entropy, 3 x 3": local_nats(excess)}  # fmt: skip
        pixels[kind] = {name: pixel_auroc(m, where, np.random.default_rng([seed, 4])) for name, m in maps.items()}

    aerial_train = scored("rsscn7, train", *read("rsscn7", "train", n))
    aerial_test = scored("rsscn7, test", *read("rsscn7", "test", n))
    rows["CIFAR-10 -> rsscn7"] = columns(cifar_test.measured, aerial_test.measured, cifar_train.measured, seed)
    rows["rsscn7 -> CIFAR-10"] = columns(aerial_test.measured, cifar_test.measured, aerial_train.measured, seed)

    train, test = read("fashion_mnist", "train", n), read("fashion_mnist", "test", n)
    names = open_source(args.data / "fashion_mnist", "test").classes or [str(i) for i in range(10)]
    fashion = {"": model}
    if args.continue_steps:
        source = open_source(args.data / "fashion_mnist", "train")
        fashion[", continued"] = continued(model, args.model, source, args.continue_steps, seed)
    for suffix, by in fashion.items():
        reference, tested = scored("Fashion-MNIST, train", *train, by), scored("Fashion-MNIST, test", *test, by)
        for pair in PAIRS[:1] if suffix else PAIRS:
            kept, held = ~np.isin(reference.labels, pair), np.isin(tested.labels, pair)
            pair_title = " and ".join(names[i] for i in pair)
            found = columns(tested.rows(~held), tested.rows(held), reference.rows(kept), seed)
            rows[f"Fashion-MNIST: {pair_title}{suffix}"] = found

    seconds = time.monotonic() - start
    print(f"{n:,} images a side, seed {seed}, {args.dtype}, {seconds:.0f} s\n")
    print_table("AUROC of images, normal -> odd", list(next(iter(rows.values()))), rows)
    print()
    print_table("AUROC of pixels", list(next(iter(pixels.values()))), pixels)
    if args.json:
        facts = {"images": n, "seed": seed, "dtype": args.dtype, "continue_steps": args.continue_steps}
        args.json.write_text(json.dumps({**facts, "seconds": seconds, "rows": rows, "pixels": pixels}, indent=2) + "\n")
    return 0


def print_table(head: str, titles: list[str], rows: dict[str, dict[str, list[float]]]) -> None:
    """As Markdown, the best of each row in bold."""
    print(f"| {head} | " + " | ".join(titles) + " |\n|---" + "|---" * len(titles) + "|")
    for name, values in rows.items():
        best = max(value[0] for value in values.values())
        cells = []
        for value, low, high in values.values():
            number = f"**{value:.3f}**" if value == best else f"{value:.3f}"
            cells.append(f"{number} ({low:.3f} to {high:.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
