"""Loss and probe accuracy of every checkpoint, and of what was never trained; each measurement is kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.checkpoints import load
from nextpixel.config import ImageGPTConfig, StudyConfig
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import image_nats, mean_and_error
from nextpixel.files import new_folder, new_output, read_json, write_json
from nextpixel.network import cost as plan
from nextpixel.network.model import ImageGPT
from nextpixel.progress import say
from nextpixel.representation.baselines import majority_accuracy
from nextpixel.representation.extraction import pooled
from nextpixel.representation.extractors import raw_pixels
from nextpixel.representation.probing import LinearProbe
from nextpixel.study.inputs import Images, StudyRun, read_images, read_runs
from nextpixel.study.points import LayerScore, Point, Study, chosen
from nextpixel.tokens import read_tokenizer
from nextpixel.training.setup import side_of

SETTINGS = "settings.json"
POINTS = "points"
SIZES_OF_SHAPE = {"layers", "width", "heads", "side", "colors"}  # fields of ImageGPTConfig


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
    members = read_runs(runs)
    facts = members[0].facts
    images = read_images(data, side_of(facts), facts["decisions"]["fit"], config, members)
    kept = _Kept(Path(out), config, images.key, facts["tokenizer"]["sha256"])
    total = sum(len(member.steps) for member in members)
    points: list[Point] = []
    for member in members:
        for step in member.steps:
            folder = member.run.folder(step)
            measured = kept.get(
                _weights_hash(folder), _measure, folder, device, images, images.seen_by[member.name], config
            )
            points.append(_point(member, step, measured))
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
        _controls(members, images, config, kept, device),
    )


def probe_layers(
    features: NDArray[np.float32],
    labels: NDArray[Any],
    test_features: NDArray[np.float32],
    test_labels: NDArray[Any],
    *,
    seed: int,
    seen: NDArray[np.bool_] | None = None,
) -> list[LayerScore]:
    """A probe of each layer of features (N, J, D), its strength chosen on held-out rows of `features`.

    `seen` are the test images that are training images.
    """
    scores = []
    for layer in range(features.shape[1]):
        probe = LinearProbe(None, layer, seed=seed).fit_features(features[:, [layer]], labels, layers=[layer])
        score = probe.evaluate_features(test_features[:, layer], test_labels, seen=seen)
        scores.append(LayerScore(layer, probe.sweep_[layer], score.accuracy, score.accuracy_without_them))
    return scores


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
                    f"{folder} was begun with {name.replace('_', ' ')} {theirs.get(name)}, got {value}; name a "
                    "new folder, or give the same again",
                    argument="out",
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


def _measure(
    checkpoint: Path, device: str, images: Images, seen: NDArray[np.bool_], config: StudyConfig
) -> dict[str, Any]:
    model = load(checkpoint, device=device)
    values = image_nats(model, images.test, dtype=config.dtype, seed=config.seed)
    nats, error = mean_and_error(values)
    without = float(values[~seen].mean()) if 0 < seen.sum() < len(seen) else None
    layers = _probed(model, images, seen, config)
    return {"nats": nats, "nats_error": error, "nats_without_them": without, "layers": layers}


def _probed(model: ImageGPT, images: Images, seen: NDArray[np.bool_], config: StudyConfig) -> list[dict[str, Any]]:
    layers = range(model.config.layers + 1)
    train, test = (pooled(model, squares, layers, dtype=config.dtype) for squares in (images.train, images.test))
    scores = probe_layers(train, images.labels, test, images.test_labels, seed=config.seed, seen=seen)
    return [asdict(score) for score in scores]


def _point(member: StudyRun, step: int, measured: dict[str, Any]) -> Point:
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
        nats_without_them=measured.get("nats_without_them"),
    )


def _shape_name(shape: ImageGPTConfig) -> str:
    """Layers x width, and what differs from the paper's network."""
    others = [field for field in fields(shape) if field.name not in SIZES_OF_SHAPE]
    options = [f"{f.name}={getattr(shape, f.name)}" for f in others if getattr(shape, f.name) != f.default]
    return " ".join([f"{shape.layers}x{shape.width}", *options])


def _controls(
    members: Sequence[StudyRun], images: Images, config: StudyConfig, kept: _Kept, device: str
) -> dict[str, float]:
    """Test accuracies of the commonest class, raw pixels, and an untrained model of each shape."""
    controls = {"commonest class": majority_accuracy(images.labels, images.test_labels)}
    found = {"raw pixels": kept.get("raw-pixels", _raw, images, config)}
    for member in members:
        shape = _shape_name(member.shape)
        key = f"untrained-{shape}-{member.shape.heads}"
        found[f"untrained {shape}"] = kept.get(key, _untrained, member, device, images, config)
    return controls | {name: chosen(_scores(measured)).accuracy for name, measured in found.items()}


def _raw(images: Images, config: StudyConfig) -> dict[str, Any]:
    train, test = (raw_pixels(squares)[:, None] for squares in (images.train, images.test))
    found = probe_layers(train, images.labels, test, images.test_labels, seed=config.seed, seen=images.seen)
    return {"layers": [asdict(score) for score in found]}


def _untrained(member: StudyRun, device: str, images: Images, config: StudyConfig) -> dict[str, Any]:
    model = ImageGPT(member.shape, seed=config.seed).to(device).eval()
    model.tokenizer = read_tokenizer(member.facts["tokenizer"])
    return {"layers": _probed(model, images, images.seen, config)}


def _scores(measured: dict[str, Any]) -> list[LayerScore]:
    return [LayerScore(**score) for score in measured["layers"]]
