"""Networks that probe --against trains on the same labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nextpixel.config import side_text
from nextpixel.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from nextpixel.network.resnet import ResNet
    from nextpixel.representation.extraction import Backbone
    from nextpixel.representation.few_labels import Result
    from nextpixel.training.convnet import TrainedResult

SCRATCH = "resnet20"
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


def rows_report(rows: Sequence[Result | TrainedResult]) -> list[dict[str, Any]]:
    """The entries of --json."""
    from nextpixel.representation.few_labels import Result

    found = []
    for row in rows:
        whole = asdict(replace(row, probes=[]) if isinstance(row, Result) else row)
        whole.pop("probes", None)
        found.append(whole | {"scores": [score.report() for score in row.scores]})
    return found
