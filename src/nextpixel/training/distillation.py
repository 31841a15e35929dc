"""Distillation: a small ResNet learns to predict an Image GPT's pooled features of unlabelled images.

distill calls start_run, which creates the run folder, and train_run, which trains the student to its end. The teacher's
features of every image and its mirror image are computed once. The student sees shifted and mirrored images, by
default, and regresses the whitened features of each through a linear projection. DreamTeacher (Li et al. 2023) is the
closest precedent.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nextpixel.checkpoints import Run, load, load_backbone, write_model
from nextpixel.config import (
    DistillConfig,
    DistillKeywords,
    ResNetConfig,
    augmentations,
    check_keywords,
    replace_checked,
    to_side,
    to_size,
)
from nextpixel.data.decoded import Batches, decode, split_indices
from nextpixel.devices import autocast, choose_device, choose_dtype, set_threads
from nextpixel.errors import InputError
from nextpixel.files import EMBEDDED, new_file
from nextpixel.network.resnet import ResNet
from nextpixel.progress import say
from nextpixel.representation.extraction import check_layers, extract
from nextpixel.training import distributed, optim
from nextpixel.training.decisions import RunDecisions
from nextpixel.training.loop import Cadence, Training, train
from nextpixel.training.run_images import absolute_model, find_whole_set, relocate_whole_set, source_facts
from nextpixel.training.setup import checked_settings, create_run

KIND = "distill"
EVALUATION_IMAGES = 256  # a batch


@check_keywords(DistillKeywords)
def distill(
    images: Any = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    data: Any = None,
    split: str | None = None,
    model: str | Path | None = None,
    **settings: Unpack[DistillKeywords],
) -> ResNet:
    """Train a student on images without labels, or resume a run; returns the best one on held-out images.

    `model` names the teacher, by default the embedded model; `settings` are the fields of DistillConfig. The run is
    written to the new folder `out`. `resume` names an existing run and takes no settings; `data` passes its images
    where they were moved. Raises as pretrain does, and InputError under torchrun.
    """
    if (processes := distributed.world_size()) > 1:
        raise InputError(f"distill runs in a single process, got {processes}; start it without torchrun")
    if resume is not None:
        if settings or not (out is split is model is None):
            raise InputError("takes the settings of its run; expected only `data` with it", argument="resume")
        return train_run(relocate_whole_set(Run.open(resume, KIND), images if data is None else data), images)
    if not isinstance(model, str | os.PathLike | None):
        raise InputError("expected the name or folder of a saved model (nextpixel.save)", argument="model")
    if images is None or out is None:
        raise InputError("distill needs images and a new folder (`out`), or a run to resume (`resume`)")
    config = replace_checked(DistillConfig(), settings)
    return train_run(start_run(images, Path(out), config, model, split), images)


@dataclass(frozen=True, kw_only=True)
class DistillDecisions(RunDecisions):
    """The decisions of a distillation."""

    layers: list[int]
    teacher: str | None


def start_run(
    images: Any, out: Path, config: DistillConfig, model: str | Path | None = None, split: str | None = None
) -> Run:
    """Decode the images, resolve every "auto", and create the run folder."""
    config = checked_settings(out, config)
    threads, device = set_threads(config.threads), choose_device(config.device)
    teacher = load(model)
    requested = None if config.layer == "middle" else [int(n) for n in config.layer.split(",")]
    if teacher.tokenizer.channels != 3:
        raise InputError(
            "expected a model of opaque pictures, got one of exact colours with transparency", argument="model"
        )
    layers, size = check_layers(teacher, requested), teacher.size
    teacher.fit = fit = config.fit or teacher.fit
    levels = config.levels.over(teacher.levels)
    decoded = decode(images, size, split=split, cache=config.cache, fit=fit, levels=levels)
    rows, held = split_indices(len(decoded), config.validation_fraction, config.seed)
    if len(rows) == 1 and "flip" not in augmentations(config.augment):
        raise InputError("expected at least two images to train on without mirroring them, got 1; add some")
    decided = DistillDecisions(
        device=device,
        dtype=choose_dtype(config.dtype, device),
        threads=threads,
        layers=layers,
        teacher=None if model is None else absolute_model(str(model)),
        fit=fit,
        train_key=decoded.key,
        pixels=[decoded.digest()],
        levels=levels.values(),
    )
    return create_run(
        out,
        KIND,
        config,
        decided,
        shape=ResNetConfig(config.blocks, config.factor, to_side(size), targets=len(layers) * teacher.config.width),
        tokenizer=None,
        data=source_facts(images, split) | {"train_images": len(rows), "validation_images": len(held)},
        sets=[decoded],
    )


def train_run(run: Run, images: Any = None) -> ResNet:
    """Compute the teacher's features unless they are there, and train the student to its end."""
    with run.locked():
        return _train(run, images)


def _train(run: Run, images: Any) -> ResNet:
    with run.checked_facts() as facts:
        config = DistillConfig(**facts["config"])
        decided = DistillDecisions(**facts["decisions"])
        shape = ResNetConfig(**facts["model"])
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
    choose_device(decided.device)  # raises if it is gone
    set_threads(decided.threads)

    decoded = find_whole_set(facts, images)
    teacher_file = run.path / "teacher.npy"
    if not teacher_file.is_file():
        _cache_teacher_features(run, decoded.images, config, decided, teacher_file)
    taught = np.load(teacher_file, mmap_mode="r")  # (N, 1 or 2, D): of each image, and of its mirror image
    rows, held = split_indices(len(decoded), config.validation_fraction, config.seed)

    steps = run.steps()
    if steps:
        with run.checkpoint(steps[-1]) as folder:
            student = load_backbone(folder)
        assert isinstance(student, ResNet)
    else:
        student = ResNet(shape, seed=config.seed)
        student.set_scale(decoded.images[rows])
        mean, matrix = whitening(np.concatenate([*taught[rows].swapaxes(0, 1)]), config.shrinkage)
        student.get_buffer("teacher_mean").copy_(torch.from_numpy(mean))
        student.get_buffer("teacher_whiten").copy_(torch.from_numpy(matrix))
        student.facts = {
            "distilled_from": Path(decided.teacher or EMBEDDED).name,
            "layers": decided.layers,
            "images": data["source"],
            "steps": config.steps,
            "seed": config.seed,
        }
        student.fit, student.levels = decided.fit, decoded.levels
    student.to(decided.device).train()
    warmup_steps = max(1, config.steps // 20) if config.warmup_steps is None else config.warmup_steps
    batches = Batches(
        decoded.images,
        rows,
        size=to_size(shape.side),
        batch_images=config.batch_images,
        augment=config.augment,
        seed=config.seed,
    )

    def target_of(features: NDArray[np.float32]) -> Tensor:
        values = torch.from_numpy(features).to(decided.device)
        return (values - student.get_buffer("teacher_mean")) @ student.get_buffer("teacher_whiten")

    def predicted(squares: Tensor) -> Tensor:
        assert student.projection is not None
        with autocast(decided.device, decided.dtype):
            return student.projection(student.features(squares.to(decided.device))).float()

    def batch_at(step: int) -> tuple[Tensor, NDArray[np.float32]]:
        mirrored = batches.mirrored(step).astype(np.int64)
        return torch.from_numpy(batches(step)), np.asarray(taught[batches.numbers(step), mirrored])

    def step(batch: tuple[Tensor, NDArray[np.float32]]) -> Tensor:
        loss = distance(predicted(batch[0]), target_of(batch[1]), config.loss).mean()
        loss.backward()
        return loss.detach()

    @torch.inference_mode()
    def evaluate(step: int) -> dict[str, float]:
        student.eval()
        parts = [
            distance(
                predicted(torch.from_numpy(np.array(decoded.images[part]))),
                target_of(np.asarray(taught[part, 0])),
                config.loss,
            )
            for part in np.array_split(held, -(-len(held) // EVALUATION_IMAGES))
        ]
        student.train()
        mean = float(torch.cat(parts).mean())
        say(f"step {step:,}: {config.loss} distance to the teacher's features {mean:.4f} on held-out images")
        return {"validation_distance": mean}

    training = Training(
        Cadence(config, config.steps, config.evaluate_every_steps),
        student,
        optim.sgd(student, config.weight_decay),
        batch_at,
        step,
        rate_at=lambda step: optim.cosine_rate(
            step, steps=config.steps, warmup_steps=warmup_steps, peak=config.learning_rate
        ),
        evaluate=evaluate,
        write_model=lambda folder: write_model(student, folder),
        metric="validation_distance",
    )
    train(run, training)
    best = load_backbone(run.path)
    assert isinstance(best, ResNet)
    return best


def distance(predicted: Tensor, target: Tensor, loss: str) -> Tensor:
    """The distance of predictions (B, D) from targets (B, D), (B,): 1 - cosine, or the mean square over D."""
    if loss == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=1)
    return (predicted - target).square().mean(1)


def whitening(features: NDArray[np.float32], shrinkage: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (D,) and matrix (D, D): (x - mean) @ matrix has uncorrelated columns, of variance 1 up to the shrinkage.

    PCA whitening of (1 - shrinkage) * covariance + shrinkage * mean variance * identity, the largest direction first.
    Shrinkage keeps directions that hardly vary from being scaled up to the size of the others.
    """
    mean = features.mean(0, dtype=np.float64)
    covariance = np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64))
    size = max(float(covariance.trace()) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * size * np.eye(len(covariance)))
    matrix = vectors[:, ::-1] / np.sqrt(values[::-1])
    return mean.astype(np.float32), matrix.astype(np.float32)


def _cache_teacher_features(
    run: Run, squares: NDArray[np.uint8], config: DistillConfig, decided: DistillDecisions, path: Path
) -> None:
    """Write the teacher's features of every image, and of its mirror image, to `path`; an interrupted call resumes."""
    dtype = "bf16" if config.dtype == "bf16" else "fp32"
    teacher = load(decided.teacher, device=decided.device)
    teacher.fit = "crop"  # a no-op on images of its size
    views = [squares, squares[:, :, ::-1]] if "flip" in augmentations(config.augment) else [squares]
    mirrored = " and of their mirror images" if len(views) > 1 else ""
    say(f"features of layers {decided.layers} of {len(squares):,} images{mirrored}")
    parts = run.path / "teacher.parts"
    both = [extract(teacher, view, decided.layers, parts, dtype=dtype)[0] for view in views]
    with new_file(path) as file:
        np.save(file, np.stack(both, 1))
    shutil.rmtree(parts)
