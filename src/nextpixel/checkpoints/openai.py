"""The checkpoints of openai/image-gpt: TensorFlow bundles of plain variables under model/.

Queries, keys, values and the output of attention are stored by head, (heads, head width, width); the matrices of the
MLP as (inputs, outputs). A masked (BERT) model has no start vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from nextpixel.checkpoints.tensorflow import Bundle
from nextpixel.checkpoints.weights import check_dtype, check_finite, valid_shape
from nextpixel.config import ImageGPTConfig
from nextpixel.devices import choose_device
from nextpixel.errors import InputError
from nextpixel.network.model import ImageGPT
from nextpixel.tokens.palette import Palette


def load_openai(
    prefix: str | Path, *, palette: Palette | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> ImageGPT:
    """Load a checkpoint of openai/image-gpt, autoregressive or masked (BERT), in eval mode.

    `prefix` is the common start of its file names, such as `model.ckpt-1000000`; `palette` is by default OpenAI's 512
    colours. The shape comes from the tensors, and pictures are fitted as in the paper's evaluation (`fit` "imagenet").
    Tensors of an optimiser or a class head are ignored.
    Raises InputError for another kind of checkpoint, and for missing or damaged files or tensors.
    """
    device = choose_device(str(device))
    check_dtype(dtype)
    bundle = Bundle(prefix)
    config = _read_config(bundle)
    palette = palette or Palette.openai()
    if len(palette) != config.colors:
        raise InputError(
            f"{bundle.index}: model/wte: expected {len(palette)} colours as in the palette, got {config.colors}; "
            "pass the `palette` that this model was trained with"
        )
    weights = {name: tensor.to(device, dtype) for name, tensor in _read_weights(bundle, config)}
    with torch.device("meta"):
        model = ImageGPT(config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.palette, model.fit = palette, "imagenet"
    model.facts = {"converted_from": f"openai/image-gpt, {Path(prefix).name}"}
    return model.eval()


def _read_config(bundle: Bundle) -> ImageGPTConfig:
    blocks = (re.match(r"model/h(\d{1,4})/", name) for name in bundle.entries)
    pixels = bundle.shape("model/wpe", 2)[0]
    colors, width = bundle.shape("model/wte", 2)
    side = isqrt(pixels)
    if side * side != pixels:
        raise InputError(f"{bundle.index}: model/wpe: expected a square number of pixels, got {pixels}")
    with valid_shape(bundle.index):
        return ImageGPTConfig(
            layers=1 + max((int(block[1]) for block in blocks if block), default=-1),
            width=width,
            heads=bundle.shape("model/h0/attn/q_proj", 3)[0],
            side=side,
            colors=colors,
            objective="autoregressive" if "model/sos" in bundle.entries else "masked",
        )


def _read_weights(bundle: Bundle, config: ImageGPTConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under our name."""
    width, heads = config.width, config.heads
    used = set()

    def read(name: str, *shape: int) -> Tensor:
        used.add(f"model/{name}")
        tensor = torch.from_numpy(bundle.read(f"model/{name}", shape))
        check_finite(tensor, f"{bundle.index}: model/{name}")
        return tensor

    def by_head(name: str) -> Tensor:
        return read(name, heads, config.head_width, width).view(width, width)

    yield "token_embedding", read("wte", config.colors, width)
    yield "position_embedding", read("wpe", config.tokens, width)
    if config.objective == "autoregressive":
        yield "start", read("sos", width)[None]
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"h{i}"
        yield f"{ours}.norm_1.gain", read(f"{theirs}/ln_1/g", width)
        yield f"{ours}.attention.qkv.weight", torch.cat([by_head(f"{theirs}/attn/{x}_proj") for x in "qkv"])
        yield f"{ours}.attention.out.weight", by_head(f"{theirs}/attn/c_proj").T.contiguous()
        yield f"{ours}.norm_2.gain", read(f"{theirs}/ln_2/g", width)
        yield f"{ours}.mlp.up.weight", read(f"{theirs}/mlp/c_fc/w", width, 4 * width).T.contiguous()
        yield f"{ours}.mlp.down.weight", read(f"{theirs}/mlp/c_proj/w", 4 * width, width).T.contiguous()
    yield "norm.gain", read("ln_f/g", width)
    yield "head.weight", read("wtet", config.colors, width)

    for name in bundle.entries.keys() - used:
        slot = name.rpartition("/")[0] in used  # of an optimiser, such as model/wte/Adam
        if name.startswith("model/") and not slot and not name.startswith("model/clf/"):
            raise InputError(f"{bundle.index}: expected only the tensors of an Image GPT, got {name!r} as well")
