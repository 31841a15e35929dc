"""Prepared folders: a source decoded once into the memory map that training reads, by threads and by many jobs.

A source is split into chunks whose size depends only on that of the images. Each is decoded and written atomically into
`out.parts`, so the chunks do not depend on the number of threads, jobs and retries; `merge` makes `out` of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from nextpixel.config import Fit, ImageGPTConfig, Job, Levels, Size, side_text, to_side, to_size
from nextpixel.data.captions import captions_of
from nextpixel.data.decoded import PREPROCESSING, read_parts, stored_size
from nextpixel.errors import InputError, WorkError
from nextpixel.files import check_output, new_file, new_folder, parts_folder, read_json, remove_folder, write_json
from nextpixel.images.sources import MapSource, Source, open_source, settle, with_canvas
from nextpixel.images.sources.base import NO_LEVELS, READ_TOGETHER, sha256
from nextpixel.images.sources.maps import Part, check_readable, is_map, write_set
from nextpixel.progress import progress, say

CHUNK_IMAGES = 4_096
CHUNK_BYTES = 64 * 2**20
PLAN = "plan.json"


def prepare(
    images: Any,
    out: str | Path,
    *,
    side: int | Size | None = None,
    fit: Fit = "crop",
    levels: Levels = NO_LEVELS,
    store_side: int | Size | None = None,
    split: str | None = None,
    captions: str | None = None,
    job: Job | None = None,
    workers: int | None = None,
) -> MapSource | None:
    """Decode a source into the new folder `out`, or one job's share of it; finished chunks are not decoded again.

    `store_side` is the side, or rows and columns, of the stored images, `side` that of the model they are for, by
    default 32, or for `place` that of with_canvas; `workers` are threads. `captions`, see captions_of, are kept in the
    folder, for training with the same `captions`.
    Returns the folder as a source, or None for a job, see merge. Raises InputError, also when `out` exists or its parts
    have another source or other settings; WorkError when the disk is full, which keeps finished chunks.
    """
    if workers is not None and workers < 1:
        raise InputError(f"expected at least 1, got {workers}", argument="workers")
    out = check_output(out, "OUT")
    parts = parts_folder(out)
    if is_map(out) or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out} exists already; name a new folder, or remove it first")
    if os.path.islink(out) or os.path.ismount(out):
        raise InputError(f"{out} is a link or a mount point, expected a new folder; name one in it")
    source = open_source(images, split, stream=True)
    check_readable(source.source_name, source.unreadable, len(source) + len(source.unreadable))
    if fit == "place":
        source, size = with_canvas(source, side, levels)
    else:
        size = to_size(side or ImageGPTConfig.side)
    stored = size if store_side is None else to_size(store_side, "store_side")
    if stored not in (size, stored_size(size, "crop")):
        raise InputError(
            f"expected the side {side_text(size)}, or twice it for random crops, got {side_text(stored)}",
            argument="store_side",
        )
    if fit == "place" and stored != size:
        raise InputError(f"expected none for pictures that are placed, got {side_text(stored)}", argument="store_side")
    earlier = read_json(parts / PLAN) if (parts / PLAN).is_file() else None
    if earlier is not None and job is not None and job.jobs != earlier["jobs"]:
        raise InputError(
            f"expected a share of {earlier['jobs']} jobs, as {parts} was started with, got {job.number}/{job.jobs}",
            argument="job",
        )
    note = None
    if earlier is not None:
        levels, note = levels.over(Levels.among(earlier)), earlier.get("note")
    if earlier is None or fit == "place":
        source, levels, note = settle(source, size, fit, levels)
        if note:
            say(note)
        check_readable(source.source_name, source.unreadable, len(source) + len(source.unreadable))
    texts = None if captions is None else captions_of(source, captions).tolist()
    plan = {
        "source": str(images) if isinstance(images, str | os.PathLike) else source.source_name,
        "split": source.split,
        "fingerprint": source.fingerprint(),
        "unreadable": list(source.unreadable),
        "images": len(source),
        "classes": source.classes,
        "side": to_side(stored),
        "serves": to_side(size),
        "fit": fit,
        **levels.values(),
        "note": note,
        "captions": captions,
        "texts": None if texts is None else sha256([_packed(texts)]),
        "preprocessing": PREPROCESSING,
        "chunk_images": chunk_images(stored),
        "jobs": 1 if job is None else job.jobs,
    }
    parts.mkdir(parents=True, exist_ok=True)
    if earlier is not None:
        _check_plan(earlier, plan, parts)
    else:
        write_json(parts / PLAN, plan)  # jobs on several machines may do so at the same time
    try:
        _decode_chunks(source, plan, parts, (job or Job()).chunks(_count(plan)), workers, texts)
    except InputError:
        if job is None and not any(parts.glob("*.npz")):  # else the plan would refuse the repaired source
            remove_folder(parts)
        raise
    return merge(out) if job is None else None


def merge(out: str | Path) -> MapSource:
    """Merge the parts of all jobs into `out`; idempotent.

    Raises InputError when jobs are missing, or more than one picture in ten could not be read.
    """
    out = Path(out)
    parts = parts_folder(out)
    if not is_map(out):
        if not (parts / PLAN).is_file():
            raise InputError(
                f"expected a folder that nextpixel prepare has started, with its parts in {parts}, got {out}",
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
        kept = "source side serves fit range bands note preprocessing classes split captions".split()
        with new_folder(out) as folder:
            facts = {name: plan.get(name) for name in kept} | Levels.among(plan).values()
            write_set(folder, _chunks(plan, parts), facts, plan.get("unreadable", ()))
    found = MapSource(out)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def missing_jobs(out: str | Path) -> list[int]:
    """Numbers of the jobs that have missing chunks."""
    parts = parts_folder(Path(out))
    plan = read_json(parts / PLAN)
    done = [is_zipfile(parts / _name(chunk)) for chunk in range(_count(plan))]
    jobs = range(1, plan["jobs"] + 1)
    return [n for n in jobs if not all(done[chunk] for chunk in Job(n, plan["jobs"]).chunks(len(done)))]


def _decode_chunks(
    source: Source,
    plan: dict[str, Any],
    parts: Path,
    chunks: range,
    workers: int | None,
    captions: Sequence[str] | None,
) -> None:
    images, size, step = plan["images"], to_size(plan["side"]), plan["chunk_images"]
    levels = Levels.among(plan)
    done = [chunk for chunk in chunks if is_zipfile(parts / _name(chunk))]
    ranges = {chunk: range(chunk * step, min((chunk + 1) * step, images)) for chunk in chunks}
    before = sum(len(ranges[chunk]) for chunk in done)
    unreadable: list[str] = list(source.unreadable)
    with progress("preparing", sum(map(len, ranges.values())), "images", before) as advance:
        for chunk in sorted(set(chunks) - set(done)):
            numbers = ranges[chunk]
            rows = read_parts(
                source, numbers, size, plan["fit"], levels, captions=captions, workers=workers, advance=advance
            )
            found = list(rows)
            unreadable += [line for part in found for line in part.unreadable]
            # fail early where merge would
            check_readable(source.source_name, unreadable, images + len(source.unreadable))
            labels = [part.labels for part in found if part.labels is not None]
            arrays: dict[str, Any] = {"labels": np.concatenate(labels)} if labels else {}
            if captions is not None:
                arrays["captions"] = _packed([caption for part in found for caption in part.captions or ()])
            with new_file(parts / _name(chunk)) as file:
                np.savez(
                    file,
                    squares=np.concatenate([part.images for part in found]),
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
                    captions = _unpacked(chunk["captions"]) or [""] * len(names) if "captions" in chunk else None
                    yield Part(chunk["squares"], names, chunk.get("labels"), unreadable, captions)
            except (ValueError, KeyError, EOFError, BadZipFile) as error:
                if isinstance(error, InputError):
                    raise
                raise WorkError(
                    f"{path}: expected a chunk of decoded images, got a damaged file ({error}); remove that file "
                    "and run its job again"
                ) from error
            advance(len(names) + len(unreadable))


def _packed(texts: Sequence[str]) -> np.ndarray:
    """Texts joined into bytes: file names may be invalid Unicode, and a string array pads all to the longest."""
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogatepass"), np.uint8)


def _unpacked(packed: np.ndarray) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogatepass").split("\0") if len(packed) else []


def _check_plan(earlier: dict[str, Any], plan: dict[str, Any], parts: Path) -> None:
    """Raises InputError unless the existing parts have the same source and settings."""
    labels = {
        "source": "source", "split": "`split`", "fit": "`fit`", "range": "`range`", "bands": "`bands`",
        "serves": "`side`", "side": "`store_side`", "anchor": "`anchor`", "slice": "`slice`", "scale": "`scale`",
        "images": "number of images", "fingerprint": "other pictures: some were added, removed or changed",
        "classes": "other classes", "captions": "`captions`", "texts": "other captions: some were changed",
        "preprocessing": "version of nextpixel", "chunk_images": "version of nextpixel",
    }  # fmt: skip
    plan = json.loads(json.dumps(plan))  # lists for tuples
    for name, what in labels.items():
        if name != "source" and earlier.get(name) != plan.get(name):
            if not what.startswith("other"):
                what = f"another {what}: expected {earlier.get(name)}, got {plan.get(name)}"
            raise InputError(
                f"{parts} was started from {earlier.get('source')} with {what}; repeat the original command, or remove "
                "that folder to start again"
            )


def _name(chunk: int) -> str:
    return f"{chunk:06d}.npz"


def chunk_images(size: Size) -> int:
    """A multiple of READ_TOGETHER, so that streams never have to seek back."""
    fitting = min(CHUNK_IMAGES, CHUNK_BYTES // (size[0] * size[1] * 3))
    return max(1, fitting // READ_TOGETHER) * READ_TOGETHER


def _count(plan: dict[str, Any]) -> int:
    return -(-int(plan["images"]) // int(plan["chunk_images"]))
