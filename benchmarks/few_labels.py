#!/usr/bin/env python3
"""Accuracy with few labels: a model's probe beside raw pixels, k-means patches and a ResNet-20 from scratch.

    python benchmarks/few_labels.py data/cifar10 data/rsscn7 --out runs/few_labels                   # embedded model
    python benchmarks/few_labels.py data/cifar10 data/rsscn7 --out runs/few_labels --model photos    # adds its rows

For each dataset, --pool random pictures a class of the train split (all where a class has fewer) and --test random
pictures of the test split are used; the draws of --labels are subsets of the pool, and a number at or above its size
takes the whole pool once. Every method sees the same draws. Everything is chosen on a draw's own pictures: the probe's
layer, pooling and strength, and the strength for raw pixels and patches. The patches (Coates et al. 2011, 200 codes)
are learned from the pool without labels. The ResNet-20 has the published settings (He et al. 2016), shifts and flips,
at least 8,000 image passes, and is fitted to the first --resnet-draws draws.

Baselines see pictures at 32 x 32, the model at its own side, cropped and enlarged by its own fit. Features are kept in
--out, every result is a line of results.jsonl there, and what exists is not computed again. The table has means over
draws and their standard errors, or for a single draw (in brackets) the standard error over test pictures; AUC where
there are two classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nextpixel.checkpoints import load_backbone
from nextpixel.config import Fit, Levels, Pooling
from nextpixel.data.labels import choose_labels, class_numbers, given_labels
from nextpixel.images.sources import Source, open_source
from nextpixel.network.resnet import ResNet
from nextpixel.representation.baselines import PatchCodes
from nextpixel.representation.extraction import (
    POOLINGS,
    Backbone,
    features_of,
    mirror_averaged,
    model_hash,
    pooled_columns,
    pooled_width,
)
from nextpixel.representation.extractors import raw_pixels
from nextpixel.representation.probing import LinearProbe
from nextpixel.stats import score_of
from nextpixel.training.convnet import fit_convnet, predict_convnet

SIDE = 32, 32  # of the baselines
FIT: Fit = "crop"
CHUNK_IMAGES = 256
PIXELS, PATCHES, RESNET = "raw pixels", "k-means patches", "ResNet-20"
RESULTS = "results.jsonl"


@dataclass
class Pictures:
    """The pictures of one dataset that are used, and their features by method."""

    name: str
    sources: tuple[Source, Source]
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Of the train and the test split."""
    labels: NDArray[Any]
    test_labels: NDArray[Any]
    features: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    @classmethod
    def choose(cls, data: str, per_class: int, tested: int, seed: int) -> Pictures:
        sources = open_source(data, "train"), open_source(data, "test")
        labels, test_labels = (given_labels(source, None) for source in sources)
        pool = choose_labels(labels, min(per_class, int(np.unique(labels, return_counts=True)[1].min())), seed, 0)
        chosen = np.sort(np.random.default_rng([seed, 1]).permutation(len(test_labels))[:tested])
        name = f"{Path(data).stem}-{len(pool)}-{len(chosen)}-{seed}"
        return cls(name, sources, (pool, chosen), labels[pool], test_labels[chosen])

    def squares(self, part: int, rows: slice = slice(None), model: Backbone | None = None) -> NDArray[np.uint8]:
        """Pictures (N, H, W, 3) as the model takes them, or at the baselines' side."""
        size, fit, levels = (SIDE, FIT, Levels()) if model is None else (model.size, model.fit, model.levels)
        source = self.sources[part]
        return np.stack([source.image(row, size, fit, levels) for row in self.rows[part][rows].tolist()])

    def baseline_squares(self) -> list[NDArray[Any]]:
        if "squares" not in self.features:
            self.features["squares"] = [self.squares(part) for part in (0, 1)]
        return self.features["squares"]

    def baseline_features(self, method: str, seed: int, mirror: bool) -> list[NDArray[Any]]:
        """Training and test features (N, 1, D) of raw pixels or patches."""
        if method not in self.features:
            squares = self.baseline_squares()
            extract = raw_pixels if method == PIXELS else PatchCodes(squares[0], seed)
            found = [mirror_averaged(extract, part) if mirror else extract(part) for part in squares]
            self.features[method] = [values[:, None] for values in found]
        return self.features[method]

    def model_features(self, model: Backbone, dtype: str, folder: Path, mirror: bool) -> list[NDArray[Any]]:
        """Training and test features (N, L + 1, D) by all poolings, kept in the folder in float16."""
        width = sum(pooled_width(model, pooling) for pooling in poolings_of(model))
        key = f"{self.name}-{model_hash(model)[:6]}-{dtype}-{width}" + "-mirror" * mirror
        if key not in self.features:
            self.features[key] = [self._kept(part, model, dtype, folder / f"{key}-{part}", mirror) for part in (0, 1)]
        return self.features[key]

    def _kept(self, part: int, model: Backbone, dtype: str, path: Path, mirror: bool) -> NDArray[np.float16]:
        chunks, layers = [], list(range(model.config.layers + 1))
        for start in range(0, len(self.rows[part]), CHUNK_IMAGES):
            chunk = path.with_name(f"{path.name}-{start:06d}.npy")
            if not chunk.exists():
                squares = self.squares(part, slice(start, start + CHUNK_IMAGES), model)
                values = features_of(model, squares, layers, dtype=dtype, poolings=poolings_of(model), mirror=mirror)
                unfinished = chunk.with_suffix(".part.npy")
                np.save(unfinished, values.astype(np.float16))
                unfinished.rename(chunk)
            chunks.append(np.load(chunk))
        return np.concatenate(chunks)


def poolings_of(model: Backbone) -> tuple[Pooling, ...]:
    return POOLINGS[:1] if isinstance(model, ResNet) else POOLINGS


def resnet_result(pictures: Pictures, rows: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Accuracy and AUC of a ResNet-20 fitted to these pictures of the pool."""
    train, test = pictures.baseline_squares()
    classes = np.unique(pictures.labels)
    fitted = fit_convnet(train[rows], pictures.labels[rows], seed=seed)
    score = score_of(predict_convnet(fitted, test), class_numbers(pictures.test_labels, classes), len(classes))
    return {"accuracy": score.accuracy, "auc": score.auc}


def probe_result(
    pictures: Pictures,
    features: list[NDArray[Any]],
    rows: NDArray[np.int64],
    columns: dict[Pooling, slice] | None,
    seed: int,
) -> dict[str, Any]:
    """Accuracy and AUC of a probe of these features, and what it chose."""
    probe, layers = LinearProbe(None, seed=seed), list(range(features[0].shape[1]))
    probe.fit_features(features[0][rows].astype(np.float32), pictures.labels[rows], layers=layers, columns=columns)
    tested = probe.chosen_features(features[1], layers, columns).astype(np.float32)
    score = probe.evaluate_features(tested, pictures.test_labels)
    chosen = {"layer": probe.layers_[0], "pooling": probe.pooling_, "strength": probe.strength_}
    return {"accuracy": score.accuracy, "auc": score.auc} | chosen


def evaluate(args: argparse.Namespace, data: str, model: Backbone, name: str, done: dict[str, Any]) -> None:
    """Compute the results that are missing for one dataset."""
    pictures = Pictures.choose(data, args.pool, args.test, args.seed)
    most = len(pictures.labels) // len(np.unique(pictures.labels))
    for count, draw in ((min(n, most), draw) for n in args.labels for draw in range(args.draws if n < most else 1)):
        rows = np.arange(len(pictures.labels))
        if count < most:
            rows = choose_labels(pictures.labels, count, args.seed, draw)
        for method in (PIXELS, PATCHES, name, RESNET):
            facts = {"data": pictures.name, "method": method, "labels": count, "draw": draw, "chosen_by": "log loss"}
            facts |= {"dtype": args.dtype} if method == name else {}
            facts |= {"mirror": True} if args.mirror and method != RESNET else {}
            if json.dumps(facts) in done or (method == RESNET and draw >= args.resnet_draws):
                continue
            if method == RESNET:
                result = resnet_result(pictures, rows, args.seed + draw)
            elif method == name:
                features = pictures.model_features(model, args.dtype, args.out, args.mirror)
                result = probe_result(pictures, features, rows, pooled_columns(model, poolings_of(model)), args.seed)
            else:
                features = pictures.baseline_features(method, args.seed, args.mirror)
                result = probe_result(pictures, features, rows, None, args.seed)
            done[json.dumps(facts)] = facts | {"test": len(pictures.test_labels)} | result
            with (args.out / RESULTS).open("a") as file:
                file.write(json.dumps(done[json.dumps(facts)]) + "\n")


def known(path: Path) -> dict[str, Any]:
    """The results so far; a half-written last line is passed over."""
    found = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        facts = {
            key: line[key]
            for key in ("data", "method", "labels", "draw", "chosen_by", "dtype", "mirror")
            if key in line
        }
        found[json.dumps(facts)] = line
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard error for each dataset, number of labels and method, as Markdown."""
    lines = []
    for data in dict.fromkeys(line["data"] for line in results):
        here = [line for line in results if line["data"] == data]
        counts = sorted({line["labels"] for line in here})
        lines += [f"\n{data} (training pictures, test pictures, seed)\n"]
        lines += ["| | " + " | ".join(f"{count} a class" for count in counts) + " |", "|---" * (1 + len(counts)) + "|"]
        kinds = [(line["method"], line.get("dtype"), line.get("mirror", False)) for line in here]
        for method, dtype, mirror in dict.fromkeys(kinds):
            cells = []
            own = [line for line, kind in zip(here, kinds, strict=True) if kind == (method, dtype, mirror)]
            for count in counts:
                rows = [line for line in own if line["labels"] == count]
                cells.append(cell(rows) if rows else "")
            several = len({other for name, other, _ in kinds if name == method}) > 1
            name = method + f", {dtype}" * several + ", mirrored" * mirror
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(rows: list[dict[str, Any]]) -> str:
    accuracies = np.array([row["accuracy"] for row in rows])
    if len(rows) == 1:
        share = accuracies[0]
        text = f"{share:.1%} (± {np.sqrt(share * (1 - share) / rows[0]['test']) * 100:.1f})"
    else:
        text = f"{accuracies.mean():.1%} ± {accuracies.std(ddof=1) / np.sqrt(len(rows)) * 100:.1f}"
    areas = np.array([row["auc"] for row in rows if row["auc"] is not None])
    if not len(areas):
        return text
    error = f" ± {areas.std(ddof=1) / np.sqrt(len(areas)):.3f}" if len(areas) > 1 else ""
    return f"{text}, AUC {areas.mean():.3f}{error}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="labelled pictures with a train and a test split")
    parser.add_argument("--model", help="a name, a folder or a run; default: the embedded model")
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 25, 400], help="labels a class")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--resnet-draws", type=int, default=2)
    parser.add_argument("--pool", type=int, default=400, help="training pictures a class")
    parser.add_argument("--test", type=int, default=2_000, help="test pictures")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or int8, of the model's features")
    parser.add_argument("--mirror", action="store_true", help="average features with those of the mirror images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of features and results")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_backbone(args.model)
    name = f"{args.model or 'embedded model'} {model_hash(model)[:6]}"
    done = known(args.out / RESULTS)
    for data in args.data:
        evaluate(args, data, model, name, done)
    print(table(list(done.values())))


if __name__ == "__main__":
    main()
