"""The tensors of a checkpoint folder: safetensors or legacy PyTorch files, whole or sharded.

A legacy pytorch_model.bin is a pickle; torch reads it with weights_only, which runs no code.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nextpixel.errors import InputError
from nextpixel.files import read_json, writing

WHOLE = ("model.safetensors", "pytorch_model.bin")


class Weights:
    """The tensors of a folder by name. Files are memory-mapped, so tensors take memory only once they are copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, Path] = {}
        self._readers: dict[Path, Callable[[str], Tensor]] = {}
        for path in _weight_files(folder):
            self._readers[path], names = _open(path)
            self._where |= dict.fromkeys(names, path)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name. Raises InputError for another shape or invalid values."""
        if name not in self._where:
            raise InputError(f"{self.folder}: expected a tensor {name!r} in its weights, found none")
        path = self._where[name]
        try:
            tensor = self._readers[path](name)
        except SafetensorError as error:
            raise InputError(f"{path}: expected a safetensors file, got a damaged one ({error})") from None
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if not tensor.dtype.is_floating_point:
            raise InputError(f"{path}: {name}: expected floating-point numbers, got {tensor.dtype}")
        check_finite(tensor, f"{path}: {name}")
        return tensor


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors beside a config.json, with the same permissions."""
    path = folder / "model.safetensors"
    with writing(folder):
        save_file(tensors, path, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", path)  # safetensors makes it readable by the owner only


def check_finite(tensor: Tensor, where: str) -> None:
    """Raises InputError for NaN or infinite values."""
    if not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise InputError(
            f"{where}: expected finite numbers, got NaN or infinity in {count:,} of {tensor.numel():,} values; the "
            "file is damaged, or its training diverged: take an earlier checkpoint"
        )


@contextmanager
def valid_shape(where: Path, network: str = "an Image GPT") -> Iterator[None]:
    """Errors in building a network's config from the file `where` become InputErrors that name it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: expected the shape of {network}, got a problem with {error}") from None


def check_dtype(dtype: object) -> None:
    """Raise InputError unless weights can be stored and computed in this torch.dtype."""
    known = torch.float32, torch.bfloat16, torch.float16, torch.float64
    if dtype not in known:
        raise InputError(f"expected one of {', '.join(map(str, known))}, got {dtype!r}", argument="dtype")


def section(values: dict[str, Any]) -> dict[str, Any]:
    """nextpixel's own section of a JSON file of a checkpoint."""
    found = values.get("nextpixel")
    return found if isinstance(found, dict) else {}


def _weight_files(folder: Path) -> list[Path]:
    for name in WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise InputError(f"{index}: expected a weight_map of tensor names to file names, got something else")
            files = [folder / shard for shard in sorted(set(shards.values()))]
            for file in files:
                if file.parent != folder or not file.is_file():
                    raise InputError(f"{index}: expected the shard {file.name} beside it, got none")
            return files
    raise InputError(f"{folder}: expected a checkpoint with {' or '.join(WHOLE)}, got neither")


def _open(path: Path) -> tuple[Callable[[str], Tensor], list[str]]:
    if path.suffix == ".safetensors":
        try:
            path.open("rb").close()  # safetensors says "no such file" of one that may not be read
            file = safe_open(path, "pt").__enter__()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        except SafetensorError as error:
            raise InputError(f"{path}: expected a safetensors file, got a damaged one ({error})") from None
        return file.get_tensor, list(file.keys())
    tensors = _load_legacy(path)
    return tensors.__getitem__, list(tensors)


def _load_legacy(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about unusual pickles, which end in an error below
            try:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # written before PyTorch 1.6: not a zip file, cannot be mapped
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: expected only tensors, got a pickle with other objects, which could run any code; refused"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a PyTorch weight file, got a damaged one ({reason})") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: expected a table of tensors, got {type(tensors).__name__}")
    return tensors
