"""The layout of a convolutional network: config.json, with its own model_type, and model.safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from nextpixel.checkpoints.card import public
from nextpixel.checkpoints.weights import Weights, section, valid_shape, write_weights
from nextpixel.config import Fit, Levels, ResNetConfig, channels_of
from nextpixel.errors import InputError
from nextpixel.files import write_json
from nextpixel.network.resnet import ResNet

MODEL_TYPE = "nextpixel-convnet"


def read(values: dict[str, Any], folder: Path) -> ResNet:
    """The network of that folder, whose config.json contains `values`."""
    where = folder / "config.json"
    with valid_shape(where, "a ResNet"):
        config, levels = ResNetConfig(**values["shape"]), Levels.among(values)
    fits = [fit for fit in get_args(Fit) if channels_of(fit) == 3]
    if values.get("fit") not in fits:
        raise InputError(f"{where}: fit: expected one of {', '.join(fits)}, got {values.get('fit')!r}")
    weights = Weights(folder)
    if config.blocks > 1:  # fail before building a network of that many blocks
        weights.read(f"blocks.{3 * config.blocks - 1}.norm_2.weight", config.width)
    model = ResNet(config)
    state = {name: weights.read(name, *tensor.shape).float() for name, tensor in _stored(model).items()}
    model.load_state_dict(state, strict=False)
    model.fit, model.levels = values["fit"], levels
    model.facts = section(values)
    return model.eval()


def write(model: ResNet, folder: Path) -> None:
    """Write both files into an existing folder, in fp32."""
    write_json(
        folder / "config.json",
        {"model_type": MODEL_TYPE, "shape": asdict(model.config), "fit": model.fit}
        | model.levels.values()
        | {"nextpixel": public(model.facts)},
    )
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in _stored(model).items()}
    write_weights(folder, tensors)


def _stored(model: ResNet) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
