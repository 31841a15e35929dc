"""The page of `nextpixel info RUN --html`: a run in curves, pictures and tables, in one file that needs no other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nextpixel import plan
from nextpixel.checkpoints import Run
from nextpixel.checkpoints.files import read_json
from nextpixel.config import DistillConfig, FinetuneConfig, ImageGPTConfig, PretrainConfig, ResNetConfig, flag
from nextpixel.pages import data_url, fill, text
from nextpixel.preparation import reading
from nextpixel.progress import capacity, duration

POINTS_AT_MOST = 320  # of a curve: as many as a screen shows
PICTURES_AT_MOST = 12
SMOOTH_SHARE = 0.03  # of a curve, that the bold line is the median over
SETTINGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "distill": DistillConfig}
VALIDATION = {  # what validation measures: its name, its unit, how a number of it is written
    "validation_nats": ("validation", "nats per pixel", "{:.4f}"),
    "validation_accuracy": ("validation accuracy", "", "{:.1%}"),
    "validation_distance": ("validation distance", "", "{:.4f}"),
}

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


def page(run: Run) -> str:
    """The HTML text. Raises InputError for a run folder that cannot be read."""
    with reading(run) as facts:
        log, best, steps = _finite(run.read_log()), run.best(), run.steps()
        config, kind = facts["config"], run.kind
        batch = config["batch_images"]
        shape = (ResNetConfig if "blocks" in facts["model"] else ImageGPTConfig)(**facts["model"])
        planned = facts["decisions"].get("steps") or config.get("steps") or 0
        done = max([entry["step"] for entry in log] + steps, default=0)
        said = f"nextpixel {kind}; {done:,} of {planned:,} steps of {batch:,} images; {shape.parameters:,} parameters"
        spikes = _points(log, "spike")
        return fill(
            "run.html",
            title=text(run.path.resolve().name),
            facts=text(f"{said}; begun {facts.get('started', 'at an unknown time')[:16].replace('T', ' ')}."),
            verdict=text(_verdict(run, best, done, planned)),
            tiles="\n".join(_tiles(run, facts, log, best, shape, done, spikes)),
            charts="\n".join(_charts(log, spikes)) or "<p>Nothing was logged yet.</p>",
            samples=_samples(run, log),
            checkpoints=_checkpoints(run, log, best, steps),
            machine=_machine(facts, log, shape),
            settings=_settings(facts, kind),
        )


def _finite(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with a step, and of these what is a finite number."""
    return [
        {name: value for name, value in entry.items() if isinstance(value, int | float) and math.isfinite(value)}
        for entry in log
        if isinstance(entry, dict) and isinstance(entry.get("step"), int)
    ]


def _points(log: Sequence[dict[str, Any]], name: str) -> Points:
    return [(entry["step"], float(entry[name])) for entry in log if name in entry]


def _verdict(run: Run, best: dict[str, Any], done: int, planned: int) -> str:
    if not best:
        return "No evaluation yet." if done < planned else "It was never evaluated."
    name = next(name for name in best if name != "step")
    title, unit, form = VALIDATION.get(f"validation_{name}", (name, "", "{:.4g}"))
    reached = f"Best {title} {form.format(best[name])} {unit}".rstrip() + f", at step {best['step']:,}."
    path = run.path / "test.json"
    if path.is_file():
        score = read_json(path)
        reached += f" On {score['images']:,} test images, looked at once: accuracy {score['accuracy']:.1%}."
    return reached


def _tiles(
    run: Run,
    facts: dict[str, Any],
    log: list[dict[str, Any]],
    best: dict[str, Any],
    shape: ImageGPTConfig | ResNetConfig,
    done: int,
    spikes: Points,
) -> list[str]:
    """The numbers that one looks for first."""
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
        told = f"of training at {np.median([speed for _, speed in speeds]):,.3g} images a second, without evaluations"
        tiles.append((duration(_seconds(log, batch)), told))
    if spikes or any("highest_loss" in entry for entry in log):  # older logs were never looked through
        tiles.append((f"{len(spikes):,}", "loss spike" if len(spikes) == 1 else "loss spikes"))
    return [f"<li><b>{text(value)}</b><span>{text(name)}</span></li>" for value, name in tiles]


def _seconds(log: list[dict[str, Any]], batch: int) -> float:
    """Of all logged steps, by their speeds."""
    total, before = 0.0, 0
    for entry in log:
        if entry.get("images_per_second", 0) > 0:
            total += (entry["step"] - before) * batch / entry["images_per_second"]
            before = entry["step"]
    return total


# ---- curves


def _charts(log: list[dict[str, Any]], spikes: Points) -> list[str]:
    loss, nats = _points(log, "loss"), _points(log, "validation_nats")
    charts = []
    last = max((entry["step"] for entry in log), default=0)

    def add(title: str, unit: str, lines: list[Line], form: Callable[[float], str], **options: Any) -> None:
        lines = [line for line in lines if line.points]
        if lines:
            charts.append(_chart(title, unit, lines, form, last, **options))

    errors = _points(log, "validation_standard_error")
    add(
        "Loss",
        "nats per pixel" if nats else "",
        [Line("training", loss), Line("validation", nats, "held", errors)],
        lambda value: f"{value:.3f}",
        wide=True,
        clipped=True,
        spikes=spikes,
    )
    for name, (title, unit, _) in VALIDATION.items():
        if name != "validation_nats":
            form = _per_cent if "accuracy" in name else lambda value: f"{value:.4f}"
            add(title.capitalize(), unit, [Line("validation", _points(log, name), "held")], form)
    add(
        "Probe accuracy",
        "ridge regression on the middle layer, held-out images",
        [Line("probe", _points(log, "probe_accuracy"), "held")],
        _per_cent,
    )
    add(
        "Learning rate", "", [Line("rate", _points(log, "rate"), "plain")], lambda value: f"{value:.3g}", from_zero=True
    )
    speeds = Line("images a second", _points(log, "images_per_second"))
    add("Throughput", "images a second", [speeds], lambda value: f"{value:,.3g}", from_zero=True)
    waiting = _points(log, "waiting")
    if any(share > 0.01 for _, share in waiting):
        add("Waiting for batches", "share of the time", [Line("waiting", waiting)], _per_cent, from_zero=True)
    return charts


def _per_cent(value: float) -> str:
    return f"{value:.1%}"


def _chart(
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
                if half:
                    dots.append(f'<i class="error" style="{left};top:{top - half:.2f}%;height:{2 * half:.2f}%"></i>')
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
        + f'<script type="application/json">{_script(data)}</script>\n</figure>'
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
    if form is _per_cent:
        return f"{tick:.{max(0, -math.floor(math.log10(step * 100) + 1e-9))}%}"
    return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _script(value: Any) -> str:
    """JSON that cannot end the element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")


# ---- pictures and tables


def _samples(run: Run, log: list[dict[str, Any]]) -> str:
    """The pictures drawn while training, evenly spaced over the run where there are many."""
    found = sorted((run.path / "samples").glob("step_*.png"))
    found = [path for path in found if path.stem.removeprefix("step_").isdecimal()]
    if not found:
        return ""
    shown = sorted({round(place) for place in np.linspace(0, len(found) - 1, min(len(found), PICTURES_AT_MOST))})
    nats = dict(_points(log, "validation_nats"))
    cards = []
    for path in (found[place] for place in shown):
        step = int(path.stem.removeprefix("step_"))
        score = f"{nats[step]:.4f} nats" if step in nats else ""
        cards.append(
            f'<li><img src="{data_url(path.read_bytes())}" alt="pictures drawn at step {step:,}">'
            f"<b>step {step:,}</b><span>{score}</span></li>"
        )
    told = f"{len(shown)} of {len(found)} drawings. " if len(shown) < len(found) else ""
    return (
        '<section aria-labelledby="samples">\n<h2 id="samples">Samples over time</h2>\n'
        f'<p class="soft">{told}The same seed each time, so a place shows what became of the same noise.</p>\n'
        f'<ol class="samples">{"".join(cards)}</ol>\n</section>'
    )


def _checkpoints(run: Run, log: list[dict[str, Any]], best: dict[str, Any], steps: list[int]) -> str:
    if not steps:
        return "<p>No checkpoint yet.</p>"
    scores = {name: dict(_points(log, name)) for name in (*VALIDATION, "probe_accuracy")}
    forms = {name: form for name, (_, _, form) in VALIDATION.items()} | {"probe_accuracy": "{:.1%}"}
    titles = {name: title for name, (title, _, _) in VALIDATION.items()} | {"probe_accuracy": "probe accuracy"}
    shown = [name for name, found in scores.items() if found]
    head = "".join(f'<th scope="col">{text(titles[name])}</th>' for name in shown)
    rows, total = [], 0
    for step in reversed(steps):
        folder = run.folder(step)
        model = (folder / "model.safetensors").stat().st_size if (folder / "model.safetensors").is_file() else 0
        whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        total += whole
        cells = "".join(
            f"<td>{forms[name].format(scores[name][step]) if step in scores[name] else ''}</td>" for name in shown
        )
        mark = ' class="best"' if step == best.get("step") else ""
        told = " <small>best</small>" if mark else ""
        rows.append(
            f'<tr{mark}><th scope="row">step {step:,}{told}</th>{cells}<td>{capacity(model)}</td>'
            f"<td>{capacity(whole - model)}</td><td>{capacity(whole)}</td></tr>"
        )
    return (
        '<div class="rows" role="region" aria-labelledby="checkpoints" tabindex="0"><table>\n<thead><tr>'
        f'<th scope="col">checkpoint</th>{head}<th scope="col">model</th><th scope="col">trainer and rest</th>'
        f'<th scope="col">together</th></tr></thead>\n<tbody>{"".join(rows)}</tbody>\n</table></div>\n'
        f'<p class="soft">{len(steps)} checkpoints, {capacity(total)} in all.</p>'
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
        rows["throughput"] = f"{middle:,.3g} images/s (80 % of the log between {low:,.3g} and {high:,.3g})"
        if isinstance(shape, ImageGPTConfig):
            flops = plan.flops_per_image(shape) * float(middle)
            rows["model FLOP/s"] = f"{flops / 1e12:,.3g} TFLOP/s" if flops >= 1e11 else f"{flops / 1e9:,.3g} GFLOP/s"
            hardware = plan.hardware_called(machine.get("gpu") or "", machine.get("gpu_memory_bytes") or 0)
            peak = hardware and (
                hardware.bf16_flops_per_second if decided["dtype"] == "bf16" else hardware.fp32_flops_per_second
            )
            if hardware and peak:
                share = flops / peak / facts.get("processes", 1)
                rows["model FLOP/s"] += f", {share:.0%} of the {hardware.name}'s {decided['dtype']} peak"
    if waiting := [share for _, share in _points(log, "waiting")]:
        rows["waiting for batches"] = f"{np.mean(waiting):.1%} of the time"
    rows |= {name: value[:12] for name, value in facts.get("versions", {}).items()}
    return _pairs(rows)


def _settings(facts: dict[str, Any], kind: str) -> str:
    """What was chosen, first; then all of it."""
    config, decided = facts["config"], facts["decisions"]
    usual = {field.name: field.default for field in fields(SETTINGS[kind])} if kind in SETTINGS else {}
    own = {flag(name): value for name, value in config.items() if name not in usual or value != usual[name]}
    data = {name: value for name, value in facts["data"].items() if name != "path"}
    command = " ".join(["nextpixel", *map(str, facts.get("command", []))]) if facts.get("command") else ""
    shape = {name: value for name, value in facts["model"].items() if value not in ((), [])}
    groups = [
        ("Chosen", own, True),
        ("Images", data, True),
        ("Network", shape, False),
        ("Decided by the run", {name: value for name, value in decided.items() if not name.endswith("_key")}, False),
        ("All settings", {flag(name): value for name, value in config.items()}, False),
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
        f"<div><dt>{text(name.replace('_', ' '))}</dt><dd>{text(_said(value))}</dd></div>"
        for name, value in values.items()
        if value is not None
    )
    return f'<dl class="pairs">{rows}</dl>'


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
