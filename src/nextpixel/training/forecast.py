"""The expected cost of a pretraining run on this machine, reported before its first step; refuses what cannot fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import torch

from nextpixel.config import SIZES, ImageGPTConfig, PretrainConfig, Size, side_text, to_side
from nextpixel.errors import InputError
from nextpixel.hardware import find_hardware
from nextpixel.network import cost as plan
from nextpixel.progress import capacity, duration, is_first, say
from nextpixel.training import distributed
from nextpixel.training.decisions import Decisions, Placement, expected_memory, free_bytes
from nextpixel.training.tokenizers import wanted_colours


@dataclass(frozen=True)
class Forecast:
    """The expected cost of one process of a run. FLOPs are exact, memory is within about 15%."""

    config: PretrainConfig
    shape: ImageGPTConfig
    place: Placement
    memory: plan.Memory
    images: int
    """Images still to train on, over all epochs."""

    @property
    def fits(self) -> bool:
        return self.memory.total <= plan.usable_bytes(self.place.free_bytes)


def forecast(config: PretrainConfig, shape: ImageGPTConfig, place: Placement, done_steps: int = 0) -> Forecast:
    """The expected cost of the steps after `done_steps`."""
    need = expected_memory(config, shape, place, config.chosen_optimizer)
    return Forecast(config, shape, place, need, max(0, config.steps - done_steps) * config.batch_images)


def report_plan(config: PretrainConfig, shape: ImageGPTConfig, decided: Decisions, done_steps: int) -> None:
    """Print the remaining cost of a run: parameters, FLOPs, memory by part and free memory, the time if known.

    A run that may not fit only causes a warning here, since its settings are fixed.
    """
    device = decided.device
    place = Placement(device, decided.dtype, decided.compile, decided.micro_batch_images, free_bytes(device))
    found = forecast(config, shape, place, done_steps)
    if not (is_first() and found.images):
        return
    need = found.memory
    image = plan.flops_per_image(found.shape)
    say(
        f"Plan: {found.shape.parameters:,} parameters; {image / 1e9:,.3g} GFLOP an image, "
        f"{image * found.images:.2e} FLOP for {found.images:,} images"
    )
    parts = ", ".join(f"{name} {capacity(value)}" for name, value in asdict(need).items() if value)
    settings = [_images_at_a_time(place), place.dtype, "compiled" if place.compile else "not compiled"]
    settings += ["activations recomputed"] if found.config.checkpoint_activations else []
    processes = distributed.world_size()
    where = place.device if processes == 1 else f"each of {processes} processes"
    say(
        f"Plan: {capacity(need.total)} of memory, {capacity(place.free_bytes)} free on {where}: {parts} "
        f"({', '.join(settings)})"
    )
    if said := _time(found):
        say(f"Plan: {said}")
    if not found.fits:
        say(f"It may not fit: {_shortage(found)}")


def smaller_shapes(config: PretrainConfig, shape: ImageGPTConfig, patch: Size) -> Iterator[tuple[str, ImageGPTConfig]]:
    """Networks that the run could have instead, for tokens of `patch` pixels, each with the setting that it takes.

    Named sizes, the largest first, then sides from half on; none with `init`, and no sides for exact colours.
    """
    if config.init is not None:
        return
    for name, size in sorted(SIZES.items(), key=lambda item: -item[1].parameters):
        layers, width, heads = config.layers or size.layers, config.width or size.width, config.heads or size.heads
        with suppress(InputError):  # a width that the heads do not divide
            other = replace(shape, layers=layers, width=width, heads=heads)
            if other.parameters < shape.parameters:
                yield f"`size={name}`", other
    for rows in range(shape.rows // 2, 3, -1) if wanted_colours(config) is None else ():
        columns = max(1, rows * shape.columns // shape.rows)
        side = side_text((rows * patch[0], columns * patch[1]))
        yield f"`side={side}`", replace(shape, side=to_side((rows, columns)))


def check_fits(found: Forecast, patch: Size = (1, 1)) -> None:
    """Raises InputError for a run that does not fit in memory, naming settings with which it would.

    `patch` are the rows and columns of pixels of a token.
    """
    if found.fits:
        return
    config, place, shards = found.config, found.place, distributed.world_size()
    remedy = plan.remedy(
        found.shape,
        place.micro_batch_images,
        place.free_bytes,
        batch_images=config.batch_images,
        dtype=place.dtype,
        optimizer=config.chosen_optimizer,
        compiled=place.compile,
        checkpointed=config.checkpoint_activations,
        sharded=config.shard,
        devices=shards,
        on_cpu=place.device == "cpu",
        smaller=smaller_shapes(config, found.shape, patch),
    )
    advice = f"it fits with {remedy}" if remedy else "no setting makes it fit: use a device with more memory"
    raise InputError(f"{_shortage(found)}; {advice}, or use `force` to start anyway")


def _shortage(found: Forecast) -> str:
    place, usable = found.place, capacity(plan.usable_bytes(found.place.free_bytes))
    return (
        f"this run is expected to need {capacity(found.memory.total)} of memory for {_images_at_a_time(place)}, got "
        f"{usable} on {place.device}, nine tenths of what is free"
    )


def _images_at_a_time(place: Placement) -> str:
    count = place.micro_batch_images
    return f"{count:,} image{'s' if count > 1 else ''} at a time"


def _time(found: Forecast) -> str:
    """The training time on a GPU whose peak is known; else empty."""
    place = found.place
    if not place.device.startswith("cuda"):
        return ""
    properties = torch.cuda.get_device_properties(torch.device(place.device))
    hardware = find_hardware(properties.name, properties.total_memory)
    if hardware is None or (peak := hardware.peak(place.dtype)) is None:
        return ""
    seconds = plan.training_seconds(
        plan.flops_per_image(found.shape) * found.images,
        peak * plan.ASSUMED_UTILISATION * distributed.world_size(),
        found.config.checkpoint_activations,
    )
    return (
        f"{duration(seconds)} of training if it reaches {plan.ASSUMED_UTILISATION:.0%} of the {hardware.name}'s "
        f"{place.dtype} peak, an assumption; the first steps give an estimate"
    )
