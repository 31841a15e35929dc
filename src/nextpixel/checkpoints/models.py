"""Checkpoint folders (config.json, model.safetensors, preprocessor_config.json): find, read, write."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextpixel.checkpoints import native, resnet, transformers
from nextpixel.checkpoints.card import public
from nextpixel.checkpoints.runs import Run
from nextpixel.checkpoints.weights import Weights, check_dtype, section, valid_shape, write_weights
from nextpixel.config import ImageGPTConfig, Levels, check_keywords
from nextpixel.devices import choose_device
from nextpixel.errors import InputError
from nextpixel.files import BUNDLED, EMBEDDED, check_model_name, new_folder, new_output, read_json, write_json
from nextpixel.network.model import ImageGPT
from nextpixel.network.resnet import ResNet
from nextpixel.tokens import Tokenizer, read_tokenizer, write_tokenizer
from nextpixel.tokens.palette import Palette
from nextpixel.tokens.tokenizer import FACTS
from nextpixel.tokens.training_pictures import TrainingPictures
from nextpixel.tokens.words import Words

FORMATS = {transformers.MODEL_TYPE: transformers, native.MODEL_TYPE: native}


@check_keywords()
def load(name: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ImageGPT:
    """A model in eval mode, with its tokenizer as `.tokenizer`, its words, if any, and its provenance as `.facts`.

    `name` is a checkpoint folder of nextpixel or transformers, a run folder (its best checkpoint on validation) or a
    hub name such as "openai/imagegpt-small", or a bundled model: "faces" of pixel art, "photos" of photographs at 64
    pixels; default: the embedded model.
    Weights are read from safetensors or a legacy pytorch_model.bin, without running code in it. `device` may be
    "auto", see devices.choose_device. Raises InputError where there is no such model or device, or its files are
    invalid.
    """
    device = choose_device(str(device))  # fail before downloading weights
    check_dtype(dtype)
    return _load(name, device, dtype)


def load_outline(name: str | Path) -> ImageGPT:
    """The model that `load` returns, with weights that are verified but take no memory, on the device meta."""
    return _load(name, "meta", torch.float32)


def _load(name: str | Path | None, device: str, dtype: torch.dtype) -> ImageGPT:
    folder = find_model(name)
    values = read_json(folder / "config.json")
    layout = FORMATS.get(str(values.get("model_type")))
    if values.get("model_type") == resnet.MODEL_TYPE:
        raise InputError(
            f"expected an Image GPT, got {folder}, a convolutional student: it has features (features, "
            "probe, predict; load_backbone in Python) but no likelihood, and is fine-tuned by: nextpixel probe "
            f"LABELLED `against={name}`",
            argument="model",
        )
    if layout is None:
        kinds = " or ".join(repr(kind) for kind in FORMATS)
        raise InputError(
            f"{folder / 'config.json'}: model_type: expected {kinds}, got {values.get('model_type')!r}; "
            "only Image GPTs can be loaded"
        )
    config = layout.read_config(values, folder / "config.json")
    state = {
        ours: _copy(tensor, device, dtype) for ours, tensor in layout.read_state(Weights(folder), config)
    }  # before the model is built: verifies the shape in its config
    with torch.device("meta"):
        model = ImageGPT(config)
    model.load_state_dict(state, strict=True, assign=True)
    _read_preprocessing(folder, model)
    model.training_pictures = TrainingPictures.read(folder, config.tokens, config.colors)
    model.facts = section(values)
    return model.eval()


@check_keywords()
def load_backbone(
    name: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> ImageGPT | ResNet:
    """A model that computes features: an Image GPT, see load, or a convolutional student, always in fp32."""
    folder = find_model(name)
    values = read_json(folder / "config.json")
    if values.get("model_type") != resnet.MODEL_TYPE:
        return load(name, device=device, dtype=dtype)
    return resnet.read(values, folder).to(choose_device(str(device)))


@check_keywords()
def save(
    model: ImageGPT | ResNet, folder: str | Path, *, dtype: torch.dtype = torch.float32, for_transformers: bool = False
) -> None:
    """Write a new checkpoint folder for `load`; that of a classic model also opens in transformers.

    With `for_transformers`, a model with a class head on the last layer's mean (`head=last`) becomes an
    ImageGPTForImageClassification, which `load` does not open, since it has no generative head; given the start token
    and then all pixels but the last, its logits equal model.classify(tokens). Raises InputError for a model that
    transformers would compute wrongly.
    """
    check_dtype(dtype)
    if for_transformers and isinstance(model, ResNet):
        raise InputError("a convolutional network cannot be saved for transformers: it is not an Image GPT")
    if for_transformers and isinstance(model, ImageGPT) and not transformers.computes(model):
        masked = model.config.objective == "masked"
        kind = "of the masked objective" if masked else "that is not the paper's network"
        why = "its causal mask is built in" if masked else "it only supports square grids and no modern options"
        if model.config.class_layer is not None and model.config.is_classic:
            kind = f"whose class head reads layer {model.config.class_layer} ({model.config.class_pooling})"
            why = "there it reads the mean of the last; fine-tune with `head=last` for such a head"
        raise InputError(
            f"a model {kind} cannot be saved for transformers, which would compute it wrongly: {why}; save it without "
            "for_transformers and load it with nextpixel"
        )
    with new_folder(new_output(folder, "folder")) as part:
        write_model(model, part, dtype=dtype, for_transformers=for_transformers)


def write_model(
    model: ImageGPT | ResNet, folder: Path, *, dtype: torch.dtype = torch.float32, for_transformers: bool = False
) -> None:
    """Write the files of a checkpoint into an existing folder.

    Classic models get the layout of transformers; others, and those with a class head unless `for_transformers`, a
    model_type that transformers refuses.
    """
    if isinstance(model, ResNet):
        resnet.write(model, folder)
        return
    theirs = transformers.computes(model) and (for_transformers or not model.config.classes)
    layout = transformers if theirs else native
    ours: dict[str, Any] = {"fit": model.fit} | model.levels.values()
    if isinstance(model.tokenizer, Palette):
        processor = transformers.processor_values(model.config, model.tokenizer)
    else:
        processor, ours["tokenizer"] = {}, write_tokenizer(model.tokenizer, folder)
    if model.words is not None:
        ours["words"] = model.words.values()
    config = layout.config_values(model.config) | {"dtype": str(dtype).removeprefix("torch.")}
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in layout.state(model)}
    write_json(folder / "config.json", config | {"nextpixel": public(model.facts)})
    write_weights(folder, tensors)
    write_json(folder / "preprocessor_config.json", processor | {"nextpixel": ours})
    if model.training_pictures is not None:
        model.training_pictures.write(folder)


def find_model(name: str | Path | None) -> Path:
    """The checkpoint folder that a name refers to, downloaded if necessary. Raises InputError."""
    folder = _find(name)
    if (folder / FACTS).is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"expected a model, got the tokenizer {str(name)!r}; train a model with it: nextpixel pretrain photos/ "
            f"`tokenizer={name}`",
            argument="model",
        )
    return folder


def _find(name: str | Path | None) -> Path:
    path = Path(EMBEDDED if name is None else name)
    if not str(name):
        check_model_name(name)
    if (path / "run.json").is_file():
        return Run(path).best_checkpoint()
    if is_bundled(path):
        return Path(str(resources.files("nextpixel") / "assets" / path))
    if path.is_dir():
        return path
    check_model_name(name)
    return _download(str(name))


def is_bundled(name: str | Path) -> bool:
    """Whether it names a bundled model; a model or run in a folder of that name here comes first."""
    path = Path(name)
    return str(path) in BUNDLED and not any((path / file).is_file() for file in ("config.json", "run.json"))


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"loading {name!r} from the hub needs: pip install huggingface_hub", argument="model"
        ) from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):  # older repositories
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
        return folder
    except Exception as error:  # many kinds, and each means that the download failed
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"there is no folder {name!r} here, and the download from the hub failed ({reason}); without a network, "
            "give a folder with a copy of its files",
            argument="model",
        ) from None


def _copy(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def _read_preprocessing(folder: Path, model: ImageGPT) -> None:
    path = folder / "preprocessor_config.json"
    values = read_json(path)
    ours = section(values)
    model.tokenizer = _read_tokenizer(values, ours, model.config, path)
    if model.config.words:
        model.words = _read_words(ours, model.config, path)
    with valid_shape(path):
        model.fit = ours.get("fit", model.fit)  # that of the tokenizer
        model.levels = Levels.among(ours)


def _read_tokenizer(values: dict[str, Any], ours: dict[str, Any], config: ImageGPTConfig, path: Path) -> Tokenizer:
    """A palette is stored as `clusters`, as transformers does; other tokenizers in the section of nextpixel."""
    kind = "tokenizer" if "tokenizer" in ours else "clusters"
    try:
        tokenizer = read_tokenizer(ours[kind] if kind in ours else {"colors": values.get(kind)}, path.parent)
    except (InputError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: {kind}: {error}") from None
    if len(tokenizer) != config.colors:
        raise InputError(f"{path}: {kind}: expected {config.colors} tokens, got {len(tokenizer)}")
    return tokenizer


def _read_words(ours: dict[str, Any], config: ImageGPTConfig, path: Path) -> Words:
    try:
        words = Words.from_values(ours["words"])
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path}: words: expected the {config.words} words of its captions, got {error}") from None
    if len(words) != config.words:
        raise InputError(f"{path}: words: expected {config.words}, got {len(words)}")
    return words
