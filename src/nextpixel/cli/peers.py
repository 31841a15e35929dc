"""Networks that probe --against trains on the same labels, and the costs of each method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nextpixel.cli.arguments import show
from nextpixel.config import side_text, to_side
from nextpixel.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from nextpixel.network.resnet import ResNet
    from nextpixel.representation.extraction import Backbone
    from nextpixel.representation.few_labels import Result
    from nextpixel.training.convnet import TrainedResult

SCRATCH = "resnet20"
TIMED_IMAGES = 64
MOST_TRIALS = 5  # the length of convnet.TRIALS and probing.STRENGTHS, whose modules import torch


def check_peers(against: str | None, trials: int) -> None:
    """Raise InputError for invalid options."""
    if not 1 <= trials <= MOST_TRIALS:
        raise InputError(f"--trials: expected 1 to {MOST_TRIALS}, got {trials}")
    if against is not None and not all(names(against)):
        raise InputError(
            f"--against: expected {SCRATCH} or a student's folder, or several comma-separated, got {against!r}"
        )


def names(against: str | None) -> list[str]:
    return [] if against is None else [name.strip() for name in against.split(",")]


def load_students(against: str | None, model: Backbone) -> dict[str, ResNet]:
    """Load the students among the peers. Raises InputError if one has another side than the model."""
    from nextpixel.checkpoints import load_backbone
    from nextpixel.network.resnet import ResNet

    found = {}
    for name in names(against):
        if name == SCRATCH:
            continue
        try:
            student = load_backbone(name, device=str(model.device))
        except InputError as error:
            raise InputError(f"--against: expected {SCRATCH} or a student of nextpixel distill, got {error}") from None
        if not isinstance(student, ResNet):
            raise InputError(
                f"--against: expected {SCRATCH} or a student of nextpixel distill, got an Image GPT: {name}"
            )
        if student.size != model.size:
            expected, got = side_text(model.size), side_text(student.size)
            raise InputError(f"--against: expected a student of side {expected}, as the model, got {got}")
        found[name] = student
    return found


def fit_peers(
    against: str | None,
    students: Mapping[str, ResNet],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    **how: Any,
) -> list[TrainedResult]:
    """Train and evaluate each peer, see convnet.evaluate_convnet."""
    if against is None:
        return []
    from nextpixel.training.convnet import evaluate_convnet

    found = []
    for name in names(against):
        student = students.get(name)
        title = f"{SCRATCH}, from scratch" if student is None else f"{name}, fine-tuned"
        found += evaluate_convnet(title, train, test, init=student, **how)
    return found


def costs_of(
    model: Backbone,
    deepest: int,
    results: Sequence[Result],
    peers: Sequence[TrainedResult],
    students: Mapping[str, ResNet],
) -> list[dict[str, Any]]:
    """Training and inference costs of the model's probe, the students' probes and each peer, averaged over repeats.

    A probe's training includes the features of its images, up to the `deepest` layer; its inference runs up to the
    deepest chosen layer. Training FLOPs of a peer are three forward passes an image. They exclude logistic regression,
    pretraining and distillation.
    """
    import numpy as np

    from nextpixel.config import ResNetConfig
    from nextpixel.network.cost import feature_flops_per_image
    from nextpixel.network.resnet import ResNet

    fresh = ResNet(ResNetConfig(side=to_side(model.size))).eval()
    probed: dict[str, Backbone] = {"this model": model} | {f"{name}, probe": one for name, one in students.items()}
    rows = []

    def add(
        one: Result | TrainedResult, network: Backbone, layer: int, images: int, flops: int, seconds: float = 0.0
    ) -> None:
        rows.append(
            {
                "method": one.method,
                "labels_per_class": one.labels_per_class,
                "training_seconds": float(np.mean(one.seconds)) + seconds,
                "training_image_passes": images,
                "training_flops": images * flops,
                "inference_flops_per_image": feature_flops_per_image(network.config, layer),
                "inference_ms_per_image": milliseconds(network, layer),
            }
        )

    for result in results:
        if network := probed.get(result.method):
            layers = (0, 0) if isinstance(network, ResNet) else (deepest, max(max(chosen) for chosen in result.layers))
            images = int(np.mean(result.train_images))
            flops, seconds = feature_flops_per_image(network.config, layers[0]), milliseconds(network, layers[0]) / 1e3
            add(result, network, layers[1], images, flops, images * seconds)
    for peer in peers:
        network = students.get(peer.method.removesuffix(", fine-tuned"), fresh)
        add(peer, network, 0, int(np.mean(peer.image_passes)), 3 * feature_flops_per_image(network.config))
    return rows


def milliseconds(model: Backbone, layer: int = 0) -> float:
    """Milliseconds per image for features of a batch of black images: the better of two runs after a warm-up."""
    import numpy as np

    from nextpixel.representation.extraction import features_of

    squares = np.zeros((TIMED_IMAGES, *model.size, 3), np.uint8)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        features_of(model, squares, [layer])
        taken.append(time.perf_counter() - began)
    return 1e3 * min(taken[1:]) / TIMED_IMAGES


def peers_report(peers: Sequence[TrainedResult], costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of --json; empty without peers."""
    if not peers:
        return {}
    rows = []
    for fitted in peers:
        scores = [asdict(score) | {"confusion": score.confusion.tolist()} for score in fitted.scores]
        rows.append(asdict(fitted) | {"scores": scores})
    return {"peers": rows, "costs": list(costs)}


def print_costs(costs: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per method and number of labels."""
    widest = max((len(str(row["method"])) for row in costs), default=0) + 2
    for row in costs:
        count = "all labels" if row["labels_per_class"] is None else f"{row['labels_per_class']:>4} a class"
        show(
            f"{row['method']:<{widest}}{count}  training {row['training_seconds']:.1f} s, "
            f"{row['training_image_passes']:,} images, {row['training_flops'] / 1e9:,.0f} GFLOP; inference "
            f"{row['inference_ms_per_image']:.2f} ms, {row['inference_flops_per_image'] / 1e6:,.0f} MFLOP an image"
        )
