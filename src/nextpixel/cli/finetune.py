"""nextpixel finetune"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import alone, parse, print_json, show
from nextpixel.cli.hints import command
from nextpixel.config import FinetuneConfig, OutputOptions
from nextpixel.errors import InputError
from nextpixel.progress import is_first, say


@dataclass(frozen=True)
class Finetune:
    """Teach a model classes from labelled images (all its weights, unless --freeze-trunk), or go on with a run.

    The loss is the generative one plus that of a class head, as in Chen et al. 2020. Part of the training images is
    held out; the best accuracy there decides which model is kept and when to stop. Test images are looked at once, at
    the end. Ctrl-C saves and prints the command that goes on.
    """

    train: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TRAIN]")] = None
    """Labelled images: a folder a class, a parquet file, .npz, a hub name."""
    test: str | None = None
    """Labelled test images; their test split, where they have several. Without this no test is made."""
    out: Path | None = None
    """The new run folder."""
    resume: Path | None = None
    """Go on with this run; takes no other setting but --data."""
    data: str | None = None
    """With --resume, where the same images lie now; the run remembers it."""
    model: str | None = None
    """What to begin with: a checkpoint folder, a run folder or a hub name; the embedded model unless told."""
    labels: Path | None = None
    """Labels of TRAIN as a CSV file with the columns file and label; unless told its folders or columns say them."""
    test_labels: Path | None = None
    """The same for the test images."""
    split: str | None = None
    """Which part of TRAIN, where it has several."""
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Finetune, "finetune", argv)
    if args.resume is not None:
        alone(argv, args.train, "--resume", "--model", "--data", "--test")
    elif args.data:
        raise InputError("--data: expected a run to go on with (--resume) beside it, got none")
    elif args.train is None or args.out is None:
        raise InputError(
            "expected labelled images and --out, as in: nextpixel finetune labelled/ --out runs/clf "
            "(or --resume runs/clf to go on with a run)"
        )
    elif args.test_labels is not None and args.test is None:
        raise InputError("--test-labels: expected test images for them, got no --test")
    from nextpixel.checkpoints import Run
    from nextpixel.files import check_output
    from nextpixel.stats import wilson_interval
    from nextpixel.training.finetuning import KIND, relocate_run, start_run, test_score, train_run

    if args.resume is not None:
        run = relocate_run(Run.open(args.resume, KIND), FinetuneConfig, args.data)
    else:
        assert args.train is not None and args.out is not None
        check_output(args.out)
        run = start_run(
            args.model,
            args.train,
            args.out,
            args.config,
            args.labels,
            split=args.split,
            test=args.test,
            test_labels=args.test_labels,
        )
    again = command("finetune", "--resume", run.path)
    try:
        train_run(run, test=args.test if args.resume else None)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{str(stop) or 'stopped'}; go on with: {again}") from None
    if not is_first():
        return
    best, score, facts = run.best(), test_score(run), run.facts()
    if args.output.json:
        print_json({"run": str(run.path), "best": best, "test": score, "config": facts["config"]})
    else:
        count = facts["data"]["validation_images"]
        show(f"{run.path}: best validation accuracy {best['accuracy']:.1%} of {count:,} at step {best['step']:,}")
        if score:
            low, high = wilson_interval(score["accuracy"], score["images"])
            auc = "" if score["auc"] is None else f", AUC {score['auc']:.3f}"
            show(f"test accuracy {score['accuracy']:.1%} of {score['images']:,} (95 % {low:.1%} to {high:.1%}){auc}")
            if score.get("accuracy_without_them") is not None:
                area = score.get("auc_without_them")
                auc = "" if area is None else f", AUC {area:.3f}"
                show(f"test accuracy without training images {score['accuracy_without_them']:.1%}{auc}")
    say(f"Classify new images: {command('predict', run.path, 'new/', '--out', 'predictions.csv')}")
