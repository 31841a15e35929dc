"""Features: hidden states of any layers, averaged over pixels, as in the paper's linear probes.

Other poolings keep more: standard deviations over pixels capture texture, a grid location.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from zipfile import is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import ImageGPTConfig, Pooling, channels_of, check_keywords
from nextpixel.data.decoded import PREPROCESSING, read_parts
from nextpixel.devices import autocast, can_compile, compiled_code
from nextpixel.errors import InputError
from nextpixel.files import new_file
from nextpixel.images import as_channels
from nextpixel.images.sources import Source, load_images, open_source, settle, sprites_of
from nextpixel.images.sources.maps import check_readable
from nextpixel.network import cost as plan
from nextpixel.network.int8.packing import Int8Hidden, supports_int8
from nextpixel.network.model import ImageGPT
from nextpixel.network.pooling import pool
from nextpixel.network.resnet import ResNet
from nextpixel.progress import progress, say_once
from nextpixel.representation.scoring import BATCH_IMAGES, batches

RESNET_BATCH_IMAGES = 128
CHUNK_IMAGES = 512
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOLED_BYTES = 4 * 2**30  # at most, when all poolings of all layers are kept to choose among
MIN_FLOPS_TO_COMPILE = 6e12  # about a minute of one core in fp32; compiling takes ten seconds

Backbone = ImageGPT | ResNet


@check_keywords()
def features(
    model: Backbone,
    images: Any,
    layer: int | Sequence[int] | None = None,
    *,
    split: str | None = None,
    dtype: str = "fp32",
    start_token: bool = True,
    mask_seed: int | None = None,
    pooling: Pooling = "mean",
) -> NDArray[np.float32]:
    """Features (N, D) of each image: the mean over its pixels of n^l, the paper's hidden state.

    n^l is the residual stream before block l after that block's first norm, 0 <= l < L; for l = L, the output of the
    final norm (Chen et al. 2020, section 2.3). Several layers are concatenated in the order given, (N, len(layer) * D).
    Blocks after the deepest layer are not computed. Default: the middle layer, where the best features tend to be.
    `start_token=False` omits the start token, as transformers' image processor does; use it for comparison only, since
    the network was trained with the start token and every pixel one position further on. Masked models and students
    have none.
    A masked model sees every pixel by default; with `mask_seed` 15% of them are hidden, as in training and in the
    paper's evaluation, chosen by (mask_seed, index of the image). `pooling="mean-std"` appends the standard deviations
    over pixels to each layer's means, 2 D numbers; "grid" gives means and deviations in each cell of a 4 x 4 grid, 32 D
    numbers (see pool). `dtype` "bf16" and "int8" round the matrix products,
    which is several times as fast on a CPU (int8 runs only there, see docs/performance.md).
    Raises InputError for bad images, a layer the model does not have, or a mask for a model trained without masks.
    """
    layers = check_layers(model, layer)
    squares = load_images(images, model.size, split=split, fit=model.fit, levels=model.levels)
    if isinstance(model, ResNet):
        if mask_seed is not None:
            raise InputError(f"mask_seed: expected None for a convolutional student, got {mask_seed}")
        values = features_of(model, squares, layers, dtype=dtype, poolings=[pooling])
    else:
        values = pooled(
            model, squares, layers, dtype=dtype, shifted=start_token, mask_seed=mask_seed, poolings=[pooling]
        )
    return values.reshape(len(squares), -1)


def check_layers(model: Backbone, layer: int | Sequence[int] | None, argument: str = "layer") -> list[int]:
    """The layers as a list; the middle one for None.

    Raises InputError, naming `argument`, for a layer the model does not have.
    """
    layer = model.config.layers // 2 if layer is None else layer
    try:
        given = list(layer) if isinstance(layer, Iterable) else [layer]
        layers = [operator.index(number) for number in given if not isinstance(number, bool)]
    except TypeError:
        given = layers = []
    if not layers or len(layers) < len(given) or not all(0 <= number <= model.config.layers for number in layers):
        raise InputError(f"expected whole numbers from 0 to {model.config.layers}, got {layer!r}", argument=argument)
    return layers


def pooled_width(model: Backbone, pooling: Pooling = "mean") -> int:
    """Features per layer. Raises InputError for an unknown pooling, or one but the mean for a ResNet."""
    if pooling not in POOLINGS:
        raise InputError(f"expected one of {', '.join(POOLINGS)}, got {pooling!r}", argument="pooling")
    if isinstance(model, ResNet):
        if pooling != "mean":
            raise InputError(f"expected mean for a convolutional student, got {pooling}", argument="pooling")
        return model.config.width
    return model.config.pooled_width(pooling)


def pooled_columns(model: Backbone, poolings: Sequence[Pooling]) -> dict[Pooling, slice]:
    """Where each pooling's features lie along the last axis of features_of with these poolings."""
    ends = np.cumsum([pooled_width(model, pooling) for pooling in poolings]).tolist()
    return {pooling: slice(end - pooled_width(model, pooling), end) for pooling, end in zip(poolings, ends)}


def poolings_to_try(model: Backbone, layers: int, images: int) -> list[Pooling]:
    """The simplest poolings, as many as POOLED_BYTES hold for so many layers and images; says which are left out."""
    if isinstance(model, ResNet):
        return ["mean"]
    sizes = np.cumsum([pooled_width(model, pooling) for pooling in POOLINGS]) * 4 * layers * images
    count = max(1, int((sizes <= POOLED_BYTES).sum()))
    if left := POOLINGS[count:]:
        say_once(
            f"all poolings of {images:,} images and {layers} layers would take {sizes[-1] / 1e9:.1f} GB, more than "
            f"{POOLED_BYTES / 1e9:.1f}: not trying {' and '.join(left)}; with fewer layers or images they fit"
        )
    return list(POOLINGS[:count])


def tokenizer_hash(model: Backbone) -> str | None:
    """The hash of the model's tokenizer; None for a model that takes pixels."""
    return model.tokenizer.hash if isinstance(model, ImageGPT) else None


def model_hash(model: Backbone, dtype: torch.dtype = torch.float32) -> str:
    """Hex SHA-256 of everything its features depend on: shape, objective, colours and weights, rounded to `dtype`."""
    config, statistics = model.config, model.buffers() if isinstance(model, ResNet) else ()
    if isinstance(config, ImageGPTConfig):
        config = replace(config, classes=(), class_layer=None, class_pooling="mean")
    digest = hashlib.sha256(f"{config} {tokenizer_hash(model)}".encode())
    weights = (parameter for name, parameter in model.named_parameters() if not name.startswith("class_head."))
    for tensor in (*weights, *statistics):
        if tensor.is_floating_point():  # the others count batches
            digest.update(tensor.detach().to(dtype).float().cpu().numpy().tobytes())
    return digest.hexdigest()


def features_name(model: Backbone, layers: Sequence[int], kind: str | None = None, pooling: Pooling = "mean") -> str:
    """The name of these features in reports, as in "igpt-3f2a9c layer 3"."""
    kind = kind or ("igpt" if isinstance(model, ImageGPT) else "resnet")
    name = f"{kind}-{model_hash(model)[:6]} layer{'s' if len(layers) > 1 else ''} {','.join(map(str, layers))}"
    return name if pooling == "mean" else f"{name} {pooling}"


def extract_chunks(
    model: Backbone,
    source: Source,
    layers: Sequence[int],
    parts: Path,
    *,
    dtype: str = "fp32",
    pooling: Pooling = "mean",
    part: tuple[int, int] = (0, 1),
) -> list[Path]:
    """Write the chunks missing in the folder `parts`, see extract; with `part` (i, n), every n-th from the i-th."""
    source, levels, note = settle(source, model.size, model.fit, model.levels)
    if note:
        say_once(note)
    facts = f"{source.fingerprint()} {list(layers)} {dtype} {model.fit} {CHUNK_IMAGES} {pooling} {model_hash(model)}"
    facts += f" {PREPROCESSING} {model.levels} names"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    parts.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(source), CHUNK_IMAGES)
    paths = [parts / f"{key}-{start:09d}.npz" for start in starts]
    own = list(zip(starts, paths, strict=True))[part[0] :: part[1]]
    missing = [(start, path) for start, path in own if not is_zipfile(path)]  # absent or truncated
    compiled = isinstance(model, ImageGPT) and dtype != "int8" and _worth_compiling(model, layers, len(source))

    def read(start: int) -> tuple[NDArray[np.uint8], list[str], list[str]]:
        numbers = range(start, min(start + CHUNK_IMAGES, len(source)))
        decoded = list(read_parts(source, numbers, model.size, model.fit, levels, workers=torch.get_num_threads()))
        names = [name for part in decoded for name in part.names]
        lost = [line for part in decoded for line in part.unreadable]
        return np.concatenate([part.images for part in decoded]), names, lost

    with ThreadPoolExecutor(1) as reader:  # reads the next chunk while this one is computed
        ahead = reader.submit(read, missing[0][0]) if missing else None
        for (_, path), following in zip(missing, [*missing[1:], None]):
            assert ahead is not None
            squares, names, lost = ahead.result()
            ahead = None if following is None else reader.submit(read, following[0])
            compile_blocks = compiled and len(names) >= BATCH_IMAGES  # compiled once, for whole batches
            values = np.empty((0, len(layers) * pooled_width(model, pooling)), np.float32)
            if names:
                found = features_of(model, squares, layers, dtype=dtype, compiled=compile_blocks, poolings=[pooling])
                values = found.reshape(len(names), -1)
            with new_file(path) as file:
                np.savez(file, values=values, names=np.array(names, np.str_), lost=np.array(lost, np.str_))
    return paths


def extract(
    model: Backbone,
    images: Any,
    layers: Sequence[int],
    parts: Path,
    *,
    dtype: str = "fp32",
    pooling: Pooling = "mean",
) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Features (N, len(layers) * D) of any number of images, their names, and a line for each unreadable one.

    Other poolings are wider, see pooled_width. Finished chunks are kept in the folder `parts`, so a stopped extraction
    resumes; the caller removes the folder once the result is saved. Chunks of other images, layers or weights are
    ignored. Raises InputError when more than one image in ten cannot be read.
    """
    source = sprites_of(open_source(images), model.size, model.fit, model.levels)
    check_readable(source.source_name, source.unreadable, len(source) + len(source.unreadable))
    found, names, unreadable = [], [], list(source.unreadable)
    for path in extract_chunks(model, source, layers, parts, dtype=dtype, pooling=pooling):
        with np.load(path, allow_pickle=False) as chunk:
            found.append(chunk["values"].astype(np.float32))
            names += chunk["names"].tolist()
            unreadable += chunk["lost"].tolist()
    check_readable(source.source_name, unreadable, len(names) + len(unreadable))
    return np.concatenate(found), names, unreadable


def mirrored(squares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mirror images of pictures (N, H, W, channels)."""
    return np.ascontiguousarray(squares[:, :, ::-1])


def mirror_averaged(
    extract: Callable[[NDArray[np.uint8]], NDArray[np.float32]], squares: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The mean of the features of pictures (N, H, W, channels) and of their mirror images."""
    return (extract(squares) + extract(mirrored(squares))) * np.float32(0.5)


@torch.inference_mode()
def features_of(
    model: Backbone,
    squares: NDArray[np.uint8],
    layers: Sequence[int],
    *,
    dtype: str = "fp32",
    compiled: bool | None = None,
    poolings: Sequence[Pooling] = ("mean",),
    mirror: bool = False,
) -> NDArray[np.float32]:
    """Features (N, len(layers), D) of images uint8 (N, H, W, 3 or 4); wider for other poolings, see pooled_columns.

    Of a ResNet they are its pooled ones. With `mirror` they are averaged with those of the mirror images. Raises
    InputError for a ResNet with other poolings, see also check_dtype.
    """
    if mirror:
        how: dict[str, Any] = {"dtype": dtype, "compiled": compiled, "poolings": poolings}
        return mirror_averaged(lambda view: features_of(model, view, layers, **how), squares)
    squares = as_channels(squares, channels_of(model.fit))
    if isinstance(model, ImageGPT):
        return pooled(model, squares, layers, dtype=dtype, compiled=compiled, poolings=poolings)
    check_dtype(model, dtype)
    pooled_columns(model, poolings)
    model.eval()
    device = str(model.device)
    values = np.empty((len(squares), len(layers), model.config.width), np.float32)
    with progress("features", len(squares), "images") as advance:
        for start in range(0, len(squares), RESNET_BATCH_IMAGES):
            batch = torch.from_numpy(np.array(squares[start : start + RESNET_BATCH_IMAGES])).to(device)
            with autocast(device, dtype):
                values[start : start + len(batch)] = model.features(batch).float().cpu().numpy()[:, None]
            advance(len(batch))
    return values


def pooled(
    model: ImageGPT,
    pictures: NDArray[np.uint8] | Tensor,
    layers: Sequence[int],
    *,
    dtype: str = "fp32",
    shifted: bool = True,
    mask_seed: int | None = None,
    compiled: bool | None = None,
    poolings: Sequence[Pooling] = ("mean",),
) -> NDArray[np.float32]:
    """Means over tokens (N, len(layers), D); wider for other poolings, which lie side by side, see pooled_columns.

    `pictures` are squares or their tokens, see scoring.batches. `shifted=False` feeds token t into slot t, without the
    start vector. `mask_seed` hides tokens from a masked model; without it all are shown. The mean is over all tokens.
    `compiled` compiles the blocks for this call; by default where that saves time. `dtype` is that of the matrix
    products: fp32, bf16 or int8 (see packing.supports_int8).
    Raises InputError for a mask with a model that is not masked, see also check_dtype.
    """
    if mask_seed is not None and model.config.objective != "masked":
        raise InputError(
            f"mask_seed: expected None for a model of the {model.config.objective} objective, got {mask_seed}; only "
            "masked models were trained with hidden pixels"
        )
    shifted = shifted or model.config.objective == "masked"  # which has no start token to omit
    width = sum(pooled_width(model, pooling) for pooling in poolings)
    values = np.empty((len(pictures), len(layers), width), np.float32)
    hidden: Callable[..., Iterator[tuple[int, Tensor]]] = model.hidden
    batch_images = BATCH_IMAGES
    check_dtype(model, dtype)
    if dtype == "int8":
        hidden = rounded = Int8Hidden(model)
        compiled, dtype, batch_images = False, "fp32", rounded.images
    if compiled is None:
        compiled = _worth_compiling(model, layers, len(pictures))

    def pool_layers(tokens: Tensor, masked: Tensor | None) -> NDArray[np.float32]:
        part = np.empty((len(tokens), *values.shape[1:]), np.float32)
        partial_batch = len(tokens) < min(batch_images, len(pictures))  # not worth compiling for
        with compiled_code("force_eager" if partial_batch else "default"):
            for layer, states in hidden(tokens, set(layers), masked, shifted=shifted):
                grid = states.float(), model.config.rows, model.config.columns
                found = torch.cat([pool(*grid, pooling) for pooling in poolings], 1)
                part[:, [i for i, wanted in enumerate(layers) if wanted == layer]] = found.cpu().numpy()[:, None]
        return part

    done = 0
    with _compiled(model) if compiled else contextlib.nullcontext():
        for part in batches(
            model, pictures, pool_layers, dtype=dtype, mask_seed=mask_seed, batch_images=batch_images, label="features"
        ):
            values[done : done + len(part)] = part
            done += len(part)
    return values


def check_dtype(model: Backbone, dtype: str) -> None:
    """Raises InputError for an unknown dtype, and for int8 where this model or machine does not support it."""
    if dtype not in ("fp32", "bf16", "int8"):
        raise InputError(f"expected fp32, bf16 or int8, got {dtype!r}", argument="dtype")
    if dtype == "int8" and not (isinstance(model, ImageGPT) and supports_int8(model)):
        raise InputError(
            "int8 features need an Image GPT of a width that 16 divides, a CPU and a C compiler; expected fp32 or bf16",
            argument="dtype",
        )


def _worth_compiling(model: ImageGPT, layers: Sequence[int], images: int) -> bool:
    flops = images * plan.flops_per_image(model.config) / 3 * max(layers) / model.config.layers
    return flops > MIN_FLOPS_TO_COMPILE and can_compile(str(model.device))


@contextlib.contextmanager
def _compiled(model: ImageGPT) -> Iterator[None]:
    """Compile the blocks, all into the same code, within this context."""
    before = [block._compiled_call_impl for block in model.blocks]
    try:
        for block in model.blocks:
            block.compile(dynamic=False)
        yield
    finally:
        for block, call in zip(model.blocks, before, strict=True):
            block._compiled_call_impl = call
