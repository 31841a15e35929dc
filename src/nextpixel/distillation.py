"""Distillation: a small ResNet learns to predict an Image GPT's pooled features of unlabelled images.

The teacher looks at every image and at its mirror image once. The student sees shifted and mirrored images and
regresses the whitened features of the one it sees, through a linear projection. DreamTeacher (Li et al. 2023) is the
closest precedent.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nextpixel import optim
from nextpixel.checkpoints import Run, load, load_backbone, write_model
from nextpixel.checkpoints.files import writing
from nextpixel.config import DistillConfig, ModelOptions, ResNetConfig
from nextpixel.data import Batches, DecodedSet, decode, read_decoded, split_indices
from nextpixel.devices import autocast, choose_device, choose_dtype, set_threads
from nextpixel.errors import InputError
from nextpixel.extraction import check_layers, extract
from nextpixel.model import ImageGPT
from nextpixel.progress import say
from nextpixel.resnet import ResNet
from nextpixel.training import Cadence, train

BATCH_IMAGES = 256  # of an evaluation


def distill(
    images: Any = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    split: str | None = None,
    model: str | None = None,
    **settings: Any,
) -> ResNet:
    """Train a student on images without labels, or go on with a run; returns it.

    `model` names the teacher, by default the embedded one; `settings` are the fields of DistillConfig. A run is
    written to the new folder `out`. `resume` names one to go on with, and takes no settings. Raises as pretrain does.
    """
    if resume is not None:
        if settings or not (out is split is model is None):
            raise InputError("--resume takes the settings of its run; expected none beside it")
        return go_on(Run.open(resume), images)
    if images is None or out is None:
        raise InputError("distill needs images and a new folder (--out), or a run to go on with (--resume)")
    unknown = set(settings) - set(DistillConfig.__dataclass_fields__)
    if unknown:
        names = ", ".join(DistillConfig.__dataclass_fields__)
        raise InputError(f"distill: unknown setting {min(unknown)!r}; expected one of {names}")
    run = start_run(images, Path(out), DistillConfig(**settings), ModelOptions(model=model), split)
    return go_on(run, images)


# ---- the run: decided once, found again


@dataclass(frozen=True)
class Decisions:
    """What was decided when the run began."""

    device: str
    dtype: str
    threads: int
    layers: list[int]
    side: int
    teacher: str | None
    teacher_dtype: str
    fit: str
    train_key: str


def start_run(images: Any, out: Path, config: DistillConfig, options: ModelOptions, split: str | None = None) -> Run:
    """Decode the images, decide everything once, and create the run folder."""
    Run.new_path(out)
    threads, device = set_threads(options.threads), choose_device(options.device)
    teacher = load(options.model)
    wanted = teacher.config.layers // 2 if config.layer == "middle" else [int(n) for n in config.layer.split(",")]
    layers = check_layers(teacher, wanted)
    fit = options.fit or teacher.fit
    decoded = decode(images, teacher.config.side, split=split, cache=config.cache, fit=fit)
    held = split_indices(len(decoded), config.validation_fraction, config.seed)[1]
    named = options.model is not None and os.path.exists(options.model)
    decided = Decisions(
        device=device,
        dtype=choose_dtype("auto", device),
        threads=threads,
        layers=layers,
        side=teacher.config.side,
        teacher=os.path.abspath(str(options.model)) if named else options.model,
        teacher_dtype=options.dtype,
        fit=fit,
        train_key=decoded.key,
    )
    return Run.create(
        out,
        {
            "kind": "distillation",
            "config": asdict(config),
            "decisions": asdict(decided),
            "data": {
                "source": _named(images) or type(images).__name__,
                "path": _places(images),
                "split": split,
                "train_images": len(decoded) - len(held),
                "validation_images": len(held),
                "unreadable": len(decoded.unreadable),
            },
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        decoded.unreadable,
    )


def _named(images: Any) -> str | None:
    """Images as they were typed; None for those in memory."""
    if isinstance(images, list) and all(isinstance(image, str | Path) for image in images):
        return ", ".join(map(str, images))
    return str(images) if isinstance(images, str | Path) else None


def _places(images: Any) -> Any:
    """Where they are to be found from any folder; None for those in memory."""
    if _named(images) is None:
        return None
    if isinstance(images, list):
        return [_places(image) for image in images]
    return os.path.abspath(images) if os.path.exists(images) else str(images)


def _read_run(run: Run) -> tuple[DistillConfig, Decisions, Mapping[str, Any]]:
    facts = run.facts()
    try:
        if facts["kind"] != "distillation":
            raise ValueError(f"its kind, {facts['kind']!r}")
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
        return DistillConfig(**facts["config"]), Decisions(**facts["decisions"]), data
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{run.path / 'run.json'}: expected a distillation, got a problem with {error}") from None


def _decoded(images: Any, data: Mapping[str, Any], config: DistillConfig, decided: Decisions) -> DecodedSet:
    """The images the run began with: from the cache, else decoded again, and then they must be the same."""
    try:
        return read_decoded(decided.train_key, config.cache)
    except FileNotFoundError:
        pass
    if images is None and data["path"] is None:
        raise InputError("this run was begun with images that have no path; pass them again as `images`")
    again = decode(
        data["path"] if images is None else images,
        decided.side,
        split=data["split"],
        cache=config.cache,
        fit=decided.fit,  # type: ignore[arg-type]
    )
    if again.key != decided.train_key:
        raise InputError(f"{data['source']}: expected the images the run began with, got others; restore them")
    return again


# ---- the work


def go_on(run: Run, images: Any = None) -> ResNet:
    """Look at the images with the teacher where that is not done, and train the student to its end."""
    config, decided, data = _read_run(run)
    choose_device(decided.device)  # still there?
    set_threads(decided.threads)
    decoded = _decoded(images, data, config, decided)
    teacher_file = run.path / "teacher.npy"
    if not teacher_file.is_file():
        _look(run, decoded.squares, decided, teacher_file)
    seen = np.load(teacher_file, mmap_mode="r")  # (N, 2, D) of each image and its mirror image
    rows, held = split_indices(len(decoded), config.validation_fraction, config.seed)

    steps = run.steps()
    if steps:
        try:
            student = load_backbone(run.folder(steps[-1]))
        except InputError as error:
            raise run.damaged(steps[-1], error) from None
        assert isinstance(student, ResNet)
    else:
        student = _first_student(decoded.squares[rows], np.concatenate([seen[rows, 0], seen[rows, 1]]), config)
        student.facts = {
            "distilled_from": Path(decided.teacher or "embedded").name,
            "layers": decided.layers,
            "images": data["source"],
            "steps": config.steps,
            "seed": config.seed,
        }
        student.fit = decided.fit  # type: ignore[assignment]
    student.to(decided.device).train()
    batches = Batches(
        decoded.squares,
        rows,
        side=decided.side,
        batch_images=config.batch_images,
        augment="pad-flip",
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
        return torch.from_numpy(batches(step)), np.asarray(seen[batches.numbers(step), mirrored])

    def step(batch: tuple[Tensor, NDArray[np.float32]]) -> Tensor:
        loss = distance(predicted(batch[0]), target_of(batch[1]), config.loss).mean()
        loss.backward()
        return loss.detach()

    @torch.inference_mode()
    def evaluate(step: int) -> dict[str, float]:
        student.eval()
        parts = [
            distance(
                predicted(torch.from_numpy(np.array(decoded.squares[part]))),
                target_of(np.asarray(seen[part, 0])),
                config.loss,
            )
            for part in np.array_split(held, -(-len(held) // BATCH_IMAGES))
        ]
        student.train()
        mean = float(torch.cat(parts).mean())
        say(f"step {step:,}: {config.loss} distance to the teacher's features {mean:.4f} on held-out images")
        return {"validation_distance": mean}

    train(
        run,
        Cadence(
            config.steps,
            config.log_every_steps,
            config.evaluate_every_steps,
            config.checkpoint_every_steps,
            config.checkpoint_every_minutes,
        ),
        model=student,
        optimizers=optim.sgd(student, config.weight_decay),
        batch_at=batch_at,
        step=step,
        rate_at=lambda step: optim.cosine_rate(
            step, steps=config.steps, warmup_steps=max(1, config.steps // 20), peak=config.learning_rate
        ),
        evaluate=evaluate,
        write_model=lambda folder: write_model(student, folder),
        images_per_step=config.batch_images,
        figure="validation_distance",
    )
    best = load_backbone(run.path)
    assert isinstance(best, ResNet)
    return best


def distance(predicted: Tensor, target: Tensor, loss: str) -> Tensor:
    """How far predictions (B, D) lie from targets (B, D), each (B,): 1 - cosine, or the mean square over D."""
    if loss == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=1)
    return (predicted - target).square().mean(1)


def whitening(features: NDArray[np.float32], shrinkage: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (D,) and matrix (D, D): (x - mean) @ matrix has uncorrelated columns, of variance 1 but for the shrinkage.

    PCA whitening of (1 - shrinkage) * covariance + shrinkage * mean variance * identity, the largest direction first:
    directions that hardly vary are not blown up to the size of the others.
    """
    mean = features.mean(0, dtype=np.float64)
    covariance = np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64))
    size = max(float(covariance.trace()) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * size * np.eye(len(covariance)))
    matrix = vectors[:, ::-1] / np.sqrt(values[::-1])
    return mean.astype(np.float32), matrix.astype(np.float32)


def _look(run: Run, squares: NDArray[np.uint8], decided: Decisions, path: Path) -> None:
    """The teacher's features of every image and of its mirror image, written to `path`; goes on where it was."""
    dtype = torch.bfloat16 if decided.teacher_dtype == "bf16" else torch.float32
    teacher: ImageGPT = load(decided.teacher, device=decided.device, dtype=dtype)
    teacher.fit = "crop"  # these are squares already
    say(f"features of layers {decided.layers} of {len(squares):,} images and of their mirror images")
    parts = run.path / "teacher.parts"
    both = [extract(teacher, view, decided.layers, parts)[0] for view in (squares, squares[:, :, ::-1])]
    temporary = path.with_suffix(".part.npy")
    with writing(path):
        np.save(temporary, np.stack(both, 1).astype(np.float32))
        temporary.replace(path)
    shutil.rmtree(parts)


def _first_student(squares: NDArray[np.uint8], features: NDArray[np.float32], config: DistillConfig) -> ResNet:
    """The student before its first step, with the statistics of its training images and of their features."""
    shape = ResNetConfig(config.blocks, config.factor, squares.shape[1], targets=features.shape[1])
    student = ResNet(shape, seed=config.seed)
    student.set_scale(squares)
    mean, matrix = whitening(features, config.shrinkage)
    student.get_buffer("teacher_mean").copy_(torch.from_numpy(mean))
    student.get_buffer("teacher_whiten").copy_(torch.from_numpy(matrix))
    return student
