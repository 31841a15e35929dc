"""Sources of pictures: open_source() turns any argument `images` into one.

A source lists its pictures quickly and decodes them one at a time.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextpixel.config import Fit, Levels, Size, channels_of, to_size
from nextpixel.errors import InputError
from nextpixel.images import Content, Picture, UnreadableImage, readable_extensions
from nextpixel.images.formats import FORMATS, find_format
from nextpixel.images.sources.arrays import ArraySource, PictureSource, batch, open_npy, open_npz
from nextpixel.images.sources.base import NO_LEVELS, Numbered, Source, extension, sha256
from nextpixel.images.sources.files import FileSource, Listing, count_kinds, image_folder, is_image, unread_kind
from nextpixel.images.sources.levels import settle, sprites_of, with_canvas
from nextpixel.images.sources.maps import MapSource, check_readable, is_map
from nextpixel.images.sources.shards import ShardSource, expand, is_pattern
from nextpixel.images.sources.splits import NoSplit, by_folder, choose_split, folder_level, refuse_split, stem_splits
from nextpixel.images.sources.tables import ParquetSource, check_set_name, open_hub
from nextpixel.progress import say_once

__all__ = ["MapSource", "Source", "check_path", "load_images", "open_source", "settle", "sprites_of", "with_canvas"]

TABLES = frozenset({"parquet"})
SHARDS = frozenset({"tar"})
ARCHIVES = frozenset("7z bz2 gz rar tgz xz zip zst".split())


def open_source(images: Any, split: str | None = None, *, stream: bool = False) -> Source:
    """Open a source: list the names of its pictures, decode none.

    images  a PIL picture;
            an array or tensor (H, W, 3), (H, W), (B, H, W, 3) or (B, H, W): uint8, where 1 or 4 channels (the
            fourth is opacity, laid over white) work as well as 3; or other numbers and bands, see images.Numbers;
            3 axes that end in 1, 3 or 4 are one image;
            a list of these or of paths, of any sizes;
            an image file, a .npy, .npz or .parquet file, a folder of images or of .parquet files; OpenAI's token
            arrays such as cifar10_teX.npy; WebDataset shards, .tar, as a file or a folder of them;
            a folder that nextpixel prepare made, or one of such folders, each of them a split;
            a pattern of such files, as in shards/{000..127}.tar or shards/*.tar;
            a set on the hub: owner/name or owner/name:config
    split   train, validation, test or another split of the source; None: train, if it has several
    stream  read a set on the hub from there, in order, instead of downloading it first

    Sub-folders are classes if every image lies exactly one folder deep; images beside two or more of them have
    no label. Skipped files and merged folders are reported once, on stderr. Raises InputError.
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
    if hasattr(images, "detach"):  # a torch tensor, recognised without importing torch
        refuse_split(split, "the tensor")
        return ArraySource("the tensor", batch(_numpy(images), "the tensor"))
    raise InputError(
        "images must be a PIL picture, an array or tensor, a list of these, a path or a dataset name; "
        f"got {type(images).__name__}"
    )


def train_and_test(images: Any, remedy: str = "") -> list[Source]:
    """The train and the test split of a source. Raises InputError, whose message ends with the remedy, without both."""
    try:
        return [open_source(images, split) for split in ("train", "test")]
    except NoSplit as error:
        found = ", ".join(error.available) or "none"
        raise InputError(f"{error.source_name}: expected a train and a test split, got {found}{remedy}") from None


def load_images(
    images: Any, size: int | Size, split: str | None = None, *, fit: Fit = "crop", levels: Levels = NO_LEVELS
) -> np.ndarray:
    """Every picture of a small source at that side, or height and width, in order: uint8 (B, H, W, 3), see images.

    With `fit="place"`: every frame and tile, uint8 (B, H, W, 4), see sprites.SpriteSource.
    Raises InputError, also if a single picture cannot be read.
    """
    source = open_source(images, split)
    check_readable(source.source_name, source.unreadable, len(source) + len(source.unreadable))
    size, known = to_size(size, "size"), len(source.unreadable)
    source, levels, note = settle(source, size, fit, levels)
    if lost := source.unreadable[known:]:
        raise InputError(_with_remedy(lost[0], source))
    found = np.empty((len(source), *size, channels_of(fit)), np.uint8)
    for index in range(len(source)):
        try:
            found[index] = source.image(index, size, fit, levels)
        except UnreadableImage as error:
            raise InputError(_with_remedy(str(error), source)) from error
    if note:
        say_once(note)
    return found


def _with_remedy(line: str, source: Source) -> str:
    return line if "`slice" in line else f"{line}; repair it or leave it out of {source.source_name}"


class JoinedSource(Source):
    """Several sources in a row, from a list. Files are named by their paths, other pictures by number."""

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
        self.unreadable = [line for part in parts for line in part.unreadable]
        self.skipped = [line for part in parts for line in part.skipped]
        self.split = ", ".join(sorted({part.split for part in parts if part.split})) or None
        labels = [part.labels for part in parts if part.labels is not None]
        if len(labels) == len(parts) and all(part.classes is None for part in parts):
            self.take_labels(np.concatenate(labels))
        elif len(labels) == len(parts) and all(part.classes is not None for part in parts):
            self.take_labels(np.concatenate([_class_names(part) for part in parts]))

    def content(self, index: int) -> Content:
        part, place = self.places.locate(index)
        return self.parts[part].content(place)

    def image(self, index: int, size: Size, fit: Fit, levels: Levels = NO_LEVELS) -> np.ndarray:
        part, place = self.places.locate(index)
        return self.parts[part].image(place, size, fit, levels)

    def fingerprint(self) -> str:
        return sha256(part.fingerprint().encode() for part in self.parts)


def _class_names(part: Source) -> np.ndarray:
    """The class of each picture by its name, str objects (N,), "" for none."""
    classes = np.array([*(part.classes or ()), ""], object)  # -1 is the last
    assert part.labels is not None
    return classes[np.where(part.labels < len(classes) - 1, part.labels, -1)]


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
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4:  # numpy lacks bfloat16 and floats of 8 bits
        tensor = tensor.float()
    array: np.ndarray = tensor.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise InputError(
            f"a tensor {array.shape} may be one image, channels first, or {array.shape[0]} grey images; "
            "pass (H, W, 3), by x.permute(1, 2, 0), or (B, H, W, 1)"
        )
    return array


def check_path(path: str) -> None:
    """Raise InputError for a path that does not exist and cannot be the name of a set on the hub, or is a model."""
    for name, what in (("run.json", "run"), ("model.safetensors", "model")):
        if os.path.isfile(os.path.join(path, name)):
            raise InputError(
                f"{path}: expected images, got the folder of a {what}; give it as `model`, or to pretrain as `init`"
            )
    if os.path.exists(path) or is_pattern(path):
        return
    if os.path.isdir(parts := path.rstrip("/") + ".parts"):
        raise InputError(
            f"{path} is not finished: its parts lie in {parts}; repeat the command that started it, or, after all of "
            f"its jobs, with: nextpixel prepare `merge={path}`"
        )
    check_set_name(path)


def _open_path(path: str, split: str | None, stream: bool) -> Source:
    check_path(path)
    if os.path.isdir(path):
        return _open_folder(path, split)
    if not os.path.exists(path):
        if is_pattern(path):
            refuse_split(split, path)
            return _open_files(path, "", expand(path))
        return open_hub(path, split, stream=stream)
    if not os.path.isfile(path):
        raise InputError(f"{path} is neither a file nor a folder; give an image, a folder or a table of images")
    kind = extension(path)
    if kind in ARCHIVES:
        raise InputError(
            f"{path} is a compressed archive, which gives no access to single pictures; unpack it, or decompress it "
            "to a plain .tar"
        )
    if kind == "npz":
        return open_npz(path, split)
    refuse_split(split, path)
    if kind == "npy":
        return open_npy(path)
    if kind in TABLES | SHARDS:
        return _open_files(path, "", [path])
    return FileSource(path, os.path.dirname(path), [os.path.basename(path)])


def _open_files(source_name: str, folder: str, names: list[str], level: int | None = None) -> Source:
    """Sorted files of one kind: tables, shards or images; see image_folder of `level`."""
    kinds = {kind for name in names if (kind := extension(name)) in TABLES | SHARDS}
    if any(extension(name) not in kinds for name in names):
        kinds.add("image")
    if len(kinds) > 1:
        found = " and ".join("images" if kind == "image" else f".{kind} files" for kind in sorted(kinds))
        raise InputError(f"{source_name} holds {found}; expected one kind: give them by themselves")
    paths = [os.path.join(folder, name) for name in names]
    if kinds <= TABLES:
        return ParquetSource(source_name, paths)
    if kinds <= SHARDS:
        return ShardSource(source_name, paths)
    return image_folder(folder, names, level) if folder == source_name else FileSource(source_name, folder, names)


def _find_dicom(found: Listing) -> None:
    """Find DICOM files without a known extension: they are pictures, or unreadable without pydicom."""

    def bare(name: str) -> bool:  # a UID ends in a number
        return not (end := extension(name)) or end.isdigit()

    others = [name for name, kind in found.skipped if kind == "other file" and (not found.names or bare(name))]
    dicom = [name for name in others if find_format(os.path.join(found.folder, name)) is FORMATS["DICOM"]]
    if kind := unread_kind("dcm"):
        found.unreadable = sorted([*found.unreadable, *((name, kind) for name in dicom)])
    else:
        found.names = sorted([*found.names, *dicom])
    found.skipped = [entry for entry in found.skipped if entry[0] not in set(dicom)]


def _open_folder(folder: str, split: str | None) -> Source:
    if is_map(folder):
        refuse_split(split, folder)
        return MapSource(folder)
    found = Listing(folder, readable_extensions() | TABLES | SHARDS)
    if not any(extension(name) in TABLES | SHARDS for name in found.names):
        _find_dicom(found)
    if not found.names and (maps := [name for name in os.listdir(folder) if is_map(os.path.join(folder, name))]):
        name = choose_split(maps, split, folder)
        prepared = MapSource(os.path.join(folder, name))
        prepared.split = name if len(maps) > 1 else None
        return prepared
    others = count_kinds(found.unreadable + found.skipped)
    if not found.names:
        raise InputError(
            f"the folder {folder} holds no image: nothing in it or below ends in .png, .jpg, another image's "
            f"extension, .parquet or .tar{others and '; it holds ' + others}"
        )
    if others:
        say_once(f"{folder}: skipped {others}")
    root, names, unreadable, chosen = folder, found.names, found.unreadable, None
    level, rest_is_train = folder_level(names, split, folder)
    if level is not None:
        parts = by_folder(names, level, rest_is_train)
        chosen = choose_split([name for name in parts if name], split, folder, beside=len(parts.get("", ())))
        names, several = parts[chosen], len(parts) > 1
        kept = set(by_folder([name for name, _ in unreadable], level, rest_is_train).get(chosen, ()))
        unreadable = [entry for entry in unreadable if entry[0] in kept]
        above = {tuple(name.split("/")[: level + 1]) for name in names}
        if rest_is_train and chosen == "train":
            level = None
        elif len(above) == 1:
            root = os.path.join(folder, *above.pop())
            names, level = [name.split("/", level + 1)[-1] for name in names], None
        chosen = chosen if several else None
    elif parts := stem_splits(names, split) if {extension(name) for name in names} <= TABLES | SHARDS else {}:
        chosen = choose_split(parts, split, folder)
        names = parts[chosen]
        chosen = chosen if len(parts) > 1 else None
    else:
        refuse_split(split, folder)
    source = _open_files(root, root, names, level)
    source.split = chosen
    source.unreadable = [*source.unreadable, *(str(UnreadableImage(name, kind)) for name, kind in unreadable)]
    source.skipped = [*source.skipped, *(f"{name}: {kind}" for name, kind in found.skipped)]
    return source
