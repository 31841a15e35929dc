"""Measure loss and probe accuracy of every checkpoint, and of baselines; measurements are cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.checkpoints import load
from nextpixel.config import ImageGPTConfig, StudyConfig
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import image_nats, mean_and_error
from nextpixel.files import STALE_SECONDS, new_folder, new_output, read_json, remove_parts, write_json
from nextpixel.network import cost as plan
from nextpixel.network.model import ImageGPT
from nextpixel.progress import say
from nextpixel.representation.baselines import majority_accuracy
from nextpixel.representation.extraction import pooled
from nextpixel.representation.extractors import raw_pixels
from nextpixel.representation.probing import LinearProbe
from nextpixel.study.inputs import Images, StudyRun, read_images, read_runs
from nextpixel.study.points import LayerScore, Point, Study, best_layer
from nextpixel.training.run_images import size_of

SETTINGS = "settings.json"
POINTS = "points"
SIZES_OF_SHAPE = {"layers", "width", "heads", "side", "colors"}  # fields of ImageGPTConfig


def measure_runs(
    runs: Sequence[str | Path], data: Any, out: str | Path, config: StudyConfig | None = None, *, device: str = "cpu"
) -> Study:
    """Measure every kept checkpoint of the runs on labelled images with a train and a test split.

    Measurements are cached in the folder `out`; a second call, possibly with more runs, measures only what is new.
    Raises InputError for runs that are not comparable, images without labels, or a folder of other settings.
    """
    config = config or StudyConfig()
    if not (Path(out) / SETTINGS).is_file():
        new_output(out)  # refuses before any work
    members = read_runs(runs)
    facts = members[0].facts
    images = read_images(data, size_of(facts), facts["decisions"]["fit"], config, members)
    cache = _Cache(Path(out), config, images.key, facts["tokenizer"]["sha256"])
    total = sum(len(member.steps) for member in members)
    names = shape_names([member.shape for member in members])
    points: list[Point] = []
    for member, shape in zip(members, names, strict=True):
        for step in member.steps:
            folder = member.run.folder(step)
            seen = images.seen_by[member.name]
            measured = cache.get(_key(folder, seen), partial(_measure, folder, device, images, seen, config))
            points.append(_point(member, shape, step, measured))
            say(
                f"{len(points)} of {total}: {member.name}, step {step:,}: {points[-1].nats:.4f} nats per pixel, "
                f"{points[-1].accuracy:.1%} by layer {points[-1].best.layer}"
            )
    return Study(
        config,
        len(images.train),
        len(images.test),
        facts["tokenizer"]["sha256"],
        points,
        _controls(dict(zip(names, members, strict=True)), images, config, cache, device),
    )


class _Cache:
    """The folder of a study: settings.json, and a JSON file for each measurement."""

    def __init__(self, folder: Path, config: StudyConfig, images: str, palette: str) -> None:
        self.folder = folder
        ours = {**asdict(config), "images": images, "palette": palette}
        if not (folder / SETTINGS).is_file():
            with new_folder(new_output(folder)) as part:
                (part / POINTS).mkdir()
                write_json(part / SETTINGS, ours)
            return
        remove_parts(folder, STALE_SECONDS)
        remove_parts(folder / POINTS, STALE_SECONDS)
        theirs = read_json(folder / SETTINGS)
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{folder} was made with {name.replace('_', ' ')} {theirs.get(name)}, got {value}; name a "
                    "new folder, or use the same value",
                    argument="out",
                )

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement under that key; runs measure() where there is none."""
        path = self.folder / POINTS / f"{key}.json"
        if not path.is_file():
            write_json(path, measure())
        return read_json(path)


def _key(folder: Path, seen: NDArray[np.bool_]) -> str:
    """That of a checkpoint's measurement, which depends on the test images that its run has seen."""
    with (folder / "model.safetensors").open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    return f"{weights}-{hashlib.sha256(seen.tobytes()).hexdigest()[:8]}" if seen.any() else weights


def _measure(
    checkpoint: Path, device: str, images: Images, seen: NDArray[np.bool_], config: StudyConfig
) -> dict[str, Any]:
    model = load(checkpoint, device=device)
    dtype = "bf16" if config.dtype == "int8" else config.dtype
    values = image_nats(model, images.test, dtype=dtype, seed=config.seed)
    nats, error = mean_and_error(values)
    without = float(values[~seen].mean()) if 0 < seen.sum() < len(seen) else None
    probes = _probe(partial(_all_layers, model, config.dtype), images, seen, config)
    return {"nats": nats, "nats_error": error, "nats_without_them": without} | probes


def _all_layers(model: ImageGPT, dtype: str, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pooled(model, squares, range(model.config.layers + 1), dtype=dtype)


def _probe(
    extract: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    images: Images,
    seen: NDArray[np.bool_],
    config: StudyConfig,
) -> dict[str, Any]:
    """A probe of each layer of the features (N, J, D), its strength chosen on held-out training images."""
    train, test = extract(images.train), extract(images.test)
    scores = []
    for layer in range(train.shape[1]):
        probe = LinearProbe(None, layer, seed=config.seed)
        probe.fit_features(train[:, [layer]], images.labels, layers=[layer])
        score = probe.evaluate_features(test[:, layer], images.test_labels, seen=seen)
        scores.append(LayerScore(layer, probe.sweep_[layer], score.accuracy, score.accuracy_without_them))
    return {"layers": [asdict(score) for score in scores]}


def _point(member: StudyRun, shape: str, step: int, measured: dict[str, Any]) -> Point:
    images = step * member.batch_images
    return Point(
        run=member.name,
        shape=shape,
        parameters=member.shape.parameters,
        seed=member.seed,
        step=step,
        images=images,
        flops=float(images * plan.flops_per_image(member.shape)),
        nats=measured["nats"],
        nats_error=measured["nats_error"],
        layers=_scores(measured),
        nats_without_them=measured.get("nats_without_them"),
    )


def shape_names(shapes: Sequence[ImageGPTConfig]) -> list[str]:
    """For each shape layers x width, and what tells it from the others: heads, at the same size, and other options."""
    sizes = [(shape.layers, shape.width) for shape in shapes]
    several = {
        size for size in sizes if len({s.heads for s, own in zip(shapes, sizes, strict=True) if own == size}) > 1
    }
    options = [field.name for field in fields(ImageGPTConfig) if field.name not in SIZES_OF_SHAPE]
    options = [name for name in options if len({getattr(shape, name) for shape in shapes}) > 1]
    return [
        " ".join(
            [f"{shape.layers}x{shape.width}"]
            + [f"heads={shape.heads}"] * (size in several)
            + [f"{name}={getattr(shape, name)}" for name in options]
        )
        for shape, size in zip(shapes, sizes, strict=True)
    ]


def _controls(
    members: dict[str, StudyRun], images: Images, config: StudyConfig, cache: _Cache, device: str
) -> dict[str, float]:
    """Test accuracies of the most common class, raw pixels, and an untrained model of each shape, by its name."""

    def raw() -> dict[str, Any]:
        return _probe(lambda squares: raw_pixels(squares)[:, None], images, images.seen, config)

    def untrained(member: StudyRun) -> dict[str, Any]:
        model = ImageGPT(member.shape, seed=config.seed).to(device).eval()
        model.tokenizer = member.run.tokenizer()
        return _probe(partial(_all_layers, model, config.dtype), images, images.seen, config)

    found = {"raw pixels": cache.get("raw-pixels", raw)}
    for name, member in members.items():
        key = hashlib.sha256(repr(member.shape).encode()).hexdigest()[:32]
        found[f"untrained {name}"] = cache.get(f"untrained-{key}", partial(untrained, member))
    accuracies = {name: best_layer(_scores(measured)).accuracy for name, measured in found.items()}
    return {"most common class": majority_accuracy(images.labels, images.test_labels)} | accuracies


def _scores(measured: dict[str, Any]) -> list[LayerScore]:
    return [LayerScore(**score) for score in measured["layers"]]
