"""Atomic writing of files and folders, checks of output paths, and the user's cache."""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from nextpixel.errors import InputError, WorkError
from nextpixel.limits import read_bytes
from nextpixel.progress import say_once

PART = re.compile(r"\.nextpixel-[0-9a-f]{16}\.part")  # a file or folder being written
ANY_PART = re.compile(
    rf"{PART.pattern}|\..*\.part.*|[0-9a-f]{{32}}\.part-\d+"
)  # includes names used by earlier versions
EMBEDDED = "embedded"
BUNDLED = (EMBEDDED, "faces", "photos")  # models in assets/
STALE_SECONDS = 86_400.0
LONGEST_NAME = 255  # bytes, on all common file systems
DIGEST_BYTES = 32
REMEDY = "Free some space or correct the permissions, then try again, or resume the run"
cleaned: set[str] = set()


@contextmanager
def writing(path: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Turn a failed write into a WorkError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        message = f"{path}: cannot be written ({reason}); what was saved before is untouched. {remedy}"
        raise WorkError(message) from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `path` when the block succeeds and is removed when it fails.

    Missing parent folders are created. Safe with concurrent writers: the last one wins. Raises WorkError.
    """
    part = _part_beside(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, remedy: str = REMEDY, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block succeeds and removed when it fails.

    Missing parent folders are created. Raises WorkError, also if `path` exists by then, unless it is `shared`: then the
    existing folder is kept.
    """
    part = _part_beside(path)
    try:
        with writing(path, remedy):
            part.mkdir(parents=True)
            yield part
            for place, _, names in os.walk(part, topdown=False):
                for name in names:
                    with open(os.path.join(place, name), "rb+") as file:
                        os.fsync(file.fileno())
                _sync_folder(Path(place))
            try:
                os.rename(part, path)
            except OSError:
                if not (shared and path.is_dir()):
                    raise
            _sync_folder(path.parent)
    except WorkError as error:  # about a file in the folder
        raise WorkError(str(error).replace(str(part), str(path))) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder; a killed process leaves no partial folder under its name."""
    part = _part_beside(path)
    os.rename(path, part)
    shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; what is not text in a file name is escaped, so that JSON reads it back."""
    with new_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_sealed(path: Path, content: bytes) -> None:
    """Write `content` followed by its SHA-256, for `is_sealed`; shared libraries allow such a trailer."""
    with new_file(path) as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def is_sealed(path: Path) -> bool:
    """Whether `path` is an intact file written by write_sealed."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return False
    return content[-DIGEST_BYTES:] == hashlib.sha256(content[:-DIGEST_BYTES]).digest()


def clipped(name: str, ending: str = "") -> str:
    """`name` followed by `ending`, with `name` cut to the maximum length of file names."""
    room = LONGEST_NAME - len(os.fsencode(ending))
    while len(os.fsencode(name)) > room:
        name = name[:-1]
    return name + ending


def parts_folder(path: Path, prefix: str = "") -> Path:
    """The folder next to `path` for its unfinished parts. Raises InputError for a path without a name."""
    if not path.name:
        raise InputError(f"expected the name of a folder, got {str(path)!r}")
    name = f"{prefix}{path.name}.parts"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{prefix}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.parts"
    return path.with_name(name)


def _part_beside(path: Path) -> Path:
    return path.with_name(f".nextpixel-{secrets.token_hex(8)}.part")


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # no permission, or a system without folder descriptors
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)


def remove_parts(folder: Path, idle_seconds: float, names: re.Pattern[str] = PART) -> None:
    """Remove temporary files that killed processes left in a folder and that have been idle for so long."""
    with suppress(OSError):
        for part in folder.iterdir():
            if names.fullmatch(part.name) and _idle(part, idle_seconds):
                shutil.rmtree(part, ignore_errors=True)
                if not part.is_dir():
                    part.unlink(missing_ok=True)


def _idle(part: Path, seconds: float) -> bool:
    return not seconds or time.time() - max(file.lstat().st_mtime for file in (part, *part.rglob("*"))) > seconds


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError."""
    try:
        value = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected it in a checkpoint or run folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a readable JSON file ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def is_hub_name(name: str) -> bool:
    """Whether a path that does not exist may be owner/name on the hub; photos/cats is mistyped where photos/ exists."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None and not os.path.isdir(name.partition("/")[0])


def check_model_name(name: str | Path | None) -> None:
    """Raise InputError unless the name is that of a folder here, or may be one of a model on the hub."""
    if name is None or name in BUNDLED or os.path.isdir(name):
        return
    if os.path.exists(name) or not is_hub_name(str(name)):
        raise InputError(
            f"expected a checkpoint folder, a run folder, {', '.join(BUNDLED)}, or a hub name such as "
            f"openai/imagegpt-small, got {str(name)!r}",
            argument="model",
        )


def check_run_folder(path: str | Path, argument: str) -> None:
    """Raise InputError unless the folder is that of a run."""
    if not (Path(path) / "run.json").is_file():
        raise InputError(f"expected a run folder with run.json, got {str(path)!r}", argument=argument)


def new_output(path: str | Path, argument: str = "out") -> Path:
    """Check that a path can be created and does not exist. Raises InputError."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists already; name a new folder, or remove it first", argument=argument)
    return check_output(path, argument)


def check_output(path: str | Path, argument: str = "out") -> Path:
    """Check that a path can be written; its parent folders may be missing. Raises InputError."""
    out = Path(path)
    try:
        whole = out.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError(f"{out} cannot be created: {error}; name another place", argument=argument) from None
    parent = next((folder for folder in whole.parents if os.path.lexists(folder)), whole)
    wrong = None
    if not out.name:
        wrong = f"expected a name, got {str(path)!r}"
    elif len(os.fsencode(out.name)) > LONGEST_NAME:
        wrong = f"expected a name of at most {LONGEST_NAME} bytes, got {out.name!r}; shorten it"
    elif not parent.is_dir():
        wrong = f"expected a folder, got the file {parent} (for {out}); name another place"
    elif not os.access(parent, os.W_OK | os.X_OK):
        wrong = f"the folder {parent} cannot be written to (expected for {out}); name another place"
    if wrong:
        raise InputError(wrong, argument=argument)
    remove_parts(parent, STALE_SECONDS)
    return out


def user_cache(kind: str, given: str | Path | None = None) -> Path:
    """The subfolder `kind`, such as "decoded", of the cache: `given`, $NEXTPIXEL_CACHE or the user's cache folder.

    Cached files are loaded into the process, so the folder must belong to this user and be writable by nobody else.
    Otherwise a private folder in it or a private temporary one is used instead, and reported once. Raises WorkError if
    there is none.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    default = None if home.startswith("~") else os.path.join(home, "nextpixel")
    wanted = given or os.environ.get("NEXTPIXEL_CACHE") or default
    place = wanted and os.path.abspath(wanted)
    reason = _unusable(place, kind) if place else "there is no home folder"
    if place and reason is None:
        return Path(place, kind)
    try:
        other = next(folder for folder in _private_folders(place) if _unusable(folder, kind) is None)
    except FileNotFoundError as error:  # raised by tempfile
        raise WorkError(
            f"expected a folder that can be written to, got none ({place or 'no home folder'}: {reason}; "
            f"{error.strerror}); set NEXTPIXEL_CACHE to one",
            argument="cache",
        ) from None
    say_once(f"cache: using {other} ({reason}); set NEXTPIXEL_CACHE to name another folder")
    return Path(other, kind)


def _private_folders(place: str | None) -> Iterator[str]:
    name = f"nextpixel-{os.geteuid()}"
    if place:
        yield os.path.join(place, name)
    yield os.path.join(tempfile.gettempdir(), name)
    yield own_temporary_folder()


@functools.cache
def own_temporary_folder() -> str:
    """A temporary folder that is removed when the process exits."""
    folder = tempfile.mkdtemp(prefix="nextpixel-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _unusable(place: str, kind: str) -> str | None:
    """Create the cache folder, private to this user, or return why it cannot be used."""
    for folder in (place, os.path.join(place, kind)):
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            found = os.stat(folder)
        except OSError as error:
            return error.strerror
        if found.st_uid != os.geteuid():
            return f"{folder} belongs to another user"
        if found.st_mode & 0o022:
            return f"others can write to {folder}; chmod go-w allows it again"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{folder} cannot be written to"
    if folder not in cleaned:
        cleaned.add(folder)
        remove_parts(Path(folder), STALE_SECONDS, ANY_PART)
    return None
