"""A small ResNet trained on labels, from scratch or from a distilled student, to compare with a probe.

Fits to few labels take seconds and are repeated a hundred times, so they run in memory, in a plain loop without
checkpoints. evaluate_convnet calls fit_convnet for each subset of the labels and each Trial.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from nextpixel.config import INIT_RATE, ResNetConfig, check_keywords, check_number, side_text, to_side
from nextpixel.data.decoded import Batches
from nextpixel.data.labels import choose_labels, class_numbers, folds_of, has_label
from nextpixel.devices import autocast, choose_device, choose_dtype
from nextpixel.errors import InputError, WorkError
from nextpixel.images import as_channels
from nextpixel.images.sources.base import label_array
from nextpixel.network.resnet import ResNet
from nextpixel.progress import progress
from nextpixel.representation.extraction import features_of
from nextpixel.representation.logistic import MIDDLE_STRENGTH, fit_linear
from nextpixel.stats import Score, score_of
from nextpixel.training.optim import cosine_rate, set_rate, sgd

EPOCHS = 30
IMAGE_PASSES_AT_LEAST = 8_000  # for small training sets
BATCH_IMAGES = 128
SMALL_BATCH_IMAGES = 32  # for fewer than FEW images: more steps per epoch
FEW = 2_000


@dataclass(frozen=True)
class Trial:
    """Hyperparameters, chosen on held-out training images."""

    learning_rate: float = 0.1
    weight_decay: float = 5e-4


# in the order of trial: the published rate (He et al. 2016), then around it
TRIALS = (
    Trial(0.1, 5e-4),
    Trial(0.03, 5e-4),
    Trial(0.1, 5e-3),
    Trial(0.03, 5e-3),
    Trial(0.3, 5e-4),
)


def best_trial(accuracies: Sequence[float]) -> int:
    """Index in TRIALS of the highest held-out accuracy; ties go to the weaker penalty, then the rate nearest 0.1."""

    def rank(i: int) -> tuple[float, float, float]:
        trial = TRIALS[i]
        return accuracies[i], -trial.weight_decay, -abs(math.log(trial.learning_rate / TRIALS[0].learning_rate))

    return max(range(len(accuracies)), key=rank)


@check_keywords()
def fit_convnet(
    squares: NDArray[np.uint8],
    labels: ArrayLike,
    *,
    init: ResNet | None = None,
    config: ResNetConfig | None = None,
    epochs: int | None = None,
    trial: Trial = TRIALS[0],
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "auto",
) -> ResNet:
    """A ResNet trained on images uint8 (N, H, W, 3) and their labels (N,); its classes are `facts["classes"]`.

    From scratch with the shape of `config`, by default ResNet-20, or from `init`, a student, whose head starts as
    the logistic regression on its features (Kumar et al. 2022) at a tenth of the rate. SGD with Nesterov momentum,
    cosine rate, shifts and flips. By default 30 epochs, but at least 8,000 image passes.
    `dtype` is the autocast type: auto takes bf16 where the hardware supports it natively.
    Raises InputError for invalid labels, WorkError when the loss is not finite.
    """
    squares, device = np.asarray(squares), choose_device(device)
    if epochs is not None:
        check_number("epochs", epochs, "at least 1", lambda value: value >= 1, whole=True)
    check_number("seed", seed, "0 or more", lambda value: value >= 0, whole=True)
    if squares.ndim != 4 or squares.shape[3] != 3 or squares.dtype != np.uint8:
        raise InputError(
            f"squares: expected uint8 of shape (images, height, width, 3), got {squares.dtype} {squares.shape}"
        )
    try:
        given = label_array(labels)
    except ValueError as error:
        raise InputError(f"expected one number or name for each image, got {error}", argument="labels") from None
    if given.shape != squares.shape[:1]:
        raise InputError(f"expected {len(squares)}, one for each image, got {len(given)}", argument="labels")
    if not has_label(given).all():
        raise InputError("expected one for each image, got -1 or nothing for some", argument="labels")
    names, numbers = np.unique(given, return_inverse=True)
    if len(names) < 2:
        got = f"only {names.tolist()[0]!r}" if len(names) else "no images"
        raise InputError(f"expected at least two classes, got {got}", argument="labels")
    model = _initial_network(squares, numbers, len(names), init, config, seed).to(device).train()
    model.facts |= {"classes": names.tolist(), "trained_images": len(squares), "seed": seed, **asdict(trial)}
    batch, steps = schedule(len(squares), epochs)
    peak = trial.learning_rate * (INIT_RATE if init is not None else 1.0)
    dtype = choose_dtype(dtype, device)
    optimizers = sgd(model, trial.weight_decay)
    size, chosen = model.size, np.arange(len(squares))
    batches = Batches(squares, chosen, size=size, batch_images=batch, augment="pad-flip", seed=seed)
    targets = torch.from_numpy(numbers.astype(np.int64))
    with progress("fitting", steps * batch, "images") as advance:
        for step in range(steps):
            set_rate(optimizers, cosine_rate(step, steps=steps, warmup_steps=max(1, steps // 20), peak=peak))
            model.zero_grad(set_to_none=True)
            with autocast(device, dtype):
                logits = model(torch.from_numpy(batches(step)).to(device))
            loss = F.cross_entropy(logits.float(), targets[batches.numbers(step)].to(device))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            advance(batch, "")
    if not torch.isfinite(loss):
        raise WorkError(f"the loss of the ResNet stopped being finite at rate {peak:g}; try a lower one")
    return model.eval()


def schedule(images: int, epochs: int | None = None) -> tuple[int, int]:
    """(batch size, steps) of a fit to that many images."""
    batch = BATCH_IMAGES if images >= FEW else SMALL_BATCH_IMAGES
    passes = images * epochs if epochs else max(IMAGE_PASSES_AT_LEAST, images * EPOCHS)
    return batch, max(1, passes // batch)


def _initial_network(
    squares: NDArray[np.uint8],
    numbers: NDArray[np.integer],
    classes: int,
    init: ResNet | None,
    config: ResNetConfig | None,
    seed: int,
) -> ResNet:
    """The network before training."""
    size = squares.shape[1:3]
    if init is None:
        model = ResNet(replace(config or ResNetConfig(), side=to_side(size), classes=classes), seed=seed)
        model.set_scale(squares)
        return model
    if init.size != size:
        raise InputError(
            f"expected a student of side {side_text(size)}, as the images have, got side {side_text(init.size)}",
            argument="init",
        )
    model = ResNet(replace(init.config, classes=classes), seed=seed)
    known = {name: value for name, value in init.state_dict().items() if not name.startswith("head.")}
    model.load_state_dict(known, strict=False)
    model.fit, model.levels, model.facts = init.fit, init.levels, dict(init.facts)
    features = features_of(init, squares, [0])[:, 0]
    linear = fit_linear(features, numbers, MIDDLE_STRENGTH)
    assert model.head is not None
    with torch.no_grad():
        for parameter, values in zip((model.head.weight, model.head.bias), linear.of_raw(), strict=True):
            parameter.copy_(torch.from_numpy(values))
    return model


@torch.inference_mode()
def predict_convnet(model: ResNet, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities (N, C) of images uint8 (N, H, W, 3)."""
    model.eval()
    parts = [
        model(torch.from_numpy(np.array(squares[start : start + 256])).to(model.device)).softmax(1).cpu().numpy()
        for start in range(0, len(squares), 256)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class TrainedResult:
    """Scores of a trained network for one number of labels per class (None: all), over random subsets."""

    method: str
    labels_per_class: int | None
    scores: list[Score]
    trials: list[list[dict[str, Any]]]
    """For each repeat the trials: learning rate, weight decay, and held-out accuracy, None with a single trial."""
    chosen: list[Trial]
    seconds: list[float]
    """Training time of all trials and the final fit."""
    image_passes: list[int]
    """Images seen in training, all trials and the final fit."""


def evaluate_convnet(
    name: str,
    train: tuple[NDArray[np.uint8], NDArray[Any]],
    test: tuple[NDArray[np.uint8], NDArray[Any]],
    *,
    init: ResNet | None = None,
    labels_per_class: Sequence[int | None] = (None,),
    repeats: int = 5,
    trials: int = 3,
    epochs: int | None = None,
    seed: int = 0,
    seen: NDArray[np.bool_] | None = None,
    device: str = "cpu",
) -> list[TrainedResult]:
    """Train a ResNet on the same random subsets as few_labels.compare, and test it.

    Each trial is fitted without the first of the folds that a probe uses and scored on it; the best, see best_trial, is
    fitted again to the whole subset. A single trial needs no such selection.
    """
    if not 1 <= trials <= len(TRIALS):
        raise InputError(f"expected 1 to {len(TRIALS)}, got {trials}", argument="trials")
    (squares, labels), (test_squares, test_labels) = ((as_channels(images, 3), own) for images, own in (train, test))
    classes, numbers = np.unique(labels, return_inverse=True)
    truth = class_numbers(test_labels, classes)
    found = []
    for count in labels_per_class:
        result = TrainedResult(name, count, [], [], [], [], [])
        for repeat in range(1 if count is None else repeats):
            rows = choose_labels(labels, count, seed, repeat)
            own, own_numbers = np.asarray(squares[rows]), numbers[rows]
            fit = functools.partial(fit_convnet, init=init, epochs=epochs, seed=seed + repeat, device=device)
            start, passes, tried = time.perf_counter(), 0, []
            folds = folds_of(own_numbers, seed) if trials > 1 else []
            for trial in TRIALS[:trials]:
                accuracy = None
                if folds:
                    held = folds[0]
                    model = fit(own[~held], own_numbers[~held], trial=trial)
                    accuracy = float((predict_convnet(model, own[held]).argmax(1) == own_numbers[held]).mean())
                    passes += math.prod(schedule(int((~held).sum()), epochs))
                tried.append(asdict(trial) | {"held_out_accuracy": accuracy})
            best = best_trial([one["held_out_accuracy"] or 0.0 for one in tried])
            model = fit(own, own_numbers, trial=TRIALS[best])
            result.seconds.append(time.perf_counter() - start)
            result.image_passes.append(passes + math.prod(schedule(len(own), epochs)))
            result.trials.append(tried)
            result.chosen.append(TRIALS[best])
            result.scores.append(score_of(predict_convnet(model, test_squares), truth, len(classes), seen=seen))
        found.append(result)
    return found
