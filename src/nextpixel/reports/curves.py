"""Charts over the steps of a run, as HTML with SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nextpixel.reports.pages import BAR, MARK, OTHER, new_axes, svg, text

MAX_POINTS = 320  # of a curve, enough for a screen
SMOOTHING = 0.03  # window of the running median, as a share of the curve

Points = Sequence[tuple[float, float]]  # steps and values, in order


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Points
    kind: str = "train"
    """train: a pale line and its running median in bold; held: a line with dots; plain: one line."""
    errors: Points = ()
    """Half the length of the error bar at each point, where known."""


def per_cent(value: float) -> str:
    return f"{value:.1%}"


def chart(
    title: str,
    unit: str,
    lines: list[Line],
    form: Callable[[float], str],
    last: int,
    *,
    clipped: bool = False,
    from_zero: bool = False,
    spikes: Points = (),
) -> str:
    """A chart of lines over the steps 0 to `last`. Values are formatted by `form`."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes = new_axes(5.0)
    legend = len(lines) > 1 or bool(spikes)
    for line in lines:
        name = line.name if legend else None
        if line.kind == "held":
            errors = [dict(line.errors).get(step, 0.0) for step, _ in line.points]
            axes.errorbar(*zip(*line.points, strict=True), errors, color=OTHER, marker="o", ms=4, lw=1.2, label=name)
            continue
        means = _thinned(line.points)
        if line.kind == "train":
            axes.plot(*zip(*means, strict=True), color=BAR, alpha=0.4, lw=0.8)
            means = _smooth(means)
        axes.plot(*zip(*means, strict=True), color=BAR, lw=1.6, label=name)
    values = np.array([value for line in lines for _, value in line.points])
    low, high = 0.0 if from_zero else float(values.min()), float(values.max())
    note = ""
    if clipped and len(values) > 20:  # the first losses would flatten the rest of the curve
        held = [value for line in lines if line.kind == "held" for _, value in line.points]
        top = max([float(np.quantile(values, 0.95)), *held])
        if high > low + 1.5 * (top - low):
            note, high = f"up to {form(high)} above the chart", top
    room = 0.05 * (high - low or abs(high) or 1.0)
    axes.set_ylim(low if from_zero else low - room, high + room)  # error bars may be longer than that
    axes.set_xlim(0, 1.02 * max(last, 1))
    for step, value in spikes:
        axes.axvline(step, color=MARK, ls="--", lw=0.8, gid=f"spike-{step}")
        axes.plot(step, min(value, high), "v", color=MARK, label="loss spike" if step == spikes[0][0] else None)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    if form is per_cent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    first, final = lines[0].points[0], lines[0].points[-1]
    label = (
        f"{title}: {lines[0].name} from {form(first[1])} at step {first[0]:,} to {form(final[1])} at step {final[0]:,}"
    )
    notes = "; ".join(part for part in (unit, note) if part)
    return (
        f'<figure class="chart">\n<figcaption><h3>{text(title)} <small>{text(notes)}</small>'
        f"</h3></figcaption>\n{svg(axes, label)}</figure>"
    )


def _thinned(points: Points) -> Points:
    """Means over equal parts of the curve where it has more than MAX_POINTS."""
    parts = np.array_split(np.array(points, np.float64), min(len(points), MAX_POINTS))
    return [tuple(part.mean(0)) for part in parts]


def _smooth(points: Points) -> Points:
    """The running median."""
    from scipy.ndimage import median_filter

    steps, values = np.array(points).T
    window = 2 * round(len(values) * SMOOTHING / 2) + 1
    return list(zip(steps, median_filter(values, window, mode="nearest"), strict=True))
