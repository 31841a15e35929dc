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
from nextpixel.config import Device, OutputOptions, StudyConfig
from nextpixel.errors import InputError
from nextpixel.progress import say


@dataclass(frozen=True)
class StudyRuns:
    """Set loss against probe accuracy over every kept checkpoint of several runs (Chen et al. 2020, Figure 3).

    Loss is nats per pixel on test images; accuracy is that of a linear probe of the best layer, chosen on held-out
    training images. Writes tables, figures and the statistics into --out, where each measurement is kept: the same
    command goes on where it was stopped, also with more runs.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS", help_behavior_hint="(required)")
    ]
    """Run folders of one side and palette, two or more; several seeds of several shapes make the best of it."""
    data: str
    """Labelled images with a train and a test split."""
    out: Path
    """Folder for what is found: a new one, or that of a study to go on with."""
    config: StudyConfig = field(default_factory=StudyConfig)
    device: Device = "auto"
    """auto takes cuda, then mps, then cpu."""
    threads: int | None = None
    """CPU threads; torch's choice unless told."""
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads: expected at least 1, got {self.threads}")


def run(argv: Sequence[str]) -> None:
    args = parse(StudyRuns, "study", argv)
    from nextpixel.devices import choose_device, set_threads
    from nextpixel.files import write_json, write_text
    from nextpixel.reports.figures import layer_depth_figure, loss_accuracy_figure
    from nextpixel.study import measure_runs, statistics
    from nextpixel.study.report import study_report, study_rows, study_summary, study_table

    device = choose_device(args.device)
    set_threads(args.threads)
    try:
        study = measure_runs(args.runs, args.data, args.out, args.config, device=device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what was measured is kept in {args.out}: the same command goes on") from None
    found = statistics(study.points, seed=args.config.seed)
    text, values = study_summary(study, found), study_report(study, found)
    rows = io.StringIO(newline="")
    csv.writer(rows, lineterminator="\n").writerows(study_rows(study))
    write_text(args.out / "table.csv", rows.getvalue())
    write_text(args.out / "table.md", study_table(study))
    write_text(args.out / "summary.md", text)
    write_json(args.out / "study.json", values)
    loss_accuracy_figure(study.points, study.controls, args.out / "loss_accuracy.png")
    layer_depth_figure(study.points, study.controls, args.out / "layer_depth.png")
    if args.output.json:
        print_json(values)
    else:
        show(*text.splitlines())
    say(f"The figure: {args.out / 'loss_accuracy.png'}; all there is: {args.out}")
    best = max(study.points, key=lambda point: (point.best.held_out, -point.nats))
    model = f"{best.run}/step_{best.step:07d}"
    say(f"The best of them beside its baselines: {command('probe', args.data, model=model)}")
