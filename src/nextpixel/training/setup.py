"""What every kind of training run records before its first step, and restores when it is resumed.

checked_settings checks what can be checked first; create_run writes the run folder; open_run locks it, joins the
processes and finds its images.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from nextpixel import __version__
from nextpixel.checkpoints import Run
from nextpixel.config import EXACT, GPTRunConfig, ImageGPTConfig, ResNetConfig, RunConfig, Size
from nextpixel.data.decoded import DecodedSet
from nextpixel.devices import choose_device, machine, set_threads
from nextpixel.progress import say
from nextpixel.tokens import Tokenizer
from nextpixel.tokens.codec import CodecShape
from nextpixel.tokens.words import Words
from nextpixel.training import distributed
from nextpixel.training.decisions import Decisions
from nextpixel.training.run_images import absolute, absolute_model, decode_run_images, find_sets, size_of
from nextpixel.training.tracking import package

PATHS = ("init", "palette", "tokenizer", "validation", "probe_data", "cache")  # settings recorded as absolute paths
Settings = TypeVar("Settings", bound=GPTRunConfig)
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def checked_settings(out: Path, config: AnyConfig) -> AnyConfig:
    """The settings of a new run, with absolute paths, so that it can be resumed from another folder.

    Raises InputError, before any work, where `out` exists, the tracker is missing or the batch cannot be divided.
    """
    Run.new_path(out)
    if config.tracker:
        package(config.tracker)
    distributed.local_batch_images(config.batch_images)
    given = {name: getattr(config, name, None) for name in PATHS}
    paths: dict[str, Any] = {name: absolute(path) for name, path in given.items() if path and path != EXACT}
    if init := given["init"]:
        paths["init"] = absolute_model(init)
    if config.cache:  # which may not exist yet
        paths["cache"] = os.path.abspath(config.cache)
    return replace(config, **paths)


def create_run(
    out: Path,
    kind: str,
    config: RunConfig,
    decided: Any,
    *,
    shape: ImageGPTConfig | ResNetConfig | CodecShape,
    tokenizer: Tokenizer | None,
    words: Words | None = None,
    data: Mapping[str, Any],
    sets: Sequence[DecodedSet],
    arrays: Mapping[str, Any] | None = None,
    write_model: Callable[[Path], None] | None = None,
) -> Run:
    """Create the run folder, with its provenance in run.json; `kind` is the verb that resumes it. See Run.create.

    Unreadable pictures of `sets` are listed in unreadable.txt. `decided` is a dataclass of decisions.
    """
    unreadable = [line for decoded in sets for line in decoded.unreadable]
    skipped = [line for decoded in sets for line in decoded.skipped]
    facts = {
        "kind": kind,
        "config": asdict(config),
        "decisions": asdict(decided),
        "model": asdict(shape),
        "tokenizer": None,
        **({} if words is None else {"words": words.values()}),
        "data": {**data, "unreadable": len(unreadable)},
        "versions": _versions(),
        "machine": machine(decided.device),
        **launch_facts(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    run = Run.create(out, facts, unreadable + skipped, arrays, write_model, tokenizer)
    if unreadable:
        say(f"{len(unreadable)} pictures cannot be read and are left out: {run.path / 'unreadable.txt'}")
    return run


def launch_facts() -> dict[str, Any]:
    """The command line and the number of processes, for run.json."""
    return {"command": sys.argv[1:], "processes": distributed.world_size()}


def start_once(out: Path, kind: str, config: GPTRunConfig, start: Callable[[], Run]) -> Run:
    """The run that `start` creates in the first process, or that this command started before torchrun restarted it."""
    distributed.join(choose_device(config.device), config.timeout_minutes)
    return distributed.on_first_rank(lambda: _restarted(out, kind, config) or start(), patient=True)


def _restarted(out: Path, kind: str, config: RunConfig) -> Run | None:
    """The run that this command started before torchrun restarted it after a failure (max-restarts)."""
    if not distributed.under_torchrun() or not (out / "run.json").is_file():
        return None
    run = Run(out)
    facts = run.facts()
    given = {name: value for name, value in asdict(config).items() if name not in PATHS and value is not None}
    requested = json.loads(json.dumps(given))  # lists for tuples, as in run.json
    if run.kind != kind or facts.get("command") != sys.argv[1:] or not requested.items() <= facts["config"].items():
        return None
    say(f"{out}: resuming from step {(run.steps() or [0])[-1]:,}")
    return run


@dataclass(frozen=True)
class OpenRun(Generic[Settings]):
    """A run of an Image GPT: the contents of run.json, and its sets."""

    run: Run
    config: Settings
    decided: Decisions
    """Its device is that of this process."""
    shape: ImageGPTConfig
    tokenizer: Tokenizer
    words: Words | None
    size: Size
    """Height and width of the pictures, in pixels."""
    data: dict[str, Any]
    train_set: DecodedSet
    validation_set: DecodedSet


@contextmanager
def open_run(run: Run, settings: type[Settings], images: Any) -> Iterator[OpenRun[Settings]]:
    """Lock the run, join the other processes, apply the run's decisions to this one, and find its sets.

    Raises InputError where another process has the lock.
    """
    with run.checked_facts() as facts:
        config = settings(**facts["config"])
        decided = Decisions(**facts["decisions"])
        shape = ImageGPTConfig(**facts["model"])
        tokenizer = run.tokenizer(config.cache)
        words = Words.from_values(facts["words"]) if shape.words else None
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
    device = distributed.join(choose_device(decided.device), config.timeout_minutes)  # raises if it is gone
    distributed.local_batch_images(config.batch_images)
    set_threads(decided.threads)
    with ExitStack() as held:
        distributed.on_first_rank(lambda: held.enter_context(run.locked()))
        train_set, validation_set = distributed.node_by_node(
            lambda: find_sets(
                (decided.train_key, decided.validation_key),
                decided.pixels[:2],
                config.cache,
                data,
                images,
                lambda found: decode_run_images(facts, settings, found),
            )
        )
        decided = replace(decided, device=device)
        yield OpenRun(run, config, decided, shape, tokenizer, words, size_of(facts), data, train_set, validation_set)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    found["nextpixel"] = __version__
    here = Path(__file__)
    command = ["git", "-C", str(here.parent), "rev-parse", "HEAD", f"HEAD:./{here.name}"]  # fails if not tracked there
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | ({"commit": commit.stdout.split()[0]} if commit.returncode == 0 else {})
