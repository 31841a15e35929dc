"""Fitting of tokenizers of patches: k-means, and the training of a codec or of a decoder for patches.

start_run creates the run folder of a training, train_run trains to its end.
"""

from __future__ import annotations

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
from nextpixel.tokens import Tokenizer, load_tokenizer, reconstruct, reconstruction, write_tokenizer
from nextpixel.tokens.codec import Codec, CodecShape, PatchDecoder, centred
from nextpixel.tokens.learned import Learned
from nextpixel.tokens.patches import Patches
from nextpixel.tokens.tokenizer import FACTS
from nextpixel.training import optim
from nextpixel.training.decisions import RunDecisions
from nextpixel.training.loop import Cadence, Training, train
from nextpixel.training.run_images import find_whole_set, source_facts
from nextpixel.training.setup import checked_settings, create_run

KIND = "tokenizer"
FITTED_AT_MOST = 20_000  # images, by k-means
HELD_OUT_AT_MOST = 1_000
SHOWN = 16
WARMUP_STEPS = 50
ADAM_PART = 0.1  # of Muon's rate
WEIGHT_DECAY = 0.2  # nothing normalises what the blocks add up: without it a long run explodes
CHARBONNIER = 0.1, 1e-3  # its weight, and the error below which it is quadratic


def pictures_of(decoded: DecodedSet, config: CodecConfig) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images that k-means takes and the held-out ones, each uint8 (N, H, W, 3)."""
    parts = split_indices(len(decoded), config.validation_fraction, config.seed)
    fitted, held = (
        np.asarray(decoded.images[np.sort(np.random.default_rng(config.seed).permutation(rows)[:most])])
        for rows, most in zip(parts, (FITTED_AT_MOST, HELD_OUT_AT_MOST), strict=True)
    )
    return fitted, held


def save_reconstructions(tokenizer: Tokenizer, pictures: NDArray[np.uint8], path: Path) -> None:
    """Save the first of some pictures, and their reconstructions below."""
    first = pictures[:SHOWN]
    save_png(grid([list(first), list(reconstruct(tokenizer, first))], zoom=max(1, 128 // first.shape[1])), path)


def start_run(images: Any, out: Path, config: CodecConfig, split: str | None = None, *, patches: bool = False) -> Run:
    """Decode the images, resolve every "auto", and create the run folder. Raises InputError.

    `patches`: of a decoder for the patches of k-means, which is done first; else of a codec.
    """
    shape, size = CodecShape(config.patch, None if patches else config.codes, config.width, config.blocks), config.size
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
        tokenizer=Patches.fit(pictures_of(decoded, config)[0], config.codes, config.patch, config.seed)
        if patches
        else None,
        data=source_facts(images, split) | {"train_images": len(rows), "validation_images": len(held)},
        sets=[decoded],
    )


def train_run(run: Run, images: Any = None) -> Tokenizer:
    """Train from the last checkpoint to the end; returns the best tokenizer on held-out images."""
    with run.locked():
        return _train(run, images)


def _train(run: Run, images: Any) -> Tokenizer:
    with run.checked_facts() as facts:
        config = CodecConfig(**facts["config"])
        decided = RunDecisions(**facts["decisions"])
        shape = CodecShape(**facts["model"])
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
    choose_device(decided.device)  # raises if it is gone
    set_threads(decided.threads)
    decoded = find_whole_set(facts, images)
    rows, _ = split_indices(len(decoded), config.validation_fraction, config.seed)
    pictures = pictures_of(decoded, config)[1]
    last: Tokenizer | None = None
    network: Codec | PatchDecoder
    if steps := run.steps():
        with run.checkpoint(steps[-1]) as folder:
            last = load_tokenizer(folder)
        network = _network(last).requires_grad_()
    elif facts["tokenizer"] is None:
        network = Codec(shape, config.seed)
    else:
        last, network = run.tokenizer(), PatchDecoder(shape, config.seed)
    patches = Patches(last.codes) if isinstance(last, Patches) else None

    def tokenizer() -> Tokenizer:
        """That of the network as it is now."""
        if isinstance(network, Codec):
            return Learned(network)
        assert isinstance(patches, Patches)
        return Patches(patches.codes, network)

    network.to(decided.device).train()
    batch = config.batch_images
    batches = Batches(decoded.images, rows, size=config.size, batch_images=batch, augment="flip", seed=config.seed)

    def step(squares: NDArray[np.uint8]) -> Tensor:
        images, given = (
            centred(torch.from_numpy(pixels).to(decided.device))
            for pixels in (squares, squares if patches is None else reconstruct(patches, squares))
        )
        with autocast(decided.device, decided.dtype):
            painted = network(given)
        loss = codec_loss(painted, images)
        loss.backward()
        return loss.detach()

    def evaluate(step: int) -> dict[str, float]:
        current = tokenizer()
        found = reconstruction(current, pictures)
        save_reconstructions(current, pictures, run.path / "samples" / f"step_{step:07d}.png")
        say(
            f"step {step:,}: {found.psnr_db:.2f} dB PSNR, {found.codes_used:.1%} of the codes used on "
            f"{len(pictures):,} held-out images"
        )
        return {f"validation_{name}": value for name, value in asdict(found).items()}

    training = Training(
        Cadence(config, config.steps, config.evaluate_every_steps),
        network,
        optim.muon(network, ADAM_PART, WEIGHT_DECAY),
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
        write_model=lambda folder: write_json(folder / FACTS, write_tokenizer(tokenizer(), folder)),
        metric="validation_psnr_db",
        highest=True,
    )
    train(run, training)
    best = load_tokenizer(run.best_checkpoint())
    for parameter in _network(best).parameters():  # archives and wheels compress the zeros to half the size
        parameter.copy_(parameter.bfloat16())
    fitted = {"source": data["source"], "seed": config.seed, "side": config.side, "images": len(rows)}
    fitted |= {"held_out_images": len(pictures), **asdict(reconstruction(best, pictures))}
    write_json(run.path / FACTS, {"fitted": fitted, **write_tokenizer(best, run.path)})
    return best


def _network(tokenizer: Tokenizer) -> Codec | PatchDecoder:
    found = tokenizer.codec if isinstance(tokenizer, Learned) else getattr(tokenizer, "decoder", None)
    assert found is not None
    return found


def codec_loss(painted: Tensor, images: Tensor) -> Tensor:
    """Mean squared error plus a share of the Charbonnier loss, of images in [-1, 1]."""
    weight, small = CHARBONNIER
    squared = (painted - images).square()
    return squared.mean() + weight * (squared + small**2).sqrt().mean()
