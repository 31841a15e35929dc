"""Fine-tuning: an Image GPT learns classes from labelled images, and pixels with them.

finetune calls start_run, which creates the run folder, and train_run, which trains it to its end and tests it.

The loss is that of Chen et al. 2020, section 2.2: the generative loss plus the cross-entropy of a linear class head,
with equal weights. The paper's head reads the last layer's mean; by default it reads what the best linear probe of the
training images reads, and starts as that probe (Kumar et al. 2022): at the rates that keep the network's features, a
head that starts from zero stays far behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from nextpixel.checkpoints import Run, load, write_model
from nextpixel.config import FinetuneConfig, FinetuneKeywords, check_keywords, replace_checked
from nextpixel.data.decoded import DecodedSet, decode
from nextpixel.data.labels import (
    choose_labels,
    class_numbers,
    given_labels,
    held_out,
    labelled,
    labelled_rows,
    refuse_overlap,
    seen_before,
)
from nextpixel.devices import autocast
from nextpixel.errors import InputError
from nextpixel.files import EMBEDDED, write_json
from nextpixel.images.sources import Source, open_source, sprites_of
from nextpixel.images.sources.splits import NoSplit
from nextpixel.network.model import ImageGPT
from nextpixel.progress import say, say_once
from nextpixel.representation.extraction import features_of, pooled_columns, poolings_to_try
from nextpixel.representation.probing import LinearProbe
from nextpixel.training import distributed, optim
from nextpixel.training.decisions import decide
from nextpixel.training.loop import Cadence, Training, train
from nextpixel.training.run_images import decode_sets, find_sets, relocate_run, source_facts
from nextpixel.training.setup import OpenRun, checked_settings, create_run, open_run, start_once
from nextpixel.training.steps import (
    TokenBatch,
    TokenBatches,
    accumulate,
    choose_pixel_loss,
    evaluated_model,
    place_model,
    write_full_model,
)

KIND = "finetune"
HEAD_IMAGES = 5_000  # at most, to fit the head's first weights to
RATE, WIDTH = 0.003, 256  # measured (docs/results.md); wider networks take less


@check_keywords(FinetuneKeywords)
def finetune(
    model: ImageGPT | str | Path | None = None,
    images: Any = None,
    labels: ArrayLike | str | Path | None = None,
    *,
    out: str | Path | None = None,
    split: str | None = None,
    test: Any = None,
    test_labels: ArrayLike | str | Path | None = None,
    resume: str | Path | None = None,
    data: Any = None,
    **settings: Unpack[FinetuneKeywords],
) -> ImageGPT:
    """Teach a model classes, or resume a run; returns the model with the best validation accuracy.

    model     an ImageGPT, which is copied, or what load() takes; by default the embedded model
    labels    (N,) numbers or names, or a CSV file with the columns file and label; by default those of the source
    out       the new run folder; `resume` names an existing run and takes no settings
    data      with `resume`, the same images where they were moved
    test      labelled images to evaluate once, at the end, into the run's test.json

    `settings` are the fields of FinetuneConfig (epochs, learning_rate, labels_per_class, ...). Part of the training
    images is held out to validate on. The returned model still completes and samples, and classifies:
    LinearProbe.of(model).predict(images).
    Raises InputError for bad input, WorkError when the work fails, and training.loop.Interrupted, a KeyboardInterrupt,
    after SIGINT or SIGTERM, with everything saved.
    """
    if resume is not None:
        if settings or not (out is model is split is labels is test_labels is None):
            raise InputError("takes the settings of its run; expected only `data` or `test` with it", argument="resume")
        images = data if images is None else images
        return train_run(relocate_run(Run.open(resume, KIND), FinetuneConfig, images), images, test)
    if images is None or out is None:
        raise InputError("finetune needs labelled images and a new folder (`out`), or a run to resume (`resume`)")
    config = replace_checked(FinetuneConfig(), settings)
    run = start_run(model, images, Path(out), config, labels, split=split, test=test, test_labels=test_labels)
    return train_run(run, images, test)


def start_run(
    model: ImageGPT | str | Path | None,
    images: Any,
    out: Path,
    config: FinetuneConfig,
    labels: ArrayLike | str | Path | None = None,
    *,
    split: str | None = None,
    test: Any = None,
    test_labels: ArrayLike | str | Path | None = None,
) -> Run:
    """Decode and split the images, resolve every "auto", and create the run folder with its checkpoint 0.

    See start_once for several processes.
    """
    return start_once(out, KIND, config, lambda: _start(model, images, out, config, labels, split, test, test_labels))


def _start(
    model: ImageGPT | str | Path | None,
    images: Any,
    out: Path,
    config: FinetuneConfig,
    labels: ArrayLike | str | Path | None,
    split: str | None,
    test: Any,
    test_labels: ArrayLike | str | Path | None,
) -> Run:
    config = checked_settings(out, config)
    network = copy.deepcopy(model) if isinstance(model, ImageGPT) else load(model)
    network.fit, levels = config.fit or network.fit, config.levels.over(network.levels)
    size = network.size

    source = sprites_of(open_source(images, split), size, network.fit, levels)
    names = given_labels(source, labels)
    sets: tuple[DecodedSet, ...] = decode_sets(source, config, size, network.fit, levels, None)
    network.levels = sets[0].levels
    names, rows = labelled_rows(names, source, sets[0])
    classes, numbers = np.unique(np.array([str(name) for name in names], object), return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{source.source_name}: expected images of at least two classes, got only {str(classes[0])!r}")
    chosen = choose_labels(names, config.labels_per_class, config.seed, 0)
    held = held_out(numbers[chosen], config.validation_fraction, config.seed)
    if not held.any():
        raise InputError(
            f"{source.source_name}: expected two images of some class at least, to hold one out for validation, got "
            "one of each; add some, or raise `labels_per_class`"
        )
    labels_of_set = np.full(len(sets[0]), -1, np.int64)
    labels_of_set[rows] = numbers
    arrays: dict[str, NDArray[Any]] = {
        "labels": labels_of_set,
        "train": rows[chosen[~held]],
        "validation": rows[chosen[held]],
    }
    data = source_facts(images, split) | {"train_images": int((~held).sum()), "validation_images": int(held.sum())}
    data |= sets[0].levels.values()
    if test is not None:
        test_source = sprites_of(open_test(test), size, network.fit, network.levels)
        test_names = given_labels(test_source, test_labels)
        sets += (decode(test_source, size, cache=config.cache, fit=network.fit, levels=network.levels),)
        test_squares, test_names, arrays["test_rows"] = labelled(test_names, test_source, sets[2])
        trained = (sets[1].images[row] for row in rows[chosen])
        arrays["test_seen"] = seen_before(trained, test_squares, test_source.source_name)
        refuse_overlap(arrays["test_seen"], test_source.source_name)
        arrays["test_labels"] = class_numbers(test_names, classes, test_source.source_name)
        data["test"] = source_facts(test, test_source.split)

    network.set_classes([str(name) for name in classes])
    started_from = "a model in memory" if isinstance(model, ImageGPT) else Path(str(model or EMBEDDED)).name
    network.facts = network.facts | {
        "finetuned_from": started_from,
        "finetuned_on": data["source"],
        "labels_per_class": config.labels_per_class or "all",
        "finetuning_seed": config.seed,
    }
    decided = decide(
        config,
        shape=network.config,
        steps=config.epochs * epoch_steps(config, len(arrays["train"])),
        images=len(arrays["train"]),
        peak_rate=RATE * min(1.0, WIDTH / network.config.width),
        fit=network.fit,
        levels=levels,
        sets=sets,
    )
    train = arrays["train"]
    if len(train) > HEAD_IMAGES:
        own = labels_of_set[train]
        alone = np.bincount(own)[own] == 1  # which held_out never takes
        train = train[held_out(own, HEAD_IMAGES / len(train), config.seed) | alone]
    head = fit_best_head if config.head == "best" else fit_last_head
    head(network.to(decided.device), sets[1].images[train], labels_of_set[train], config.seed, decided.dtype)
    network.to("cpu")
    return create_run(
        out,
        KIND,
        config,
        decided,
        shape=network.config,
        tokenizer=network.tokenizer,
        words=network.words,
        data=data,
        sets=[sets[0], *sets[2:]],
        arrays=arrays,
        write_model=lambda folder: write_model(network, folder),
    )


@torch.no_grad()
def fit_best_head(
    network: ImageGPT, squares: NDArray[np.uint8], labels: NDArray[np.integer], seed: int, dtype: str
) -> None:
    """Make the class head the best linear probe of images (N, H, W, 3) and labels (N,), calibrated.

    Layer and pooling are chosen on held-out images, from the first block's output on.
    """
    layers = list(range(1, network.config.layers + 1))
    poolings = poolings_to_try(network, len(layers), len(squares))
    features = features_of(network, squares, layers, dtype=dtype, poolings=poolings)
    say(f"class head: probing {len(layers)} layers by {len(poolings)} poolings of {len(squares):,} images")
    probe = LinearProbe(None, seed=seed)
    probe.fit_features(features, labels, layers=layers, columns=pooled_columns(network, poolings))
    [layer], linear, pooling = probe.layers_, probe.linear_, probe.pooling_
    network.set_classes(network.config.classes, layer, pooling)
    say(f"class head: starts as the linear probe of layer {layer}, {pooling} pooling")
    _set_head(network, probe.classes_, *linear.of_raw())


def _set_head(
    network: ImageGPT, classes: NDArray[np.integer], weight: NDArray[np.floating], bias: NDArray[np.floating] | None
) -> None:
    """Set the rows of the class head for these classes."""
    assert network.class_head is not None
    rows = torch.from_numpy(classes)
    network.class_head.weight[rows] = torch.from_numpy(weight).to(network.class_head.weight)
    if bias is not None:
        network.class_head.bias[rows] = torch.from_numpy(bias).to(network.class_head.weight)


@torch.no_grad()
def fit_last_head(
    network: ImageGPT, squares: NDArray[np.uint8], labels: NDArray[np.integer], seed: int, dtype: str
) -> None:
    """Set the paper's class head to the calibrated probe of the last layer's mean for images (N, H, W, 3), labels (N,).

    This head has no bias; a direction along which all features are close to 1 (ridge regression) takes its place.
    """
    last = network.config.layers
    features = features_of(network, squares, [last], dtype=dtype)
    probe = LinearProbe(None, [last], seed=seed, pooling="mean").fit_features(features, labels)
    linear, scaled = probe.linear_, features[:, 0] / probe.linear_.scale
    gram = scaled.T @ scaled / len(scaled) + 0.01 * np.eye(scaled.shape[1])
    one = np.linalg.solve(gram, scaled.mean(0)) / linear.scale
    weight, bias = linear.of_raw()
    weight += np.outer(bias, one)
    _set_head(network, probe.classes_, weight, None)


def train_run(run: Run, images: Any = None, test: Any = None) -> ImageGPT:
    """Train a run from its last checkpoint to its end, then evaluate the test images; returns its best model."""
    with open_run(run, FinetuneConfig, images) as opened:
        config, decided, shape = opened.config, opened.decided, opened.shape
        if test is not None and decided.test_key is None:
            raise InputError(
                "expected none, as this run was started without test images; use nextpixel evaluate", argument="test"
            )
        arrays, steps = run.arrays(), distributed.on_first_rank(run.steps)
        with run.checked_facts():
            labels, train_numbers, validation_numbers = (arrays[name] for name in ("labels", "train", "validation"))
        if not steps:
            raise InputError(f"{run.path}: expected a checkpoint to resume from, got none; start a new run")
        with run.checkpoint(steps[-1]) as folder:
            model = load(folder)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not config.freeze_trunk or name.startswith("class_head."))
        # frozen, the generative loss would be a constant
        network = place_model(model, config, decided, "classify" if config.freeze_trunk else "forward_both")
        loss = choose_pixel_loss(decided)
        tokens = TokenBatches(opened, train_numbers)
        held_squares = opened.validation_set.images[validation_numbers]
        held_names = np.array(shape.classes, object)[labels[validation_numbers]]

        def batch_at(step: int) -> tuple[TokenBatch, Tensor]:
            return tokens.tokens(step), torch.from_numpy(labels[tokens.batches.numbers(step)])

        def step(batch: tuple[TokenBatch, Tensor]) -> Tensor:
            (pixels, hidden, _, _), classes = tokens.to_device(batch[0]), batch[1].to(decided.device)

            def loss_of(rows: slice) -> Tensor:
                part, hidden_part = pixels[rows], None if hidden is None else hidden[rows]
                with autocast(decided.device, decided.dtype):
                    if config.freeze_trunk:
                        return F.cross_entropy(network(part, hidden_part).float(), classes[rows])
                    logits, class_logits = network(part, hidden_part)
                return loss(logits, part, hidden_part) + F.cross_entropy(class_logits.float(), classes[rows])

            return accumulate(network, loss_of, len(pixels), decided)

        def evaluate(step: int) -> dict[str, float]:
            with evaluated_model(model, run, step, decided.device) as judged:
                score = LinearProbe.of(judged).evaluate_squares(held_squares, held_names, dtype=decided.dtype)
            name = f"step {step:,}" if step else "the probe, before training"
            say(f"{name}: validation accuracy {score.accuracy:.1%} of {score.images:,}")
            return {"validation_accuracy": score.accuracy}

        evaluate_every_steps = epoch_steps(config, len(train_numbers))
        training = Training(
            Cadence(config, decided.steps, evaluate_every_steps),
            model,
            optim.adam(model),
            batch_at,
            step,
            rate_at=lambda step: optim.linear_rate(
                step,
                steps=decided.steps,
                warmup_steps=decided.warmup_steps,
                peak=decided.learning_rate,
                cooldown_fraction=1.0,
            ),
            evaluate=evaluate,
            write_model=lambda folder: write_full_model(model, folder),
            metric="validation_accuracy",
            highest=True,
            patience=config.patience,
            judge_start=True,
        )
        train(run, training)
        best = load(run.path)
        if decided.test_key is not None:
            distributed.on_first_rank(lambda: _test(opened, best, test, arrays), patient=True)
        return best


def epoch_steps(config: FinetuneConfig, images: int) -> int:
    """Optimiser steps per epoch; the last batch extends into the next epoch."""
    return -(-images // config.batch_images)


def open_test(images: Any) -> Source:
    """Labelled test images: the test split of a source that has splits."""
    try:
        source = open_source(images, "test")
    except NoSplit as error:
        if error.available:
            raise
        return open_source(images)
    if source.split:
        say_once(f"{source.source_name}: {source.split} split")
    return source


def _test(opened: OpenRun[FinetuneConfig], model: ImageGPT, images: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Evaluate the best model on the test images, unless that was done before, and write test.json."""
    run, config, decided = opened.run, opened.config, opened.decided
    step, data = run.best()["step"], run.facts()["data"]["test"]
    if run.test_score().get("step") == step:
        return

    def decode_again(found: Any) -> tuple[DecodedSet]:
        source = open_test(found) if images is not None else open_source(found, data["split"])
        return (decode(source, model.size, cache=config.cache, fit=decided.fit, levels=model.levels),)

    keys, pixels = [str(decided.test_key)], decided.pixels[2:]
    (found,) = find_sets(keys, pixels, config.cache, data, images, decode_again, "test")
    model.to(decided.device)
    names = np.array(model.config.classes, object)[arrays["test_labels"]]
    rows = arrays.get("test_rows")  # older runs took all of them
    squares = found.images if rows is None or len(rows) == len(found) else found.images[rows]
    score = LinearProbe.of(model).evaluate_squares(squares, names, dtype=decided.dtype, seen=arrays.get("test_seen"))
    write_json(run.path / "test.json", {"step": step} | score.report())
    model.to("cpu")
