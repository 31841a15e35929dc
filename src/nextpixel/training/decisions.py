"""What "auto" resolves to for a run on this machine: device, precision, compilation, micro-batch, learning rate.

place chooses where and how a run computes; decide adds its rates and the keys of its sets, as recorded in run.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nextpixel.config import Fit, GPTRunConfig, ImageGPTConfig, Levels
from nextpixel.data.decoded import DecodedSet
from nextpixel.devices import can_compile, choose_device, choose_dtype, free_memory_bytes, set_threads
from nextpixel.network import cost as plan
from nextpixel.training import distributed, optim

COMPILE_FROM_SECONDS = 300  # compiling costs about ten seconds per shape and saves a fifth
CPU_FLOPS_PER_SECOND = 1e11  # rough: it only separates short runs from long ones


@dataclass(frozen=True, kw_only=True)
class RunDecisions:
    """What "auto" resolved to; decided once, so that a resumed run continues as it started."""

    device: str
    dtype: str
    threads: int
    fit: Fit
    train_key: str
    pixels: Sequence[str] = ()
    """DecodedSet.digest of the training, validation and test sets; empty in runs of earlier versions."""
    levels: Mapping[str, Any] = field(default_factory=dict)
    """The range and bands that were requested; empty where the range is measured on the set."""

    @property
    def requested_levels(self) -> Levels:
        return Levels.of(**self.levels)


@dataclass(frozen=True, kw_only=True)
class Decisions(RunDecisions):
    """The decisions of a run of an Image GPT."""

    compile: bool
    micro_batch_images: int
    learning_rate: float
    warmup_steps: int
    validation_key: str
    test_key: str | None = None
    steps: int = 0
    """Total number of steps; 0 in runs of earlier versions."""


@dataclass(frozen=True)
class Placement:
    """The device of a run, how it computes there, and the free memory per process."""

    device: str
    dtype: str
    compile: bool
    micro_batch_images: int
    free_bytes: float


def place(config: GPTRunConfig, shape: ImageGPTConfig, steps: int, optimizer: str = "adam") -> Placement:
    """Resolve "auto" on this machine, for a run of that many steps."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    batch, free = config.batch_images, free_bytes(device)
    seconds = steps * batch * plan.flops_per_image(shape) / CPU_FLOPS_PER_SECOND
    compiled = config.compile == "on" or (
        config.compile == "auto" and can_compile(device) and seconds > COMPILE_FROM_SECONDS
    )
    own = distributed.local_batch_images(batch)
    if config.micro_batch_images:
        return Placement(device, dtype, compiled, min(config.micro_batch_images, own), free)
    image_bytes = plan.activation_bytes_per_image(
        shape, dtype=dtype, checkpointed=config.checkpoint_activations, compiled=compiled
    )
    chosen = plan.micro_batch_images(own, image_bytes, free, device == "cpu")
    for parts in range(-(-own // chosen), own + 1):  # smaller where weights and optimiser take over half the memory
        placed = Placement(device, dtype, compiled, -(-own // parts), free)
        if expected_memory(config, shape, placed, optimizer).total <= plan.usable_bytes(free):
            return placed
    return Placement(device, dtype, compiled, chosen, free)


def expected_memory(config: GPTRunConfig, shape: ImageGPTConfig, placed: Placement, optimizer: str) -> plan.Memory:
    """Peak memory of one process, by part."""
    return plan.memory(
        shape,
        placed.micro_batch_images,
        dtype=placed.dtype,
        optimizer=optimizer,
        compiled=placed.compile,
        checkpointed=config.checkpoint_activations,
        shards=distributed.world_size() if config.shard else 1,
        on_cpu=placed.device == "cpu",
        accumulating=placed.micro_batch_images < config.batch_images or distributed.world_size() > 1,
    )


def free_bytes(device: str) -> float:
    """Memory available to one process now; the processes of a machine share its main memory."""
    return free_memory_bytes(device) / (1 if device.startswith("cuda") else distributed.local_world_size())


def decide(
    config: GPTRunConfig,
    *,
    shape: ImageGPTConfig,
    steps: int,
    images: int,
    peak_rate: float,
    fit: Fit,
    levels: Levels,
    sets: Sequence[DecodedSet],
    placed: Placement | None = None,
) -> Decisions:
    """Decisions for a run of that many steps over that many training images.

    `peak_rate` is the default of `learning_rate`; `sets` are the training, validation and optional test sets.
    """
    placed = placed or place(config, shape, steps)
    return Decisions(
        device=placed.device,
        dtype=placed.dtype,
        compile=placed.compile,
        threads=set_threads(config.threads),
        micro_batch_images=placed.micro_batch_images,
        learning_rate=config.learning_rate or peak_rate,
        warmup_steps=optim.default_warmup_steps(steps, images, config.batch_images)
        if config.warmup_steps is None
        else config.warmup_steps,
        fit=fit,
        train_key=sets[0].key,
        validation_key=sets[1].key,
        test_key=sets[2].key if len(sets) > 2 else None,
        steps=steps,
        pixels=[found.digest() for found in sets],
        levels=levels.values(),
    )
