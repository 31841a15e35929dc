"""Feature extractors for comparing pictures: raw pixels, a model's hidden states, an ONNX network, features in a file.

An Extractor is a name and a function from squares to features. The name holds a hash of what the features depend on,
because metrics are comparable only under the same extractor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.checkpoints import load_backbone
from nextpixel.config import Size, channels_of, side_text
from nextpixel.errors import InputError, reason_of
from nextpixel.images import as_channels, crop_resize
from nextpixel.limits import open_arrays
from nextpixel.network.model import ImageGPT
from nextpixel.network.resnet import ResNet
from nextpixel.progress import progress
from nextpixel.representation.extraction import Backbone, check_layers, features_name, features_of

PIXELS = "pixels"
UNTRAINED = "untrained"
CHUNK_IMAGES = 2_000
BATCH_IMAGES = 64


@dataclass(frozen=True)
class Extractor:
    """A named function from squares to features."""

    name: str
    """Part of a metric's name, as in frechet[pixels-32]."""
    size: Size
    """Height and width of its input; others are resized first, bilinear and antialiased."""
    extract: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    """uint8 (N, H, W, channels) to (N, D)."""
    channels: int = 3
    """Of its input; others are laid over white, or made opaque, first."""

    def __call__(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, D) of images uint8 (N, H, W, 3 or 4)."""
        return np.concatenate(list(self.chunks(squares)))

    def chunks(
        self, squares: NDArray[np.uint8], prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The same in parts (n, D), so that they need not fit in memory; `prepare` transforms the squares first."""
        with progress(f"features of {self.name}", len(squares), "images") as advance:
            for start in range(0, len(squares), CHUNK_IMAGES):
                part = np.ascontiguousarray(squares[start : start + CHUNK_IMAGES])
                part = part if prepare is None else prepare(part)
                yield self.extract(self._resized(as_channels(part, self.channels)))
                advance(len(part))

    def _resized(self, squares: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = squares.shape[1:3]
        if (height, width) == self.size:
            return squares
        return np.stack([crop_resize(square, (0, 0, width, height), self.size) for square in squares])


def open_extractors(
    names: Sequence[str | os.PathLike[str] | Extractor], judged: ImageGPT, layer: int | None = None
) -> list[Extractor]:
    """open_extractor of each. Raises InputError also for a layer that none of them has."""
    if not names:
        raise InputError("expected at least one, got none", argument="extractor")
    layered = [name for name in names if not isinstance(name, Extractor) and name != PIXELS]
    if layer is not None and all(str(name).endswith(".onnx") for name in layered):
        raise InputError("requires an `extractor` with layers, which pixels and .onnx files have not", argument="layer")
    return [open_extractor(name, judged, layer) for name in names]


def open_extractor(what: str | os.PathLike[str] | Extractor, judged: ImageGPT, layer: int | None = None) -> Extractor:
    """The extractor of that name, for pictures of the `judged` model.

    pixels     the pixels themselves, at the judged model's size
    untrained  hidden states of a network of the judged model's shape with random weights (seed 0)
    NAME.onnx  the first output of a network in an ONNX file, see onnx_extractor
    otherwise  features of the model or student of that name (see checkpoints.load_backbone)

    `layer` is the layer of hidden states, by default the middle one. Raises InputError for any other name.
    """
    if isinstance(what, Extractor):
        return what
    what = os.fspath(what)
    if what == PIXELS:
        return pixel_extractor(judged.size, judged.tokenizer.channels)
    if what == UNTRAINED:
        return model_extractor(untrained(judged), layer, kind=UNTRAINED)
    if what.endswith(".onnx"):
        return onnx_extractor(what, judged.size)
    if what.endswith(".npz"):
        raise InputError(
            f"{what} holds features and no network; compare two such files with: nextpixel evaluate "
            "real.npz `pictures=drawn.npz`",
            argument="extractor",
        )
    try:
        return model_extractor(load_backbone(what, device=str(judged.device)), layer)
    except InputError as error:
        if error.argument != "model":
            raise
        raise InputError(
            f"expected {PIXELS}, {UNTRAINED}, a .onnx file, or a model (a folder, a run, a hub name), got "
            f"{what!r}; {error.message}",
            argument="extractor",
        ) from None


def untrained(model: Backbone, seed: int = 0) -> Backbone:
    """A model of the same shape and tokenizer with random weights."""
    if isinstance(model, ResNet):
        return ResNet(model.config, seed=seed).to(model.device).eval()
    random = ImageGPT(model.config, seed=seed).to(model.device).eval()
    random.tokenizer, random.words = model.tokenizer, model.words
    return random


def raw_pixels(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The pixels themselves, (N, H * W * 3) in [0, 1]."""
    return squares.reshape(len(squares), -1).astype(np.float32) / np.float32(255)


def pixel_extractor(size: Size, channels: int = 3) -> Extractor:
    """The pixels themselves: no network involved, sensitive only to colours and coarse layout."""
    return Extractor(f"{PIXELS}-{side_text(size)}", size, raw_pixels, channels)


def model_extractor(model: Backbone, layer: int | None = None, *, kind: str | None = None) -> Extractor:
    """Hidden states of one layer, averaged over pixels; of a ResNet, its pooled features."""
    layers = check_layers(model, layer)

    def extract(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        return features_of(model, squares, layers)[:, 0]

    return Extractor(features_name(model, layers, kind), model.size, extract, channels_of(model.fit))


def onnx_extractor(path: str | Path, size: Size) -> Extractor:
    """The first output (N, D) of a network in an ONNX file; trailing axes of length 1 are dropped.

    Its only input is uint8 (N, H, W, 3), 0 to 255, or float32 (N, 3, H, W), -1 to 1; `size` is that of a file
    that leaves it open. A fixed N is the batch size. Runs on the CPU.
    Raises InputError where onnxruntime is missing or the file does not hold such a network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a network in ONNX format", argument="extractor")
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path} needs onnxruntime: pip install 'nextpixel[onnx]'", argument="extractor") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        raise InputError(
            f"{path}: expected a network in ONNX format: {reason_of(error)}", argument="extractor"
        ) from None
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    kind = inputs[0].type if len(inputs) == 1 else f"{len(inputs)} inputs"
    bytes_last = kind == "tensor(uint8)" and len(shape) == 4 and shape[3] in (3, None)
    floats_first = kind == "tensor(float)" and len(shape) == 4 and shape[1] in (3, None)
    sizes = shape[1:3] if bytes_last else shape[2:4]
    if not (bytes_last or floats_first):
        raise InputError(
            f"{path}: expected one input, uint8 (N, H, W, 3) or float32 (N, 3, H, W), got {kind} {tuple(shape)}",
            argument="extractor",
        )
    fixed = [n for n in sizes if isinstance(n, int)]
    batch = shape[0] if isinstance(shape[0], int) else None
    name = inputs[0].name

    def extract(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(squares), batch or BATCH_IMAGES):
            rows = squares[start : start + (batch or BATCH_IMAGES)]
            count = len(rows)
            if batch is not None and count < batch:
                rows = np.concatenate([rows, np.zeros((batch - count, *rows.shape[1:]), np.uint8)])
            if floats_first:
                values: Any = np.ascontiguousarray(rows.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - 1
            else:
                values = np.ascontiguousarray(rows)
            found = np.asarray(session.run(None, {name: values})[0], np.float32)
            if found.ndim < 2 or found.size != found.shape[0] * found.shape[1] or len(found) != len(rows):
                raise InputError(f"{path}: expected an output (N, D), got {found.shape}", argument="extractor")
            parts.append(found.reshape(len(found), -1)[:count])
        return np.concatenate(parts)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:6]
    return Extractor(f"{path.stem}-{digest}", (fixed[0], fixed[-1]) if fixed else size, extract)


def holds_features(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a .npz file with an array `features`, as `nextpixel features` writes."""
    if not os.fspath(path).endswith(".npz") or not os.path.isfile(path):
        return False
    try:
        with open_arrays(path) as arrays:
            return "features" in arrays
    except (OSError, ValueError):
        return False


def read_features(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], str | None]:
    """Features (N, D) of a .npz file and the name of their extractor, where the file has one.

    Raises InputError for any other file, or where `features` is not a table of finite numbers.
    """
    if not holds_features(path):
        raise InputError(f"{path}: expected a .npz file with an array 'features', as nextpixel features writes it")
    try:
        with open_arrays(path) as arrays:
            values = arrays["features"]
            extractor = str(arrays["extractor"]) if "extractor" in arrays else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a .npz file of plain arrays: {error}") from None
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(
            f"{path}: features: expected a table (N, D) of finite numbers, got {values.dtype} {values.shape}"
        )
    return values.astype(np.float32), extractor
