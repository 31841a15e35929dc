"""Training of a learned tokenizer: start_run creates the run folder, train_run trains its codec to its end."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.checkpoints import Run
from nextpixel.config import CodecConfig
from nextpixel.data.decoded import Batches, DecodedSet, decode, split_indices
from nextpixel.devices import autocast, choose_device, choose_dtype, set_threads
from nextpixel.files import write_json
from nextpixel.images import grid, save_png
from nextpixel.progress import say
from nextpixel.tokens import load_tokenizer, reconstruct, reconstruction, write_tokenizer
from nextpixel.tokens.learned import Codec, CodecShape, Learned, centred
from nextpixel.tokens.tokenizer import FACTS
from nextpixel.training import optim
from nextpixel.training.decisions import RunDecisions
from nextpixel.training.loop import Cadence, Training, train
from nextpixel.training.run_images import find_sets, relocate_images, source_facts
from nextpixel.training.setup import checked_settings, create_run

KIND = "tokenizer"
HELD_OUT_AT_MOST = 1_000
SHOWN = 16
WARMUP_STEPS = 50
ADAM_PART = 0.1  # of Muon's rate
CHARBONNIER = 0.1, 1e-3  # its weight, and the error below which it is quadratic


def start_run(images: Any, out: Path, config: CodecConfig, split: str | None = None) -> Run:
    """Decode the images, resolve every "auto", and create the run folder. Raises InputError."""
    shape, size = CodecShape(config.patch, config.codes, config.width, config.blocks), config.size
    config = checked_settings(out, config)
    threads, device = set_threads(config.threads), choose_device(config.device)
    fit = config.fit or "crop"
    decoded = decode(images, size, split=split, cache=config.cache, fit=fit, levels=config.levels)
    rows, held = split_indices(len(decoded), config.validation_fraction, config.seed)
    decided = RunDecisions(
        device=device,
        dtype=choose_dtype(config.dtype, device),
        threads=threads,
        fit=fit,
        train_key=decoded.key,
        pixels=[decoded.digest()],
        levels=config.levels.values(),
    )
    return create_run(
        out,
        KIND,
        config,
        decided,
        shape=shape,
        tokenizer=None,
        data=source_facts(images, split) | {"train_images": len(rows), "validation_images": len(held)},
        sets=[decoded],
    )


def relocate_run(run: Run, images: Any) -> Run:
    """The run, with `images`, if any, recorded as its new source; see relocate_images."""
    if images is not None:
        relocate_images(run, images, lambda facts: _decode_again(facts, images))
    return run


def _decode_again(facts: dict[str, Any], images: Any) -> tuple[DecodedSet]:
    decided, config = RunDecisions(**facts["decisions"]), CodecConfig(**facts["config"])
    split, levels = facts["data"]["split"], decided.requested_levels
    return (decode(images, config.size, split=split, cache=config.cache, fit=decided.fit, levels=levels),)


def train_run(run: Run, images: Any = None) -> Learned:
    """Train from the last checkpoint to the end; returns the best tokenizer on held-out images."""
    with run.locked():
        return _train(run, images)


def _train(run: Run, images: Any) -> Learned:
    with run.checked_facts() as facts:
        config = CodecConfig(**facts["config"])
        decided = RunDecisions(**facts["decisions"])
        shape = CodecShape(**facts["model"])
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
    choose_device(decided.device)  # raises if it is gone
    set_threads(decided.threads)
    again = functools.partial(_decode_again, facts)
    (decoded,) = find_sets((decided.train_key,), decided.pixels, config.cache, data, images, again)
    rows, held = split_indices(len(decoded), config.validation_fraction, config.seed)
    shown = np.sort(np.random.default_rng(config.seed).permutation(held)[:HELD_OUT_AT_MOST])
    pictures = np.asarray(decoded.images[shown])

    codec = Codec(shape, config.seed)
    if steps := run.steps():
        with run.checkpoint(steps[-1]) as folder:
            codec = _read(folder).codec.requires_grad_()
    codec.to(decided.device).train()
    size, batch = config.size, config.batch_images
    batches = Batches(decoded.images, rows, size=size, batch_images=batch, augment="flip", seed=config.seed)

    def step(squares: NDArray[np.uint8]) -> Tensor:
        images = centred(torch.from_numpy(squares).to(decided.device))
        with autocast(decided.device, decided.dtype):
            painted = codec(images)
        loss = codec_loss(painted, images)
        loss.backward()
        return loss.detach()

    def evaluate(step: int) -> dict[str, float]:
        tokenizer = Learned(codec)
        found = reconstruction(tokenizer, pictures)
        first = pictures[:SHOWN]
        picture = grid([list(first), list(reconstruct(tokenizer, first))], zoom=max(1, 128 // size[0]))
        save_png(picture, run.path / "samples" / f"step_{step:07d}.png")
        say(
            f"step {step:,}: {found.psnr_db:.2f} dB PSNR, {found.codes_used:.1%} of the codes used on "
            f"{len(pictures):,} held-out images"
        )
        return {f"validation_{name}": value for name, value in asdict(found).items()}

    training = Training(
        Cadence(config, config.steps, config.evaluate_every_steps),
        codec,
        optim.muon(codec, ADAM_PART),
        batches,
        step,
        rate_at=lambda step: optim.linear_rate(
            step,
            steps=config.steps,
            warmup_steps=WARMUP_STEPS if config.warmup_steps is None else config.warmup_steps,
            peak=config.learning_rate,
            cooldown_fraction=0.5,
        ),
        evaluate=evaluate,
        write_model=lambda folder: write_json(folder / FACTS, write_tokenizer(Learned(codec), folder)),
        images_per_step=batch,
        clip_norm=config.clip_norm,
        metric="validation_psnr_db",
        highest=True,
    )
    train(run, training)
    best = _read(run.best_checkpoint())
    for parameter in best.codec.parameters():  # archives and wheels compress the zeros to half the size
        parameter.copy_(parameter.bfloat16())
    fitted = {"source": data["source"], "seed": config.seed, "side": config.side, "images": len(rows)}
    fitted |= {"held_out_images": len(pictures), **asdict(reconstruction(best, pictures))}
    write_json(run.path / FACTS, {"fitted": fitted, **write_tokenizer(best, run.path)})
    return best


def _read(folder: Path) -> Learned:
    found = load_tokenizer(folder)
    assert isinstance(found, Learned)
    return found


def codec_loss(painted: Tensor, images: Tensor) -> Tensor:
    """Mean squared error plus a share of the Charbonnier loss, of images in [-1, 1]."""
    weight, small = CHARBONNIER
    squared = (painted - images).square()
    return squared.mean() + weight * (squared + small**2).sqrt().mean()
