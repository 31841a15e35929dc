"""The cost of a run, computed from its config: FLOPs, memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from nextpixel.config import ImageGPTConfig, ResNetConfig, to_size
from nextpixel.errors import InputError
from nextpixel.hardware import Hardware

MICRO_BATCH_ON_CPU = 16  # larger ones overflow the CPU caches and gain nothing
ASSUMED_UTILISATION = 0.4  # model FLOPs over the peak of matrix products; nextpixel bench measures it
RESERVED_PART = 0.1  # of a device's memory, for the framework and fragmentation
# Heap of a process on a CPU, see Memory: a fixed part, and a share of the activations. Fitted to runs with glibc 2.36,
# see docs/scaling.md.
HEAP_BYTES_ON_CPU = 250_000_000
HEAP_SHARE_ON_CPU = 0.3


# Bytes that autograd saves per slot: (per block and unit of width, outside the blocks per unit of width, per colour).
# Counted with saved-tensor hooks in torch 2.13; a test counts them again. Keys: classic, dtype, compiled.
_SAVED = {
    (True, "fp32", False): (88, 12, 4),
    (True, "fp32", True): (64, 12, 4),
    (True, "bf16", False): (57, 11, 4),
    (True, "bf16", True): (39, 11, 4),
    (False, "fp32", False): (88, 16, 8),
    (False, "fp32", True): (76, 16, 8),
    (False, "bf16", False): (65, 15, 6),
    (False, "bf16", True): (45, 15, 6),
}
_LOSS_BYTES_PER_COLOR = 8  # the loss's temporary copies of the logits and of their gradient


def flops_per_image(config: ImageGPTConfig) -> int:
    """Model FLOPs of one training step on one image: forward, and backward at twice the cost.

    Each multiply-add of a matrix product counts two; attention's two products count over the causal half.
    """
    return 3 * _forward_flops(config)


def _forward_flops(config: ImageGPTConfig) -> int:
    return config.layers * _block_flops(config) + 2 * config.tokens * config.colors * config.width


def _block_flops(config: ImageGPTConfig) -> int:
    attended = config.tokens // 2 if config.objective == "autoregressive" else config.tokens  # on average
    attention = 2 * attended * config.width  # two products with that many positions each
    return 2 * config.slots * (config.block_matrix_parameters + attention)


def feature_flops_per_image(config: ImageGPTConfig | ResNetConfig, layer: int = 0) -> int:
    """FLOPs of the features of one image: the first `layer` blocks of an Image GPT, or a whole ResNet."""
    if isinstance(config, ImageGPTConfig):
        return layer * _block_flops(config)
    (rows, columns), before = to_size(config.side), 16 * config.factor
    total = 2 * 27 * before * rows * columns
    for stage in range(3):
        channels = 16 * config.factor << stage
        rows, columns = (math.ceil(rows / 2), math.ceil(columns / 2)) if stage else (rows, columns)
        total += 2 * 9 * channels * (before + (2 * config.blocks - 1) * channels) * rows * columns
        before = channels
    return total


def activation_bytes_per_image(
    config: ImageGPTConfig, *, dtype: str, compiled: bool = False, checkpointed: bool = False
) -> int:
    """Peak memory of one image's activations in training."""
    block, around, color = _saved(config, dtype, compiled)
    kept = 4 * config.layers + block if checkpointed else block * config.layers
    around_blocks = around * config.width + (color + _LOSS_BYTES_PER_COLOR) * config.colors
    return config.slots * (kept * config.width + around_blocks)


def _saved(config: ImageGPTConfig, dtype: str, compiled: bool) -> tuple[int, int, int]:
    paper = replace(config, objective="autoregressive", orientations=1, words=0)  # which change no layer
    return _SAVED[paper.is_classic, dtype, compiled]


def micro_batch_images(batch_images: int, image_bytes: int, free_bytes: float, on_cpu: bool) -> int:
    """The micro-batch that splits the batch into as few equal parts as half of the free memory allows."""
    limit = max(1, int(free_bytes / 2 / image_bytes))
    if on_cpu:
        limit = min(limit, MICRO_BATCH_ON_CPU)
    parts = math.ceil(batch_images / limit)
    return math.ceil(batch_images / parts)


def usable_bytes(device_bytes: float) -> float:
    """The part of a device's memory that a run may be planned to fill."""
    return device_bytes * (1 - RESERVED_PART)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    heap: int = 0
    """On a CPU: the overhead of the C library's heap, and what the process loads to train."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.heap


@dataclass(frozen=True)
class Layout:
    """How a run is distributed over the devices."""

    name: Literal["one device", "data parallel", "sharded"]
    checkpoint_activations: bool
    micro_batch_images: int
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """The cost of a run. FLOPs and parameters are exact, memory is within about 15%; time depends on `utilisation`."""

    parameters: int
    flops_per_image: int
    images: int
    flops: int
    devices: int
    layout: Layout
    dtype: str
    """The dtype of matrix products in training."""
    utilisation: float
    seconds: float
    drawing_seconds_at_least: float
    """For a single picture: weights and cache are read once per token."""
    drawing_batch_images_per_second_at_most: float
    """For batches that fill the memory, limited by the same reads or by compute."""


def memory(
    config: ImageGPTConfig,
    micro_batch: int,
    *,
    dtype: str = "bf16",
    optimizer: str = "adam",
    compiled: bool = True,
    checkpointed: bool = False,
    shards: int = 1,
    on_cpu: bool = False,
    accumulating: bool = True,
) -> Memory:
    """Peak bytes on one device. Weights, gradients and optimiser state are fp32, split into `shards` parts (FSDP).

    In bf16 the matrices have a bf16 copy. Without gradient accumulation, a device allocates gradients while it frees
    activations, so the larger of the two counts.
    """
    weights = 4 * config.parameters
    copies = 2 * config.layers * config.block_matrix_parameters if dtype == "bf16" else 0
    matrices = 4 * config.layers * config.block_matrix_parameters if optimizer == "muon" else 0
    logits = micro_batch * config.tokens * (_saved(config, dtype, compiled)[2] + _LOSS_BYTES_PER_COLOR)
    logits *= config.colors
    image = activation_bytes_per_image(config, dtype=dtype, compiled=compiled, checkpointed=checkpointed)
    gathered = copies if shards == 1 else 2 * 2 * config.block_matrix_parameters  # two bf16 blocks: in use, prefetched
    gradients = math.ceil(weights / shards) + (0 if shards == 1 else gathered)
    if not accumulating:
        gradients = max(0, gradients - micro_batch * image)
    return Memory(
        math.ceil(weights / shards) + gathered,
        gradients,
        math.ceil((2 * weights - matrices) / shards),
        micro_batch * image - logits,
        logits,
        HEAP_BYTES_ON_CPU + int(HEAP_SHARE_ON_CPU * micro_batch * image) if on_cpu else 0,
    )


def remedy(
    config: ImageGPTConfig,
    micro_batch: int,
    device_bytes: float,
    *,
    batch_images: int,
    dtype: str,
    optimizer: str = "adam",
    compiled: bool = True,
    checkpointed: bool = False,
    sharded: bool = False,
    devices: int = 1,
    on_cpu: bool = False,
    smaller: Iterable[tuple[str, ImageGPTConfig]] = (),
) -> str | None:
    """The settings of pretrain with which a run that does not fit would fit; None where there are none.

    Tried in this order, with the largest micro-batch that fits and divides `batch_images`: a smaller micro-batch,
    recomputed activations, shards over the `devices`, and the `smaller` networks with their settings.
    """
    usable = usable_bytes(device_bytes)
    need = partial(memory, dtype=dtype, optimizer=optimizer, compiled=compiled, on_cpu=on_cpu)
    micros = [micro_batch, *(n for n in range(micro_batch - 1, 0, -1) if batch_images % n == 0)]

    def largest(shape: ImageGPTConfig, recompute: bool, shards: int) -> int | None:
        for micro in micros:
            several = micro < batch_images or devices > 1
            if need(shape, micro, checkpointed=recompute, shards=shards, accumulating=several).total <= usable:
                return micro
        return None

    def said(micro: int, *flags: str) -> str:
        smaller = [] if micro == micro_batch else [f"`micro_batch_images={micro}`"]
        return " ".join([*flags, *smaller])

    for shard in (True,) if sharded else (False, True) if devices > 1 else (False,):
        for recompute in (True,) if checkpointed else (False, True):
            if micro := largest(config, recompute, devices if shard else 1):
                flags = ["`shard`"] * (shard and not sharded) + ["`checkpoint_activations`"] * (
                    recompute and not checkpointed
                )
                return said(micro, *flags)
    for setting, shape in smaller:
        if micro := largest(shape, checkpointed, devices if sharded else 1):
            return said(micro, setting)
    return None


def choose_layout(
    config: ImageGPTConfig,
    batch_per_device: int,
    device_bytes: float,
    *,
    devices: int = 1,
    dtype: str = "bf16",
    optimizer: str = "adam",
    checkpointed: bool | None = None,
    compiled: bool = True,
    micro_batch: int | None = None,
    on_cpu: bool = False,
) -> Layout:
    """The simplest layout that fits: replicated before sharded, without recomputation before with it.

    The micro-batch is `micro_batch`, or the batch halved until it fits. Raises InputError, naming what would help,
    where `micro_batch`, or even one image, does not fit.
    """
    usable = usable_bytes(device_bytes)
    needed = partial(memory, dtype=dtype, optimizer=optimizer, compiled=compiled, on_cpu=on_cpu)
    least = None
    for shards in (1, devices) if devices > 1 else (1,):
        for recompute in (False, True) if checkpointed is None else (checkpointed,):
            micro = micro_batch or (min(batch_per_device, MICRO_BATCH_ON_CPU) if on_cpu else batch_per_device)
            while True:
                several = micro < batch_per_device or devices > 1
                need = needed(config, micro, checkpointed=recompute, shards=shards, accumulating=several)
                if need.total <= usable:
                    name: Literal["one device", "data parallel", "sharded"] = (
                        "one device" if devices == 1 else "data parallel" if shards == 1 else "sharded"
                    )
                    return Layout(name, recompute, micro, need)
                if micro == 1 or micro_batch is not None:
                    break
                micro = math.ceil(micro / 2)
            least = need
    assert least is not None
    helps = [] if checkpointed or checkpointed is None else ["`checkpoint_activations`"]
    if micro_batch is not None and micro_batch > 1:
        helps = ["a smaller `micro_batch_images`", *helps]
    helps += ["more devices (`count`)" if devices > 1 else "several devices (`count`, with `shard`)"]
    at_once = "one image" if micro == 1 else f"{micro} images"
    raise InputError(
        f"this model needs {least.total / 1e9:.1f} GB of memory on each device for {at_once} at a time, got "
        f"{usable / 1e9:.1f} GB; it would fit with {', '.join(helps)}, a smaller `size`, or a smaller `side`"
    )


def make_plan(
    config: ImageGPTConfig,
    hardware: Hardware,
    *,
    steps: int,
    batch_images: int,
    devices: int = 1,
    utilisation: float = ASSUMED_UTILISATION,
    dtype: str = "auto",
    optimizer: str = "adam",
    checkpointed: bool | None = None,
    compiled: bool = True,
    micro_batch: int | None = None,
) -> Plan:
    """The plan of `steps` optimiser steps of `batch_images` on that hardware.

    `micro_batch` is the images of a forward pass on a device, by default as many as fit. `utilisation` is model FLOPs
    over the peak of that dtype ("auto": bf16 where the hardware supports it). Raises InputError where it cannot fit.
    """
    peak = hardware.bf16_flops_per_second
    if dtype == "bf16" and peak is None:
        raise InputError(f"{hardware.name} has no bf16; expected auto or fp32, got bf16", argument="dtype")
    drawing_bytes, drawing_peak = (4, hardware.fp32_flops_per_second) if peak is None else (2, peak)
    if dtype == "fp32" or peak is None:
        dtype, peak = "fp32", hardware.fp32_flops_per_second
    else:
        dtype = "bf16"
    if batch_images % devices:
        raise InputError(f"expected a multiple of the {devices} devices, got {batch_images}", argument="batch_images")
    layout = choose_layout(
        config,
        batch_images // devices,
        hardware.memory_bytes,
        devices=devices,
        dtype=dtype,
        optimizer=optimizer,
        checkpointed=checkpointed,
        compiled=compiled,
        micro_batch=micro_batch and min(micro_batch, batch_images // devices),
        on_cpu=hardware.on_cpu,
    )
    flops = flops_per_image(config) * steps * batch_images
    weights = drawing_bytes * config.parameters
    cache = drawing_bytes * 2 * config.layers * config.width * config.slots
    pixel = (weights + cache / 2) / hardware.bytes_per_second
    rows = max(1, int((usable_bytes(hardware.memory_bytes) - weights) / cache))
    batch_pixel = max(
        (weights + rows * cache / 2) / hardware.bytes_per_second,
        rows * _forward_flops(config) / config.tokens / drawing_peak,
    )
    return Plan(
        config.parameters,
        flops_per_image(config),
        steps * batch_images,
        flops,
        devices,
        layout,
        dtype,
        utilisation,
        training_seconds(flops, peak * utilisation * devices, layout.checkpoint_activations),
        pixel * config.tokens,
        rows / (batch_pixel * config.tokens),
    )


def training_seconds(flops: float, flops_per_second: float, checkpointed: bool) -> float:
    """Seconds of that many model FLOPs; recomputing activations takes a third more."""
    return flops * (4 / 3 if checkpointed else 1.0) / flops_per_second
