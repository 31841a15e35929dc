"""Charts over the steps of a run, as HTML with SVG that fits any width."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextpixel.reports.pages import text

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
    wide: bool = False,
    clipped: bool = False,
    from_zero: bool = False,
    spikes: Points = (),
) -> str:
    """A chart of lines over steps. Positions are in per cent, so text and dots keep their size on narrow pages."""
    values = np.array([value for line in lines for _, value in line.points])
    low, high = float(values.min()), float(values.max())
    clipped_note = ""
    if clipped and len(values) > 20:  # the first losses would flatten the rest of the curve
        top = float(np.quantile(values, 0.95))
        top = max([top, *(value for line in lines if line.kind == "held" for _, value in line.points)])
        if high > low + 1.5 * (top - low):
            clipped_note, high = f"up to {form(high)} above the chart", top
    if from_zero:
        low = 0.0
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    room = (high - low) * (0.02 if from_zero else 0.05)
    low, high = low if from_zero else low - room, high + room

    def x(step: float) -> float:
        return 100 * step / max(last, 1)

    def y(value: float) -> float:
        return 100 * (high - min(value, high)) / (high - low)

    def path(points: Points) -> str:
        heights = (float(np.clip(100 * (high - value) / (high - low), -8, 108)) for _, value in points)  # just outside
        return "M" + "L".join(f"{x(step):.2f} {height:.2f}" for (step, _), height in zip(points, heights, strict=True))

    drawn: list[str] = []
    dots: list[str] = []
    shown: list[Points] = []
    for line in lines:
        if line.kind == "held":
            drawn.append(f'<path class="held" d="{path(line.points)}"/>')
            sizes = dict(line.errors)
            for step, value in line.points:
                half = 100 * sizes.get(step, 0.0) / (high - low)
                left, top = f"left:{x(step):.2f}%", y(value)
                if half:  # the part of the bar inside the chart
                    begin, end = max(0.0, top - half), min(100.0, top + half)
                    dots.append(f'<i class="error" style="{left};top:{begin:.2f}%;height:{end - begin:.2f}%"></i>')
                dots.append(f'<i class="dot" style="{left};top:{top:.2f}%"></i>')
            shown.append(line.points)
            continue
        means = _thinned(line.points)
        if line.kind == "train":
            drawn.append(f'<path class="pale" d="{path(means)}"/><path class="bold" d="{path(_smooth(means))}"/>')
        else:
            drawn.append(f'<path class="bold" d="{path(means)}"/>')
        shown.append(means)
    for step, value in spikes:
        dots.append(
            f'<i class="spike" style="left:{x(step):.2f}%"></i>'
            f'<i class="peak" style="left:{x(step):.2f}%;top:{y(value):.2f}%"></i>'
        )
    y_labels = "".join(
        f'<span class="y" style="top:{y(tick):.2f}%">{text(_short(tick, ticks, form))}</span>' for tick in ticks
    )
    rules = "".join(f'<path class="rule" d="M0 {y(tick):.2f}H100"/>' for tick in ticks)
    x_labels = "".join(
        f'<span class="x" style="left:{x(tick):.2f}%">{tick:,.0f}</span>'
        for tick in _ticks(0, last, 6 if wide else 4)
        if tick <= last
    )
    keys = []
    if len(lines) > 1 or spikes:
        keys = [
            f'<li><i class="{"dot" if line.kind == "held" else "stroke"}"></i>{text(line.name)}</li>' for line in lines
        ]
        keys += [f'<li><i class="peak"></i>loss spike{"s" if len(spikes) > 1 else ""}</li>'] if spikes else []
    keys += [f"<li>{text(clipped_note)}</li>"] if clipped_note else []
    first, final = lines[0].points[0], lines[0].points[-1]
    aria = (
        f"{title}: {lines[0].name} from {form(first[1])} at step {first[0]:,} to {form(final[1])} at step {final[0]:,}"
    )
    data: list[dict[str, Any]] = [
        {"name": line.name, "points": [[step, form(value)] for step, value in points]}
        for line, points in zip(lines, shown, strict=True)
    ]
    if spikes:
        data.append({"name": "spike", "points": [[step, form(value)] for step, value in spikes]})
    heading = f"<h3>{text(title)}" + (f" <small>{text(unit)}</small>" if unit else "") + "</h3>"
    return (
        f'<figure class="chart{" wide" if wide else ""}" data-last="{last}">\n<figcaption>{heading}'
        f'<output></output></figcaption>\n<div class="plot" role="img" aria-label="{text(aria)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{rules}{"".join(drawn)}</svg>'
        f'{"".join(dots)}<i class="cursor"></i>{y_labels}{x_labels}</div>\n'
        + (f'<ul class="key">{"".join(keys)}</ul>\n' if keys else "")
        + f'<script type="application/json">{script(data)}</script>\n</figure>'
    )


def _thinned(points: Points) -> Points:
    """Means over equal parts of the curve where it has more than MAX_POINTS."""
    steps, values = (np.array(column, np.float64) for column in zip(*points, strict=True))
    parts = min(len(points), MAX_POINTS)
    return [
        (float(s.mean().round(1)), float(v.mean()))
        for s, v in zip(np.array_split(steps, parts), np.array_split(values, parts), strict=True)
    ]


def _smooth(points: Points) -> Points:
    """The running median, with a smaller window at the steep beginning."""
    values = np.array([value for _, value in points])
    half = round(len(values) * SMOOTHING / 2)
    return [
        (step, float(np.median(values[i - half : i + half + 1] if i >= half else values[: 2 * i + 1])))
        for i, (step, _) in enumerate(points)
    ]


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About that many round numbers from low to high."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        high = low + (abs(low) or 1.0)
    ticks = MaxNLocator(about, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = (high - low) * 1e-9
    return [float(tick) for tick in ticks if low - slack <= tick <= high + slack] or [low]


def _short(tick: float, ticks: Sequence[float], form: Callable[[float], str]) -> str:
    """A tick with as many decimals as the ticks need to differ."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
    if form is per_cent:
        return f"{tick:.{max(0, -math.floor(math.log10(step * 100) + 1e-9))}%}"
    return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def script(value: Any) -> str:
    """JSON that cannot close the script element around it."""
    return json.dumps(value).replace("<", "\\u003c")
