"""Figures of probes and studies as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextpixel.files import new_file
from nextpixel.reports.pages import new_axes
from nextpixel.representation.few_labels import Result
from nextpixel.stats import mean_interval, middle_best
from nextpixel.study.points import Point, points_by_run
from nextpixel.training.convnet import TrainedResult

COLORS = ("#3b6ea5", "#d1752d", "#4c9a5b", "#a0497e", "#7b6bb0", "#8a7a3c")
MARKERS = "os^Dv<>pP*"


def layer_figure(sweep: Mapping[int, float], path: Path) -> None:
    """Held-out accuracy of each layer (as Chen et al. 2020, Figure 2)."""
    axes = new_axes(6, 4, "layer", "held-out accuracy")
    axes.plot(list(sweep), list(sweep.values()), marker="o", color="#3b6ea5")
    best = list(sweep)[middle_best(list(sweep.values()))]
    axes.annotate(f"{sweep[best]:.3f}", (best, sweep[best]), textcoords="offset points", xytext=(0, 8), ha="center")
    axes.set_xticks(list(sweep))
    _save(axes, path)


def label_figure(results: Sequence[Result | TrainedResult], path: Path) -> None:
    """Test accuracy against labels per class, a line for each feature set, with 95% intervals of the mean."""
    axes = new_axes(6, 4, "labels per class", "test accuracy")
    for name in dict.fromkeys(result.method for result in results):
        rows = [r for r in results if r.method == name and r.labels_per_class is not None]
        means, _, halves = zip(*(mean_interval([score.accuracy for score in row.scores]) for row in rows), strict=True)
        label = name.replace("$", r"\$")  # else mathematics; and labels that begin with _ would be left out
        label = f" {label}" if label.startswith("_") else label
        axes.errorbar([row.labels_per_class for row in rows], means, halves, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.legend(frameon=False)
    _save(axes, path)


def loss_accuracy_figure(points: Sequence[Point], controls: Mapping[str, float], path: Path) -> None:
    """Probe accuracy against loss, on a reversed axis (Chen et al. 2020, Figure 3).

    Each run is a line, each shape a colour, each seed a marker; last checkpoints are filled, controls dotted.
    """
    axes = new_axes(6, 4, "nats per pixel on test images (falling)", "probe accuracy, %")
    colors, markers = _by_shape(points), _by_seed(points)
    for found in points_by_run(points).values():
        color, marker = colors[found[0].shape], markers[found[0].seed]
        axes.plot([p.nats for p in found], [100 * p.accuracy for p in found], color=color, lw=1)
        for i, point in enumerate(found):
            face = color if i == len(found) - 1 else "white"
            axes.plot([point.nats], [100 * point.accuracy], marker=marker, color=color, mfc=face, ms=5)
    axes.invert_xaxis()
    _controls(axes, controls, colors)
    _legend(axes, colors, markers)
    _save(axes, path)


def layer_depth_figure(points: Sequence[Point], controls: Mapping[str, float], path: Path) -> None:
    """Test accuracy by layer of each run's last checkpoint against relative depth; the chosen layer is filled."""
    axes = new_axes(6, 4, "layer / layers of the network", "probe accuracy, %")
    colors, markers = _by_shape(points), _by_seed(points)
    for found in points_by_run(points).values():
        last = found[-1]
        color, marker, deepest = colors[last.shape], markers[last.seed], last.layers[-1].layer
        accuracies = [100 * score.accuracy for score in last.layers]
        depths = [score.layer / deepest for score in last.layers]
        axes.plot(depths, accuracies, color=color, lw=1, marker=marker, mfc="white", ms=5)
        axes.plot([last.best.layer / deepest], [100 * last.accuracy], color=color, marker=marker, ms=5)
    _controls(axes, controls, colors)
    _legend(axes, colors, markers)
    _save(axes, path)


def _by_shape(points: Sequence[Point]) -> dict[str, str]:
    """A colour for each shape, smallest first."""
    shapes = dict.fromkeys(point.shape for point in sorted(points, key=lambda point: point.parameters))
    return {shape: COLORS[i % len(COLORS)] for i, shape in enumerate(shapes)}


def _by_seed(points: Sequence[Point]) -> dict[int, str]:
    return {seed: MARKERS[i % len(MARKERS)] for i, seed in enumerate(sorted({point.seed for point in points}))}


def _controls(axes: Any, controls: Mapping[str, float], colors: Mapping[str, str]) -> None:
    for name, accuracy in controls.items():
        color = colors.get(name.removeprefix("untrained "), "0.4")
        axes.axhline(100 * accuracy, color=color, lw=0.8, ls=":", zorder=0)
        if color == "0.4":
            axes.annotate(
                name, (0.01, 100 * accuracy), xycoords=("axes fraction", "data"), xytext=(0, 2),
                textcoords="offset points", fontsize=7, color=color,
            )  # fmt: skip


def _legend(axes: Any, colors: Mapping[str, str], markers: Mapping[int, str]) -> None:
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=color, label=shape) for shape, color in colors.items()]
    keys += [Line2D([], [], color="0.3", marker=m, ls="", mfc="white", label=f"seed {s}") for s, m in markers.items()]
    keys.append(Line2D([], [], color="0.3", ls=":", lw=0.8, label="not trained"))
    axes.legend(handles=keys, frameon=False, fontsize=8)


def _save(axes: Any, path: Path) -> None:
    with new_file(path) as file:
        axes.figure.savefig(file, format="png", dpi=120)
