"""Figures of results, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextpixel.convnet import Fitted
from nextpixel.metrics import mean_interval
from nextpixel.probing import Result


def layer_figure(sweep: Mapping[int, float], path: Path) -> None:
    """Held-out accuracy of each layer (as Chen et al. 2020, Figure 2)."""
    axes, figure = _axes("layer", "held-out accuracy")
    axes.plot(list(sweep), list(sweep.values()), marker="o", color="#3b6ea5")
    best = max(sweep, key=lambda layer: sweep[layer])
    axes.annotate(f"{sweep[best]:.3f}", (best, sweep[best]), textcoords="offset points", xytext=(0, 8), ha="center")
    axes.set_xticks(list(sweep))
    _save(figure, path)


def label_figure(results: Sequence[Result | Fitted], path: Path) -> None:
    """Test accuracy against labels per class, one line a reading, with 95 % intervals of the mean."""
    axes, figure = _axes("labels per class", "test accuracy")
    for name in dict.fromkeys(result.reading for result in results):
        rows = [r for r in results if r.reading == name and r.labels_per_class is not None]
        means, _, halves = zip(*(mean_interval(row.accuracies) for row in rows), strict=True)
        axes.errorbar([row.labels_per_class for row in rows], means, halves, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.legend(frameon=False)
    _save(figure, path)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes, figure


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
