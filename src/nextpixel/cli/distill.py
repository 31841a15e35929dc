"""nextpixel distill"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import check_run, joined, parse, print_json, resumable, show
from nextpixel.cli.common import check_sources
from nextpixel.cli.hints import command
from nextpixel.config import DistillConfig, OutputOptions
from nextpixel.progress import say


@dataclass(frozen=True)
class Distill:
    """Train a small convolutional network to predict a model's features, from images without labels.

    The student can replace the model in features, probe and predict, at a hundredth of the cost. Ctrl-C saves a
    checkpoint and prints the command that resumes the run.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]")] = ()
    """Folders, arrays, parquet files or hub names; several are concatenated."""
    out: Path | None = None
    """The new run folder."""
    resume: Path | None = None
    """Resume this run; no other setting than --data is allowed."""
    data: tuple[str, ...] = ()
    """With --resume, the new location of the same images; recorded in the run."""
    model: str | None = None
    """The teacher: a checkpoint folder, a run folder, a hub name or a bundled model (embedded, faces, photos);
    default: embedded."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    config: DistillConfig = field(default_factory=DistillConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Distill, "distill", argv)
    check_run(argv, args, args.images, "distill photos/ --out runs/student")
    check_sources(*args.images, *args.data, model=args.model)
    from nextpixel.checkpoints import Run
    from nextpixel.training.distillation import KIND, start_run, train_run
    from nextpixel.training.run_images import relocate_whole_set

    if args.resume is not None:
        found = relocate_whole_set(Run.open(args.resume, KIND), joined(args.data) or None)
    else:
        assert args.out is not None
        found = start_run(joined(args.images), args.out, args.config, args.model, args.split)
    with resumable("distill", found.path):
        student = train_run(found)
    best, parameters = found.best(), student.config.parameters
    if args.output.json:
        print_json({"run": str(found.path), "best": best, "parameters": parameters, "config": found.facts()["config"]})
    else:
        show(
            f"{found.path}: {parameters:,} parameters, best distance to the teacher's features "
            f"{best['distance']:.4f} on held-out images at step {best['step']:,}"
        )
    say(f"To probe it: {command('probe', 'labelled/', model=found.path)}")
