"""nextpixel study"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.hints import command
from nextpixel.config import Device, OutputOptions, StudyConfig, check_numbers
from nextpixel.progress import say


@dataclass(frozen=True)
class StudyRuns:
    """Compare loss with probe accuracy over all checkpoints of several runs (Chen et al. 2020, Figure 3).

    Loss is nats per pixel on test images; accuracy is that of a linear probe of the best layer, chosen on held-out
    training images. Writes tables, figures, statistics and each measurement to --out. Repeat the command, also with
    more runs, to resume a stopped study.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS", help_behavior_hint="(required)")
    ]
    """Two or more run folders with the same side and palette, best several seeds of several shapes."""
    data: str
    """Labelled images with a train and a test split."""
    out: Path
    """Folder of the results: a new one, or that of a study to resume."""
    config: StudyConfig = field(default_factory=StudyConfig)
    device: Device = "auto"
    """auto: cuda if available, else mps, else cpu."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        check_numbers(self, at_least_one="threads")


def run(argv: Sequence[str]) -> None:
    args = parse(StudyRuns, "study", argv)
    from nextpixel.devices import choose_device, set_threads
    from nextpixel.files import write_json, write_text
    from nextpixel.reports.figures import layer_depth_figure, loss_accuracy_figure
    from nextpixel.study import measure_runs, statistics
    from nextpixel.study.report import study_report, study_rows, study_summary

    device = choose_device(args.device)
    set_threads(args.threads)
    try:
        study = measure_runs(args.runs, args.data, args.out, args.config, device=device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; results are saved in {args.out}: repeat the command to resume") from None
    found = statistics(study.points, seed=args.config.seed)
    text, values = study_summary(study, found), study_report(study, found)
    rows = io.StringIO(newline="")
    csv.writer(rows, lineterminator="\n").writerows(study_rows(study))
    write_text(args.out / "table.csv", rows.getvalue())
    write_text(args.out / "summary.md", text)
    write_json(args.out / "study.json", values)
    loss_accuracy_figure(study.points, study.controls, args.out / "loss_accuracy.png")
    layer_depth_figure(study.points, study.controls, args.out / "layer_depth.png")
    if args.output.json:
        print_json(values)
    else:
        show(*text.splitlines())
    say(f"Figure: {args.out / 'loss_accuracy.png'}; all results: {args.out}")
    best = max(study.points, key=lambda point: (point.best.held_out, -point.nats))
    model = f"{best.run}/step_{best.step:07d}"
    say(f"To compare the best checkpoint with baselines: {command('probe', args.data, model=model)}")
