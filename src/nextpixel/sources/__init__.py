"""Everything that `images` may mean, normalised in exactly one function: open_source().

A source lists what it holds quickly and decodes one picture at a time.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextpixel.config import Fit
from nextpixel.errors import InputError
from nextpixel.images import EXTENSIONS, Picture, UnreadableImage
from nextpixel.sources.arrays import ArraySource, PictureSource, batch, open_npy, open_npz
from nextpixel.sources.base import (
    SPLITS,
    Numbered,
    Source,
    canonical_split,
    choose_split,
    extension,
    refuse_split,
    sha256,
)
from nextpixel.sources.files import FileSource, image_folder, is_image, walk
from nextpixel.sources.maps import MapSource, is_map
from nextpixel.sources.shards import ShardSource, expand, is_pattern
from nextpixel.sources.tables import ParquetSource, open_hub, open_tables

__all__ = ["MapSource", "Source", "load_images", "open_source"]

TABLES = frozenset({"parquet"})
SHARDS = frozenset({"tar"})


def open_source(images: Any, split: str | None = None, *, stream: bool = False) -> Source:
    """Opens whatever `images` is; names are listed, nothing is decoded.

    images  a PIL picture;
            a uint8 array or tensor (H, W, 3), (H, W), (B, H, W, 3) or (B, H, W), where 1 or 4 channels (the
            fourth is opacity, laid over white) do as well as 3; 3 axes that end in 1, 3 or 4 are one image;
            a list of these or of paths, sizes mixed at will;
            an image file, a .npy, .npz or .parquet file, a folder of images or of .parquet files; OpenAI's token
            arrays such as cifar10_teX.npy; WebDataset shards, .tar, as a file or a folder of them;
            a folder that nextpixel prepare made;
            a pattern of such files, as in shards/{000..127}.tar or shards/*.tar;
            a set on the hub: owner/name or owner/name:config
    split   train, validation, test or another that the source has; None: train, where there are several
    stream  a set on the hub is read from there in order, instead of being downloaded first

    Sub-folders are classes if every image lies exactly one folder deep. Raises InputError.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str | os.PathLike):
        return _open_path(os.fspath(images), split, stream)
    if isinstance(images, Sequence):
        return _open_list(images, split)
    if isinstance(images, Picture):
        refuse_split(split, "the picture")
        return PictureSource(images)
    if isinstance(images, np.ndarray):
        refuse_split(split, "the array")
        return ArraySource("the array", batch(images, "the array"))
    if hasattr(images, "detach"):  # a torch tensor, told without importing torch
        refuse_split(split, "the tensor")
        return ArraySource("the tensor", batch(_numpy(images), "the tensor"))
    raise InputError(
        "images must be a PIL picture, a uint8 array or tensor, a list of these, a path or a dataset name; "
        f"got {type(images).__name__}"
    )


def load_images(images: Any, side: int, split: str | None = None, *, fit: Fit = "crop") -> np.ndarray:
    """Every picture of a small source as a square (see images.fit_square), in order: uint8 (B, side, side, 3).

    Raises InputError, also for a single picture that cannot be read: each was asked for.
    """
    source = open_source(images, split)
    squares = np.empty((len(source), side, side, 3), np.uint8)
    for index in range(len(source)):
        try:
            squares[index] = source.square(index, side, fit)
        except UnreadableImage as error:
            raise InputError(f"{error}; repair it or leave it out of {source.source_name}") from error
    return squares


class JoinedSource(Source):
    """A list: several sources one after the other. Files are named by their paths, the rest by number."""

    def __init__(self, parts: list[Source]) -> None:
        numbers = Numbered([("", len(parts))])
        names: list[str] = []
        for number, part in zip(numbers, parts, strict=True):
            if isinstance(part, FileSource):
                names += [os.path.join(part.folder, name) for name in part.names]
            else:
                names += [number] if len(part) == 1 else [f"{number}/{name}" for name in part.names]
        super().__init__("the list", names)
        self.parts = parts
        self.places = Numbered([("", len(part)) for part in parts])
        self.split = ", ".join(sorted({part.split for part in parts if part.split})) or None
        labels = [part.labels for part in parts if part.labels is not None]
        if len(labels) == len(parts) and all(part.classes == parts[0].classes for part in parts):
            self.labels, self.classes = np.concatenate(labels), parts[0].classes

    def read(self, index: int) -> Picture:
        part, place = self.places.locate(index)
        return self.parts[part].read(place)

    def square(self, index: int, side: int, fit: Fit) -> np.ndarray:
        part, place = self.places.locate(index)
        return self.parts[part].square(place, side, fit)

    def fingerprint(self) -> str:
        return sha256(part.fingerprint().encode() for part in self.parts)


def _open_list(items: Sequence[Any], split: str | None) -> Source:
    if len(items) == 0:
        raise InputError("the list of images is empty; give at least one")
    if all(isinstance(item, str | os.PathLike) for item in items):
        paths = [os.fspath(item) for item in items]
        if all(is_image(path) and os.path.isfile(path) for path in paths):
            refuse_split(split, "a list of files")
            return FileSource("the list", "", paths)
    return JoinedSource([open_source(item, split) for item in items])


def _numpy(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise InputError(
            f"a tensor {array.shape} may be one image, channels first, or {array.shape[0]} grey images; "
            "pass (H, W, 3), by x.permute(1, 2, 0), or (B, H, W, 1)"
        )
    return array


def _open_path(path: str, split: str | None, stream: bool) -> Source:
    if os.path.isdir(path):
        return _open_folder(path, split)
    if not os.path.exists(path):
        if is_pattern(path):
            refuse_split(split, path)
            return _open_files(path, "", expand(path))
        if os.path.isdir(parts := path.rstrip("/") + ".parts"):
            raise InputError(
                f"{path} is not finished: its parts lie in {parts}; go on with the command that began it, or, after "
                f"all of its jobs, with: nextpixel prepare `merge={path}`"
            )
        return open_hub(path, split, stream=stream)
    if not os.path.isfile(path):
        raise InputError(f"{path} is neither a file nor a folder; give an image, a folder or a table of images")
    kind = extension(path)
    if kind == "npz":
        return open_npz(path, split)
    refuse_split(split, path)
    if kind == "npy":
        return open_npy(path)
    if kind in TABLES | SHARDS:
        return _open_files(path, "", [path])
    return FileSource(path, os.path.dirname(path), [os.path.basename(path)])


def _open_files(source_name: str, folder: str, names: list[str]) -> Source:
    """Sorted files of one kind: tables, shards or images."""
    kinds = {extension(name) if extension(name) in TABLES | SHARDS else "image" for name in names}
    if len(kinds) > 1:
        found = " and ".join(sorted(kind if kind == "image" else f".{kind}" for kind in kinds))
        raise InputError(f"{source_name} holds files of the kinds {found}; expected one kind: give them by themselves")
    paths = [os.path.join(folder, name) for name in names]
    if kinds == TABLES:
        return ParquetSource(source_name, paths)
    if kinds == SHARDS:
        return ShardSource(source_name, paths)
    return FileSource(source_name, folder, names)


def _open_folder(folder: str, split: str | None) -> Source:
    if is_map(folder):
        refuse_split(split, folder)
        return MapSource(folder)
    if chosen := _split_folder(folder, split):
        source = _open_folder(chosen, None)
        source.split = os.path.basename(chosen)
        return source
    names = sorted(walk(folder, EXTENSIONS | TABLES | SHARDS))
    tables = [name for name in names if extension(name) in TABLES]
    shards = [name for name in names if extension(name) in SHARDS]
    if not names:
        raise InputError(
            f"the folder {folder} holds no image: nothing in it or below ends in .png, .jpg, another image's "
            "extension, .parquet or .tar"
        )
    if len(tables) == len(names):
        return open_tables(folder, names, split)
    if len(shards) == len(names):
        refuse_split(split, folder)
        return ShardSource(folder, [os.path.join(folder, name) for name in names])
    if tables or shards:
        kinds = ["images"] * (len(names) > len(tables) + len(shards)) + [".parquet files"] * bool(tables)
        kinds += [".tar files"] * bool(shards)
        raise InputError(f"the folder {folder} holds {' and '.join(kinds)}; expected one kind: give a folder inside it")
    refuse_split(split, folder)
    return image_folder(folder, names)


def _split_folder(folder: str, split: str | None) -> str | None:
    """The sub-folder of a split, as in train/cat/1.jpg, if one is asked for or all of them are splits."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    names.append(entry.name)
                elif is_image(entry.name):
                    return None
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be listed: {error.strerror}") from error
    known = {canonical_split(name) for name in names}
    if split is None and (len(names) < 2 or not known <= SPLITS):
        return None
    if split is not None and canonical_split(split) not in known:
        return None
    return os.path.join(folder, choose_split(names, split, folder))
