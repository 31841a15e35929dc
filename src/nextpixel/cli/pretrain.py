"""nextpixel pretrain"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import alone, parse, print_json, recipe_defaults, show
from nextpixel.cli.hints import command
from nextpixel.config import OutputOptions, PretrainConfig
from nextpixel.errors import InputError
from nextpixel.progress import is_first, say


@dataclass(frozen=True)
class Pretrain:
    """Train an Image GPT on your images, continue a model on them (--init), or go on with a run (--resume).

    Ctrl-C saves and prints the command that goes on. Nothing that was saved is ever half written. Many devices:
    torchrun --nproc-per-node 8 -m nextpixel pretrain ..., see docs/scaling.md.
    """

    images: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]")] = None
    """A folder, an array, a parquet file or a hub name."""
    out: Path | None = None
    """The new run folder."""
    resume: Path | None = None
    """Go on with this run; takes no other setting but --data."""
    data: str | None = None
    """With --resume, where the same images lie now; the run remembers it."""
    branch: Path | None = None
    """Begin the new run --out with the constant phase of this one, which has a linear schedule; end after --steps."""
    recipe: str | None = None
    """A shipped recipe by name, or a TOML file of settings; flags go over it."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    force: bool = False
    """Begin although the plan, which is told first, does not fit the memory."""
    config: PretrainConfig = field(default_factory=PretrainConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    recipe = recipe_defaults(argv)
    args = parse(Pretrain, "pretrain", argv, None if recipe is None else Pretrain(config=recipe))
    if args.resume is not None:
        alone(argv, args.images, "--resume", "--init", "--data")
    elif args.data:
        raise InputError("--data: expected a run to go on with (--resume) beside it, got none")
    elif args.branch is not None:
        alone(argv, args.images, "--branch", "--init", "--out", "--steps", "--cooldown-fraction")
        if args.out is None or not any(a.partition("=")[0] == "--steps" for a in argv):
            raise InputError(
                "--branch: expected --out and --steps too, as in: nextpixel pretrain --branch runs/a --steps 5000 "
                "--out runs/b"
            )
    elif args.images is None or args.out is None:
        raise InputError(
            "expected images and --out, as in: nextpixel pretrain photos/ --out runs/a "
            "(or --resume runs/a to go on with a run)"
        )
    from nextpixel.checkpoints import Run
    from nextpixel.files import check_output
    from nextpixel.training.pretraining import KIND, branch_run, relocate_run, start_run, train_run

    if args.resume is not None:
        run = relocate_run(Run.open(args.resume, KIND), PretrainConfig, args.data)
    elif args.branch is not None and args.out is not None:
        given = {"--cooldown-fraction": args.config.cooldown_fraction}
        fraction = next((given[a.partition("=")[0]] for a in argv if a.partition("=")[0] in given), None)
        run = branch_run(
            Run.open(args.branch, KIND, "branch"), args.out, steps=args.config.steps, cooldown_fraction=fraction
        )
    else:
        assert args.images is not None and args.out is not None
        check_output(args.out)
        run = start_run(args.images, args.out, args.config, args.split, force=args.force)
    again = command("pretrain", "--resume", run.path)
    try:
        model = train_run(run)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{str(stop) or 'stopped'}; go on with: {again}") from None
    if not is_first():
        return
    best = run.best()
    if args.output.json:
        print_json({"run": str(run.path), "best": best, "config": run.facts()["config"]})
    else:
        show(f"{run.path}: best validation {best['nats']:.4f} nats per pixel at step {best['step']:,}")
    if model.config.objective == "masked":
        data = run.facts()["data"]
        following = command("features", data["source"], split=data["split"], model=run.path)
        say(f"What it makes of the images: {following}")
    else:
        say(f"Pictures drawn while training: {run.path / 'samples'}")
        say(f"Draw from it: {command('sample', model=run.path)}")
