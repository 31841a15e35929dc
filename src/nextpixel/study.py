"""Does a lower loss go with better features? Loss against probe accuracy, over the checkpoints of several runs.

The figure is that of Chen et al. 2020 (Figure 3). Loss and accuracy are measured on the same test images for every
checkpoint; layer and strength of each probe are chosen on held-out training images, as everywhere (probing.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel import plan
from nextpixel.baselines import commonest_class
from nextpixel.checkpoints import Run, load
from nextpixel.checkpoints.files import new_folder, new_output, read_json, write_json
from nextpixel.config import ImageGPTConfig, StudyConfig
from nextpixel.data import DecodedSet, decode
from nextpixel.errors import InputError
from nextpixel.evaluation import image_nats, mean_and_error
from nextpixel.extraction import pooled
from nextpixel.extractors import raw_pixels
from nextpixel.labels import labels_of, refuse_overlap
from nextpixel.metrics import (
    Difference,
    bootstrap_interval,
    difference_at_equal_x,
    less_group_means,
    partial_correlation,
    pearson,
    spearman,
)
from nextpixel.model import ImageGPT
from nextpixel.palette import Palette
from nextpixel.probing import LinearProbe
from nextpixel.progress import say
from nextpixel.sources import open_source

SETTINGS = "settings.json"
POINTS = "points"
SIZES_OF_SHAPE = {"layers", "width", "heads", "side", "colors"}  # fields of ImageGPTConfig


@dataclass(frozen=True)
class LayerScore:
    """A probe of one layer."""

    layer: int
    held_out: float
    """Accuracy on held-out training images: what layers are chosen by."""
    accuracy: float
    """Accuracy on the test images."""


@dataclass(frozen=True)
class Point:
    """One checkpoint."""

    run: str
    shape: str
    """Layers x width, and what differs from the paper's network."""
    parameters: int
    seed: int
    """Of the run."""
    step: int
    images: int
    """Training images seen, repeats counted."""
    flops: float
    """Of all training steps so far, see plan.flops_per_image."""
    nats: float
    """Nats per pixel on the test images."""
    nats_error: float
    """Its standard error, over images."""
    layers: list[LayerScore]

    @property
    def best(self) -> LayerScore:
        """The layer that the held-out images choose."""
        return chosen(self.layers)

    @property
    def accuracy(self) -> float:
        return self.best.accuracy


@dataclass(frozen=True)
class Study:
    """What was measured; `points` run by run, oldest step first."""

    config: StudyConfig
    train_images: int
    test_images: int
    palette: str
    points: list[Point]
    controls: dict[str, float]
    """Test accuracies of what no training made: the commonest class, raw pixels, an untrained model of each shape."""


@dataclass(frozen=True)
class Estimate:
    """A correlation and its 95 % interval over runs; NaN where there are too few."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """Accuracy of a larger shape less that of a smaller one, at equal loss."""

    smaller: str
    larger: str
    runs: int
    difference: Difference | None
    """None where the losses of the two do not meet."""


@dataclass(frozen=True)
class Statistics:
    """How loss (nats per pixel) and accuracy go together; negative: the lower the loss, the better the probe."""

    runs: int
    checkpoints: int
    within_runs: float
    """Mean over runs of Spearman's correlation within each."""
    pearson: Estimate
    spearman: Estimate
    """Over all checkpoints."""
    given_compute: Estimate
    """Pearson's, given the logarithm of training FLOPs."""
    same_step: Estimate
    """Pearson's between runs: each checkpoint less the mean of all runs at its step."""
    final_pearson: Estimate
    final_spearman: Estimate
    """Between runs: the last checkpoint of each."""
    equal_loss: list[Gap]


@dataclass(frozen=True)
class _Member:
    """A run of the study."""

    name: str
    run: Run
    shape: ImageGPTConfig
    seed: int
    batch_images: int
    steps: list[int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Images:
    """The labelled images that every checkpoint is measured on."""

    train: NDArray[np.uint8]
    labels: NDArray[Any]
    test: NDArray[np.uint8]
    test_labels: NDArray[Any]
    key: str


def measure_runs(
    runs: Sequence[str | Path], data: Any, out: str | Path, config: StudyConfig | None = None, *, device: str = "cpu"
) -> Study:
    """Measure every kept checkpoint of the runs on labelled images with a train and a test split.

    Each measurement is kept in the folder `out`; a second call, also with further runs, measures what is new. Raises
    InputError for runs that cannot be compared, images without labels, or a folder begun with other settings.
    """
    config = config or StudyConfig()
    if not (Path(out) / SETTINGS).is_file():
        new_output(out)  # refuses before any work is done
    members = _read_runs(runs)
    facts = members[0].facts
    side, fit = members[0].shape.side, facts["decisions"]["fit"]
    images = _read_images(data, side, fit, config, members)
    kept = _Kept(Path(out), config, images.key, facts["palette"]["sha256"])
    total = sum(len(member.steps) for member in members)
    points: list[Point] = []
    for member in members:
        for step in member.steps:
            folder = member.run.folder(step)
            measured = kept.get(_weights_hash(folder), _measure, folder, device, images, config)
            points.append(_point(member, step, measured))
            say(
                f"{len(points)} of {total}: {member.name}, step {step:,}: {points[-1].nats:.4f} nats per pixel, "
                f"{points[-1].accuracy:.1%} by layer {points[-1].best.layer}"
            )
    return Study(
        config,
        len(images.train),
        len(images.test),
        facts["palette"]["sha256"],
        points,
        _controls(members, images, config, kept, device),
    )


def chosen(layers: Sequence[LayerScore]) -> LayerScore:
    """The one with the highest held-out accuracy, the first of several; test accuracies have no say."""
    return max(layers, key=lambda score: score.held_out)


def probe_layers(
    features: NDArray[np.float32],
    labels: NDArray[Any],
    test_features: NDArray[np.float32],
    test_labels: NDArray[Any],
    *,
    seed: int,
) -> list[LayerScore]:
    """A probe of each layer of features (N, J, D), its strength chosen on held-out rows of `features`."""
    scores = []
    for layer in range(features.shape[1]):
        probe = LinearProbe(None, layer, seed=seed).fit_features(features[:, [layer]], labels, layers=[layer])
        score = probe.evaluate_features(test_features[:, layer], test_labels)
        scores.append(LayerScore(layer, probe.sweep_[layer], score.accuracy))
    return scores


def statistics(points: Sequence[Point], *, seed: int = 0) -> Statistics:
    """Correlations, and differences at equal loss.

    Intervals are over runs, each run drawn whole: its checkpoints are not independent of each other.
    """
    by_run: dict[str, list[Point]] = {}
    for point in points:
        by_run.setdefault(point.run, []).append(point)
    groups = [
        np.array([(p.nats, p.accuracy, math.log10(p.flops), p.step) for p in found], float) for found in by_run.values()
    ]
    finals = [group[[group[:, 3].argmax()]] for group in groups]
    within = [spearman(group[:, 0], group[:, 1]) for group in groups]

    def estimate(statistic: Callable[[NDArray[np.float64]], float], rows: Sequence[NDArray[np.float64]]) -> Estimate:
        return Estimate(statistic(np.concatenate(rows)), *bootstrap_interval(statistic, rows, seed=seed))

    def same_step(rows: NDArray[np.float64]) -> float:
        return pearson(*(less_group_means(rows[:, column], rows[:, 3]) for column in (0, 1)))

    return Statistics(
        runs=len(groups),
        checkpoints=len(points),
        within_runs=float(np.mean(known)) if (known := [v for v in within if not math.isnan(v)]) else math.nan,
        pearson=estimate(lambda rows: pearson(rows[:, 0], rows[:, 1]), groups),
        spearman=estimate(lambda rows: spearman(rows[:, 0], rows[:, 1]), groups),
        given_compute=estimate(lambda rows: partial_correlation(*rows[:, :3].T), groups),
        same_step=estimate(same_step, groups),
        final_pearson=estimate(lambda rows: pearson(rows[:, 0], rows[:, 1]), finals),
        final_spearman=estimate(lambda rows: spearman(rows[:, 0], rows[:, 1]), finals),
        equal_loss=_gaps(list(by_run.values())),
    )


def _gaps(runs: Sequence[Sequence[Point]]) -> list[Gap]:
    """Every pair of shapes, smaller first."""
    curves: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
    for points in runs:
        shape = points[0].parameters, points[0].shape
        curves.setdefault(shape, []).append(np.array([(p.nats, p.accuracy) for p in points]))
    shapes = sorted(curves)
    return [
        Gap(
            small[1],
            large[1],
            len(curves[small]) + len(curves[large]),
            difference_at_equal_x(curves[small], curves[large]),
        )
        for i, small in enumerate(shapes)
        for large in shapes[i + 1 :]
    ]


def _read_runs(paths: Sequence[str | Path]) -> list[_Member]:
    """The runs, once it is sure that their losses can be compared."""
    if len(paths) < 2:
        raise InputError(f"RUNS: expected at least two run folders to compare, got {len(paths)}")
    members: list[_Member] = []
    for path in paths:
        if not (Path(path) / "run.json").is_file():
            raise InputError(
                f"RUNS: expected run folders with run.json, as nextpixel pretrain writes, got {str(path)!r}"
            )
        run = Run(path)
        facts = run.facts()
        try:
            shape, settings = ImageGPTConfig(**facts["model"]), facts["config"]
            member = _Member(
                str(path).rstrip("/"), run, shape, settings["seed"], settings["batch_images"],
                [step for step in run.steps() if step], facts,
            )  # fmt: skip
            began, _ = settings["init"], _comparable(member)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{run.path / 'run.json'}: expected a pretraining run, got a problem with {error}"
            ) from None
        if began:
            raise InputError(
                f"{path}: expected runs that began with random weights, whose compute is known; this one continued "
                f"{began}; leave it out"
            )
        if not member.steps:
            raise InputError(f"{path}: this run has no checkpoint yet; let it train on with --resume, or leave it out")
        if any(other.run.path.resolve() == run.path.resolve() for other in members):
            raise InputError(f"RUNS: expected each run once, got {path} again")
        members.append(member)
        first, ours = _comparable(members[0]), _comparable(member)
        for name, value in ours.items():
            if value != first[name]:
                raise InputError(
                    f"{path}: expected the {name} of {members[0].name}, {first[name]}, got {value}; losses of "
                    "different ones cannot be compared: leave it out"
                )
    return members


def _comparable(member: _Member) -> dict[str, Any]:
    """What must be the same for losses per pixel to mean the same."""
    facts = member.facts
    return {
        "side": member.shape.side,
        "objective": member.shape.objective,
        "palette": facts["palette"]["sha256"],
        "fit": facts["decisions"]["fit"],
    }


def _read_images(data: Any, side: int, fit: Any, config: StudyConfig, members: Sequence[_Member]) -> _Images:
    sources = [open_source(data, split) for split in ("train", "test")]
    for source in sources:
        labels_of(source)  # refuses images without
    train, test = (decode(source, side, fit=fit) for source in sources)
    for line in train.unreadable + test.unreadable:
        say(f"left out: {line}")
    for member in members:
        keys = [member.facts["decisions"]["train_key"]]
        if member.facts["config"].get("validation") is None:  # then it shows the same pictures, at the model's side
            keys.append(member.facts["decisions"]["validation_key"])
        if test.key in keys:
            raise InputError(f"{member.name}: this run was trained on the test images of --data; expected others")
    refuse_overlap(*sources)
    images = _Images(
        *_some(train, config.train_images, config.seed),
        *_some(test, config.test_images, config.seed),
        key=f"{train.key} {test.key}",
    )
    if np.unique(images.labels, return_counts=True)[1].max() < 2:
        raise InputError("--data: expected several training images of some class, to choose layers by, got one of each")
    return images


def _some(found: DecodedSet, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """At most `count` squares and the names of their classes, drawn at random."""
    rows = np.arange(len(found))
    if count < len(found):
        rows = np.sort(np.random.default_rng([seed, 0x57D1]).choice(len(found), count, replace=False))
    return found.squares[rows], labels_of(found)[rows]


class _Kept:
    """The folder of a study: settings.json, and one small file for everything measured."""

    def __init__(self, folder: Path, config: StudyConfig, images: str, palette: str) -> None:
        self.folder = folder
        ours = {**asdict(config), "images": images, "palette": palette}
        if not (folder / SETTINGS).is_file():
            with new_folder(new_output(folder)) as part:
                (part / POINTS).mkdir()
                write_json(part / SETTINGS, ours)
            return
        theirs = read_json(folder / SETTINGS)
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"--out: {folder} was begun with {name.replace('_', ' ')} {theirs.get(name)}, got {value}; name a "
                    "new folder, or give the same again"
                )

    def get(self, key: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """What measure(*arguments) finds, or found before under that key."""
        path = self.folder / POINTS / f"{key}.json"
        if not path.is_file():
            write_json(path, measure(*arguments))
        return read_json(path)


def _weights_hash(folder: Path) -> str:
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _measure(checkpoint: Path, device: str, images: _Images, config: StudyConfig) -> dict[str, Any]:
    model = load(checkpoint, device=device)
    nats, error = mean_and_error(image_nats(model, images.test, dtype=config.dtype, seed=config.seed))
    return {"nats": nats, "nats_error": error, "layers": _probed(model, images, config)}


def _probed(model: ImageGPT, images: _Images, config: StudyConfig) -> list[dict[str, Any]]:
    layers = range(model.config.layers + 1)
    train, test = (
        pooled(model, model.palette.encode(squares), layers, dtype=config.dtype)
        for squares in (images.train, images.test)
    )
    return [asdict(s) for s in probe_layers(train, images.labels, test, images.test_labels, seed=config.seed)]


def _point(member: _Member, step: int, measured: dict[str, Any]) -> Point:
    shape, images = member.shape, step * member.batch_images
    return Point(
        run=member.name,
        shape=_shape_name(shape),
        parameters=shape.parameters,
        seed=member.seed,
        step=step,
        images=images,
        flops=float(images * plan.flops_per_image(shape)),
        nats=measured["nats"],
        nats_error=measured["nats_error"],
        layers=_scores(measured),
    )


def _shape_name(shape: ImageGPTConfig) -> str:
    """Layers x width, and what differs from the paper's network."""
    others = [field for field in fields(shape) if field.name not in SIZES_OF_SHAPE]
    options = [f"{f.name}={getattr(shape, f.name)}" for f in others if getattr(shape, f.name) != f.default]
    return " ".join([f"{shape.layers}x{shape.width}", *options])


def _controls(
    members: Sequence[_Member], images: _Images, config: StudyConfig, kept: _Kept, device: str
) -> dict[str, float]:
    """Test accuracies of the commonest class, raw pixels, and an untrained model of each shape."""
    controls = {"commonest class": commonest_class(images.labels, images.test_labels)}
    found = {"raw pixels": kept.get("raw-pixels", _raw, images, config)}
    for member in members:
        shape = _shape_name(member.shape)
        key = f"untrained-{shape}-{member.shape.heads}"
        found[f"untrained {shape}"] = kept.get(key, _untrained, member, device, images, config)
    return controls | {name: chosen(_scores(measured)).accuracy for name, measured in found.items()}


def _raw(images: _Images, config: StudyConfig) -> dict[str, Any]:
    train, test = (raw_pixels(squares)[:, None] for squares in (images.train, images.test))
    found = probe_layers(train, images.labels, test, images.test_labels, seed=config.seed)
    return {"layers": [asdict(score) for score in found]}


def _untrained(member: _Member, device: str, images: _Images, config: StudyConfig) -> dict[str, Any]:
    model = ImageGPT(member.shape, seed=config.seed).to(device).eval()
    model.palette = Palette(np.array(member.facts["palette"]["colors"], np.float32))
    return {"layers": _probed(model, images, config)}


def _scores(measured: dict[str, Any]) -> list[LayerScore]:
    return [LayerScore(**score) for score in measured["layers"]]
