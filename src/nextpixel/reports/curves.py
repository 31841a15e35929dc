"""Curves over the steps of a run, as HTML with SVG that fits any width."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextpixel.reports.pages import text

POINTS_AT_MOST = 320  # of a curve: as many as a screen shows
SMOOTH_SHARE = 0.03  # of a curve, that the bold line is the median over

Points = Sequence[tuple[float, float]]  # steps and values, in order


@dataclass(frozen=True)
class Line:
    """One line of a chart. Class names are those of the page's style."""

    name: str
    points: Points
    kind: str = "train"
    """train: a pale line with a bold one through it; held: dots on a line."""
    errors: Points = ()
    """Half the height of a bar at each point, where known."""


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
    """Lines over steps. Positions are in per cent, so that words and dots keep their size when the page is narrow."""
    every = np.array([value for line in lines for _, value in line.points])
    low, high = float(every.min()), float(every.max())
    above = ""
    if clipped and len(every) > 20:  # what training begins with would flatten all that follows
        top = float(np.quantile(every, 0.95))
        top = max([top, *(value for line in lines if line.kind == "held" for _, value in line.points)])
        if high > low + 1.5 * (top - low):
            above, high = f"up to {form(high)} above the picture", top
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
        clipped_at = (-8.0, 108.0)  # just out of sight
        places = (f"{x(s):.2f} {float(np.clip(100 * (high - v) / (high - low), *clipped_at)):.2f}" for s, v in points)
        return "M" + "L".join(places)

    drawn: list[str] = []
    dots: list[str] = []
    told: list[Points] = []
    for line in lines:
        if line.kind == "held":
            drawn.append(f'<path class="held" d="{path(line.points)}"/>')
            sizes = dict(line.errors)
            for step, value in line.points:
                half = 100 * sizes.get(step, 0.0) / (high - low)
                left, top = f"left:{x(step):.2f}%", y(value)
                if half:  # as much of the bar as the picture holds
                    begin, end = max(0.0, top - half), min(100.0, top + half)
                    dots.append(f'<i class="error" style="{left};top:{begin:.2f}%;height:{end - begin:.2f}%"></i>')
                dots.append(f'<i class="dot" style="{left};top:{top:.2f}%"></i>')
            told.append(line.points)
            continue
        means = _thinned(line.points)
        if line.kind == "train":
            drawn.append(f'<path class="pale" d="{path(means)}"/><path class="bold" d="{path(_smooth(means))}"/>')
        else:
            drawn.append(f'<path class="bold" d="{path(means)}"/>')
        told.append(means)
    for step, value in spikes:
        dots.append(
            f'<i class="spike" style="left:{x(step):.2f}%"></i>'
            f'<i class="peak" style="left:{x(step):.2f}%;top:{y(value):.2f}%"></i>'
        )
    marks = "".join(
        f'<span class="y" style="top:{y(tick):.2f}%">{text(_short(tick, ticks, form))}</span>' for tick in ticks
    )
    rules = "".join(f'<path class="rule" d="M0 {y(tick):.2f}H100"/>' for tick in ticks)
    feet = "".join(
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
    keys += [f"<li>{text(above)}</li>"] if above else []
    first, final = lines[0].points[0], lines[0].points[-1]
    aria = (
        f"{title}: {lines[0].name} from {form(first[1])} at step {first[0]:,} to {form(final[1])} at step {final[0]:,}"
    )
    data: list[dict[str, Any]] = [
        {"name": line.name, "points": [[step, form(value)] for step, value in points]}
        for line, points in zip(lines, told, strict=True)
    ]
    if spikes:
        data.append({"name": "spike", "points": [[step, form(value)] for step, value in spikes]})
    heading = f"<h3>{text(title)}" + (f" <small>{text(unit)}</small>" if unit else "") + "</h3>"
    return (
        f'<figure class="chart{" wide" if wide else ""}" data-last="{last}">\n<figcaption>{heading}'
        f'<output></output></figcaption>\n<div class="plot" role="img" aria-label="{text(aria)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{rules}{"".join(drawn)}</svg>'
        f'{"".join(dots)}<i class="cursor"></i>{marks}{feet}</div>\n'
        + (f'<ul class="key">{"".join(keys)}</ul>\n' if keys else "")
        + f'<script type="application/json">{script(data)}</script>\n</figure>'
    )


def _thinned(points: Points) -> Points:
    """Means over stretches of equal length, where there are more points than a screen shows."""
    steps, values = (np.array(column, np.float64) for column in zip(*points, strict=True))
    parts = min(len(points), POINTS_AT_MOST)
    return [
        (float(s.mean().round(1)), float(v.mean()))
        for s, v in zip(np.array_split(steps, parts), np.array_split(values, parts), strict=True)
    ]


def _smooth(points: Points) -> Points:
    """Each value the median of its neighbourhood: smaller at the beginning, which is steep."""
    values = np.array([value for _, value in points])
    half = round(len(values) * SMOOTH_SHARE / 2)
    return [
        (step, float(np.median(values[i - half : i + half + 1] if i >= half else values[: 2 * i + 1])))
        for i, (step, _) in enumerate(points)
    ]


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about that many: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def _short(tick: float, ticks: Sequence[float], form: Callable[[float], str]) -> str:
    """A tick with as many decimals as tell it from the next one."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
    if form is per_cent:
        return f"{tick:.{max(0, -math.floor(math.log10(step * 100) + 1e-9))}%}"
    return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def script(value: Any) -> str:
    """JSON that cannot end the element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")
