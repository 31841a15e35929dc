"""Figures of a run for those who watch it: TensorBoard where it is installed, Weights & Biases where it is asked for.

log.jsonl has them all anyway, so what fails here costs no step of training.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nextpixel.errors import InputError, WorkError
from nextpixel.progress import is_first, say

Board = Callable[[int, dict[str, float]], None]
PROJECT = "nextpixel"


def check_tracker(name: str | None) -> None:
    """Raises InputError for a tracker that is not installed."""
    if name is not None:
        _package(name)


@contextlib.contextmanager
def boards(folder: Path, facts: Mapping[str, Any], start: int) -> Iterator[Board]:
    """Yield what takes a step and its figures by name; only the first process writes them.

    The run goes on behind step `start`. `facts` are those of run.json: config["tracker"] names what is written beside
    TensorBoard.
    """
    if not is_first():
        yield lambda step, figures: None
        return
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(_tensorboard(folder, start))]
        if facts["config"].get("tracker") == "wandb":
            several.append(stack.enter_context(_wandb(folder, facts)))

        def write(step: int, figures: dict[str, float]) -> None:
            for board in several:
                board(step, figures)

        yield write


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"expected the package {name}, which is not installed; pip install {name}, or leave the tracker out",
            argument="tracker",
        ) from None


@contextlib.contextmanager
def _wandb(folder: Path, facts: Mapping[str, Any]) -> Iterator[Board]:
    """A run of the same name, which a resumed run goes on with; offline (WANDB_MODE=offline) it lies in the folder."""
    wandb = _package("wandb")
    text = json.dumps([facts.get(name) for name in ("config", "decisions", "started", "branched_from")], sort_keys=True)
    try:
        tracked = wandb.init(
            project=PROJECT,
            name=folder.resolve().name,
            id=hashlib.sha256(text.encode()).hexdigest()[:16],  # of what never changes, wherever the folder lies
            resume="allow",
            dir=str(folder),
            config={name: facts.get(name) for name in ("config", "decisions", "model", "data", "versions")},
            settings=wandb.Settings(console="off"),  # stderr is not its to keep
        )
        # Steps since the last checkpoint come again in a resumed run, and wandb's own count only grows.
        tracked.define_metric("*", step_metric="step")
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WorkError(
            f"wandb could not begin ({reason}); log in with wandb login, or keep its files here with "
            "WANDB_MODE=offline, and go on with `resume`",
            argument="tracker",
        ) from error
    failed = False

    def write(step: int, figures: dict[str, float]) -> None:
        nonlocal failed
        try:
            if not failed:
                tracked.log({"step": step, **figures})
        except Exception as error:
            failed = True
            say(f"wandb gets no more figures of this run: {' '.join(str(error).split()) or type(error).__name__}")

    code = 1
    try:
        yield write
        code = 0
    finally:
        with contextlib.suppress(Exception):
            tracked.finish(exit_code=code)


@contextlib.contextmanager
def _tensorboard(folder: Path, start: int) -> Iterator[Board]:
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
    except Exception:  # absent, or broken: a protobuf that does not fit raises TypeError
        yield lambda step, figures: None
        return

    def write(step: int, figures: dict[str, float]) -> None:
        with contextlib.suppress(OSError):  # a full disk shows in log.jsonl
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

    outer = threading.excepthook

    def quiet(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):  # the writer has a thread of its own
            outer(failure)

    threading.excepthook = quiet
    try:
        yield write
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        threading.excepthook = outer
