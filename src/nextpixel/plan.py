"""Arithmetic on configs: what a run will need."""

from __future__ import annotations

import math

from nextpixel.config import ImageGPTConfig, ResNetConfig

MICRO_BATCH_ON_CPU = 16  # larger ones gain nothing there and fall out of the caches


def flops_per_image(config: ImageGPTConfig) -> int:
    """Floating-point operations of one training step on one image: forward, and backward at twice the cost.

    Two for each multiply-add of every matrix, and of attention's two products over the causal half.
    """
    matrices = 12 * config.layers * config.width**2 + config.colors * config.width
    attention = config.layers * config.pixels * config.width  # 2 products * half of the T positions * D
    return 3 * 2 * config.pixels * (matrices + attention)


def feature_flops_per_image(config: ImageGPTConfig | ResNetConfig, layer: int = 0) -> int:
    """Of the features of one image: the first `layer` blocks of an Image GPT, or the whole of a ResNet."""
    if isinstance(config, ImageGPTConfig):
        return 2 * config.pixels * layer * (12 * config.width**2 + config.pixels * config.width)
    side, before = config.side, 16 * config.factor
    total = 2 * 27 * before * side**2
    for stage in range(3):
        channels = 16 * config.factor << stage
        side = math.ceil(side / 2) if stage else side
        total += 2 * 9 * channels * (before + (2 * config.blocks - 1) * channels) * side**2
        before = channels
    return total


def activation_bytes_per_image(config: ImageGPTConfig, *, bytes_each: int, checkpointed: bool) -> int:
    """Rough peak of what the backward pass needs of one image; attention is assumed to keep no T x T scores."""
    per_block = 24 * config.width * bytes_each + 8 * config.width * 4
    kept = 4 * config.width * config.layers + per_block if checkpointed else per_block * config.layers
    return config.pixels * (kept + 3 * 4 * config.colors)


def micro_batch_images(batch_images: int, image_bytes: int, free_bytes: int, on_cpu: bool) -> int:
    """The size that cuts the batch into as few parts as half of the free memory allows, all but the last equal."""
    limit = max(1, free_bytes // 2 // image_bytes)
    if on_cpu:
        limit = min(limit, MICRO_BATCH_ON_CPU)
    parts = math.ceil(batch_images / limit)
    return math.ceil(batch_images / parts)
