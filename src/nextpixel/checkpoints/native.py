"""The layout of models that transformers would compute wrongly: our weight names, and a model_type it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextpixel.checkpoints.weights import Weights, valid_shape
from nextpixel.config import ImageGPTConfig
from nextpixel.network.model import ImageGPT

MODEL_TYPE = "nextpixel"
LATER = ("words", "class_layer", "class_pooling")  # left out where usual, for the releases without them


def read_config(values: dict[str, Any], where: Path) -> ImageGPTConfig:
    """The shape in a config.json."""
    with valid_shape(where):
        return ImageGPTConfig(**values["shape"])


def read_state(weights: Weights, config: ImageGPTConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by name, mapped from its file."""
    weights.read(f"blocks.{config.layers - 1}.norm_1.gain", config.width)  # fail before building so many layers
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ImageGPT(config).state_dict().items()}
    for name, shape in shapes.items():
        yield name, weights.read(name, *shape)


def state(model: ImageGPT) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by name."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def config_values(config: ImageGPTConfig) -> dict[str, Any]:
    """The contents of config.json."""
    usual = {field.name: field.default for field in fields(config) if field.name in LATER}
    shape = {name: value for name, value in asdict(config).items() if value != usual.get(name, ...)}
    return {"model_type": MODEL_TYPE, "shape": shape}
