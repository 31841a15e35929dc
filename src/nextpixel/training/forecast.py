"""What a pretraining run will take on this machine, told before its first step, and refused where it cannot fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from nextpixel.config import ImageGPTConfig, PretrainConfig
from nextpixel.errors import InputError
from nextpixel.hardware import hardware_called
from nextpixel.network import cost as plan
from nextpixel.progress import capacity, duration, is_first, say
from nextpixel.training import distributed
from nextpixel.training.setup import Decisions, Placement, expected_memory, free_bytes


@dataclass(frozen=True)
class Forecast:
    """The plan of one run, for each of its processes. FLOPs are exact, memory within about 15 %."""

    config: PretrainConfig
    shape: ImageGPTConfig
    place: Placement
    memory: plan.Memory
    images: int
    """Still to come, those of repeated epochs counted again."""

    @property
    def fits(self) -> bool:
        return self.memory.total <= plan.usable_bytes(self.place.free_bytes)


def forecast(config: PretrainConfig, shape: ImageGPTConfig, place: Placement, done_steps: int = 0) -> Forecast:
    """The plan of what is left of a run after `done_steps`."""
    need = expected_memory(config, shape, place, config.chosen_optimizer)
    return Forecast(config, shape, place, need, max(0, config.steps - done_steps) * config.batch_images)


def report_plan(config: PretrainConfig, shape: ImageGPTConfig, decided: Decisions, done_steps: int) -> None:
    """Say on stderr what is left of a run: parameters, FLOPs, memory by part beside what is free, the time if known.

    A run that was started keeps its settings, so one that may not fit is only warned of.
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
    how = [_at_once(place), place.dtype, "compiled" if place.compile else "not compiled"]
    how += ["activations recomputed"] if found.config.checkpoint_activations else []
    processes = distributed.world_size()
    where = place.device if processes == 1 else f"each of {processes} processes"
    say(
        f"Plan: {capacity(need.total)} of memory, {capacity(place.free_bytes)} free on {where}: {parts} "
        f"({', '.join(how)})"
    )
    if said := _time(found):
        say(f"Plan: {said}")
    if not found.fits:
        say(f"It may not fit: {_shortage(found)}")


def check_fits(found: Forecast) -> None:
    """Raises InputError for a run that does not fit, naming the settings with which it would."""
    if found.fits:
        return
    config, place, shards = found.config, found.place, distributed.world_size()
    would = plan.remedy(
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
        own_shape=config.init is None,
    )
    helps = f"it fits with {would}" if would else "no setting makes it fit: take a device with more memory"
    raise InputError(f"{_shortage(found)}; {helps}, or begin all the same with `force`")


def _shortage(found: Forecast) -> str:
    """How much memory is expected, and how much there is."""
    place, usable = found.place, capacity(plan.usable_bytes(found.place.free_bytes))
    return (
        f"this run is expected to need {capacity(found.memory.total)} of memory for {_at_once(place)}, and got "
        f"{usable} on {place.device}, nine tenths of what is free"
    )


def _at_once(place: Placement) -> str:
    count = place.micro_batch_images
    return f"{count:,} image{'s' if count > 1 else ''} at a time"


def _time(found: Forecast) -> str:
    """Hours on a device whose peak is known; elsewhere nothing, since the first steps will tell."""
    place = found.place
    if not place.device.startswith("cuda"):
        return ""
    properties = torch.cuda.get_device_properties(torch.device(place.device))
    hardware = hardware_called(properties.name, properties.total_memory)
    if hardware is None:
        return ""
    peak = hardware.bf16_flops_per_second if place.dtype == "bf16" else hardware.fp32_flops_per_second
    if peak is None:
        return ""
    seconds = plan.training_seconds(
        plan.flops_per_image(found.shape) * found.images,
        peak * plan.ASSUMED_UTILISATION * distributed.world_size(),
        found.config.checkpoint_activations,
    )
    return (
        f"{duration(seconds)} of training if it reaches {plan.ASSUMED_UTILISATION:.0%} of the {hardware.name}'s "
        f"{place.dtype} peak, which is assumed; the first steps will tell"
    )
