"""Fill holes of held-out pictures: particles with and without the guide, and baselines, for seven kinds of masks.

    python benchmarks/masks.py data/cifar10/test.parquet --pictures 200 --out masks.jsonl      # resumes, prints a table
    python benchmarks/masks.py data/cifar10/test.parquet --pictures 3 --grid masks.png

The masks are those usual in the literature at 32 pixels (Lugmayr et al. 2022): thin and thick strokes, every second
line, every second pixel of every second line known, a known centre to expand, the upper half, and a hole in the centre.
Strokes differ from picture to picture, by its number. It measures the log-evidence of the known pixels with and
without the guide, how far colours step across the hole's rim (mean absolute difference over red, green and blue) beside
the originals' own, and the root mean square error in the hole. Baselines: clamping (one particle), the likeliest of N
clamped ones, and the harmonic fill (Laplace's equation).

Pictures are filled in batches, all masks of a batch in turn; each result is a line of --out at once, with its settings.
The table has means, and standard errors over pictures in brackets, of the whole file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import nextpixel
from nextpixel.config import Fit, SamplingConfig, Size
from nextpixel.drawing.holes import Filling
from nextpixel.drawing.sampling import Drawing
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.images import grid, save_png
from nextpixel.images.sources import open_source
from nextpixel.network.model import ImageGPT
from nextpixel.tokens import covers_pixels, reconstruct

KINDS = ("thin strokes", "thick strokes", "lines", "pixels", "expand", "upper half", "centre")
SHOWN = ("guided", "clamped", "harmonic", "original")
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


def measure(pixels: Pixels, originals: Pixels, masks: Mask) -> dict[str, list[float]]:
    return {
        "seam": [seam(*pair) for pair in zip(pixels, masks, strict=True)],
        "rmse": [error(*three) for three in zip(pixels, originals, masks, strict=True)],
    }


def evidence(drawing: Drawing) -> dict[str, list[float]]:
    assert drawing.evidence is not None
    return {"log_evidence": drawing.evidence.log_evidence.tolist()}


def pick(images: str, size: Size, fit: Fit, numbers: range) -> tuple[Pixels, NDArray[np.int64] | None]:
    """These pictures of a source, uint8 (N, H, W, C), and their labels."""
    source = open_source(images)
    squares = np.stack([source.image(i, size, fit) for i in numbers])
    return squares, None if source.labels is None else source.labels[numbers.start : numbers.stop]


def compare(
    model: ImageGPT, squares: Pixels, masks: Mask, particles: int, seed: int, *, baselines: bool = True
) -> tuple[dict[str, Pixels], Any]:
    """The pictures of each method, and what is measured of them; without `baselines`, none of clamped pictures."""
    sampling = SamplingConfig(seed=seed)
    originals = squares if covers_pixels(model.tokenizer) else reconstruct(model.tokenizer, squares)
    guided = Filling(model, squares, masks, particles=particles, sampling=sampling).draw()
    weighed = bool(np.any(evidence(guided)["log_evidence"]))  # otherwise nothing known follows
    plain = (
        Filling(model, squares, masks, particles=particles, sampling=sampling, guide=False).draw()
        if weighed
        else guided
    )
    drawn = {
        "original": originals,
        "guided": guided.images,
        "plain": plain.images,
        "harmonic": np.stack([harmonic(*pair) for pair in zip(originals, masks, strict=True)]),
    }
    if baselines:
        clamped = Filling(model, squares, masks, n=particles, particles=1, sampling=sampling, guide=False).draw()
        nats = np.concatenate([x.sum((1, 2)) for x in square_nats(model, clamped.images)])
        best = nats.reshape(len(squares), -1).argmin(1) + np.arange(len(squares)) * particles
        drawn |= {"clamped": clamped.images[::particles], "best": clamped.images[best]}
    found = {name: measure(images, originals, masks) for name, images in drawn.items()}
    found["guided"] |= evidence(guided)
    found["plain"] |= evidence(plain)
    return drawn, found


def cell(values: NDArray[np.float64], digits: int = 1) -> str:
    """The mean (and the standard error of the mean); empty without values."""
    if not len(values):
        return ""
    spread = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):,.{digits}f} ({spread:.{digits}f})"


def read(path: Path) -> dict[tuple[str, int], Any]:
    """The last line of each mask and batch: a batch that had fewer pictures is filled again."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # stopped while it wrote a line
        path.write_text(whole)
    return {(line["mask"], line["first"]): line for line in map(json.loads, whole.splitlines())}


def table(path: Path) -> str:
    """Markdown of the lines of a file."""
    lines = read(path).values()
    methods = ("guided", "plain", "clamped", "best", "harmonic")
    evidences, others = [], []
    for kind in KINDS:
        own = [line for line in lines if line["mask"] == kind]
        if not own:
            continue

        def every(method: str, what: str, own: list[Any] = own) -> NDArray[np.float64]:
            return np.array([value for line in own if method in line for value in line[method][what]])

        guided, plain = (every(method, "log_evidence") for method in ("guided", "plain"))
        if guided.any():
            evidences.append([kind, f"{len(guided)}", cell(guided, 0), cell(plain, 0), cell(guided - plain)])
        seams = [cell(every(method, "seam")) for method in ("original", *methods)]
        pictures = f"{len(guided)} ({len(every('clamped', 'seam'))})"
        others.append([kind, pictures, *seams, *(cell(every(method, "rmse")) for method in methods)])
    heads = [
        ["mask", "pictures", "log-evidence guided", "plain", "gain"],
        ["mask", "pictures (clamped)", "seam: originals", *methods, f"error: {methods[0]}", *methods[1:]],
    ]
    parts = [[head, ["---"] * len(head), *rows] for head, rows in zip(heads, (evidences, others), strict=True)]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--baseline-pictures", type=int, help="how many are also clamped; default: all")
    parser.add_argument("--batch-images", type=int, default=8)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file of JSON lines; what it has already is not repeated")
    parser.add_argument("--grid", type=Path, help="also a PNG of every picture and mask")
    args = parser.parse_args()
    recorded = ("images", "model", "particles", "seed", "batch_images")
    settings: dict[str, Any] = {name: getattr(args, name) for name in recorded}
    settings["offset"] = args.first % args.batch_images  # so that batches do not overlap
    done = read(args.out) if args.out is not None and args.out.exists() else {}
    for line in done.values():
        if line.get("settings") != settings:
            parser.error(f"--out: {args.out} has results of {line.get('settings')}, not {settings}: name another file")
    if args.baseline_pictures is not None and args.grid is not None:
        parser.error("--grid: it shows clamped pictures; leave out --baseline-pictures")
    if done and args.grid is not None:
        parser.error(f"--grid: {args.out} has results, whose pictures are not kept: name another --out, or none")
    torch.set_num_threads(args.threads)
    model = nextpixel.load(args.model)
    rows: dict[str, list[Pixels]] = {kind: [] for kind in args.kinds}
    end = args.first + args.pictures
    for first in range(args.first, end, args.batch_images):
        numbers = range(first, min(first + args.batch_images, end))
        squares, _ = pick(args.images, model.size, model.fit, numbers)
        for kind in args.kinds:
            if (kind, first) in done and done[kind, first]["pictures"] >= len(numbers):
                continue
            masks = np.stack([make_mask(kind, model.size, np.random.default_rng([args.seed, i])) for i in numbers])
            began = time.process_time()
            clamp = args.baseline_pictures is None or first < args.first + args.baseline_pictures
            drawn, found = compare(model, squares, masks, args.particles, args.seed + first, baselines=clamp)
            line = {"mask": kind, "first": first, "pictures": len(numbers), "settings": settings}
            line |= {"cpu_seconds": time.process_time() - began, **found}
            if args.out is not None:
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            given = np.where(masks[..., None], np.uint8(225), drawn["original"])
            shown = [given, *(drawn[name] for name in SHOWN if name in drawn)]
            rows[kind] += [images[i] for i in range(len(squares)) for images in shown]
    if args.out is not None:
        print(table(args.out))
    if args.grid is not None:
        titles = ["given", *SHOWN] * args.pictures
        save_png(grid(list(rows.values()), zoom=2, titles=titles), args.grid)


if __name__ == "__main__":
    main()
