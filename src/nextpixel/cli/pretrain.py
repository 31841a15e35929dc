"""nextpixel pretrain"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import check_alone, check_run, joined, parse, print_json, recipe_defaults, resumable, show
from nextpixel.cli.common import check_sources
from nextpixel.cli.hints import command, to_draw
from nextpixel.config import OutputOptions, PretrainConfig
from nextpixel.errors import InputError
from nextpixel.files import check_run_folder
from nextpixel.progress import is_first, say


@dataclass(frozen=True)
class Pretrain:
    """Train an Image GPT on your images, continue from a model (--init), or resume a run (--resume).

    Ctrl-C saves a checkpoint and prints the command that resumes the run. Checkpoints are written atomically. For many
    devices: torchrun --nproc-per-node 8 -m nextpixel pretrain ..., see docs/scaling.md.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]")] = ()
    """Picture files, folders, arrays, parquet files or hub names; several are concatenated."""
    out: Path | None = None
    """The new run folder."""
    resume: Path | None = None
    """Resume this run; only --data and --validation are allowed with it."""
    data: tuple[str, ...] = ()
    """With --resume or --branch, the new location of the same images; recorded in the run. The same holds for
    --validation."""
    branch: Path | None = None
    """Start the new run --out from the constant phase of this run with a linear schedule, and end it after --steps."""
    recipe: str | None = None
    """Name of a shipped recipe, or a TOML file of settings; other options override it."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    force: bool = False
    """Start even if the printed plan exceeds the memory."""
    config: PretrainConfig = field(default_factory=PretrainConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    recipe = recipe_defaults(argv)
    args = parse(Pretrain, "pretrain", argv, None if recipe is None else Pretrain(config=recipe))
    if args.branch is None or args.resume is not None:
        check_run(argv, args, args.images, "pretrain photos/ --out runs/a", "--validation", init="--init")
    else:
        check_alone(
            argv,
            args.images,
            "--branch",
            "--out",
            "--steps",
            "--cooldown-fraction",
            "--data",
            "--validation",
            hint="; a branch keeps the settings of its run, and a new run can start from it with --init",
        )
        if args.out is None or not any(a.partition("=")[0] == "--steps" for a in argv):
            raise InputError(
                "--branch: expected --out and --steps with it, as in: nextpixel pretrain --branch runs/a --steps 5000 "
                "--out runs/b"
            )
        check_run_folder(args.branch, "branch")
    check_sources(*args.images, *args.data, args.config.validation, args.config.probe_data, init=args.config.init)
    from nextpixel.checkpoints import Run, planned_steps
    from nextpixel.training.pretraining import KIND, branch_run, relocate_run, start_run, train_run

    if args.resume is not None:
        run = Run.open(args.resume, KIND)
    elif args.branch is not None and args.out is not None:
        given = {"--cooldown-fraction": args.config.cooldown_fraction}
        fraction = next((given[a.partition("=")[0]] for a in argv if a.partition("=")[0] in given), None)
        run = branch_run(
            Run.open(args.branch, KIND, "branch"), args.out, steps=args.config.steps, cooldown_fraction=fraction
        )
    else:
        assert args.out is not None
        run = start_run(joined(args.images), args.out, args.config, args.split, force=args.force)
    if args.resume is not None or args.branch is not None:
        run = relocate_run(run, PretrainConfig, joined(args.data) or None, args.config.validation)
    if args.resume is not None:
        with run.checked_facts() as written:
            planned = planned_steps(written)
        if run.steps()[-1:] == [planned]:
            more = command("pretrain", "photos/", "--init", run.path, "--out", "runs/more")
            say(f"{run.path} is complete, with {planned:,} steps. To go on from its weights: {more}")
    with resumable("pretrain", run.path):
        model = train_run(run)
    if not is_first():
        return
    best = run.best()
    if args.output.json:
        print_json({"run": str(run.path), "best": best, "config": run.facts()["config"]})
    else:
        show(f"{run.path}: best validation {best['nats']:.4f} nats per pixel at step {best['step']:,}")
    if model.config.objective == "masked":
        data = run.facts()["data"]
        images = args.images or ["photos/" if ", " in data["source"] else data["source"]]
        following = command("features", *images, split=data["split"], model=run.path)
        say(f"To extract features: {following}")
    else:
        if any((run.path / "samples").glob("*.png")):
            say(f"Samples drawn during training: {run.path / 'samples'}")
        say(to_draw(model, run.path))
