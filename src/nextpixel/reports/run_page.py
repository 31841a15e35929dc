"""The page of a run by `nextpixel info`: charts, samples and tables in one self-contained HTML file."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from nextpixel.checkpoints import Run, planned_steps
from nextpixel.config import DistillConfig, FinetuneConfig, ImageGPTConfig, PretrainConfig, ResNetConfig, stated
from nextpixel.errors import InputError
from nextpixel.hardware import find_hardware
from nextpixel.network import cost as plan
from nextpixel.progress import capacity, duration
from nextpixel.reports.curves import Line, Points, chart, per_cent
from nextpixel.reports.pages import data_url, fill, text

MAX_SAMPLES = 12
SETTINGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "distill": DistillConfig}
VALIDATION = {  # metric: title, unit, format
    "validation_nats": ("validation", "nats per pixel", "{:.4f}"),
    "validation_accuracy": ("validation accuracy", "", "{:.1%}"),
    "validation_distance": ("validation distance", "", "{:.4f}"),
}


def page(run: Run) -> str:
    """The HTML text. Raises InputError for a run folder that cannot be read."""
    if run.kind not in SETTINGS:
        raise InputError(f"expected the run of a model, got that of a tokenizer, {str(run.path)!r}", argument="html")
    with run.checked_facts() as facts:
        log, best, steps = _finite(run.read_log()), run.best(), run.steps()
        config, kind = facts["config"], run.kind
        batch = config["batch_images"]
        shape = (ResNetConfig if "blocks" in facts["model"] else ImageGPTConfig)(**facts["model"])
        planned = planned_steps(facts)
        done = max([entry["step"] for entry in log] + steps, default=0)
        progress = f"nextpixel {kind}; {done:,} of {planned:,} steps of {batch:,} images"
        started = facts.get("started", "at an unknown time")[:16].replace("T", " ")
        spikes = _points(log, "spike")
        return fill(
            "run.html",
            title=text(run.path.resolve().name),
            facts=text(f"{progress}; {shape.parameters:,} parameters; started {started}."),
            verdict=text(_verdict(run, best, done, planned)),
            tiles="\n".join(_tiles(facts, log, done, spikes)),
            charts="\n".join(_charts(log, spikes)) or "<p>Nothing was logged yet.</p>",
            samples=_samples(run, log),
            checkpoints=_checkpoints(run, log, best, steps),
            machine=_machine(facts, log, shape),
            settings=_settings(facts, kind),
        )


def _finite(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The finite numbers of each log line with a step."""
    return [
        {name: value for name, value in entry.items() if isinstance(value, int | float) and math.isfinite(value)}
        for entry in log
        if isinstance(entry, dict) and isinstance(entry.get("step"), int)
    ]


def _points(log: Sequence[dict[str, Any]], name: str) -> Points:
    return [(entry["step"], float(entry[name])) for entry in log if name in entry]


def _verdict(run: Run, best: dict[str, Any], done: int, planned: int) -> str:
    if not best:
        return "No evaluation yet." if done < planned else "Never evaluated."
    name = next(name for name in best if name != "step")
    title, unit, form = VALIDATION.get(f"validation_{name}", (name, "", "{:.4g}"))
    reached = f"Best {title} {form.format(best[name])} {unit}".rstrip() + f", at step {best['step']:,}."
    if score := run.test_score():
        reached += f" On {score['images']:,} test images, evaluated once: accuracy {score['accuracy']:.1%}."
    return reached


def _tiles(facts: dict[str, Any], log: list[dict[str, Any]], done: int, spikes: Points) -> list[str]:
    """The most important numbers."""
    batch, images = facts["config"]["batch_images"], facts["data"].get("train_images")
    tiles = []
    for name, (title, unit, form) in VALIDATION.items():
        if found := _points(log, name):
            tiles.append((form.format(found[-1][1]), f"{title} at the last evaluation" + (f", {unit}" if unit else "")))
    if probes := _points(log, "probe_accuracy"):
        tiles.append((f"{probes[-1][1]:.1%}", "probe accuracy at the last evaluation"))
    if losses := _points(log, "loss"):
        tiles.append((f"{losses[-1][1]:.3f}", "training loss at the end"))
    epochs = f", {done * batch / images:,.3g} epochs" if images else ""
    tiles.append((f"{done * batch:,}", f"images seen{epochs}"))
    if speeds := _points(log, "images_per_second"):
        note = f"of training at {np.median([speed for _, speed in speeds]):,.3g} images a second, without evaluations"
        tiles.append((duration(_seconds(log, batch)), note))
    if spikes or any("highest_loss" in entry for entry in log):  # not recorded in older logs
        tiles.append((f"{len(spikes):,}", "loss spike" if len(spikes) == 1 else "loss spikes"))
    return [f"<li><b>{text(value)}</b><span>{text(name)}</span></li>" for value, name in tiles]


def _seconds(log: list[dict[str, Any]], batch: int) -> float:
    """Training time of all logged steps, from their speeds."""
    total, before = 0.0, 0
    for entry in log:
        if entry.get("images_per_second", 0) > 0:
            total += (entry["step"] - before) * batch / entry["images_per_second"]
            before = entry["step"]
    return total


# ---- curves


def _charts(log: list[dict[str, Any]], spikes: Points) -> list[str]:
    last = max((entry["step"] for entry in log), default=0)
    nats = _points(log, "validation_nats")
    validation = Line("validation", nats, "held", _points(log, "validation_standard_error"))
    losses = [line for line in (Line("training", _points(log, "loss")), validation) if line.points]
    unit = "nats per pixel" if nats else ""
    charts = [chart("Loss", unit, losses, "{:.3f}".format, last, clipped=True, spikes=spikes)] if losses else []
    ridge = "ridge regression on the middle layer, held-out images"
    for name, title, unit, kind, form in (
        ("validation_accuracy", "Validation accuracy", "", "held", per_cent),
        ("validation_distance", "Validation distance", "", "held", "{:.4f}".format),
        ("probe_accuracy", "Probe accuracy", ridge, "held", per_cent),
        ("rate", "Learning rate", "", "plain", "{:.3g}".format),
        ("images_per_second", "Throughput", "images a second", "train", "{:,.3g}".format),
        ("waiting", "Waiting for batches", "share of the time", "train", per_cent),
    ):
        points = _points(log, name)
        if points and (name != "waiting" or max(share for _, share in points) > 0.01):
            charts.append(chart(title, unit, [Line(title, points, kind)], form, last, from_zero=kind != "held"))
    return charts


# ---- pictures and tables


def _samples(run: Run, log: list[dict[str, Any]]) -> str:
    """The samples drawn during training, at most MAX_SAMPLES, evenly spaced."""
    found = sorted((run.path / "samples").glob("step_*.png"))
    found = [path for path in found if path.stem.removeprefix("step_").isdecimal()]
    if not found:
        return ""
    shown = sorted({round(i) for i in np.linspace(0, len(found) - 1, min(len(found), MAX_SAMPLES))})
    nats = dict(_points(log, "validation_nats"))
    cards = []
    for path in (found[i] for i in shown):
        step = int(path.stem.removeprefix("step_"))
        score = f"{nats[step]:.4f} nats" if step in nats else ""
        cards.append(
            f'<li><img src="{data_url(path.read_bytes())}" alt="samples at step {step:,}">'
            f"<b>step {step:,}</b><span>{score}</span></li>"
        )
    note = f"{len(shown)} of {len(found)} samples. " if len(shown) < len(found) else ""
    return (
        '<section aria-labelledby="samples">\n<h2 id="samples">Samples over time</h2>\n'
        f'<p class="soft">{note}All use the same seed, so each position shows the same noise over time.</p>\n'
        f'<ol class="samples">{"".join(cards)}</ol>\n</section>'
    )


def _checkpoints(run: Run, log: list[dict[str, Any]], best: dict[str, Any], steps: list[int]) -> str:
    if not steps:
        return "<p>No checkpoint yet.</p>"
    forms = {name: (title, form) for name, (title, _, form) in VALIDATION.items()}
    forms["probe_accuracy"] = "probe accuracy", "{:.1%}"
    scores = {name: dict(points) for name in forms if (points := _points(log, name))}
    heads = ["checkpoint", *(forms[name][0] for name in scores), "model", "trainer state", "total"]
    rows, total = [], 0
    for step in reversed(steps):
        folder = run.folder(step)
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        model, whole = sizes.get(folder / "model.safetensors", 0), sum(sizes.values())
        total += whole
        cells = [forms[name][1].format(found[step]) if step in found else "" for name, found in scores.items()]
        cells += [capacity(model), capacity(whole - model), capacity(whole)]
        mark, note = (' class="best"', " <small>best</small>") if step == best.get("step") else ("", "")
        rows.append(f'<tr{mark}><th scope="row">step {step:,}{note}</th><td>{"</td><td>".join(cells)}</td></tr>')
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    return (
        '<div class="rows" role="region" aria-labelledby="checkpoints" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody>\n</table></div>\n"
        f'<p class="soft">{len(steps)} checkpoints, {capacity(total)} in total.</p>'
    )


def _machine(facts: dict[str, Any], log: list[dict[str, Any]], shape: ImageGPTConfig | ResNetConfig) -> str:
    decided, machine = facts["decisions"], facts.get("machine", {})
    rows = {
        "device": machine.get("gpu") or decided["device"],
        "processor": machine.get("processor") and f"{machine['processor']}, {machine['cores']} cores",
        "memory": machine.get("memory_bytes") and capacity(machine["memory_bytes"]),
        "processes": facts.get("processes", 1),
        "threads": decided.get("threads"),
        "matrix products": f"{decided['dtype']}, {'compiled' if decided.get('compile') else 'not compiled'}",
        "micro-batch": decided.get("micro_batch_images") and f"{decided['micro_batch_images']} images",
    }
    speeds = [speed for _, speed in _points(log, "images_per_second")]
    if speeds:
        low, middle, high = np.quantile(speeds, [0.1, 0.5, 0.9])
        rows["throughput"] = f"{middle:,.3g} images/s (80% of the log between {low:,.3g} and {high:,.3g})"
        if isinstance(shape, ImageGPTConfig):
            flops = plan.flops_per_image(shape) * float(middle)
            rows["model FLOP/s"] = f"{flops / 1e12:,.3g} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:,.3g} GFLOP/s"
            hardware = find_hardware(machine.get("gpu") or "", machine.get("gpu_memory_bytes") or 0)
            if hardware and (peak := hardware.peak(decided["dtype"])):
                share = flops / peak / facts.get("processes", 1)
                rows["model FLOP/s"] += f", {share:.0%} of the {hardware.name}'s {decided['dtype']} peak"
    if waiting := [share for _, share in _points(log, "waiting")]:
        rows["waiting for batches"] = f"{np.mean(waiting):.1%} of the time"
    rows |= {name: value[:12] for name, value in facts.get("versions", {}).items()}
    return _pairs(rows)


def _settings(facts: dict[str, Any], kind: str) -> str:
    """The settings that differ from the defaults first, then all."""
    config, decided = facts["config"], facts["decisions"]
    defaults = {field.name: field.default for field in fields(SETTINGS[kind])} if kind in SETTINGS else {}
    own = {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}
    data = {name: value for name, value in facts["data"].items() if name != "path"}
    command = shlex.join(["nextpixel", *map(str, facts["command"])]) if facts.get("command") else ""
    groups = [
        ("Chosen", own, True),
        ("Images", data, True),
        ("Network", stated(facts["model"]), False),
        ("Decided by the run", {name: value for name, value in decided.items() if not name.endswith("_key")}, False),
        ("All settings", config, False),
    ]
    parts = [f"<pre><code>{text(command)}</code></pre>"] if command else []
    parts += [
        f"<details{' open' if shown else ''}><summary>{text(title)}</summary>{_pairs(values)}</details>"
        for title, values, shown in groups
        if values
    ]
    return "\n".join(parts)


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{text(name.replace('_', ' '))}</dt><dd>{text(_format(value))}</dd></div>"
        for name, value in values.items()
        if value is not None
    )
    return f'<dl class="pairs">{rows}</dl>'


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
