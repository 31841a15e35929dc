"""Runs and images of a study, checked to be comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.checkpoints import Run
from nextpixel.config import ImageGPTConfig, Levels, Size, StudyConfig
from nextpixel.data.decoded import DecodedSet, decode
from nextpixel.data.labels import class_numbers, labelled, labels_of, refuse_overlap, seen_before
from nextpixel.errors import InputError
from nextpixel.images.sources import train_and_test
from nextpixel.progress import say, say_left_out
from nextpixel.training.run_images import training_set


@dataclass(frozen=True)
class StudyRun:
    """A run of the study."""

    name: str
    run: Run
    shape: ImageGPTConfig
    seed: int
    batch_images: int
    steps: list[int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Images:
    """The labelled images that every checkpoint is measured on."""

    train: NDArray[np.uint8]
    labels: NDArray[Any]
    test: NDArray[np.uint8]
    test_labels: NDArray[Any]
    seen: NDArray[np.bool_]
    """Test images that equal a labelled training image in every pixel."""
    seen_by: dict[str, NDArray[np.bool_]]
    """For each run, `seen` and the test images among its own training images."""
    key: str


def read_runs(paths: Sequence[str | Path]) -> list[StudyRun]:
    """Read the runs. Raises InputError unless their losses are comparable."""
    if len(paths) < 2:
        raise InputError(f"RUNS: expected at least two run folders to compare, got {len(paths)}")
    members: list[StudyRun] = []
    for path in paths:
        if not (Path(path) / "run.json").is_file():
            raise InputError(
                f"RUNS: expected run folders with run.json, as nextpixel pretrain writes, got {str(path)!r}"
            )
        run = Run(path)
        facts = run.facts()
        try:
            shape, settings = ImageGPTConfig(**facts["model"]), facts["config"]
            member = StudyRun(
                str(path).rstrip("/"), run, shape, settings["seed"], settings["batch_images"],
                [step for step in run.steps() if step], facts,
            )  # fmt: skip
            init, _ = settings["init"], _comparable(member)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{run.path / 'run.json'}: expected a pretraining run, got a problem with {error}"
            ) from None
        if init:
            raise InputError(
                f"{path}: expected runs that started from random weights, whose compute is known; this one continued "
                f"{init}; leave it out"
            )
        if not member.steps:
            raise InputError(f"{path}: this run has no checkpoint yet; continue it with `resume`, or leave it out")
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


def _comparable(member: StudyRun) -> dict[str, Any]:
    """Facts that must be equal for losses per pixel to be comparable."""
    facts = member.facts
    return {
        "side": member.shape.side,
        "objective": member.shape.objective,
        "palette": facts["tokenizer"]["sha256"],
        "fit": facts["decisions"]["fit"],
        "range": facts["data"].get("range"),
        "bands": facts["data"].get("bands"),
    }


def read_images(data: Any, size: Size, fit: Any, config: StudyConfig, members: Sequence[StudyRun]) -> Images:
    """Read the labelled images. Raises InputError where a run was trained on the test images."""
    sources = train_and_test(data)
    names = [labels_of(source) for source in sources]
    trained_on = members[0].facts["data"]
    levels = Levels.among(trained_on)
    train = decode(sources[0], size, fit=fit, levels=levels)
    test = decode(sources[1], size, fit=fit, levels=train.levels)
    say_left_out(train.unreadable + test.unreadable)
    for member in members:
        keys = [member.facts["decisions"]["train_key"]]
        if member.facts["config"].get("validation") is None:  # then it holds the same images
            keys.append(member.facts["decisions"]["validation_key"])
        if test.key in keys or test.digest() in member.facts["decisions"].get("pixels", [])[: len(keys)]:
            raise InputError(f"{member.name}: this run was trained on the test images of `data`; expected others")

    def subset_of(test: DecodedSet) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        return _subset(*labelled(names[1], sources[1], test)[:2], config.test_images, config.seed)

    test_squares, test_names = subset_of(test)
    seen = seen_before(train.images, test_squares, str(data))
    refuse_overlap(seen, str(data))
    seen_by = {}
    for member in members:
        seen_by[member.name] = seen
        try:
            if (own := training_set(member.run.path)) is not None:
                squares, _ = subset_of(decode(sources[1], own.images.shape[1:3], fit=fit, levels=train.levels))
                seen_by[member.name] = seen | seen_before(own.images, squares, f"{data}, {member.name}")
        except InputError as error:
            say(f"could not check the test images against the training images of {member.name}: {error}")
    images = Images(
        *_subset(*labelled(names[0], sources[0], train)[:2], config.train_images, config.seed),
        test_squares,
        test_names,
        seen,
        seen_by,
        key=f"{train.key} {test.key}",
    )
    class_numbers(test_names, np.unique(images.labels), str(data))  # refuses classes that a subset lacks
    if np.unique(images.labels, return_counts=True)[1].max() < 2:
        raise InputError(
            "expected several training images of some class, to choose layers by, got one of each", argument="data"
        )
    return images


def _subset(
    squares: NDArray[np.uint8], names: NDArray[Any], count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A random subset of at most `count` squares and the names of their classes."""
    rows = np.arange(len(names))
    if count < len(rows):
        rows = np.sort(np.random.default_rng([seed, 0x57D1]).choice(len(rows), count, replace=False))
    return squares[rows], names[rows]
