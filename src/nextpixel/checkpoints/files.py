"""Writing so that a kill, a full disk or a second process never leaves half a file or folder under its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextpixel.errors import InputError, WorkError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name once the block ends well, and is removed if not."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        os.rename(part, path)
    except OSError as error:
        raise WorkError(
            f"{path}: cannot be written ({error.strerror or error}); earlier checkpoints are untouched. "
            "Free some space or correct the permissions, then go on"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file at once."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WorkError(f"{path}: cannot be written ({error.strerror or error})") from error


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


def new_output(path: str | Path, option: str = "--out") -> Path:
    """A path that may be created: its parent folder exists and it does not."""
    out = Path(path)
    if out.exists():
        raise InputError(f"{option}: {out} exists already; name a new folder, or remove it first")
    parent_exists(out, option)
    return out


def parent_exists(out: Path, option: str = "--out") -> None:
    if not out.resolve().parent.is_dir():
        raise InputError(f"{option}: the folder {out.parent} does not exist; create it first (expected for {out})")
