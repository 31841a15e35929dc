"""Pretraining: from a source of images to a run folder and a model.

pretrain calls start_run, which creates the run folder, and train_run, which trains it to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.checkpoints import Run, load, write_model
from nextpixel.config import (
    EXACT,
    INIT_RATE,
    MUON_RATE,
    PretrainConfig,
    PretrainKeywords,
    SamplingConfig,
    check_keywords,
    peak_rate,
    read_recipe,
    replace_checked,
)
from nextpixel.data.captions import captions_of
from nextpixel.data.decoded import DecodedSet, all_tags, decode, split_indices
from nextpixel.data.labels import labels_of_readable, seen_before
from nextpixel.devices import autocast, compiled_code
from nextpixel.drawing.sampling import draw
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import image_nats, mean_and_error
from nextpixel.images import save_png
from nextpixel.images.lists import grid
from nextpixel.images.sources import Source, open_source, sprites_of
from nextpixel.network.model import ImageGPT
from nextpixel.progress import is_first, say
from nextpixel.representation.ridge import ridge_accuracy, ridge_images
from nextpixel.tokens import covers_pixels, exact_colours, pixels_of, reconstruction
from nextpixel.tokens.exact import PICTURES_AT_ONCE, ExactPalette
from nextpixel.tokens.training_pictures import HELD_OUT_AT_MOST, TrainingPictures
from nextpixel.training import distributed, optim
from nextpixel.training.decisions import Decisions, Placement, decide, place
from nextpixel.training.forecast import check_fits, forecast, report_plan
from nextpixel.training.initial import continued, initial_model, load_init, outline_init, with_side
from nextpixel.training.loop import Cadence, Training, train
from nextpixel.training.run_images import decode_sets, relocate_run, source_facts
from nextpixel.training.setup import OpenRun, checked_settings, create_run, launch_facts, open_run, start_once
from nextpixel.training.steps import (
    TokenBatch,
    TokenBatches,
    accumulate,
    choose_pixel_loss,
    evaluated_model,
    place_model,
    write_full_model,
)
from nextpixel.training.tokenizers import say_replaced

KIND = "pretrain"
RECONSTRUCTED = 200  # held-out images, to measure what tokens keep


@check_keywords(PretrainKeywords)
def pretrain(
    images: Any = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    branch: str | Path | None = None,
    recipe: str | None = None,
    split: str | None = None,
    force: bool = False,
    data: Any = None,
    **settings: Unpack[PretrainKeywords],
) -> ImageGPT:
    """Train an Image GPT on images, or resume a run; returns the best model on validation.

    `settings` are the fields of PretrainConfig (size, side, steps, init, ...) and override those of the recipe.
    The run is written to the new folder `out`. `resume` names an existing run and takes no settings. `branch` names a
    run with a linear schedule, whose constant phase the new run shares; it takes `steps` and `cooldown_fraction`. With
    either, `data` and `validation` pass the images of the run where they were moved. `force` starts a run that is not
    expected to fit in memory.
    Raises InputError for bad input, WorkError when the work fails, and training.loop.Interrupted, a KeyboardInterrupt,
    after SIGINT or SIGTERM, with everything saved.
    """
    if resume is not None:
        if settings.keys() - {"validation"} or force or not (out is recipe is split is branch is None):
            raise InputError(
                "takes the settings of its run; expected only `data` or `validation` with it", argument="resume"
            )
        run = Run.open(resume, KIND)
    elif branch is not None:
        others = settings.keys() - {"steps", "cooldown_fraction", "validation"}
        if out is None or "steps" not in settings or others or force or not (recipe is split is None):
            raise InputError(
                "takes a new folder (`out`), `steps`, `cooldown_fraction`, `data` and `validation`, and no recipe, "
                "split or other settings",
                argument="branch",
            )
        run = branch_run(
            Run.open(branch, KIND, "branch"),
            Path(out),
            steps=settings["steps"],
            cooldown_fraction=settings.get("cooldown_fraction"),
        )
    else:
        if images is None or out is None:
            raise InputError("pretrain needs images and a new folder (`out`), or a run to resume (`resume`)")
        if data is not None:
            raise InputError("expected `resume` or `branch` with it", argument="data")
        config = replace_checked(read_recipe(recipe) if recipe else PretrainConfig(), settings)
        return train_run(start_run(images, Path(out), config, split, force=force), images)
    images = data if images is None else images
    run = relocate_run(run, PretrainConfig, images, settings.get("validation"))
    return train_run(run, images)


def start_run(images: Any, out: Path, config: PretrainConfig, split: str | None = None, *, force: bool = False) -> Run:
    """Decode the images, resolve every "auto", and create the run folder; see start_once for several processes.

    Raises InputError, before any work, for a run that does not fit in memory, unless `force`.
    """
    return start_once(out, KIND, config, lambda: _start(images, out, config, split, force))


def _start(images: Any, out: Path, config: PretrainConfig, split: str | None, force: bool) -> Run:
    config = with_side(checked_settings(out, config))
    init = outline_init(config) if config.init else None
    if init is not None:
        _place(config, init, force)  # raises before any work
    model, source, captions = initial_model(config, images, split, init)
    config, placed = _place(config, model, force)
    shape = model.config
    sets = decode_sets(source, config, model.size, model.fit, model.levels, split, config.validation)
    palette = config.init or config.tokenizer or config.palette
    if isinstance(model.tokenizer, ExactPalette) and palette not in (None, EXACT):
        say_replaced(model.tokenizer, sets[0].images, palette)
    if config.validation:
        size = sets[0].images.shape[1:3]  # larger than the model's for random crops
        try:
            held = decode(config.validation, size, cache=config.cache, fit=model.fit, levels=sets[0].levels)
            seen_before(sets[0].images, held.images, config.validation, "validation images")
        except InputError as error:  # prepared at the model's size
            say(f"could not look for validation images among the training images: {error}")
    arrays: dict[str, Any] = {}
    if config.probe_data:
        arrays |= ridge_images(
            config.probe_data, model.size, model.fit, config.probe_images, config.seed, sets[0].levels
        )
    if captions is not None:
        arrays |= _tags(config, model, source, captions, sets)
    train_indices, validation_indices = _choose(*sets, config)
    decided = decide(
        config,
        shape=shape,
        steps=config.steps,
        images=len(train_indices),
        peak_rate=(MUON_RATE if config.chosen_optimizer == "muon" else peak_rate(shape.parameters))
        * (INIT_RATE if config.init else 1.0),
        fit=model.fit,
        levels=model.levels,
        sets=sets,
        placed=placed,
    )
    return create_run(
        out,
        KIND,
        config,
        decided,
        shape=shape,
        tokenizer=model.tokenizer,
        words=model.words,
        data=source_facts(images, split)
        | {"train_images": len(train_indices), "validation_images": len(validation_indices)}
        | sets[0].levels.values(),
        sets=sets if config.validation else sets[:1],
        arrays=arrays,
    )


def _place(config: PretrainConfig, model: ImageGPT, force: bool) -> tuple[PretrainConfig, Placement]:
    """The settings, with the preset of `init`, and where they run.

    Raises InputError, unless `force`, where the run does not fit in memory.
    """
    shape = model.config
    config = continued(config, shape)
    placed = place(config, shape, config.steps, config.chosen_optimizer)
    if not force:
        check_fits(forecast(config, shape, placed), model.tokenizer.patch)
    return config, placed


def _tags(
    config: PretrainConfig, model: ImageGPT, source: Source, captions: NDArray[Any], sets: Sequence[DecodedSet]
) -> dict[str, NDArray[np.unsignedinteger]]:
    """Arrays of a run: the tags (N, t, w) of its pictures, and of its validation pictures where these are others."""
    words = model.words
    assert words is not None and config.captions is not None

    def encoded(source: Source, captions: NDArray[Any], decoded: DecodedSet) -> NDArray[np.unsignedinteger]:
        return words.pack(labels_of_readable(captions, source, decoded))

    found = {"tags": encoded(source, captions, sets[0])}
    if config.validation:
        held = sprites_of(open_source(config.validation), model.size, model.fit, sets[0].levels)
        found["validation_tags"] = encoded(held, captions_of(held, config.captions), sets[1])
    bare = int((~found["tags"].any((1, 2))).sum())
    say(f"Captions of {len(words):,} words; {bare:,} of {len(captions):,} pictures have none of them")
    return found


def branch_run(source: Run, out: Path, *, steps: int, cooldown_fraction: float | None = None) -> Run:
    """A new run of `steps` that shares the constant phase of another and has a cool-down of its own.

    It starts from the last checkpoint at which both runs have their full rate. See start_once for several processes.
    """
    with source.checked_facts() as facts:
        config = PretrainConfig(**facts["config"])
    fraction = config.cooldown_fraction if cooldown_fraction is None else cooldown_fraction
    changed = replace_checked(config, {"steps": steps, "cooldown_fraction": fraction})
    return start_once(out, KIND, changed, lambda: _branch(source, out, facts, config, changed))


def _branch(source: Run, out: Path, facts: dict[str, Any], config: PretrainConfig, changed: PretrainConfig) -> Run:
    if config.chosen_schedule != "linear":
        raise InputError(
            f"{source.path} has a cosine schedule, whose rate is never constant; expected a linear schedule",
            argument="branch",
        )
    latest = min(c.steps - optim.falling_steps(c.steps, c.cooldown_fraction) for c in (config, changed))
    shared = [step for step in source.steps() if 0 < step <= latest]
    if not shared:
        raise InputError(
            f"expected a checkpoint of {source.path} up to step {latest:,}, where both runs have their full "
            f"rate, got those of steps {source.steps()}; ask for more `steps` or a smaller `cooldown_fraction`",
            argument="branch",
        )
    branched_from = {"run": str(source.path.resolve()), "step": shared[-1]}
    facts |= {"config": asdict(changed), "branched_from": branched_from} | launch_facts()
    facts["decisions"] |= {"steps": changed.steps}
    return Run.branch(out, source, shared[-1], facts)


def train_run(run: Run, images: Any = None) -> ImageGPT:
    """Train a run from its last checkpoint, or its start, to its end; returns its best model."""
    with open_run(run, PretrainConfig, images) as opened:
        config, decided = opened.config, opened.decided
        train_indices, validation_indices = _choose(opened.train_set, opened.validation_set, config)
        held_out = opened.validation_set.images[validation_indices]
        model = _current_model(opened, train_indices, held_out)
        network, loss = place_model(model, config, decided), choose_pixel_loss(decided)
        optimizers = optim.muon(model) if config.chosen_optimizer == "muon" else optim.adam(model)
        tags, held_tags = None, None
        if config.captions is not None:
            arrays = run.arrays()
            tags = arrays["tags"]
            held_tags = all_tags(arrays.get("validation_tags", tags)[validation_indices])
        batches = TokenBatches(opened, train_indices, tags)

        def step(batch: TokenBatch) -> Tensor:
            tokens, hidden, orientations, captions = batches.to_device(batch)

            def loss_of(rows: slice) -> Tensor:
                part, hidden_part = tokens[rows], None if hidden is None else hidden[rows]
                orientation = 0 if orientations is None else orientations[rows]
                caption = {} if captions is None else {"tags": captions[rows]}
                with autocast(decided.device, decided.dtype):
                    logits = network(part, hidden_part, orientation, **caption)
                return loss(logits, part, hidden_part)

            # per pixel, as validation is
            return accumulate(network, loss_of, len(tokens), decided) / pixels_of(opened.tokenizer)

        training = Training(
            Cadence(config, config.steps, config.evaluate_every_steps),
            model,
            optimizers,
            batches.tokens,
            step,
            rate_at=lambda step: _rate(step, config, decided),
            evaluate=lambda step: _evaluate(opened, model, held_out, held_tags, step),
            write_model=lambda folder: write_full_model(model, folder),
            patience=config.patience,
        )
        train(run, training)
        return load(run.path)


def _current_model(
    opened: OpenRun[PretrainConfig], train_indices: NDArray[np.int64], held_out: NDArray[np.uint8]
) -> ImageGPT:
    """The model of the last checkpoint, of `init`, or a new one."""
    run, config, decided = opened.run, opened.config, opened.decided
    steps = distributed.on_first_rank(run.steps)
    report_plan(config, opened.shape, decided, done_steps=(steps or [0])[-1])
    if steps:
        with run.checkpoint(steps[-1]) as folder:
            model = load(folder)
    elif config.init:
        model = load_init(config, opened.words, opened.tokenizer, opened.train_set.images, train_indices)
    else:
        model = ImageGPT(opened.shape, seed=config.seed)
    model.words = opened.words
    model.tokenizer, model.fit, model.levels = opened.tokenizer, decided.fit, opened.train_set.levels
    if not steps:
        model.training_pictures = _kept_pictures(model, opened.train_set.images, train_indices, held_out)
    model.facts |= {"trained_on": opened.data["source"], "steps": config.steps, "seed": config.seed}
    model.facts["augment"] = config.augment
    if covers_pixels(model.tokenizer):
        kept = reconstruction(model.tokenizer, held_out[:RECONSTRUCTED])
        model.facts |= {"reconstruction_psnr_db": round(kept.psnr_db, 2)}
    if config.init and not steps:  # so that the run no longer needs that model

        def write_first() -> None:
            with run.new_checkpoint(0, config.steps) as part:
                write_model(model, part)

        distributed.on_first_rank(write_first)
    return model


def _kept_pictures(
    model: ImageGPT, pictures: NDArray[np.uint8], numbers: NDArray[np.int64], held_out: NDArray[np.uint8]
) -> TrainingPictures | None:
    """The training pictures of a model of exact colours, to find copies among what it draws; in the first process."""
    colours = exact_colours(model.tokenizer)
    if colours is None or not is_first() or not TrainingPictures.can_keep(len(numbers), model.config.tokens):
        return None
    blanks = np.flatnonzero(~colours.any(1))
    tokens = np.empty((len(numbers), model.config.tokens), np.uint16)
    for start in range(0, len(numbers), PICTURES_AT_ONCE):  # encoding takes 50 bytes a pixel
        part = slice(start, start + PICTURES_AT_ONCE)
        tokens[part] = model.tokenizer.encode(pictures[numbers[part]])
    others = model.tokenizer.encode(np.ascontiguousarray(held_out[:HELD_OUT_AT_MOST])).numpy()
    return TrainingPictures.of(
        tokens, others, model.config.columns, int(blanks[0]) if len(blanks) else -1, len(colours)
    )


def _rate(step: int, config: PretrainConfig, decided: Decisions) -> float:
    steps, warmup_steps, peak = config.steps, decided.warmup_steps, decided.learning_rate
    if config.chosen_schedule == "cosine":
        return optim.cosine_rate(step, steps=steps, warmup_steps=warmup_steps, peak=peak)
    cooldown = config.cooldown_fraction
    return optim.linear_rate(step, steps=steps, warmup_steps=warmup_steps, peak=peak, cooldown_fraction=cooldown)


def _evaluate(
    opened: OpenRun[PretrainConfig],
    model: ImageGPT,
    held_out: NDArray[np.uint8],
    held_tags: NDArray[np.int64] | None,
    step: int,
) -> dict[str, float]:
    """Validation nats, a grid of samples in samples/, and, where it is due, the accuracy of a probe.

    Of images uint8 (M, H, W, C), with the tags (M, TAGS, w) of their captions, if any.

    With captions the nats are those given the caption, and others without it; samples are drawn from held-out captions.
    """
    run, config, decided = opened.run, opened.config, opened.decided
    masked = opened.shape.objective == "masked"
    probe_every_steps = config.evaluate_every_steps * config.probe_every_evaluations
    with evaluated_model(model, run, step, decided.device) as judged:
        # at most the images of a training step, to need no more memory
        batch_images = min(decided.micro_batch_images, distributed.local_batch_images(config.batch_images))
        settings: dict[str, Any] = {"dtype": decided.dtype, "batch_images": batch_images}
        mean, error = mean_and_error(image_nats(judged, held_out, tags=held_tags, **settings))
        figures, more = {"validation_nats": mean, "validation_standard_error": error}, ""
        if held_tags is not None:
            without = float(image_nats(judged, held_out, **settings).mean(dtype=np.float64))
            figures["validation_nats_without_caption"] = without
            more = f" with the caption, {without:.4f} without"
        if (pixels := pixels_of(judged.tokenizer)) > 1:
            more += f", {mean * pixels:.4f} per token"
        if config.sample_images and not masked:
            with compiled_code("eager_on_recompile"):  # drawing has a new shape at every pixel
                samples = _samples(judged, held_tags, config.sample_images)
            save_png(grid(list(samples)), run.path / "samples" / f"step_{step:07d}.png")
        if config.probe_data and (step % probe_every_steps == 0 or step == config.steps):
            arrays = run.arrays()
            accuracy = ridge_accuracy(judged, arrays, dtype=decided.dtype, seed=config.seed)
            figures["probe_accuracy"] = accuracy
            more += f", probe accuracy {accuracy:.1%} of {arrays['probe_scored'].sum():,}"
    say(f"step {step:,}: validation {mean:.4f} +- {error:.4f} nats per {'hidden ' if masked else ''}pixel{more}")
    return figures


def _samples(model: ImageGPT, tags: NDArray[np.int64] | None, count: int) -> NDArray[np.uint8]:
    """Pictures (count, H, W, C), drawn from the first captions with tags, if any."""
    sampling = SamplingConfig(speed="exact")
    if tags is None or model.words is None or not tags.any():
        return draw(model, None, n=count, sampling=sampling).images
    captioned = tags[tags.any((1, 2))]
    captions = [model.words.decode(captioned[i % len(captioned)]) for i in range(count)]
    return draw(model, None, sampling=sampling, caption=captions).images


def _choose(
    train_set: DecodedSet, held: DecodedSet, config: PretrainConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training images, in `train_set`, and of the validation images, in `held`."""
    if config.validation:
        chosen, validation = np.arange(len(train_set)), np.arange(len(held))
    else:
        remedy = "add some, or pass others as `validation`"
        chosen, validation = split_indices(len(train_set), config.validation_fraction, config.seed, remedy)
    if len(validation) > config.validation_images:
        rng = np.random.default_rng([config.seed, 0xE7A1])
        validation = np.sort(rng.choice(validation, config.validation_images, replace=False))
    return chosen, validation
