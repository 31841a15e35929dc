"""nextpixel finetune"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import check_run, joined, parse, print_json, resumable, show
from nextpixel.cli.common import auc_text, check_sources
from nextpixel.cli.hints import command
from nextpixel.config import FinetuneConfig, OutputOptions, refuse_given
from nextpixel.progress import is_first, say


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a model (all weights, or with --freeze-trunk only a class head) on labelled images, or resume a run.

    The loss is the generative loss plus that of a class head, as in Chen et al. 2020. The accuracy on held-out training
    images decides which model is kept and when to stop. Test images are evaluated once, at the end. Ctrl-C saves a
    checkpoint and prints the command that resumes the run.
    """

    train: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TRAIN]")] = ()
    """Labelled images: a folder per class, a parquet file, an .npz file or a hub name; several are concatenated."""
    test: str | None = None
    """Labelled test images; their test split, if they have several. Default: no test."""
    out: Path | None = None
    """The new run folder."""
    resume: Path | None = None
    """Resume this run; no other setting than --data and --test is allowed."""
    data: tuple[str, ...] = ()
    """With --resume, the new location of the same images; recorded in the run."""
    model: str | None = None
    """Initial model: a checkpoint folder, a run folder, a hub name or a bundled model (embedded, faces, photos);
    default: embedded."""
    labels: Path | None = None
    """Labels of TRAIN as a CSV file with the columns file and label; default: its folders or columns."""
    test_labels: Path | None = None
    """Labels of the test images, likewise."""
    split: str | None = None
    """The split of TRAIN to use, if it has several."""
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Finetune, "finetune", argv)
    check_run(argv, args, args.train, "finetune labelled/ --out runs/clf", "--test", init="--model")
    if args.test is None:
        refuse_given(args, "test_labels", "requires `test`")
    check_sources(*args.train, *args.data, args.test, model=args.model)
    from nextpixel.checkpoints import Run
    from nextpixel.stats import wilson_interval
    from nextpixel.training.finetuning import KIND, relocate_run, start_run, train_run

    if args.resume is not None:
        run = relocate_run(Run.open(args.resume, KIND), FinetuneConfig, joined(args.data) or None)
    else:
        assert args.out is not None
        run = start_run(
            args.model,
            joined(args.train),
            args.out,
            args.config,
            args.labels,
            split=args.split,
            test=args.test,
            test_labels=args.test_labels,
        )
    with resumable("finetune", run.path):
        train_run(run, test=args.test if args.resume else None)
    if not is_first():
        return
    best, score, facts = run.best(), run.test_score(), run.facts()
    if args.output.json:
        print_json({"run": str(run.path), "best": best, "test": score, "config": facts["config"]})
    else:
        count = facts["data"]["validation_images"]
        show(f"{run.path}: best validation accuracy {best['accuracy']:.1%} of {count:,} at step {best['step']:,}")
        if score:
            low, high = wilson_interval(score["accuracy"], score["images"])
            accuracy = f"{score['accuracy']:.1%} of {score['images']:,} (95% {low:.1%} to {high:.1%})"
            show(f"test accuracy {accuracy}{auc_text(score['auc'])}")
            if score.get("accuracy_without_them") is not None:
                auc = auc_text(score.get("auc_without_them"))
                show(f"test accuracy without training images {score['accuracy_without_them']:.1%}{auc}")
    say(f"To classify new images: {command('predict', run.path, 'new/', '--out', 'predictions.csv')}")
