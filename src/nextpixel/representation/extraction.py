"""Features: hidden states of any layers, averaged over pixels, as the paper's linear probes take them.

Pooled as "mean-std", each mean has the standard deviation over the pixels beside it: what a texture is made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args
from zipfile import is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.config import Levels, Pooling, check_keywords
from nextpixel.data.decoded import PREPROCESSING
from nextpixel.devices import autocast, can_compile
from nextpixel.errors import InputError
from nextpixel.files import new_file
from nextpixel.images import UnreadableImage
from nextpixel.images.sources import Source, load_images, open_source, settle
from nextpixel.images.sources.maps import check_readable
from nextpixel.network import cost as plan
from nextpixel.network.int8.packing import RoundedHidden, can_round
from nextpixel.network.model import ImageGPT
from nextpixel.network.resnet import ResNet
from nextpixel.progress import progress, say
from nextpixel.representation.scoring import BATCH_IMAGES, batches

BATCH_OF_SQUARES = 128  # of a ResNet
CHUNK_IMAGES = 512
COMPILE_FROM = 6e12  # floating-point operations, about a minute of one core in fp32: compiling takes ten seconds

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

    n^l is the stream before block l after that block's first norm, 0 <= l < L, and n^L what the final norm gives
    (Chen et al. 2020, section 2.3). Several layers are concatenated, (N, len(layer) * D), in the order given. Nothing
    behind the deepest of them is computed. Without `layer` the middle one is taken: the best tend to lie there.
    `start_token=False` gives the features of programs that feed pixels alone (transformers' image processor does): for
    comparison only, since the network was trained with the start token and every pixel one place further on.
    A masked model is shown every pixel unless `mask_seed` is given: then 15 % of them are hidden, as in training and in
    the paper's evaluation, chosen by (mask_seed, place of the image among these). `pooling="mean-std"` puts the
    standard deviations over the pixels behind the means of each layer, 2 D numbers. `dtype` "bf16" and "int8" round the
    products: several times as fast on a CPU (int8 on nothing else, docs/performance.md).
    Raises InputError for bad images, a layer the model does not have, or a mask for a model that was trained without.
    """
    layers = check_layers(model, model.config.layers // 2 if layer is None else layer)
    squares = load_images(images, model.size, split=split, fit=model.fit, levels=model.levels)
    if isinstance(model, ResNet):
        if mask_seed is not None:
            raise InputError(f"mask_seed: expected None for a convolutional student, got {mask_seed}")
        return described(model, squares, layers, dtype=dtype, pooling=pooling).reshape(len(squares), -1)
    found = pooled(model, squares, layers, dtype=dtype, shifted=start_token, mask_seed=mask_seed, pooling=pooling)
    return found.reshape(len(squares), -1)


def check_layers(model: Backbone, layer: int | Sequence[int], argument: str = "layer") -> list[int]:
    """The layers as a list, each of them one the model has; `argument` is what a complaint names."""
    try:
        given = list(layer) if isinstance(layer, Iterable) else [layer]
        layers = [operator.index(number) for number in given if not isinstance(number, bool)]
    except TypeError:
        given = layers = []
    if not layers or len(layers) < len(given) or not all(0 <= number <= model.config.layers for number in layers):
        raise InputError(f"expected whole numbers from 0 to {model.config.layers}, got {layer!r}", argument=argument)
    return layers


def pooled_width(model: Backbone, pooling: Pooling = "mean") -> int:
    """Numbers of one layer. Raises InputError for a pooling that there is not."""
    if pooling not in get_args(Pooling):
        raise InputError(f"expected one of {', '.join(get_args(Pooling))}, got {pooling!r}", argument="pooling")
    return model.config.width * (2 if pooling == "mean-std" else 1)


def tokenizer_hash(model: Backbone) -> str | None:
    """What the model's tokens are; None for one that reads pixels."""
    return model.tokenizer.hash if isinstance(model, ImageGPT) else None


def model_hash(model: Backbone) -> str:
    """Hex SHA-256 of what its features depend on: shape, objective, colours and weights."""
    found = hashlib.sha256(f"{model.config} {tokenizer_hash(model)}".encode())
    statistics = model.buffers() if isinstance(model, ResNet) else ()
    for tensor in (*model.parameters(), *statistics):
        if tensor.is_floating_point():  # the others count batches
            found.update(tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def features_name(model: Backbone, layers: Sequence[int], kind: str | None = None, pooling: Pooling = "mean") -> str:
    """What these features are called beside numbers made of them, as in "igpt-3f2a9c layer 3"."""
    kind = kind or ("igpt" if isinstance(model, ImageGPT) else "resnet")
    numbers = ",".join(map(str, layers))
    return f"{kind}-{model_hash(model)[:6]} layer{'s' if len(layers) > 1 else ''} {numbers}" + (
        f" {pooling}" if pooling != "mean" else ""
    )


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
    """Write the chunks that `parts` does not hold yet, or of those the i-th of every n, `part` (i, n); see extract."""
    facts = f"{source.fingerprint()} {list(layers)} {dtype} {model.fit} {CHUNK_IMAGES} {pooling} {model_hash(model)}"
    facts += f" {PREPROCESSING} {model.levels}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    parts.mkdir(exist_ok=True)
    starts = range(0, len(source), CHUNK_IMAGES)
    paths = [parts / f"{key}-{start:09d}.npz" for start in starts]
    own = list(zip(starts, paths, strict=True))[part[0] :: part[1]]
    missing = [(start, path) for start, path in own if not is_zipfile(path)]  # none, or one cut short
    images = sum(min(CHUNK_IMAGES, len(source) - start) for start, _ in missing)
    compiled = isinstance(model, ImageGPT) and dtype != "int8" and _repays_compiling(model, layers, images)

    levels, note = settle(source, model.levels)
    if note:
        say(note)

    def read(start: int) -> tuple[NDArray[np.uint8], list[int], list[str]]:
        return _readable(source, range(start, min(start + CHUNK_IMAGES, len(source))), model, levels)

    with ThreadPoolExecutor(1) as reader:  # the next chunk is read while this one is computed
        ahead = reader.submit(read, missing[0][0]) if missing else None
        for (_, path), following in zip(missing, [*missing[1:], None]):
            assert ahead is not None
            squares, kept, lost = ahead.result()
            ahead = None if following is None else reader.submit(read, following[0])
            again = compiled and len(kept) >= BATCH_IMAGES  # the code is made once, for whole batches
            values = np.empty((0, len(layers) * pooled_width(model, pooling)), np.float32)
            if kept:
                found = described(model, squares, layers, dtype=dtype, compiled=again, pooling=pooling)
                values = found.reshape(len(kept), -1)
            with new_file(path) as file:
                np.savez(file, values=values, kept=np.array(kept, np.int64), lost=np.array(lost, np.str_))
    return paths


def extract(
    model: Backbone,
    images: Any,
    layers: Sequence[int],
    parts: Path,
    *,
    split: str | None = None,
    dtype: str = "fp32",
    pooling: Pooling = "mean",
) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Features (N, len(layers) * D), or 2 D, of any number of images, their names, and a line for each unreadable one.

    Finished chunks are kept in the folder `parts`, so that a stopped extraction goes on where it was; the caller
    removes it once the result is safe. Chunks of other images, layers or weights are not taken for these.
    """
    source = open_source(images, split)
    check_readable(source.source_name, source.unreadable, len(source) + len(source.unreadable))
    found, names, unreadable = [], [], list(source.unreadable)
    for path in extract_chunks(model, source, layers, parts, dtype=dtype, pooling=pooling):
        with np.load(path, allow_pickle=False) as chunk:
            found.append(chunk["values"].astype(np.float32))
            names += [source.names[i] for i in chunk["kept"].tolist()]
            unreadable += chunk["lost"].tolist()
    if not names:
        raise InputError(f"{source.source_name}: no picture can be read: {unreadable[0]}")
    return np.concatenate(found), names, unreadable


def _readable(
    source: Source, numbers: range, model: Backbone, levels: Levels
) -> tuple[NDArray[np.uint8], list[int], list[str]]:
    """The squares of those that can be read, their numbers, and what is wrong with the others."""
    squares, kept, lost = [], [], []
    for number in numbers:
        try:
            squares.append(source.square(number, model.side, model.fit, levels))
            kept.append(number)
        except UnreadableImage as error:
            lost.append(str(error))
    return np.stack(squares) if squares else np.empty((0, 0, 0, 3), np.uint8), kept, lost


def described_rows(
    describe: Callable[[NDArray[np.uint8]], NDArray[np.float32]], squares: NDArray[np.uint8], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Features of these rows of squares alone, each in its place, and NaN in the others."""
    values = describe(np.asarray(squares[rows]))
    found = np.full((len(squares), *values.shape[1:]), np.nan, np.float32)
    found[rows] = values
    return found


@torch.inference_mode()
def described(
    model: Backbone,
    squares: NDArray[np.uint8],
    layers: Sequence[int],
    *,
    dtype: str = "fp32",
    compiled: bool | None = None,
    pooling: Pooling = "mean",
) -> NDArray[np.float32]:
    """Features (N, len(layers), D) of squares uint8 (N, S, S, 3): of an Image GPT, or a ResNet's pooled ones.

    Pooled as "mean-std" they are 2 D numbers; InputError for a ResNet, whose features are means.
    """
    if isinstance(model, ImageGPT):
        return pooled(model, squares, layers, dtype=dtype, compiled=compiled, pooling=pooling)
    check_dtype(model, dtype)
    if pooling != "mean":
        raise InputError(f"expected mean for a convolutional student, got {pooling}", argument="pooling")
    model.eval()
    device = str(model.device)
    parts = np.empty((len(squares), len(layers), model.config.width), np.float32)
    with progress("features", len(squares), "images") as advance:
        for start in range(0, len(squares), BATCH_OF_SQUARES):
            batch = torch.from_numpy(np.array(squares[start : start + BATCH_OF_SQUARES])).to(device)
            with autocast(device, dtype):
                parts[start : start + len(batch)] = model.features(batch).float().cpu().numpy()[:, None]
            advance(len(batch))
    return parts


def pooled(
    model: ImageGPT,
    pictures: NDArray[np.uint8] | Tensor,
    layers: Sequence[int],
    *,
    dtype: str = "fp32",
    shifted: bool = True,
    mask_seed: int | None = None,
    compiled: bool | None = None,
    pooling: Pooling = "mean",
) -> NDArray[np.float32]:
    """Means over tokens (N, len(layers), D), or means and standard deviations (N, len(layers), 2 D).

    `pictures` are squares or their tokens, see scoring.batches. `shifted=False` feeds token t into slot t, without the
    start vector. `mask_seed` hides tokens from a masked model; without it every one is shown. The mean is over all.
    `compiled` compiles the blocks for the time of this call; unless told, where that repays itself. `dtype` is that of
    the products, fp32, bf16 or int8, which needs what packing.can_round asks for.
    Raises InputError for the mask of a model that is not masked, and see check_dtype.
    """
    if mask_seed is not None and model.config.objective != "masked":
        raise InputError(
            f"mask_seed: expected None for a model of the {model.config.objective} objective, got {mask_seed}; only "
            "masked models were trained with hidden pixels"
        )
    shifted = shifted or model.config.objective == "masked"  # which has no start token to leave out
    every = np.empty((len(pictures), len(layers), pooled_width(model, pooling)), np.float32)
    hidden: Callable[..., Iterator[tuple[int, Tensor]]] = model.hidden
    at_once = BATCH_IMAGES
    check_dtype(model, dtype)
    if dtype == "int8":
        hidden = rounded = RoundedHidden(model)
        compiled, dtype, at_once = False, "fp32", rounded.images
    if compiled is None:
        compiled = _repays_compiling(model, layers, len(pictures))

    def read(tokens: Tensor, masked: Tensor | None) -> NDArray[np.float32]:
        part = np.empty((len(tokens), *every.shape[1:]), np.float32)
        rest = len(tokens) < min(at_once, len(pictures))  # not worth compiling again
        with torch.compiler.set_stance("force_eager" if rest else "default"):
            for layer, states in hidden(tokens, set(layers), masked, shifted=shifted):
                found = states.float().mean(1)
                if pooling == "mean-std":
                    found = torch.cat([found, states.float().std(1, correction=0)], dim=1)
                part[:, [i for i, wanted in enumerate(layers) if wanted == layer]] = found.cpu().numpy()[:, None]
        return part

    done = 0
    with _compiled(model) if compiled else contextlib.nullcontext():
        for part in batches(
            model, pictures, read, dtype=dtype, mask_seed=mask_seed, batch_images=at_once, label="features"
        ):
            every[done : done + len(part)] = part
            done += len(part)
    return every


def check_dtype(model: Backbone, dtype: str) -> None:
    """Raises InputError for a type that there is not, and for int8 where this model has no such features here."""
    if dtype not in ("fp32", "bf16", "int8"):
        raise InputError(f"expected fp32, bf16 or int8, got {dtype!r}", argument="dtype")
    if dtype == "int8" and not (isinstance(model, ImageGPT) and can_round(model)):
        raise InputError(
            "int8 features need an autoregressive Image GPT of a width that 16 divides, a CPU and a C "
            "compiler; expected fp32 or bf16",
            argument="dtype",
        )


def _repays_compiling(model: ImageGPT, layers: Sequence[int], images: int) -> bool:
    work = images * plan.flops_per_image(model.config) / 3 * max(layers) / model.config.layers
    return work > COMPILE_FROM and can_compile(str(model.device))


@contextlib.contextmanager
def _compiled(model: ImageGPT) -> Iterator[None]:
    """The blocks compiled, all into the same code, for as long as this lasts."""
    before = [block._compiled_call_impl for block in model.blocks]
    try:
        for block in model.blocks:
            block.compile(dynamic=False)
        yield
    finally:
        for block, call in zip(model.blocks, before, strict=True):
            block._compiled_call_impl = call
