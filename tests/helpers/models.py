"""Small random models and tokens for tests."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from nextpixel import ImageGPT, ImageGPTConfig, Palette
from nextpixel.tokens.codec import Codec, CodecShape
from nextpixel.tokens.words import Words

CONFIG = ImageGPTConfig(layers=3, width=32, heads=4, side=4, colors=10)


def lively(config: ImageGPTConfig = CONFIG, dtype: torch.dtype = torch.float64) -> ImageGPT:
    """A random model whose head is not zero, so that its logits tell inputs apart."""
    model = ImageGPT(config, seed=3).to(dtype).eval()
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(4))
    return model.requires_grad_(False)


def some_tokens(batch: int = 3, config: ImageGPTConfig = CONFIG) -> Tensor:
    return torch.randint(0, config.colors, (batch, config.tokens), generator=torch.Generator().manual_seed(5))


def dark_and_bright(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark and bright noise."""
    rng = np.random.default_rng(count)
    labels = np.array(["dark", "bright"])[rng.integers(0, 2, count)]
    low = np.where(labels == "dark", 0, 128)[:, None, None, None]
    return (rng.integers(0, 128, (count, 4, 4, 3)) + low).astype(np.uint8), labels


def with_words(config: ImageGPTConfig, dtype: torch.dtype = torch.float64) -> ImageGPT:
    """A lively model that takes captions of eight words, each of which changes its logits."""
    model = lively(dataclasses.replace(config, words=8), dtype)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        model.word_embedding.normal_(0, 1, generator=generator)
        for block in model.blocks:  # where the modern preset begins with zeros
            for name in ("attention.out.weight", "mlp.down.weight"):
                block.get_parameter(name).normal_(0, 0.2, generator=generator)
    model.words = Words(["red", "hair", "glasses", "long", "shirt", "green", "happy", "hat"], [0.5] * 8)
    model.tokenizer = Palette(np.random.default_rng(0).uniform(-1, 1, (config.colors, 3)))
    return model


def left_and_right(count: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dark squares with a bright block of 2 x 2 pixels anywhere in one half, and which half; no other difference."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    squares = np.full((count, side, side, 3), 20, np.uint8)
    for square, label in zip(squares, labels, strict=True):
        y, x = rng.integers(0, side - 2), rng.integers(0, side // 2 - 1) + label * (side // 2)
        square[y : y + 2, x : x + 2] = 230
    return squares, np.where(labels == 1, "right", "left")


def random_codec(patch: int = 4, codes: int = 1_000) -> Codec:
    """Its encoder's last weights are large, so that many codes are used; its decoder's blocks are not the identity."""
    codec = Codec(CodecShape(patch, codes, width=16, blocks=2), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        codec.squeeze.weight.mul_(3)
        for name, parameter in codec.named_parameters():
            if "second.weight" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return codec
