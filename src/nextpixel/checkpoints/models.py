"""Checkpoint folders: config.json, model.safetensors, preprocessor_config.json.

For a classic model this is exactly the folder of transformers' ImageGPT, so there is nothing to export.
transformers has a bias on every matrix (the paper has none; they are written as zeros) and keeps matrices as
(inputs, outputs); its embedding table holds the start vector as row K.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nextpixel.checkpoints.files import new_folder, new_output, read_json, write_json
from nextpixel.checkpoints.runs import Run
from nextpixel.config import ImageGPTConfig
from nextpixel.errors import InputError
from nextpixel.model import ImageGPT
from nextpixel.palette import Palette

EMBEDDED = "embedded"
BIAS_AT_MOST = 1e-6

# Ours -> theirs, in block i; True for matrices, which theirs holds transposed and with a bias.
BLOCK_NAMES: dict[str, tuple[str, bool]] = {
    "norm_1.gain": ("ln_1.weight", False),
    "attention.qkv.weight": ("attn.c_attn.weight", True),
    "attention.out.weight": ("attn.c_proj.weight", True),
    "norm_2.gain": ("ln_2.weight", False),
    "mlp.up.weight": ("mlp.c_fc.weight", True),
    "mlp.down.weight": ("mlp.c_proj.weight", True),
}


def load(name: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ImageGPT:
    """A model in eval mode, its palette attached as `.palette`.

    `name` is a checkpoint folder, a run folder (its best checkpoint on validation), a hub name such as
    "openai/imagegpt-small", or nothing for the model that comes with the package.
    Raises InputError where there is no such model or its files are not what they should be.
    """
    return load_with_facts(name, device=device, dtype=dtype)[0]


def load_with_facts(
    name: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[ImageGPT, dict[str, Any]]:
    """The model, and what its checkpoint records of its making (`nextpixel` in config.json)."""
    folder = find_model(name)
    values = read_json(folder / "config.json")
    config = _read_config(values, folder)
    with torch.device("meta"):
        model = ImageGPT(config)
    model.load_state_dict(_read_weights(folder, config, device, dtype), strict=True, assign=True)
    model.palette = _read_palette(folder, config)
    facts = values.get("nextpixel")
    return model.eval(), facts if isinstance(facts, dict) else {}


def save(model: ImageGPT, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint folder that `load` and transformers open; the folder must be new."""
    with new_folder(new_output(folder, "folder")) as part:
        write_model(model, part, dtype=dtype)


def write_model(
    model: ImageGPT, folder: Path, *, dtype: torch.dtype = torch.float32, facts: dict[str, Any] | None = None
) -> None:
    """Write the three files of a checkpoint into an existing folder."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in _to_transformers(model)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _config_values(model.config, dtype) | {"nextpixel": facts or {}})
    write_json(folder / "preprocessor_config.json", _processor_values(model.config, model.palette))


def find_model(name: str | Path | None) -> Path:
    """The checkpoint folder that a name stands for."""
    if name is None or name == EMBEDDED:
        return Path(str(resources.files("nextpixel") / "assets" / "embedded"))
    path = Path(name)
    if (path / "run.json").is_file():
        return Run(path).best_checkpoint()
    if path.is_dir():
        return path
    text = str(name)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(
            f"--model: expected a checkpoint folder, a run folder or a hub name such as openai/imagegpt-small, "
            f"got {text!r}"
        )
    return _download(text)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"--model: loading {name!r} from the hub needs: pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # a hub fails in many ways; each means that the model was not had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--model: there is no folder {name!r} here, and it could not be fetched from the hub: {reason}"
        ) from None


def _read_config(values: dict[str, Any], folder: Path) -> ImageGPTConfig:
    where = folder / "config.json"
    if values.get("model_type") != "imagegpt":
        raise InputError(f"{where}: expected model_type 'imagegpt', got {values.get('model_type')!r}")
    try:
        side = round(values["n_positions"] ** 0.5)
        config = ImageGPTConfig(
            layers=values["n_layer"],
            width=values["n_embd"],
            heads=values["n_head"],
            side=side,
            colors=values["vocab_size"] - 1,
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: expected the keys of an Image GPT, got a problem with {error}") from None
    if side * side != values["n_positions"]:
        raise InputError(f"{where}: n_positions: expected a square number, got {values['n_positions']}")
    expected = {"n_inner": (None, 4 * config.width), "activation_function": ("quick_gelu",)}
    for key, allowed in expected.items():
        if key in values and values[key] not in allowed:
            raise InputError(f"{where}: {key}: expected {allowed[-1]!r}, got {values[key]!r}")
    if values.get("tie_word_embeddings"):
        raise InputError(f"{where}: expected an untied head, got tie_word_embeddings true")
    return config


def _read_weights(folder: Path, config: ImageGPTConfig, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{folder}: expected a checkpoint with model.safetensors, got none")
    width = config.width

    def read(name: str, *shape: int) -> Tensor:
        try:
            tensor = file.get_tensor(name)
        except SafetensorError:
            raise InputError(f"{path}: expected a tensor {name!r}, got none by that name") from None
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name}: expected shape {shape}, got {tuple(tensor.shape)}")
        return tensor

    try:
        with safe_open(path, "pt") as file:
            embeddings = read("transformer.wte.weight", config.colors + 1, width)
            state = {
                "token_embedding": embeddings[:-1],
                "start": embeddings[-1:],
                "position_embedding": read("transformer.wpe.weight", config.pixels, width),
                "norm.gain": read("transformer.ln_f.weight", width),
                "head.weight": read("lm_head.weight", config.colors, width),
            }
            state = {name: _own(tensor, device, dtype) for name, tensor in state.items()}
            sizes = {"qkv": (width, 3 * width), "up": (width, 4 * width), "down": (4 * width, width)}
            for i in range(config.layers):
                for ours, (theirs, matrix) in BLOCK_NAMES.items():
                    name = f"transformer.h.{i}.{theirs}"
                    if matrix:
                        inputs, outputs = sizes.get(ours.split(".")[-2], (width, width))
                        tensor = read(name, inputs, outputs).T
                        _check_bias(read, name.replace("weight", "bias"), outputs, path)
                    else:
                        tensor = read(name, width)
                    state[f"blocks.{i}.{ours}"] = _own(tensor, device, dtype)
    except SafetensorError as error:
        raise InputError(f"{path}: expected a safetensors file, got a damaged one ({error})") from None
    return state


def _own(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def _check_bias(read: Any, name: str, size: int, path: Path) -> None:
    largest = float(read(name, size).abs().max())
    if not largest <= BIAS_AT_MOST:
        raise InputError(
            f"{path}: {name}: expected a bias of zero, as OpenAI's models have, got values up to {largest:.2g}; "
            "a network with trained biases is no Image GPT of the paper and cannot be loaded exactly"
        )


def _to_transformers(model: ImageGPT) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under the name and in the shape of transformers' ImageGPT."""
    yield "transformer.wte.weight", torch.cat([model.token_embedding.detach(), model.start.detach()])
    yield "transformer.wpe.weight", model.position_embedding.detach()
    yield "transformer.ln_f.weight", model.norm.gain.detach()
    yield "lm_head.weight", model.head.weight.detach()
    for i, block in enumerate(model.blocks):
        for ours, (theirs, matrix) in BLOCK_NAMES.items():
            weight = block.get_parameter(ours).detach()
            yield f"transformer.h.{i}.{theirs}", weight.T if matrix else weight
            if matrix:
                yield f"transformer.h.{i}.{theirs.replace('weight', 'bias')}", weight.new_zeros(len(weight))


def _config_values(config: ImageGPTConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "activation_function": "quick_gelu",
        "architectures": ["ImageGPTForCausalImageModeling"],
        "attn_pdrop": 0.0,
        "dtype": str(dtype).removeprefix("torch."),
        "embd_pdrop": 0.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "imagegpt",
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": None,
        "n_layer": config.layers,
        "n_positions": config.pixels,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.colors + 1,
    }


def _processor_values(config: ImageGPTConfig, palette: Palette) -> dict[str, Any]:
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
        "size": {"height": config.side, "width": config.side},
    }


def _read_palette(folder: Path, config: ImageGPTConfig) -> Palette:
    path = folder / "preprocessor_config.json"
    clusters = read_json(path).get("clusters")
    try:
        palette = Palette(np.asarray(clusters, np.float32))
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{path}: clusters: {error}") from None
    if len(palette) != config.colors:
        raise InputError(f"{path}: clusters: expected {config.colors} colours, got {len(palette)}")
    return palette
