"""The layout of transformers' ImageGPT, which classic models of nextpixel share.

transformers has a bias on every matrix (zeros here, since the paper has none), stores matrices as (inputs, outputs),
and the start vector as row K of the embedding table. ImageGPTForImageClassification is written on request only and
not read, since it has no generative head.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextpixel.checkpoints.weights import Weights, valid_shape
from nextpixel.config import ImageGPTConfig
from nextpixel.errors import InputError
from nextpixel.network.model import ImageGPT
from nextpixel.tokens.palette import Palette

MODEL_TYPE = "imagegpt"
CLASSIFIER = "ImageGPTForImageClassification"
BIAS_AT_MOST = 1e-6

# our name -> theirs, within a block; True for matrices, which are transposed and have a bias there
BLOCK_NAMES: dict[str, tuple[str, bool]] = {
    "norm_1.gain": ("ln_1.weight", False),
    "attention.qkv.weight": ("attn.c_attn.weight", True),
    "attention.out.weight": ("attn.c_proj.weight", True),
    "norm_2.gain": ("ln_2.weight", False),
    "mlp.up.weight": ("mlp.c_fc.weight", True),
    "mlp.down.weight": ("mlp.c_proj.weight", True),
}


def computes(model: ImageGPT) -> bool:
    """Whether transformers computes this network correctly and supports its tokenizer."""
    square = model.config.rows == model.config.columns
    ours = model.config.class_layer is not None  # their class heads read the last layer's mean
    return model.config.is_classic and square and isinstance(model.tokenizer, Palette) and not ours


def read_config(values: dict[str, Any], where: Path) -> ImageGPTConfig:
    """The shape in a config.json."""
    if CLASSIFIER in str(values.get("architectures")):
        raise InputError(
            f"{where}: expected a model that scores pixels, got {CLASSIFIER}, which only classifies; load "
            "the model it was exported from"
        )
    with valid_shape(where):
        side = isqrt(values["n_positions"])
        config = ImageGPTConfig(
            layers=values["n_layer"],
            width=values["n_embd"],
            heads=values["n_head"],
            side=side,
            colors=values["vocab_size"] - 1,
        )
    if side * side != values["n_positions"]:
        raise InputError(f"{where}: n_positions: expected a square number, got {values['n_positions']}")
    expected = {
        "n_inner": (4 * config.width, None),
        "activation_function": ("quick_gelu",),
        "tie_word_embeddings": (False,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "layer_norm_epsilon": (1e-5,),
        "add_cross_attention": (False,),
    }
    for key, allowed in expected.items():
        if key in values and values[key] not in allowed:
            raise InputError(f"{where}: {key}: expected {allowed[0]!r}, got {values[key]!r}; another network")
    return config


def read_state(weights: Weights, config: ImageGPTConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under our name and in our shape, mapped from its file."""
    width = config.width
    embeddings = weights.read("transformer.wte.weight", config.colors + 1, width)
    yield "token_embedding", embeddings[:-1]
    yield "start", embeddings[-1:]
    yield "position_embedding", weights.read("transformer.wpe.weight", config.tokens, width)
    shapes = {"qkv": (width, 3 * width), "up": (width, 4 * width), "down": (4 * width, width), "out": (width, width)}
    for i in range(config.layers):
        for ours, (theirs, is_matrix) in BLOCK_NAMES.items():
            name = f"transformer.h.{i}.{theirs}"
            if is_matrix:
                inputs, outputs = shapes[ours.split(".")[1]]
                _check_bias(weights, name.replace("weight", "bias"), outputs)
                yield f"blocks.{i}.{ours}", weights.read(name, inputs, outputs).T
            else:
                yield f"blocks.{i}.{ours}", weights.read(name, width)
    yield "norm.gain", weights.read("transformer.ln_f.weight", width)
    yield "head.weight", weights.read("lm_head.weight", config.colors, width)


def _check_bias(weights: Weights, name: str, size: int) -> None:
    if name not in weights:  # no bias, as in the paper
        return
    largest = float(weights.read(name, size).abs().max())
    if not largest <= BIAS_AT_MOST:
        raise InputError(
            f"{weights.folder}: {name}: expected zeros, as in OpenAI's models, got values up to "
            f"{largest:.2g}; a network with trained biases is not the paper's and cannot be loaded exactly"
        )


def state(model: ImageGPT) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under their name and in their shape."""
    yield "transformer.wte.weight", torch.cat([model.token_embedding.detach(), model.start.detach()])
    yield "transformer.wpe.weight", model.position_embedding.detach()
    yield "transformer.ln_f.weight", model.norm.gain.detach()
    if model.class_head is None:
        yield "lm_head.weight", model.head.weight.detach()
    else:
        yield "score.weight", model.class_head.weight.detach()
    for i, block in enumerate(model.blocks):
        for ours, (theirs, is_matrix) in BLOCK_NAMES.items():
            weight = block.get_parameter(ours).detach()
            yield f"transformer.h.{i}.{theirs}", weight.T if is_matrix else weight
            if is_matrix:
                yield f"transformer.h.{i}.{theirs.replace('weight', 'bias')}", weight.new_zeros(len(weight))


def config_values(config: ImageGPTConfig) -> dict[str, Any]:
    """Their config.json."""
    names = dict(enumerate(config.classes))
    labels = {"id2label": {str(i): name for i, name in names.items()}, "label2id": {n: i for i, n in names.items()}}
    return (labels if names else {}) | {
        "activation_function": "quick_gelu",
        "architectures": [CLASSIFIER if names else "ImageGPTForCausalImageModeling"],
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": MODEL_TYPE,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": None,
        "n_layer": config.layers,
        "n_positions": config.tokens,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.colors + 1,
    }


def processor_values(config: ImageGPTConfig, palette: Palette) -> dict[str, Any]:
    """Their preprocessor_config.json."""
    return {
        "clusters": palette.colors.astype(float).tolist(),
        "do_color_quantize": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ImageGPTImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": config.rows, "width": config.columns},
    }
