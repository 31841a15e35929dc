"""The folder of a convolutional network: config.json with a model_type of its own, model.safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from nextpixel.checkpoints.card import public
from nextpixel.checkpoints.weights import Weights
from nextpixel.config import Fit, Levels, ResNetConfig
from nextpixel.errors import InputError
from nextpixel.files import write_json, writing
from nextpixel.network.resnet import ResNet

MODEL_TYPE = "nextpixel-convnet"


def read(values: dict[str, Any], folder: Path) -> ResNet:
    """The network of that folder, whose config.json says `values`."""
    where = folder / "config.json"
    try:
        config = ResNetConfig(**values["shape"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: expected the shape of a ResNet, got a problem with {error}") from None
    if values.get("fit") not in get_args(Fit):
        raise InputError(f"{where}: fit: expected one of {', '.join(get_args(Fit))}, got {values.get('fit')!r}")
    weights = Weights(folder)
    if config.blocks > 1:  # before a network of so many blocks is built
        weights.read(f"blocks.{3 * config.blocks - 1}.norm_2.weight", config.width)
    model = ResNet(config)
    kept = {  # how many batches were seen is of no use to anyone
        name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    read_state = {name: weights.read(name, *tensor.shape).float() for name, tensor in kept.items()}
    model.load_state_dict(read_state, strict=False)
    model.fit, model.levels = values["fit"], read_levels(values, where)
    facts = values.get("nextpixel")
    model.facts = facts if isinstance(facts, dict) else {}
    return model.eval()


def read_levels(values: dict[str, Any], where: Path) -> Levels:
    """The range and the bands that a checkpoint's file tells; none in most."""
    try:
        return Levels.of(values.get("range"), values.get("bands"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def write(model: ResNet, folder: Path) -> None:
    """Write both files into an existing folder; always in fp32."""
    write_json(
        folder / "config.json",
        {"model_type": MODEL_TYPE, "shape": asdict(model.config), "fit": model.fit}
        | model.levels.values()
        | {"nextpixel": public(model.facts)},
    )
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path = folder / "model.safetensors"
    with writing(path):
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod((folder / "config.json").stat().st_mode & 0o777)  # it comes readable by the owner alone
