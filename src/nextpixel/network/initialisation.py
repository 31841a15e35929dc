"""Random weights of a new Image GPT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nextpixel.network.model import ImageGPT


@torch.no_grad()
def initialise(model: ImageGPT, seed: int) -> None:
    """Random weights as in openai/image-gpt; the heads are zero, so the first loss is exactly ln K.

    Only attention's output is scaled by depth: the paper scales more, the released code does this.
    """
    config = model.config
    generator = torch.Generator(model.device).manual_seed(seed)

    def normal(weight: Tensor, std: float) -> None:
        weight.normal_(0.0, std, generator=generator)

    if config.positions == "learned":
        normal(model.position_embedding, 0.01)
    normal(model.token_embedding, 0.02)
    if config.objective == "autoregressive":
        normal(model.start, 0.02)
    for block in model.blocks:
        normal(block.get_parameter("attention.qkv.weight"), config.width**-0.5)
        normal(block.get_parameter("attention.out.weight"), (config.width * config.layers) ** -0.5)
        normal(block.get_parameter("mlp.up.weight"), 0.02)
        normal(block.get_parameter("mlp.down.weight"), 0.02)
        if config.zero_projections:
            block.get_parameter("attention.out.weight").zero_()
            block.get_parameter("mlp.down.weight").zero_()
    if config.words:
        initialise_words(model, generator)
    model.head.weight.zero_()
    if model.class_head is not None:
        for parameter in model.class_head.parameters():
            parameter.zero_()


@torch.no_grad()
def initialise_words(model: ImageGPT, generator: torch.Generator) -> None:
    model.word_embedding.normal_(0.0, 0.02, generator=generator)
