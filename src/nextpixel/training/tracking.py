"""Logging to TensorBoard, where it is installed, and to Weights & Biases, where it is requested.

log.jsonl has all figures anyway, so failures here do not stop training.
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

from nextpixel.errors import InputError, WorkError, reason_of
from nextpixel.progress import is_first, say

Board = Callable[[int, dict[str, float]], None]
PROJECT = "nextpixel"


@contextlib.contextmanager
def boards(folder: Path, facts: Mapping[str, Any], start: int) -> Iterator[Board]:
    """Yield a function that logs a step's figures by name; only the first process writes.

    The run continues after step `start`. `facts` are the contents of run.json, whose config["tracker"] may name wandb.
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


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"expected the package {name}, which is not installed; pip install {name}, or omit the tracker",
            argument="tracker",
        ) from None


@contextlib.contextmanager
def _wandb(folder: Path, facts: Mapping[str, Any]) -> Iterator[Board]:
    """A wandb run of the same name, continued when the run is resumed; offline (WANDB_MODE=offline) in its folder."""
    wandb = package("wandb")
    moving = {"validation", "train_key", "validation_key"}  # they change when images are moved
    fixed = [{n: v for n, v in facts[part].items() if n not in moving} for part in ("config", "decisions")]
    text = json.dumps([*fixed, facts.get("started"), facts.get("branched_from")], sort_keys=True)
    try:
        tracked = wandb.init(
            project=PROJECT,
            name=folder.resolve().name,
            id=hashlib.sha256(text.encode()).hexdigest()[:16],  # the same after the folder was moved
            resume="allow",
            dir=str(folder),
            config={name: facts.get(name) for name in ("config", "decisions", "model", "data", "versions")},
            settings=wandb.Settings(console="off"),  # do not capture stderr
        )
        # a resumed run repeats the steps since the last checkpoint, and wandb's own step only increases
        tracked.define_metric("*", step_metric="step")
    except Exception as error:
        raise WorkError(
            f"wandb could not start ({reason_of(error)}); log in with wandb login, or store its files locally with "
            "WANDB_MODE=offline, then continue with `resume`",
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
            say(f"logging to wandb stopped: {reason_of(error)}")

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
    except Exception:  # absent, or broken: an incompatible protobuf raises TypeError
        yield lambda step, figures: None
        return

    def write(step: int, figures: dict[str, float]) -> None:
        with contextlib.suppress(OSError):  # log.jsonl reports a full disk
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

    outer = threading.excepthook

    def quiet(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):  # raised in the writer's thread
            outer(failure)

    threading.excepthook = quiet
    try:
        yield write
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        threading.excepthook = outer
