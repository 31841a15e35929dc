"""Writing so that a kill, a full disk or a second process never leaves half a file or folder under its name."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from nextpixel.errors import InputError, WorkError

PART = re.compile(r"\.([^/]+)\.part-\d+")  # temporary names: that of the file or folder, and of the process


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A failed write becomes a WorkError that names `path`, by the name that it was to take."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        reason = getattr(error, "strerror", None) or error
        name = PART.sub(r"\1", str(path))
        raise WorkError(
            f"{name}: cannot be written ({reason}); what was saved before is untouched. "
            "Free some space or correct the permissions, then go on"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name once the block ends well, and is removed if not."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with writing(path):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    _sync(file)
            os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that replaces it once the block ends well, and is removed if not.

    Several machines may write it at once.
    """
    part = path.with_name(f".{path.name}.part-{secrets.randbits(64)}")
    try:
        with writing(path):
            with part.open("wb") as file:
                yield file
            _sync(part)
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once."""
    with new_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file at once."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left in a folder under temporary names."""
    for part in sorted(folder.glob(".*.part*")):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def _sync(file: Path) -> None:
    """Put a file on the disk before it is renamed: else a power cut may keep the name and lose the content."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an InputError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected it in a checkpoint or run folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, got something unreadable ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def new_output(path: str | Path, argument: str = "out") -> Path:
    """A path that may be created: its parent folder exists and it does not."""
    out = Path(path)
    if out.exists():
        raise InputError(f"{out} exists already; name a new folder, or remove it first", argument=argument)
    parent_exists(out, argument)
    return out


def parent_exists(out: Path, argument: str = "out") -> None:
    if not out.resolve().parent.is_dir():
        raise InputError(
            f"the folder {out.parent} does not exist; create it first (expected for {out})", argument=argument
        )
