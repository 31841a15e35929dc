"""A study as JSON, CSV and text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nextpixel.stats import finite
from nextpixel.study.correlations import Estimate, Gap, Prediction, Statistics
from nextpixel.study.points import Study

COLUMNS = ("run", "shape", "parameters", "seed", "step", "images", "flops", "nats", "nats_error", "layer", "accuracy")


def study_report(study: Study, found: Statistics) -> dict[str, Any]:
    """The study as one JSON object; unknown values are null."""
    points = [asdict(p) | {"layer": p.best.layer, "accuracy": p.accuracy} for p in study.points]
    return dict(finite(asdict(study) | {"points": points, "statistics": asdict(found)}))


def study_rows(study: Study) -> Iterator[list[Any]]:
    """A header and a row for each checkpoint; the last two columns hold the accuracies of all layers, from layer 0."""
    yield [*COLUMNS, "held_out_by_layer", "accuracy_by_layer"]
    for point in study.points:
        values = asdict(point) | {"layer": point.best.layer, "accuracy": point.accuracy}
        by_layer = [" ".join(f"{getattr(s, name):.4f}" for s in point.layers) for name in ("held_out", "accuracy")]
        yield [*(values[name] for name in COLUMNS), *by_layer]


def study_summary(study: Study, found: Statistics) -> str:
    """The statistics in words, with their limitations."""
    lines = [
        f"Loss and probe accuracy of {found.checkpoints} checkpoints of {found.runs} runs, on {study.test_images:,} "
        f"test images; probes fitted to {study.train_images:,} labelled images, layers chosen on held-out ones.",
        "Correlations are negative where a lower loss goes with a better probe; brackets are 95% intervals over runs.",
        "",
        "Between runs, the comparison to rely on:",
        f"- last checkpoints: Pearson {_interval(found.final_pearson)}, Spearman {_interval(found.final_spearman)}",
        f"- at the same step, all checkpoints: Pearson {_interval(found.same_step)}",
        f"- given the logarithm of compute: partial correlation {_interval(found.given_compute)}",
        "",
        "Within runs, nearly certain to be negative, since training improves both with time:",
        f"- mean over runs: Spearman {_format(found.within_runs)}",
        f"- all checkpoints together: Pearson {_interval(found.pearson)}, Spearman {_interval(found.spearman)}",
        "",
        "Larger shapes at equal loss, in points of accuracy:",
        *([f"- {_format_gap(gap)}" for gap in found.equal_loss] or ["- all runs have one shape"]),
        "",
        *([_format_prediction(found.largest), ""] if found.largest is not None else []),
        "Without training: " + ", ".join(f"{name} {value:.1%}" for name, value in study.controls.items()) + ".",
    ]
    if without := [p for p in study.points if p.nats_without_them is not None]:
        lines += ["", "Without the test images that are training images:"]
        lines += [
            f"- {p.run}, step {p.step:,}: {p.nats_without_them:.4f} nats, {p.best.accuracy_without_them:.1%}"
            for p in without
        ]
    if found.runs < 10:
        lines += [
            "",
            f"{found.runs} runs are few: intervals over so few tend to be too narrow."
            + " Shapes also differ in compute, so correlations between runs of several shapes confound loss with size; "
            "the comparison at equal loss does not, where the losses overlap." * bool(found.equal_loss),
        ]
    return "\n".join(lines) + "\n"


def _format(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return _format(estimate.value)
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _format_gap(gap: Gap) -> str:
    found = gap.difference
    if found is None:
        return f"{gap.larger} against {gap.smaller}: their losses do not overlap"
    interval = "" if math.isnan(found.low) else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return (
        f"{gap.larger} against {gap.smaller}: {100 * found.mean:+.1f}{interval}, "
        f"from {found.x_from:.2f} to {found.x_to:.2f} nats, {gap.runs} runs"
    )


def _format_prediction(found: Prediction) -> str:
    line = found.predicted
    interval = "" if math.isnan(line.low) else f" [{100 * line.low:.1f}, {100 * line.high:.1f}]"
    return (
        f"The largest shape, {found.shape}, from a straight line in loss through the last checkpoints of the others: "
        f"{100 * line.value:.1f}%{interval}, measured {100 * found.measured:.1f}%."
    )
