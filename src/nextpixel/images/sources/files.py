"""Image files: single, in a list, or in a folder, with or without a folder for each class."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import takewhile

import numpy as np

from nextpixel.errors import InputError
from nextpixel.images import missing_plugin, readable_extensions
from nextpixel.images.formats import tilesets
from nextpixel.images.sources.base import Source, extension, identity
from nextpixel.limits import read_bytes

SAMPLED_FILES = 8
SAMPLED_BYTES = 65536
TEXT_BYTES = 1 << 16  # of a caption
UNREAD = {  # extension -> kind, of pictures that are not read
    end: kind
    for kind, ends in {
        "video": "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv",
        "camera raw file": "3fr arw cr2 cr3 dng erf iiq kdc mrw nef nrw orf pef raf rw2 srf srw x3f",
        "vector drawing": "ai emf eps ps svg svgz wmf",
    }.items()
    for end in ends.split()
}
SYSTEM = frozenset(  # entries that operating systems and file servers make, in lower case; names with a dot apart
    ["@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "desktop.ini", "ehthumbs.db",
     "lost+found", "network trash folder", "picasa.ini", "recycler", "system volume information",
     "temporary items", "thumbs.db"]
)  # fmt: skip


class FileSource(Source):
    """Image files: `folder` joined with a name is the path. No file is opened before read()."""

    def __init__(
        self,
        source_name: str,
        folder: str,
        names: list[str],
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(source_name, names, labels, classes)
        self.folder = folder

    def content(self, index: int) -> str:
        return os.path.join(self.folder, self.names[index])

    def texts(self, name: str) -> list[str]:
        """The files beside the pictures with that ending: cat.txt beside cat.png."""
        found = [self._text(f"{os.path.splitext(self.content(i))[0]}.{name}") for i in range(len(self))]
        return super().texts(name) if all(text is None for text in found) else [text or "" for text in found]

    @staticmethod
    def _text(path: str) -> str | None:
        try:
            return read_bytes(path, TEXT_BYTES).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            return None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        try:
            for name in self.names:
                stat = os.stat(os.path.join(self.folder, name))
                digest.update(os.fsencode(name) + b"\0%d %d\0" % (stat.st_size, stat.st_mtime_ns))
                for sheet in _sheets(os.path.join(self.folder, name)):
                    digest.update(os.fsencode(identity(sheet)))
        except OSError as error:
            raise InputError(f"{name} in {self.source_name} cannot be read: {error.strerror}") from error
        # Frames or scans unpacked with fixed times may differ despite equal names, sizes and times, so hash the
        # first bytes of a few files too.
        for name in self.names[:: max(1, len(self.names) // SAMPLED_FILES)]:
            with suppress(OSError), open(os.path.join(self.folder, name), "rb") as file:
                digest.update(file.read(SAMPLED_BYTES))
        return digest.hexdigest()


def image_folder(folder: str, names: list[str], level: int | None = None) -> FileSource:
    """Sorted names below a folder; if each lies exactly one folder deep, the sub-folders are the classes.

    Pictures beside two or more such folders have no label. `level` is the depth of the folder that names a split.
    Folders that contain everything are ignored, as in train/train/cat/1.png.
    """
    folders = [_folders(name, level) for name in names]
    around = len(list(takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))))
    deepest = max(map(len, folders), default=0)
    classes = [_class_of(parents[min(around, deepest - 1) :]) for parents in folders] if deepest else []
    found = sorted({name for name in classes if name})
    if None in classes or not found or ("" in classes and len(found) < 2):
        return FileSource(folder, folder, names)
    number = {name: label for label, name in enumerate(found)} | {"": -1}
    return FileSource(folder, folder, names, np.array([number[name or ""] for name in classes], np.int64), found)


def _folders(name: str, level: int | None) -> list[str]:
    parents = name.split("/")[:-1]
    if level is not None:
        del parents[level]
    return parents


def _class_of(parents: list[str]) -> str | None:
    """The class folder; "" beside class folders, None in deeper ones."""
    return None if len(parents) > 1 else "".join(parents)


def _sheets(path: str) -> list[str]:
    """The files that a tileset or a map names, its pictures among them; none for other files."""
    if extension(path) in tilesets.XML | tilesets.JSON:
        with suppress(Exception):  # a damaged one is reported when it is read
            sheets = tilesets.sheets_of(path)
            return [
                file for sheet in sheets for file in (sheet.described_in, sheet.path) if file and os.path.exists(file)
            ]
    return []


def is_image(path: str) -> bool:
    """Whether a name ends as images do; nothing is opened."""
    return extension(path) in readable_extensions()


class Listing:
    """Relative POSIX paths below a folder: of files with some extensions, and, with their kinds, of everything else.

    Links to files and folders are followed, wherever they lead, but never in a circle: whoever owns the folder made
    them. No file is opened. Raises InputError.
    """

    def __init__(self, folder: str, extensions: frozenset[str]) -> None:
        self.folder, self.extensions = folder, extensions
        self.names: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self.skipped: list[tuple[str, str]] = []
        self._walk(folder, "", ())
        for found in (self.names, self.unreadable, self.skipped):
            found.sort()

    def _walk(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            stat = os.stat(folder)
            here = (stat.st_dev, stat.st_ino)
            if here in above:
                return
            with os.scandir(folder) as entries:
                for entry in entries:
                    name, end = prefix + entry.name, extension(entry.name)
                    if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
                        self.skipped.append((name, "hidden or system entry"))
                    elif entry.is_symlink() and _leads_nowhere(entry):
                        self.unreadable.append((name, "broken link, pipe or device"))
                    elif entry.is_dir():
                        self._walk(entry.path, f"{name}/", (*above, here))
                    elif kind := unread_kind(end):
                        self.unreadable.append((name, kind))
                    elif end not in self.extensions:
                        self.skipped.append((name, "other file"))
                    elif entry.is_file():
                        self.names.append(name)
                    else:
                        self.unreadable.append((name, "broken link, pipe or device"))
        except OSError as error:
            raise InputError(f"the folder {folder} cannot be listed: {error.strerror}") from error


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a link to itself, or to where nobody may look; a broken link is none."""
    try:
        entry.stat()
    except OSError as error:
        return error.errno != errno.ENOENT
    return False


def unread_kind(end: str) -> str | None:
    """The kind of unreadable picture with that extension, and the remedy; None for other files."""
    if missing := missing_plugin(end):
        return f"{missing[0]} (to read it: pip install {missing[1]})"
    return UNREAD.get(end)


def count_kinds(entries: Iterable[tuple[str, str]]) -> str:
    """Count entries (name, kind) by kind, the most common first; "" without entries."""
    entries = list(entries)
    ends = sorted({extension(name) for name, kind in entries if kind == "other file"} - {""})
    shown = f" ({', '.join(f'.{end}' for end in ends[:5])}{', ...' if len(ends) > 5 else ''})" if ends else ""
    counts = Counter(kind for _, kind in entries).most_common()
    return ", ".join(f"{count:,} x {kind}{shown if kind == 'other file' else ''}" for kind, count in counts)
