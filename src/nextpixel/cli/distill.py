"""nextpixel distill"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from nextpixel.cli.arguments import alone, parse, print_json, show
from nextpixel.cli.hints import command
from nextpixel.config import DistillConfig, OutputOptions
from nextpixel.errors import InputError
from nextpixel.progress import say


@dataclass(frozen=True)
class Distill:
    """Train a small convolutional network to predict a model's features of images without labels.

    The student then takes the model's place in features, probe and predict, at a hundredth of the cost. Ctrl-C saves
    and prints the command that goes on.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]")] = ()
    """Folders, arrays, parquet files or hub names; several are taken together."""
    out: Path | None = None
    """The new run folder."""
    resume: Path | None = None
    """Go on with this run; takes no other setting but --data."""
    data: tuple[str, ...] = ()
    """With --resume, where the same images lie now; the run remembers it."""
    model: str | None = None
    """The teacher: a checkpoint folder, a run folder or a hub name; the embedded model unless told."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    config: DistillConfig = field(default_factory=DistillConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Distill, "distill", argv)
    if args.resume is not None:
        alone(argv, " ".join(args.images) or None, "--resume", None, "--data")
    elif args.data:
        raise InputError("--data: expected a run to go on with (--resume) beside it, got none")
    elif not args.images or args.out is None:
        raise InputError(
            "expected images and --out, as in: nextpixel distill photos/ --out runs/student "
            "(or --resume runs/student to go on with a run)"
        )
    from nextpixel.checkpoints import Run
    from nextpixel.files import check_output
    from nextpixel.training.distillation import KIND, relocate_run, start_run, train_run

    if args.resume is not None:
        data: Any = args.data[0] if len(args.data) == 1 else list(args.data) or None
        found = relocate_run(Run.open(args.resume, KIND), data)
    else:
        assert args.out is not None
        check_output(args.out)
        images = args.images[0] if len(args.images) == 1 else list(args.images)
        found = start_run(images, args.out, args.config, args.model, args.split)
    again = command("distill", "--resume", found.path)
    try:
        student = train_run(found)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{str(stop) or 'stopped'}; go on with: {again}") from None
    best, parameters = found.best(), student.config.parameters
    if args.output.json:
        print_json({"run": str(found.path), "best": best, "parameters": parameters, "config": found.facts()["config"]})
    else:
        show(
            f"{found.path}: {parameters:,} parameters, best distance to the teacher's features "
            f"{best['distance']:.4f} on held-out images at step {best['step']:,}"
        )
    say(f"What it knows about labels: {command('probe', 'labelled/', model=found.path)}")
