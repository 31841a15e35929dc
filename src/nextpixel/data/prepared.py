"""Prepared folders: a source decoded once into the memory map that training reads, in parallel and by many jobs.

A source is cut into chunks whose size depends on nothing but the side. Each is decoded by itself and written at once
into `out.parts`, so any number of threads, jobs and repetitions gives the same chunks; `out` appears when all of them
are put together, whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from nextpixel.config import Fit, Levels
from nextpixel.data.decoded import PREPROCESSING, read_parts
from nextpixel.errors import InputError, WorkError
from nextpixel.files import check_output, new_file, new_folder, parts_folder, read_json
from nextpixel.images.sources import MapSource, Source, open_source, settle
from nextpixel.images.sources.base import NO_LEVELS, READ_TOGETHER
from nextpixel.images.sources.maps import Part, check_readable, is_map, write_set
from nextpixel.progress import progress, say

CHUNK_IMAGES = 4_096
CHUNK_BYTES = 64 * 2**20
PLAN = "plan.json"


@dataclass(frozen=True)
class Job:
    """Number `number`, counted from 1, of `jobs` that share a source."""

    number: int = 1
    jobs: int = 1

    @classmethod
    def parse(cls, text: str) -> Job:
        """The job that 3/16 means. Raises InputError."""
        first, slash, second = text.partition("/")
        if slash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit():
            job = cls(int(first), int(second))
            if 1 <= job.number <= job.jobs:
                return job
        raise InputError(f"expected a number and of how many, as in 3/16, counted from 1, got {text!r}", argument="job")

    def chunks(self, count: int) -> range:
        """Which of `count` chunks are its own; they follow each other."""
        return range(count * (self.number - 1) // self.jobs, count * self.number // self.jobs)


def prepare(
    images: Any,
    out: str | Path,
    *,
    side: int = 32,
    fit: Fit = "crop",
    levels: Levels = NO_LEVELS,
    store_side: int | None = None,
    split: str | None = None,
    job: Job | None = None,
    workers: int | None = None,
) -> MapSource | None:
    """Decode a source into the new folder `out`, or one job's share of it; what was decoded before is not repeated.

    `store_side` is the side of the squares, `side` that of the model they are for; `workers` are threads. Returns the
    folder as a source, or None for a job: merge() puts jobs together. Raises InputError, also when `out` exists or its
    parts are of another source or other settings; WorkError when the disk is full: what was decoded stays.
    """
    stored = side if store_side is None else store_side
    if side < 1:
        raise InputError(f"expected at least 1, got {side}", argument="side")
    if stored < side:
        raise InputError(f"expected at least the side {side}, got {stored}", argument="store_side")
    if workers is not None and workers < 1:
        raise InputError(f"expected at least 1, got {workers}", argument="workers")
    out = Path(out)
    parts = parts_folder(out)
    if is_map(out) or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out} exists already; name a new folder, or remove it first")
    check_output(out, "OUT")
    source = open_source(images, split, stream=True)
    there = read_json(parts / PLAN) if (parts / PLAN).is_file() else None
    if there is None:
        levels, note = settle(source, levels)
        if note:
            say(note)
    else:
        levels, note = levels.over(Levels.of(there.get("range"), there.get("bands"))), there.get("note")
    plan = {
        "source": str(images) if isinstance(images, str | os.PathLike) else source.source_name,
        "split": source.split,
        "fingerprint": source.fingerprint(),
        "unreadable": list(source.unreadable),
        "images": len(source),
        "classes": source.classes,
        "side": stored,
        "serves": side,
        "fit": fit,
        **levels.values(),
        "note": note,
        "preprocessing": PREPROCESSING,
        "chunk_images": _chunk_images(stored),
        "jobs": 1 if job is None else job.jobs,
    }
    parts.mkdir(exist_ok=True)
    if there is not None:
        _check_plan(there, plan, parts)
    else:
        with new_file(parts / PLAN) as file:  # which jobs on several machines may write at once
            file.write(json.dumps(plan, indent=2).encode())
    _decode_chunks(source, plan, parts, (job or Job()).chunks(_count(plan)), workers)
    return merge(out) if job is None else None


def merge(out: str | Path) -> MapSource:
    """Put the parts of all jobs together into `out`; doing so again changes nothing.

    Raises InputError when jobs are missing, or more than one picture in ten could not be read.
    """
    out = Path(out)
    parts = parts_folder(out)
    if not is_map(out):
        if not (parts / PLAN).is_file():
            raise InputError(
                f"expected a folder that nextpixel prepare is making, with its parts in {parts}, got {out}",
                argument="merge",
            )
        plan = read_json(parts / PLAN)
        if missing := missing_jobs(out):
            listed = ", ".join(f"{number}/{plan['jobs']}" for number in missing)
            raise InputError(
                f"{out}: expected the parts of all {plan['jobs']} jobs, {len(missing)} of them are not "
                f"finished: {listed}; run those (again) with `job`, then merge",
                argument="merge",
            )
        kept = "source side serves fit range bands note preprocessing classes split".split()
        with new_folder(out) as folder:
            facts = {name: plan.get(name) for name in kept}
            write_set(folder, _chunks(plan, parts), facts, plan.get("unreadable", ()))
    found = MapSource(out)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def missing_jobs(out: str | Path) -> list[int]:
    """Numbers of the jobs whose chunks are not all there."""
    parts = parts_folder(Path(out))
    plan = read_json(parts / PLAN)
    there = [is_zipfile(parts / _name(chunk)) for chunk in range(_count(plan))]
    jobs = range(1, plan["jobs"] + 1)
    return [n for n in jobs if not all(there[chunk] for chunk in Job(n, plan["jobs"]).chunks(len(there)))]


def _decode_chunks(source: Source, plan: dict[str, Any], parts: Path, chunks: range, workers: int | None) -> None:
    images, side, step = plan["images"], plan["side"], plan["chunk_images"]
    levels = Levels.of(plan.get("range"), plan.get("bands"))
    done = [chunk for chunk in chunks if is_zipfile(parts / _name(chunk))]  # whole
    ranges = {chunk: range(chunk * step, min((chunk + 1) * step, images)) for chunk in chunks}
    before = sum(len(ranges[chunk]) for chunk in done)
    unreadable: list[str] = list(source.unreadable)
    with progress("preparing", sum(map(len, ranges.values())), "images", before) as advance:
        for chunk in sorted(set(chunks) - set(done)):
            numbers = ranges[chunk]
            found = list(read_parts(source, numbers, side, plan["fit"], levels, workers=workers, advance=advance))
            unreadable += [line for part in found for line in part.unreadable]
            # what merge() would refuse is not worth the rest
            check_readable(source.source_name, unreadable, images + len(source.unreadable))
            labels = [part.labels for part in found if part.labels is not None]
            arrays: dict[str, Any] = {"labels": np.concatenate(labels)} if labels else {}
            with new_file(parts / _name(chunk)) as file:
                np.savez(
                    file,
                    squares=np.concatenate([part.squares for part in found]),
                    names=_packed([name for part in found for name in part.names]),
                    unreadable=_packed([line for part in found for line in part.unreadable]),
                    **arrays,
                )


def _chunks(plan: dict[str, Any], parts: Path) -> Iterator[Part]:
    with progress("merging", plan["images"], "images") as advance:
        for number in range(_count(plan)):
            path = parts / _name(number)
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as chunk:
                    names, unreadable = _unpacked(chunk["names"]), _unpacked(chunk["unreadable"])
                    yield Part(chunk["squares"], names, chunk.get("labels"), unreadable)
            except (ValueError, KeyError, EOFError, BadZipFile) as error:
                if isinstance(error, InputError):
                    raise
                raise WorkError(
                    f"{path}: expected a chunk of decoded images, got something damaged ({error}); remove that file "
                    "and run its job again"
                ) from error
            advance(len(names) + len(unreadable))


def _packed(texts: Sequence[str]) -> np.ndarray:
    """Texts as bytes: file names need not be text, and an array of them would take the longest one's room for each."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogatepass"), np.uint8)


def _unpacked(packed: np.ndarray) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogatepass").split("\0") if len(packed) else []


def _check_plan(there: dict[str, Any], plan: dict[str, Any], parts: Path) -> None:
    """Raises InputError unless the parts that lie there are of the same source and settings."""
    told = {
        "source": "source", "split": "`split`", "fit": "`fit`", "range": "`range`", "bands": "`bands`",
        "serves": "`side`", "side": "`store_side`",
        "images": "number of images", "fingerprint": "pictures (some were added, removed or changed)",
        "classes": "classes", "preprocessing": "version of nextpixel", "chunk_images": "version of nextpixel",
    }  # fmt: skip
    for name, what in told.items():
        if name != "source" and there.get(name) != plan.get(name):
            values = "" if name in ("fingerprint", "classes") else f" {there.get(name)}, got {plan.get(name)}"
            raise InputError(
                f"{parts} was begun from {there.get('source')} with another {what}{values and ': expected' + values}; "
                "go on with the same command as before, or remove that folder to begin again"
            )


def _name(chunk: int) -> str:
    return f"{chunk:06d}.npz"


def _chunk_images(side: int) -> int:
    """A number that READ_TOGETHER divides, so that streams are never asked to go back."""
    fitting = min(CHUNK_IMAGES, CHUNK_BYTES // (side * side * 3))
    return max(1, fitting // READ_TOGETHER) * READ_TOGETHER


def _count(plan: dict[str, Any]) -> int:
    return -(-int(plan["images"]) // int(plan["chunk_images"]))
