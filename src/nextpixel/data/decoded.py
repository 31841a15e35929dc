"""Decoded sets, memory maps of uint8 images of one size, and the training batches drawn from them."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nextpixel.config import TAGS, Fit, Levels, Size, augmentations, channels_of, side_text, to_side, to_size
from nextpixel.data.recolour import ColourWords, Recolouring, apply_colours
from nextpixel.errors import InputError, WorkError
from nextpixel.files import new_folder, remove_folder, user_cache
from nextpixel.images import UnreadableImage, crop_resize, orient
from nextpixel.images.sources import MapSource, Source, open_source, settle
from nextpixel.images.sources.base import NO_LEVELS, READ_TOGETHER
from nextpixel.images.sources.maps import Part, check_readable, write_set
from nextpixel.images.sources.sprites import SpriteSource
from nextpixel.progress import Advance, progress, say_once

PREPROCESSING = "bilinear; 3"  # changes with images.decode and images.fit_image
PREPROCESSING_BEFORE = "bilinear; 2"  # applied the EXIF orientation twice; the keys of older runs have it
DROPPED = 0.1  # share of the captions that training leaves out: guidance compares with none (Ho & Salimans 2022)
RETRIED_AT_MOST = 20  # pictures of a cached set that could not be read
MASKED_PART = 0.15  # Chen et al. 2020, section 2.2; 20% did equally well, more did worse


@dataclass(frozen=True)
class DecodedSet:
    """Images uint8 (N, H, W, 3), or (N, H, W, 4) if placed, in a memory map, in the order of the sorted names."""

    images: NDArray[np.uint8]
    names: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: list[str] | None
    unreadable: list[str]
    """For each file that could not be read, its name and the reason."""
    key: str
    skipped: Sequence[str] = ()
    """For each other file or folder beside the pictures, a line."""
    levels: Levels = NO_LEVELS
    """Including the range, where it was measured on the set."""
    note: str | None = None
    """A line about that range."""
    pixels: str | None = None
    key_before: str | None = None
    """The key of the same pictures as the previous version decoded them."""

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """Hex SHA-256 of the images, independent of file names."""
        if self.pixels is not None:
            return self.pixels
        found = hashlib.sha256()
        for start in range(0, len(self), READ_TOGETHER):
            found.update(np.ascontiguousarray(self.images[start : start + READ_TOGETHER]).data)
        return found.hexdigest()


def decode(
    images: Any,
    size: int | Size,
    *,
    split: str | None = None,
    cache: str | Path | None = None,
    fit: Fit = "crop",
    levels: Levels = NO_LEVELS,
) -> DecodedSet:
    """The decoded set of any source at `size`, see images.fit_image; decoded once, then read from the cache.

    A prepared folder is used in place. Without a range in `levels`, it is measured on the set. Raises InputError when
    more than one picture in ten cannot be read, or none can, or for a prepared folder with other settings.
    """
    source, size = open_source(images, split), to_size(size, "size")
    if isinstance(source, MapSource):
        source.check(size, fit)
        settle(source, size, fit, levels)  # raises for other levels
    key = _key(source, size, fit, levels)
    if isinstance(source, MapSource) and source.size == size:
        return replace(_decoded(source, key), key_before=_key(source, size, fit, levels, PREPROCESSING_BEFORE))
    check_readable(source.source_name, source.unreadable, len(source) + len(source.unreadable))
    try:
        found = read_decoded(key, cache)
        if fit != "place" and found.unreadable and _can_be_read_now(source, found, fit):
            more = hashlib.sha256(f"{key} {len(found)}".encode()).hexdigest()[:32]  # runs refer to the set as it was
            with suppress(WorkError):  # as where the cache cannot be written to
                found = _cached(more, source, size, fit, levels, cache)
    except FileNotFoundError:
        found = _cached(key, source, size, fit, levels, cache)
    if found.note:
        say_once(found.note)
    unreadable = [*_files(source).unreadable, *found.unreadable]
    check_readable(source.source_name, unreadable, len(found) + len(unreadable))
    before = _key(source, size, fit, levels, PREPROCESSING_BEFORE)
    return replace(found, unreadable=unreadable, skipped=source.skipped, key_before=before)


def _cached(key: str, source: Source, size: Size, fit: Fit, levels: Levels, cache: str | Path | None) -> DecodedSet:
    """The set of that key, decoded into the cache unless it is there."""
    try:
        return read_decoded(key, cache)
    except FileNotFoundError:
        _decode_into(_folder(key, cache), source, size, fit, levels)
        return read_decoded(key, cache)


def _can_be_read_now(source: Source, found: DecodedSet, fit: Fit) -> bool:
    """Whether a picture that could not be decoded before can be: a library was installed, a permission given."""
    names = set(found.names)
    for row in itertools.islice((row for row, name in enumerate(source.names) if name not in names), RETRIED_AT_MOST):
        with suppress(UnreadableImage):
            source.image(row, found.images.shape[1:3], fit, found.levels)
            return True
    return False


def _files(source: Source) -> Source:
    return source.files if isinstance(source, SpriteSource) else source


def read_decoded(key: str, cache: str | Path | None = None) -> DecodedSet:
    """The decoded set of that key in the cache. Raises FileNotFoundError where it is missing or damaged."""
    folder = _folder(key, cache)
    try:
        return _decoded(MapSource(folder), key)
    except InputError as error:
        with suppress(FileNotFoundError):  # another process was faster
            remove_folder(folder)
        raise FileNotFoundError(str(error)) from error


def resized(source: MapSource, size: Size, fit: Fit) -> DecodedSet:
    """A prepared set at the smaller size that it was made for, resized on access."""
    found = _decoded(source, _key(source, size, fit, NO_LEVELS))
    pixels = f"{found.digest()} at {side_text(size)}"
    return replace(found, images=cast(Any, ResizedImages(source, size)), pixels=pixels)


class ResizedImages:
    """Images at a smaller size, uint8 (N, H, W, 3), resized when they are indexed."""

    def __init__(self, source: MapSource, size: Size) -> None:
        self.source, self.size, self.shape = source, size, (len(source), *size, 3)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        numbers = np.arange(len(self))[rows]
        found = np.empty((numbers.size, *self.shape[1:]), np.uint8)
        for i, number in enumerate(numbers.reshape(-1)):
            found[i] = self.source.image(int(number), self.size, self.source.fit)
        return found.reshape(*numbers.shape, *self.shape[1:])


def _key(source: Source, size: Size, fit: Fit, levels: Levels, preprocessing: str = PREPROCESSING) -> str:
    requested = "" if isinstance(source, MapSource) or not levels else f" {levels}"
    key = f"{source.fingerprint()} {side_text(size)} {fit} {preprocessing}{requested}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _decoded(source: MapSource, key: str) -> DecodedSet:
    labels, classes, unreadable = source.labels, source.classes, list(source.unreadable)
    found = DecodedSet(source.images, source.names, labels, classes, unreadable, key)
    return replace(found, levels=source.levels, note=source.note, pixels=source.pixels)


def _folder(key: str, cache: str | Path | None) -> Path:
    return user_cache("decoded", cache) / key


def _decode_into(folder: Path, source: Source, size: Size, fit: Fit, levels: Levels) -> None:
    known = len(_files(source).unreadable)
    source, levels, note = settle(source, size, fit, levels)
    facts = {
        "side": to_side(size),
        "fit": fit,
        "preprocessing": PREPROCESSING,
        "source": source.source_name,
        "classes": source.classes,
        **levels.values(),
        "note": note,
    }
    remedy = "Free some space, or use another folder with NEXTPIXEL_CACHE or `cache`"
    with new_folder(folder, remedy, shared=True) as part, progress("decoding", len(source), "images") as advance:
        parts = read_parts(source, range(len(source)), size, fit, levels, advance=advance)
        write_set(part, parts, facts, source.unreadable[known:])


def read_parts(
    source: Source,
    numbers: range,
    size: Size,
    fit: Fit,
    levels: Levels = NO_LEVELS,
    *,
    captions: Sequence[str] | None = None,
    workers: int | None = None,
    advance: Advance | None = None,
) -> Iterator[Part]:
    """The pictures `numbers` of a source as images, in order, in parts of READ_TOGETHER.

    `captions` are those of the whole source. Independent of the number of threads, `workers`. Calls `advance(count)`
    after each part.
    """

    def one(i: int) -> NDArray[np.uint8] | UnreadableImage:
        try:
            return source.image(i, size, fit, levels)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoders release the GIL
        for start in range(numbers.start, numbers.stop, READ_TOGETHER):
            rows = range(start, min(start + READ_TOGETHER, numbers.stop))
            images, kept, unreadable = [], [], []
            for row, image in zip(rows, pool.map(one, rows), strict=True):
                if isinstance(image, UnreadableImage):
                    unreadable.append(str(image))
                else:
                    images.append(image)
                    kept.append(row)
            labels = None if source.labels is None else source.labels[kept]
            found = np.stack(images) if images else np.empty((0, *size, channels_of(fit)), np.uint8)
            own = None if captions is None else [captions[row] for row in kept]
            yield Part(found, [source.names[row] for row in kept], labels, unreadable, own)
            if advance is not None:
                advance(len(rows))


def split_indices(
    count: int, fraction: float, seed: int, remedy: str = "add some"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the training and the held-out images, at least one of each."""
    if count < 2:
        raise InputError(f"expected at least 2 images, to hold one out for validation, got {count}; {remedy}")
    held = min(max(1, round(count * fraction)), count - 1)
    order = np.random.default_rng([seed, 0x5EED]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def masks(numbers: NDArray[np.int64], tokens: int, *, seed: int, epoch: int = 0) -> NDArray[np.bool_]:
    """Which tokens of each image are hidden, (B, T): each with probability 0.15, by (seed, epoch, image number).

    At least one is, since the paper's loss divides by their number.
    """
    hidden = np.empty((len(numbers), tokens), bool)
    for row, number in enumerate(numbers):
        entropy = np.random.SeedSequence([seed, 0xBE47, epoch, int(number)])
        noise = np.random.Generator(np.random.Philox(entropy)).random(tokens)
        hidden[row] = noise < max(MASKED_PART, np.nextafter(noise.min(), 1))
    return hidden


def all_tags(tags: NDArray[np.integer]) -> NDArray[np.int64]:
    """Tags (N, TAGS, w) of those (N, t, w) that Words.pack makes."""
    return np.pad(tags.astype(np.int64), ((0, 0), (0, TAGS - tags.shape[1]), (0, 0)))


def some_tags(tags: NDArray[np.integer], numbers: NDArray[np.int64], *, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """The tags that training sees of pictures `numbers`, (B, TAGS, w) of (N, t, w), by (seed, epoch, number).

    One caption in ten is left out. Of the others each tag is kept with a probability that is drawn anew for each
    picture, in random order: a model that has always seen all kinds of tags draws wreckage where one is left out.
    """
    found = np.zeros((len(numbers), TAGS, tags.shape[2]), np.int64)
    for row, number in enumerate(numbers):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xCA97, epoch, int(number)])))
        own = tags[number][tags[number].any(-1)]
        dropped, share = rng.random(2)
        kept = rng.permutation(len(own))[rng.random(len(own)) < share]
        if dropped >= DROPPED:
            found[row, : len(kept)] = own[kept]
    return found


def stored_size(size: Size, augment: str) -> Size:
    """The size at which pictures are stored: twice as large for random crops."""
    return (2 * size[0], 2 * size[1]) if "crop" in augmentations(augment) else size


class Batches:
    """Training batches: order, crops and flips are functions of (seed, epoch, image number) alone.

    Each epoch has every image once; a batch may span two epochs. `part` (i, n) selects the i-th of n equal parts of
    each batch.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        chosen: NDArray[np.int64],
        *,
        size: Size,
        batch_images: int,
        augment: str,
        seed: int,
        part: tuple[int, int] = (0, 1),
        colour_words: ColourWords | None = None,
    ) -> None:
        self.images, self.chosen, self.size = images, chosen, size
        self.batch_images, self.augment, self.seed = batch_images, augmentations(augment), seed
        self.number, self.parts = part
        if "orient" in self.augment and size[0] != size[1]:
            raise InputError(f"orient needs square pictures, got {size[0]} x {size[1]} pixels", argument="augment")
        self.colour_words = colour_words
        self._recolouring = Recolouring(images, chosen, seed)
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    def __call__(self, step: int) -> NDArray[np.uint8]:
        """The images of a step, counted from 0, uint8 (batch_images / n, H, W, 3)."""
        parts = [
            self._augmented(self._coloured(epoch, self.chosen[rows]), self._epoch(epoch)[1][rows])
            for epoch, rows in self._rows(step)
        ]
        return np.concatenate(parts)

    def numbers(self, step: int) -> NDArray[np.int64]:
        """The indices of these images in the set, (batch_images / n,)."""
        return np.concatenate([self.chosen[rows] for _, rows in self._rows(step)])

    def mirrored(self, step: int) -> NDArray[np.bool_]:
        """Which of that step's images are mirrored, (batch_images / n,)."""
        flips = "flip" in self.augment
        return np.concatenate([_mirrored(self._epoch(epoch)[1][rows]) & flips for epoch, rows in self._rows(step)])

    def orientations(self, step: int) -> NDArray[np.int64]:
        """The orientations of that step's images, (batch_images / n,), see images.orient."""
        oriented = "orient" in self.augment
        return np.concatenate(
            [_orientations(self._epoch(epoch)[1][rows]) * oriented for epoch, rows in self._rows(step)]
        )

    def masks(self, step: int, tokens: int) -> NDArray[np.bool_]:
        """Which tokens of that step's images are hidden from a masked model, (batch_images / n, T)."""
        parts = [masks(self.chosen[rows], tokens, seed=self.seed, epoch=epoch) for epoch, rows in self._rows(step)]
        return np.concatenate(parts)

    def tags(self, step: int, tags: NDArray[np.integer]) -> NDArray[np.int64]:
        """Those of the tags (N, t, w) of the set that training sees of that step's images, see some_tags."""
        parts = []
        for epoch, rows in self._rows(step):
            found = some_tags(tags, self.chosen[rows], seed=self.seed, epoch=epoch)
            if "recolour" in self.augment and self.colour_words is not None:
                for own, number in zip(found, self.chosen[rows].tolist(), strict=True):
                    own[:] = self.colour_words.changed(own, self._new_colours(number, epoch)[1])
            parts.append(found)
        return np.concatenate(parts)

    def _rows(self, step: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(epoch, indices into `chosen`) of that step's images."""
        images = self.batch_images // self.parts
        start = step * self.batch_images + self.number * images
        epochs, rows = np.divmod(np.arange(start, start + images), len(self.chosen))
        for epoch in range(epochs[0], epochs[-1] + 1):
            yield epoch, self._epoch(epoch)[0][rows[epochs == epoch]]

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if epoch not in self._epochs:
            self._epochs = {e: v for e, v in self._epochs.items() if e == epoch - 1}
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(len(self.chosen))
            self._epochs[epoch] = order, rng.random((len(order), 4), dtype=np.float32)
        return self._epochs[epoch]

    def _augmented(self, images: NDArray[np.uint8], noise: NDArray[np.float32]) -> NDArray[np.uint8]:
        if "crop" in self.augment:
            return np.stack(
                [crop_resize(i, crop_box(i.shape[:2], *n[1:]), self.size) for i, n in zip(images, noise, strict=True)]
            )
        if "pad" in self.augment:
            images = self._padded(images, noise)
        if "shift" in self.augment:
            images = np.stack([_shifted(*pair) for pair in zip(images, noise[:, 1:3], strict=True)])
        if "wrap" in self.augment:
            offsets = (noise[:, 1:3] * np.array(self.size, np.float32)).astype(np.int64)
            images = np.stack([np.roll(one, by, (0, 1)) for one, by in zip(images, offsets, strict=True)])
        if "flip" in self.augment:
            mirrored = _mirrored(noise)
            images = images.copy()
            images[mirrored] = images[mirrored, :, ::-1]
        if "orient" in self.augment:
            orientations, images = _orientations(noise), images.copy()
            for orientation in np.unique(orientations):
                rows = orientations == orientation
                images[rows] = orient(images[rows], orientation)
        return images

    def _coloured(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = self.images[numbers]
        if "recolour" in self.augment:
            pairs = zip(images, numbers.tolist(), strict=True)
            images = np.stack([apply_colours(one, self._new_colours(number, epoch)[0]) for one, number in pairs])
        return images

    def _new_colours(self, number: int, epoch: int) -> tuple[dict[int, int], dict[str, str]]:
        if self.colour_words is None:
            return self._recolouring(number, epoch)
        return self._recolouring(number, epoch, self.colour_words.named(number), self.colour_words.known)

    def _padded(self, images: NDArray[np.uint8], noise: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Zagoruyko & Komodakis 2016: reflect-pad (4 pixels at side 32) and take a random crop."""
        rows, columns = (max(1, n // 8) for n in self.size)
        padded = np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode="reflect")
        offsets = (noise[:, 1:3] * np.array([2 * rows + 1, 2 * columns + 1], np.float32)).astype(np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(1, 2))
        picked = windows[np.arange(len(images)), offsets[:, 0], offsets[:, 1]]  # (B, 3, H, W)
        return np.ascontiguousarray(picked.transpose(0, 2, 3, 1))


def _shifted(image: NDArray[np.uint8], noise: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image (H, W, 4) moved to a random place by as much as its transparent margin allows."""
    drawn = image[..., 3] > 0
    offsets = []
    for axis, share in ((1, noise[0]), (0, noise[1])):
        places = np.flatnonzero(drawn.any(axis))
        first, last = (places[0], places[-1]) if len(places) else (0, drawn.shape[1 - axis] - 1)
        offsets.append(int(share * (drawn.shape[1 - axis] - last + first)) - int(first))
    return np.roll(image, offsets, (0, 1))


def crop_box(size: Size, scale: float, x: float, y: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random crop of an image, by three numbers from 0 to 1.

    Chen et al. 2020, section 3.1: shorter side between 256 and 384, a 224 x 224 crop.
    """
    height, width = (n * 224 / (256 + 128 * scale) for n in size)
    left, top = (size[1] - width) * x, (size[0] - height) * y
    return left, top, left + width, top + height


def _orientations(noise: NDArray[np.float32]) -> NDArray[np.int64]:
    return (noise[:, 0] * 8).astype(np.int64)


def _mirrored(noise: NDArray[np.float32]) -> NDArray[np.bool_]:
    return noise[:, 0] < 0.5
