"""Run folders: run.json, log.jsonl, samples/, step_0000060/ (a checkpoint and trainer state), best.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.errors import InputError
from nextpixel.files import (
    ANY_PART,
    check_run_folder,
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
from nextpixel.tokens import Tokenizer, read_tokenizer, write_tokenizer
from nextpixel.tokens.tokenizer import FILE

ARRAYS = "arrays.npz"
VERB_NOUNS = {"pretrain": "pretraining", "finetune": "fine-tuning", "distill": "distillation", "tokenizer": "tokenizer"}
STEP = re.compile(r"step_(\d{7,})")
MILESTONES = 8  # the last step and its halvings, as OpenAI published steps 131, 262, 524 and 1,000 thousand


def planned_steps(facts: Mapping[str, Any]) -> int:
    """The number of steps of a run, by its facts; 0 where an older version did not record it."""
    return int(facts["decisions"].get("steps") or facts["config"].get("steps") or 0)


def _copy_folder(folder: Path, to: Path) -> None:
    """Without its permissions: the copy of a read-only folder can be written to."""
    for path in (folder, *folder.rglob("*")):
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            shutil.copyfile(path, target)


class Run:
    """One training run on disk. Files and folders get their final names only once they are complete."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @staticmethod
    def new_path(path: str | Path) -> Path:
        """A path where a run can be created. Raises InputError where it exists or cannot be written."""
        if (Path(path) / "run.json").is_file():
            raise InputError(
                f"{path} holds a run already; continue it with `resume={path}`, or name another folder", argument="out"
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
        tokenizer: Tokenizer | None = None,
    ) -> Run:
        """Create a run folder; facts["kind"] is the verb that resumes it.

        `unreadable` are the lines of unreadable.txt, `arrays` go into arrays.npz, and `write_model` writes checkpoint
        0, so that the run no longer needs the model that it starts from.
        """
        run = cls(cls.new_path(path))
        with new_folder(run.path) as part:
            (part / "samples").mkdir()
            if tokenizer is not None:
                facts = facts | {"tokenizer": write_tokenizer(tokenizer, part)}
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
        """Create a run from `source` at `step`, with its checkpoint, its arrays and its log up to there.

        Only that checkpoint can be its best so far: better ones before it are not copied.
        """
        run = cls(cls.new_path(path))
        with new_folder(run.path) as part:
            (part / "samples").mkdir()
            write_json(part / "run.json", facts)
            _copy_folder(source.folder(step), part / run.folder(step).name)
            for name in (ARRAYS, FILE):
                if (source.path / name).is_file():
                    shutil.copyfile(source.path / name, part / name)
            log = [entry for entry in source.read_log() if entry.get("step", 0) <= step]
            write_text(part / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))
            for entry in log:
                if entry.get("step") == step and "validation_nats" in entry:
                    Run(part).update_best(step, "nats", entry["validation_nats"])
        return run

    @classmethod
    def open(cls, path: str | Path, kind: str | None = None, argument: str = "resume") -> Run:
        """The run that `argument` names. Raises InputError where there is none, or for one of another kind."""
        check_run_folder(path, argument)
        run = cls(path)
        if kind not in (None, run.kind):
            raise InputError(
                f"{path} was started by nextpixel {run.kind}, not {kind}; continue it with: "
                f"nextpixel {run.kind} `resume={path}`",
                argument=argument,
            )
        return run

    @property
    def kind(self) -> str:
        """The verb that started it and resumes it."""
        return str(self.facts().get("kind", "pretrain"))

    def facts(self) -> dict[str, Any]:
        """The contents of run.json; earlier versions called the tokenizer `palette`."""
        facts = read_json(self.path / "run.json")
        return {"tokenizer" if name == "palette" else name: value for name, value in facts.items()}

    @contextmanager
    def checked_facts(self) -> Iterator[dict[str, Any]]:
        """The same; within, an error in using them becomes an InputError that names the file."""
        facts = self.facts()
        try:
            yield facts
        except (KeyError, TypeError, ValueError) as error:
            name = VERB_NOUNS.get(self.kind, self.kind)
            raise InputError(f"{self.path / 'run.json'}: expected a {name} run, got a problem with {error}") from None

    def tokenizer(self, cache: str | Path | None = None) -> Tokenizer:
        """The tokenizer of its images. Raises as read_tokenizer does."""
        return read_tokenizer(self.facts()["tokenizer"], self.path, cache)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The `arrays` of Run.create."""
        path = self.path / ARRAYS
        try:
            with open_arrays(path) as found:
                return {name: found[name] for name in found}
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected the arrays of a run, got a problem with {error}") from None

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        found = (STEP.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def folder(self, step: int) -> Path:
        return self.path / f"step_{step:07d}"

    @contextmanager
    def new_checkpoint(self, step: int, total_steps: int) -> Iterator[Path]:
        """A temporary folder for a checkpoint, which is then renamed; after that, old checkpoints are removed."""
        with new_folder(self.folder(step)) as part:
            yield part
        kept = {*self.steps()[-2:], *milestones(total_steps), self.best().get("step")}
        for old in self.steps():
            if old not in kept:
                remove_folder(self.folder(old))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from resuming this run; the kernel releases the lock when this process ends.

        Raises InputError where another process has the lock. Does nothing where the file system has no locks.
        """
        with ExitStack() as opened:
            try:
                import fcntl

                file = opened.enter_context((self.path / "run.json").open("rb+"))  # for writing: NFS needs it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.path}: expected a run that no other process is training, got one that is in use; wait for "
                    "that process, or stop it"
                ) from None
            except (ImportError, OSError):
                pass
            yield

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """The folder of that checkpoint; an InputError in reading it also says how to recover."""
        try:
            yield self.folder(step)
        except InputError as error:
            raise InputError(f"{error}; remove {self.folder(step)} to continue from the checkpoint before it") from None

    def best(self) -> dict[str, Any]:
        """The step and the metric of the best checkpoint, {"step", "nats"}; empty before the first evaluation."""
        path = self.path / "best.json"
        return read_json(path) if path.is_file() else {}

    def test_score(self) -> dict[str, Any]:
        """A fine-tuned model's figures on the test images; empty without any, or before the end."""
        path = self.path / "test.json"
        return read_json(path) if path.is_file() else {}

    def update_best(self, step: int, name: str, value: float, *, highest: bool = False) -> None:
        """Mark this checkpoint as the best if its value is the lowest so far, or the highest."""
        before = self.best().get(name)
        if before is None or (value > before if highest else value < before):
            write_json(self.path / "best.json", {"step": step, name: value})

    def best_checkpoint(self) -> Path:
        """The best checkpoint on validation, else the last."""
        steps = self.steps()
        if not steps:
            raise InputError(f"{self.path}: this run has no checkpoint yet; continue it with `resume={self.path}`")
        best = self.best().get("step")
        return self.folder(best if best in steps else steps[-1])

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        path = self.path / "log.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The complete lines of log.jsonl."""
        path = self.path / "log.jsonl"
        entries = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            with suppress(ValueError, RecursionError):  # the last line of a killed process
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict)]

    def discard_after(self, step: int) -> None:
        """Remove what a killed process left unfinished, and log lines of steps that will be repeated."""
        for folder in (self.path, self.path / "samples"):  # safe while the run is locked
            remove_parts(folder, 0.0, ANY_PART)
        kept = [entry for entry in self.read_log() if entry.get("step", 0) <= step]
        write_text(self.path / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))


def milestones(total_steps: int) -> set[int]:
    """The log-spaced steps whose checkpoints are never removed."""
    return {total_steps >> k for k in range(MILESTONES) if total_steps >> k}
