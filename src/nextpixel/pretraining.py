"""Pretraining: from a source of images to a run folder and a model."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel import optim, plan
from nextpixel.checkpoints import Run, load, write_model
from nextpixel.checkpoints.files import writing
from nextpixel.config import (
    INIT_RATE,
    MUON_RATE,
    Fit,
    ImageGPTConfig,
    PretrainConfig,
    SamplingConfig,
    peak_rate,
    read_recipe,
    replace_checked,
)
from nextpixel.data import Batches, DecodedSet, decode, read_decoded, split_indices, stored_side
from nextpixel.devices import autocast, can_compile, choose_device, choose_dtype, free_memory_bytes, set_threads
from nextpixel.errors import InputError
from nextpixel.evaluation import image_nats, mean_and_error
from nextpixel.images import grid, save_png
from nextpixel.model import ImageGPT, cross_entropy, masked_cross_entropy
from nextpixel.palette import Palette
from nextpixel.progress import say
from nextpixel.sampling import draw
from nextpixel.training import Cadence, train

COMPILE_FROM_SECONDS = 300  # compiling costs about ten seconds a shape and gains a fifth
CPU_FLOPS_PER_SECOND = 1e11  # only to tell short runs from long ones


def pretrain(
    images: Any = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    recipe: str | None = None,
    split: str | None = None,
    **settings: Any,
) -> ImageGPT:
    """Train an Image GPT on images, or go on with a run; returns the best model on validation.

    `settings` are the fields of PretrainConfig (size, side, steps, init, ...), over those of the recipe.
    A run is written to the new folder `out`; `resume` names one to go on with, and takes no settings.
    Raises InputError for bad input, WorkError when the work cannot go on, and training.Interrupted, a
    KeyboardInterrupt, after SIGINT or SIGTERM, with everything saved.
    """
    if resume is not None:
        if settings or not (out is recipe is split is None):
            raise InputError("--resume takes the settings of its run; expected none beside it")
        run = Run.open(resume)
    else:
        if images is None or out is None:
            raise InputError("pretrain needs images and a new folder (--out), or a run to go on with (--resume)")
        config = replace_checked(read_recipe(recipe) if recipe else PretrainConfig(), settings, where="pretrain")
        run = start_run(images, Path(out), config, split)
    return go_on(run, images)


def start_run(images: Any, out: Path, config: PretrainConfig, split: str | None = None) -> Run:
    """Decode the images, decide everything once, and create the run folder."""
    Run.new_path(out)  # refuses before any work is done
    config = replace(  # so that the run can go on from another folder
        config,
        init=_absolute(config.init),
        palette=_absolute(config.palette),
        validation=_absolute(config.validation),
        cache=config.cache and os.path.abspath(config.cache),
    )
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    model = _first_model(config)
    shape, palette = model.config, model.palette
    if config.side and config.side != shape.side:
        raise InputError(f"--side: the model of --init works at side {shape.side}, got {config.side}")
    sets = _decode_sets(images, config, shape.side, model.fit, split)
    images_count, batch = len(sets.train_indices), config.batch_images
    unreadable = sets.train.unreadable + (sets.validation.unreadable if config.validation else [])
    image_bytes = plan.activation_bytes_per_image(
        shape, bytes_each=2 if dtype == "bf16" else 4, checkpointed=config.checkpoint_activations
    )
    seconds = config.steps * batch * plan.flops_per_image(shape) / CPU_FLOPS_PER_SECOND
    optimizer = config.optimizer or ("muon" if config.preset == "modern" else "adam")
    decided = Decisions(
        device=device,
        dtype=dtype,
        compile=config.compile == "on"
        or (config.compile == "auto" and can_compile(device) and seconds > COMPILE_FROM_SECONDS),
        threads=set_threads(config.threads),
        micro_batch_images=config.micro_batch_images
        or plan.micro_batch_images(batch, image_bytes, free_memory_bytes(device), device == "cpu"),
        optimizer=optimizer,
        learning_rate=config.learning_rate
        or (MUON_RATE if optimizer == "muon" else peak_rate(shape.parameters)) * (INIT_RATE if config.init else 1.0),
        schedule=config.schedule or ("linear" if config.preset == "modern" else "cosine"),
        warmup_steps=optim.default_warmup_steps(config.steps, images_count, batch)
        if config.warmup_steps is None
        else config.warmup_steps,
        fit=model.fit,
        train_key=sets.train.key,
        validation_key=sets.validation.key,
    )
    run = Run.create(
        out,
        {
            "config": asdict(config),
            "decisions": asdict(decided),
            "model": asdict(shape),
            "palette": {"sha256": palette.hash, "colors": palette.colors.tolist()},
            "data": {
                "source": str(images) if isinstance(images, str | Path) else type(images).__name__,
                "path": _absolute(str(images)) if isinstance(images, str | Path) else None,
                "split": split,
                "train_images": images_count,
                "validation_images": len(sets.validation_indices),
                "unreadable": len(unreadable),
            },
            "versions": _versions(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        unreadable,
    )
    if unreadable:
        say(f"{len(unreadable)} pictures cannot be read and are left out: {run.path / 'unreadable.txt'}")
    return run


def go_on(run: Run, images: Any = None) -> ImageGPT:
    """Train a run from its last checkpoint, or its start, to its end; returns its best model."""
    facts = run.facts()
    try:
        config = PretrainConfig(**facts["config"])
        decided = Decisions(**facts["decisions"])
        shape = ImageGPTConfig(**facts["model"])
        palette = Palette(np.array(facts["palette"]["colors"], np.float32), config.cache)
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{run.path / 'run.json'}: expected a pretraining run, got a problem with {error}") from None
    choose_device(decided.device)  # still there?
    set_threads(decided.threads)
    sets = _find_sets(images, data, config, decided, shape.side)
    steps = run.steps()
    if steps:
        try:
            model = load(run.folder(steps[-1]))
        except InputError as error:
            raise run.damaged(steps[-1], error) from None
    elif config.init:
        model = _first_model(config)
    else:
        model = ImageGPT(shape, seed=config.seed)
    model.palette, model.fit = palette, decided.fit
    before = {"continued_from": Path(config.init).name} | model.facts if config.init else {}
    model.facts = before | {"trained_on": data["source"], "steps": config.steps, "seed": config.seed}
    model.to(decided.device).train()
    model.checkpoint_activations = config.checkpoint_activations
    if decided.compile:
        for block in model.blocks:
            block.compile()
    optimizers = optim.muon(model) if decided.optimizer == "muon" else optim.adam(model)
    batches = Batches(
        sets.train.squares,
        sets.train_indices,
        side=shape.side,
        batch_images=config.batch_images,
        augment=config.augment,
        seed=config.seed,
    )
    encode_here = decided.device == "cpu"

    masked = shape.objective == "masked"

    def batch_at(step: int) -> tuple[Tensor, Tensor | None]:
        squares = batches(step)
        hidden = torch.from_numpy(batches.masks(step)) if masked else None
        return palette.encode(squares) if encode_here else torch.from_numpy(squares), hidden

    def step(batch: tuple[Tensor, Tensor | None]) -> Tensor:
        pixels = batch[0].to(decided.device)
        tokens = pixels if encode_here else palette.encode(pixels)
        hidden = None if batch[1] is None else batch[1].to(decided.device)
        total = torch.zeros((), device=decided.device)
        for start in range(0, len(tokens), decided.micro_batch_images):
            rows = slice(start, start + decided.micro_batch_images)
            part, hidden_part = tokens[rows], None if hidden is None else hidden[rows]
            with autocast(decided.device, decided.dtype):
                logits = model(part, hidden_part)
            if hidden_part is None:
                loss = cross_entropy(logits, part)
            else:
                loss = masked_cross_entropy(logits, part, hidden_part).mean()
            loss = loss * (len(part) / len(tokens))
            loss.backward()
            total += loss.detach()
        return total

    def rate_at(step: int) -> float:
        steps, warmup_steps, peak = config.steps, decided.warmup_steps, decided.learning_rate
        if decided.schedule == "cosine":
            return optim.cosine_rate(step, steps=steps, warmup_steps=warmup_steps, peak=peak)
        falling = config.cooldown_fraction
        return optim.linear_rate(step, steps=steps, warmup_steps=warmup_steps, peak=peak, cooldown_fraction=falling)

    held_out = sets.validation.squares[sets.validation_indices]

    def evaluate(step: int) -> dict[str, float]:
        model.eval()
        mean, error = mean_and_error(image_nats(model, held_out, dtype=decided.dtype))
        if config.sample_images and not masked:
            with torch.compiler.set_stance("eager_on_recompile"):  # drawing has a new shape at every pixel
                drawing = draw(model, None, n=config.sample_images, sampling=SamplingConfig(speed="exact"))
            columns = int(np.ceil(config.sample_images**0.5))
            rows = [list(drawing.images[i : i + columns]) for i in range(0, config.sample_images, columns)]
            path = run.path / "samples" / f"step_{step:07d}.png"
            with writing(path):
                save_png(grid(rows, zoom=max(1, 96 // shape.side)), path)
        model.train()
        say(f"step {step:,}: validation {mean:.4f} +- {error:.4f} nats per {'hidden ' if masked else ''}pixel")
        return {"validation_nats": mean, "validation_standard_error": error}

    def write(folder: Path) -> None:
        write_model(model, folder)

    if config.init and not run.steps():  # from here on the run needs that model no more
        run.write_checkpoint(0, write, config.steps)
    train(
        run,
        Cadence(
            config.steps,
            config.log_every_steps,
            config.evaluate_every_steps,
            config.checkpoint_every_steps,
            config.checkpoint_every_minutes,
        ),
        model=model,
        optimizers=optimizers,
        batch_at=batch_at,
        step=step,
        rate_at=rate_at,
        evaluate=evaluate,
        write_model=write,
        images_per_step=config.batch_images,
        clip_norm=config.clip_norm,
    )
    return load(run.path)


@dataclass(frozen=True)
class Decisions:
    """What "auto" came to; decided once, so that a resumed run goes on as it began."""

    device: str
    dtype: str
    compile: bool
    threads: int
    micro_batch_images: int
    optimizer: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    fit: Fit
    train_key: str
    validation_key: str


@dataclass(frozen=True)
class _Sets:
    train: DecodedSet
    train_indices: NDArray[np.int64]
    validation: DecodedSet
    validation_indices: NDArray[np.int64]


def _decode_sets(images: Any, config: PretrainConfig, side: int, fit: Fit, split: str | None) -> _Sets:
    train_set = decode(images, stored_side(side, config.augment), split=split, cache=config.cache, fit=fit)
    if config.validation:
        held = decode(config.validation, side, cache=config.cache, fit=fit)
    elif stored_side(side, config.augment) == side:
        held = train_set
    else:
        held = decode(images, side, split=split, cache=config.cache, fit=fit)
    return _choose(train_set, held, config)


def _choose(train_set: DecodedSet, held: DecodedSet, config: PretrainConfig) -> _Sets:
    if config.validation:
        chosen, validation = np.arange(len(train_set)), np.arange(len(held))
    else:
        chosen, validation = split_indices(len(train_set), config.validation_fraction, config.seed)
    if len(validation) > config.validation_images:
        rng = np.random.default_rng([config.seed, 0xE7A1])
        validation = np.sort(rng.choice(validation, config.validation_images, replace=False))
    return _Sets(train_set, chosen, held, validation)


def _find_sets(images: Any, data: dict[str, Any], config: PretrainConfig, decided: Decisions, side: int) -> _Sets:
    """The sets a run began with: from the cache, else decoded again, and then they must be the same."""
    try:
        return _choose(
            read_decoded(decided.train_key, config.cache),
            read_decoded(decided.validation_key, config.cache),
            config,
        )
    except FileNotFoundError:
        pass
    if images is None and data["path"] is None:
        raise InputError("this run was begun with images in memory, which are gone; pass them again as `images`")
    sets = _decode_sets(data["path"] if images is None else images, config, side, decided.fit, data["split"])
    if (sets.train.key, sets.validation.key) != (decided.train_key, decided.validation_key):
        raise InputError(
            f"{data['source']}: expected the images the run began with, got others (files were added, removed or "
            "changed); restore them, or start a new run with --init"
        )
    return sets


def _first_model(config: PretrainConfig) -> ImageGPT:
    if config.init:
        model = load(config.init)
        model.fit = config.fit or model.fit
        return model
    palette = Palette.read(config.palette, config.cache) if config.palette else Palette.openai(config.cache)
    with torch.device("meta"):
        model = ImageGPT(config.model(len(palette)))
    model.palette, model.fit = palette, config.fit or model.fit
    return model


def _absolute(path: str | None) -> str | None:
    """Where that file or folder lies, from wherever; a name that is none stays as it is."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    try:
        found["nextpixel"] = version("nextpixel")
    except PackageNotFoundError:
        found["nextpixel"] = "not installed"
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})
