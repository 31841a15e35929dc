"""Run folders: run.json, log.jsonl, samples/, step_0000060/ (a checkpoint and trainer state), best.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.errors import InputError
from nextpixel.files import (
    ANY_PART,
    new_folder,
    new_output,
    read_json,
    remove_folder,
    remove_parts,
    write_json,
    write_text,
    writing,
)
from nextpixel.limits import open_arrays

ARRAYS = "arrays.npz"
STEP = re.compile(r"step_(\d{7,})")
MILESTONES = 6  # the final step and its halvings, as OpenAI published 131, 262, 524 and 1,000 thousand


class Run:
    """One training run on disk. Nothing under its final name is ever half written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @staticmethod
    def new_path(path: str | Path) -> Path:
        """A path where a run may be created; refuses an existing one and a missing parent."""
        if (Path(path) / "run.json").is_file():
            raise InputError(
                f"{path} holds a run already; go on with `resume={path}`, or name another folder", argument="out"
            )
        return new_output(path)

    @classmethod
    def create(
        cls,
        path: str | Path,
        facts: dict[str, Any],
        unreadable: Sequence[str] = (),
        arrays: Mapping[str, Any] | None = None,
        write_model: Callable[[Path], None] | None = None,
    ) -> Run:
        """A new run folder; facts["kind"] is the verb that goes on with it.

        `unreadable` are the lines of unreadable.txt and `arrays` go into arrays.npz, if there are any. `write_model`
        writes checkpoint 0, for a run that needs what it began with no more.
        """
        run = cls(cls.new_path(path))
        with new_folder(run.path) as part:
            (part / "samples").mkdir()
            write_json(part / "run.json", facts)
            if unreadable:
                write_text(part / "unreadable.txt", "\n".join(unreadable) + "\n")
            if arrays:
                with (part / ARRAYS).open("wb") as file:
                    np.savez(file, **arrays)
            if write_model is not None:
                (part / run.folder(0).name).mkdir()
                write_model(part / run.folder(0).name)
        return run

    @classmethod
    def branch(cls, path: str | Path, source: Run, step: int, facts: dict[str, Any]) -> Run:
        """A new run that came to `step` as `source` did: with its checkpoint and arrays, and its log up to there."""
        run = cls(cls.new_path(path))
        with new_folder(run.path) as part:
            (part / "samples").mkdir()
            write_json(part / "run.json", facts)
            shutil.copytree(source.folder(step), part / run.folder(step).name)
            if (source.path / ARRAYS).is_file():
                shutil.copyfile(source.path / ARRAYS, part / ARRAYS)
            lines = [json.dumps(entry) + "\n" for entry in source.read_log() if entry.get("step", 0) <= step]
            write_text(part / "log.jsonl", "".join(lines))
        return run

    @classmethod
    def open(cls, path: str | Path, kind: str | None = None, argument: str = "resume") -> Run:
        """The run on disk that `argument` names. Raises InputError where there is none, or it is of another kind."""
        if not (Path(path) / "run.json").is_file():
            raise InputError(f"expected a run folder with run.json, got {str(path)!r}", argument=argument)
        run = cls(path)
        if kind not in (None, run.kind):
            raise InputError(
                f"{path} was begun by nextpixel {run.kind}, not {kind}; go on with: "
                f"nextpixel {run.kind} `resume={path}`",
                argument=argument,
            )
        return run

    @property
    def kind(self) -> str:
        """The verb that began it and goes on with it."""
        return str(self.facts().get("kind", "pretrain"))

    def facts(self) -> dict[str, Any]:
        """run.json; runs begun by earlier versions called the tokenizer `palette`."""
        facts = read_json(self.path / "run.json")
        return {"tokenizer" if name == "palette" else name: value for name, value in facts.items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What Run.create was given as arrays."""
        path = self.path / ARRAYS
        try:
            with open_arrays(path) as found:
                return {name: found[name] for name in found}
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected the arrays of a run, got a problem with {error}") from None

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        found = (STEP.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def folder(self, step: int) -> Path:
        return self.path / f"step_{step:07d}"

    @contextmanager
    def new_checkpoint(self, step: int, total_steps: int) -> Iterator[Path]:
        """A temporary folder to write a checkpoint into; then rename it, and only then remove those no longer kept."""
        with new_folder(self.folder(step)) as part:
            yield part
        kept = {*self.steps()[-2:], *milestones(total_steps), self.best().get("step")}
        for old in self.steps():
            if old not in kept:
                remove_folder(self.folder(old))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other process goes on with this run. The kernel frees it when this process ends, however it does.

        Raises InputError where another has it. Does nothing on a system or a disk that knows no such locks.
        """
        with ExitStack() as opened:
            try:
                import fcntl

                file = opened.enter_context((self.path / "run.json").open("rb+"))  # NFS locks only what may be written
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.path}: expected a run that nobody is training, got one that another process has at work; "
                    "wait until that one ends, or stop it first"
                ) from None
            except (ImportError, OSError):
                pass
            yield

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """The folder of that checkpoint; an InputError of reading it also says what to do about it."""
        try:
            yield self.folder(step)
        except InputError as error:
            raise InputError(f"{error}; remove {self.folder(step)} to go on from the checkpoint before it") from None

    def best(self) -> dict[str, Any]:
        """{"step", "nats"} or another figure of the best evaluated checkpoint; empty before the first evaluation."""
        path = self.path / "best.json"
        return read_json(path) if path.is_file() else {}

    def update_best(self, step: int, name: str, value: float, *, highest: bool = False) -> None:
        """Mark this checkpoint as the best if its figure is the lowest so far, or the highest."""
        before = self.best().get(name)
        if before is None or (value > before if highest else value < before):
            write_json(self.path / "best.json", {"step": step, name: value})

    def best_checkpoint(self) -> Path:
        """The best checkpoint on validation, else the last."""
        steps = self.steps()
        if not steps:
            raise InputError(f"{self.path}: this run has no checkpoint yet; let it train on with `resume={self.path}`")
        best = self.best().get("step")
        return self.folder(best if best in steps else steps[-1])

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        path = self.path / "log.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """All whole lines of log.jsonl."""
        path = self.path / "log.jsonl"
        entries = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError):  # the last line of a killed process
                continue
        return entries

    def discard_after(self, step: int) -> None:
        """Drop what a killed process left unfinished, and log lines of steps that will be run again."""
        for folder in (self.path, self.path / "samples"):  # nobody else writes there while it is locked
            remove_parts(folder, 0.0, ANY_PART)
        kept = [entry for entry in self.read_log() if entry.get("step", 0) <= step]
        write_text(self.path / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))


def milestones(total_steps: int) -> set[int]:
    """The log-spaced steps whose checkpoints are kept for good."""
    return {total_steps >> k for k in range(MILESTONES) if total_steps >> k}
