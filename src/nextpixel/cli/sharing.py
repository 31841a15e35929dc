"""Share the work of a verb: torchrun's processes do it together, independent jobs one by one, and `merge` joins them.

Work is a list of tasks, each of which returns arrays. Their results are files in a folder beside --out, which are kept
until the output is written: stopped work resumes by the same command.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from nextpixel import __version__
from nextpixel.cli.arguments import print_json
from nextpixel.config import Job, ModelOptions
from nextpixel.errors import InputError
from nextpixel.progress import is_first, say

if TYPE_CHECKING:
    from nextpixel.drawing.sampling import Drawing

O = TypeVar("O", bound=ModelOptions)  # noqa: E741
Arrays = Mapping[str, NDArray[Any]]
TIMEOUT_MINUTES = 30.0  # for the processes to connect
NOTHING = (sys.maxsize, 1)


@dataclass(frozen=True)
class ShareOptions:
    """Share the work among machines; under torchrun the processes share it without these options."""

    job: str | None = None
    """Do a part of the work, as in 3/16, and keep its results beside --out, in a folder that all jobs share; any
    scheduler may start them. Repeat a job to resume it."""
    merge: bool = False
    """Write the output from the results of all jobs."""

    def __post_init__(self) -> None:
        if self.job is not None:
            Job.parse(self.job)
        if self.merge and self.job is not None:
            raise InputError("cannot be combined with `job`: it runs once, after all jobs", argument="merge")


class Share:
    """This process's share of a verb's work, whose results are kept in the folder `parts`.

    `args` has the options `share`, `out` and `output`; `alone` is the reason why some options cannot be shared. Raises
    InputError.
    """

    def __init__(self, args: Any, alone: str | None = None) -> None:
        from nextpixel.files import parts_folder

        options, out = args.share, args.out
        self.options, self.out, self.json = options, out, args.output.json
        self._many = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"
        named = options.job is not None or options.merge
        self.active = named or self._many
        if self.active:
            argument = "merge" if options.merge else "job"
            if self._many and named:
                raise InputError("expected none under torchrun, whose processes share the work", argument=argument)
            if out is None:
                what = f"`{argument}`" if named else "torchrun"
                raise InputError(f"expected one with {what}, to keep results beside it, got none", argument="out")
            if alone is not None and not named:
                raise InputError(f"{alone} cannot be used under torchrun; start one process")
            if alone is not None:
                raise InputError(f"cannot be combined with {alone}", argument=argument)
        self.parts = None if out is None else parts_folder(out, ".")

    @property
    def part(self) -> tuple[int, int]:
        """(i, n): this process does every n-th task from the i-th."""
        if self.options.merge:
            return NOTHING
        if self.options.job is None:
            return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if self._many else (0, 1)
        job = Job.parse(self.options.job)
        return job.number - 1, job.jobs

    def join(self, options: O) -> O:
        """Connect to torchrun's other processes; the options with the device of this one."""
        from dataclasses import replace

        if not self._many:
            return options
        from nextpixel.devices import choose_device
        from nextpixel.training import distributed

        device: Any = distributed.join(choose_device(options.device), TIMEOUT_MINUTES)
        return replace(options, device=device)

    def run(self, tasks: Sequence[Callable[[], Arrays]], facts: Iterable[object]) -> list[Arrays]:
        """The results of all tasks; a job or a process that is not the first does its own and ends.

        Results of other `facts`, strings and arrays that determine them, or of another version are not used.
        """
        from nextpixel.files import new_file
        from nextpixel.training import distributed

        assert self.parts is not None
        digest = hashlib.sha256(__version__.encode())
        for fact in facts:
            digest.update(np.ascontiguousarray(fact).data if isinstance(fact, np.ndarray) else f"{fact}|".encode())
        self.parts.mkdir(parents=True, exist_ok=True)
        paths = [self.parts / f"{digest.hexdigest()[:16]}-{i:06d}.npz" for i in range(len(tasks))]

        def work() -> None:
            for task, path in list(zip(tasks, paths, strict=True))[self.part[0] :: self.part[1]]:
                if not is_zipfile(path):  # absent or truncated
                    found = task()
                    with new_file(path) as file:
                        np.savez(file, **found)  # type: ignore[arg-type]

        try:
            distributed.on_all_ranks(work, patient=True)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; repeat the command to resume") from None
        self.end(paths)
        results: list[Arrays] = []
        for path in paths:
            with np.load(path, allow_pickle=False) as saved:
                results.append(dict(saved))
        return results

    def end(self, paths: Sequence[Path]) -> None:
        """End this process, if it is a job or not the first one. Raises InputError if a merge lacks one of `paths`."""
        missing = [i for i, path in enumerate(paths) if not is_zipfile(path)]
        if self.options.job is not None:
            if self.json:
                print_json({"out": str(self.out), "job": self.options.job, "missing_parts": len(missing)})
            left = f"{len(missing):,} of {len(paths):,}" if missing else "no"
            say(
                f"job {self.options.job} is done; {left} parts are missing. Once all jobs have finished, run the "
                "command with --merge instead of --job"
            )
        if self.options.job is not None or not is_first():
            raise SystemExit
        if missing:
            some = ", ".join(str(i + 1) for i in missing[:10]) + (", ..." if len(missing) > 10 else "")
            raise InputError(
                f"{len(missing):,} of {len(paths):,} parts are missing in {self.parts}: {some}; job i/n makes part i "
                "and every n-th after it: repeat these jobs, with the same options and images",
                argument="merge",
            )

    def clean(self) -> None:
        """Remove the results; the output has been written."""
        if self.active and self.parts is not None:
            shutil.rmtree(self.parts, ignore_errors=True)


def shared_drawing(share: Share, draw: Callable[[slice], Drawing], parts: Sequence[slice], facts: Any) -> Drawing:
    """What `draw` draws of all parts. The pictures of a call without particles."""
    from nextpixel.drawing.sampling import Drawing
    from nextpixel.representation.scoring import joined_arrays

    def task(rows: slice) -> Arrays:
        found = draw(rows)
        mode, drawn_at = np.array([found.mode]), found.drawn_at[None]
        return {"images": found.images, "nats": found.nats, "drawn_at": drawn_at, "mode": mode}

    found = joined_arrays(share.run([functools.partial(task, rows) for rows in parts], facts))
    return Drawing(found["images"], found["nats"], found["drawn_at"][0], str(found["mode"][0]))


def chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
