"""The page of `nextpixel score` with a report: one HTML file that needs nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextpixel.evaluation.oddness import COLUMNS, Oddness, local_nats
from nextpixel.images import HEAT, heatmap
from nextpixel.reports.pages import fill, image, text

CARDS_AT_MOST = 24
ROWS_AT_MOST = 2_000
BINS = 40
HEAT_QUANTILE = 0.99

BLIND = (
    "Odd to the model is not the same as wrong, rare or broken. A kind of picture that it was never trained on may be "
    "unlikely throughout.",
    "Texture counts most. Leaves, gravel and noise cost many nats whatever they show; flat and simple pictures look "
    "normal whatever they show. Allowing for the file size repairs this in one direction and can break the other: read "
    "the columns side by side.",
    "The images were scored as small squares. What lies outside the square or is finer than its pixels is gone, and "
    "images that were enlarged, shrunk or compressed in another way differ by that alone.",
    "The model sees colours through its palette: small shifts of colour are lost.",
    "A small flaw hardly moves the mean over all pixels: look at the maps and the hottest spot. A flaw of a single "
    "colour is dark inside, and only its edges are bright.",
    "Duplicates lie close to each other, so distances within one folder hide what is odd twice.",
    "A p-value holds for images taken as the normal ones were (same camera, same preparation) and for one column "
    "chosen beforehand: the oddest of six columns passes 1 % more often than once in a hundred.",
)


def page(
    odd: Oddness,
    maps: NDArray[np.float32],
    *,
    source: str,
    model: str,
    by: str,
    against: str | None = None,
    false_alarms: float | None = None,
) -> str:
    """The HTML text. `maps` (K, H, W) are the nats of each pixel of the K oddest images by column `by`, in order."""
    order, maps = odd.order(by), local_nats(maps)
    top = float(np.quantile(maps, HEAT_QUANTILE))
    limits = {} if false_alarms is None else {name: odd.threshold(false_alarms, name) for name in COLUMNS}
    beyond = {
        name: np.zeros(len(odd), bool) if false_alarms is None else odd.p_values[name] <= false_alarms
        for name in COLUMNS
    }
    facts = [f"{len(odd):,} images", f"model {model}"]
    if against is not None:
        facts.append(f"p-values by {len(odd.calibration[by]):,} held-out images of {against}")
    if odd.unreadable:
        facts.append(f"{len(odd.unreadable):,} files could not be read and were left out")
    return fill(
        "odd-images.html",
        title=text(f"Odd images in {source}"),
        facts=text("; ".join(facts) + "."),
        verdict=text(_verdict(odd, by, false_alarms, beyond[by])),
        by=text(COLUMNS[by].title),
        heat=", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in HEAT),
        top=f"{top:.1f}",
        cards="\n".join(
            _card(odd, row, rank, by, heatmap(values, vmax=top), bool(beyond[by][row]))
            for rank, (row, values) in enumerate(zip(order, maps, strict=False), 1)
        ),
        histogram=_histogram(odd, by, limits.get(by)),
        rows_told=text(_rows_told(len(odd), bool(odd.p_values))),
        head=_head(by),
        rows="\n".join(_row(odd, row, by, beyond) for row in order[:ROWS_AT_MOST]),
        columns="\n".join(
            f"<dt>{text(f'{column.title} ({column.unit})')}</dt><dd>{text(column.meaning)}</dd>"
            for column in COLUMNS.values()
        ),
        blind="\n".join(f"<li>{text(line)}</li>" for line in BLIND),
    )


def format_value(column: str, value: float) -> str:
    """A number of that column as tables show it."""
    return f"{value:,.0f}" if column == "png_bytes" else f"{value:.3f}"


def _verdict(odd: Oddness, by: str, false_alarms: float | None, beyond: NDArray[np.bool_]) -> str:
    if false_alarms is not None:
        rate = f"{100 * false_alarms:g} %"
        return (
            f"{beyond.sum():,} of {len(odd):,} images lie beyond the threshold of {rate} false alarms by "
            f"{COLUMNS[by].title}; of as many normal images about {false_alarms * len(odd):,.1f} would."
        )
    if odd.p_values:
        return "A p-value of 0.01 means: one normal image in a hundred is at least as odd by that column."
    return (
        "Without normal images to compare with, this is an order and no verdict: every folder has an oddest image. "
        "Distances are to the other images of the folder itself."
    )


def _rows_told(count: int, has_p: bool) -> str:
    shown = f"The oddest {ROWS_AT_MOST:,} of {count:,} images; the CSV file has all. " if count > ROWS_AT_MOST else ""
    return shown + ("Each value with its p-value. " if has_p else "") + "A click on a heading sorts."


def _card(odd: Oddness, row: int, rank: int, by: str, heat: NDArray[np.uint8], beyond: bool) -> str:
    name = text(odd.names[row])
    said = f"{format_value(by, odd.values[by][row])} {COLUMNS[by].unit}"
    if odd.p_values:
        said += f", p {_p(odd.p_values[by][row])}"
    mark = ' class="beyond"' if beyond else ""
    return (
        f'<li><div class="pair">{image(odd.squares[row], f"number {rank}: {name}")}'
        f"{image(heat, f'where {name} surprises')}</div><b>{name}</b><span{mark}>{said}</span></li>"
    )


def _head(by: str) -> str:
    cells = ['<th scope="col" aria-sort="none"><button type="button">file</button></th>']
    for name in _columns(by):
        column = COLUMNS[name]
        sort = ("ascending" if column.smaller_is_odder else "descending") if name == by else "none"
        title = text(f"{column.title}, {column.unit}")
        cells.append(
            f'<th scope="col" aria-sort="{sort}" title="{title}">'
            f'<button type="button">{text(column.title)}</button></th>'
        )
    return "".join(cells)


def _columns(by: str) -> list[str]:
    """The one that orders the images, then the others."""
    return [by, *(name for name in COLUMNS if name != by)]


def _row(odd: Oddness, row: int, by: str, beyond: dict[str, NDArray[np.bool_]]) -> str:
    name = text(odd.names[row])
    cells = [f'<th scope="row" title="{name}">{name}</th>']
    for column in _columns(by):
        values = odd.values[column]
        p = f"<small>p {_p(odd.p_values[column][row])}</small>" if odd.p_values else ""
        mark = ' class="beyond"' if beyond[column][row] else ""
        cells.append(f'<td{mark} data-value="{values[row]:.6g}">{format_value(column, values[row])}{p}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _histogram(odd: Oddness, by: str, limit: float | None) -> str:
    """Bars of the images, an outline of the normal ones scaled to the same area, a line at the threshold."""
    values, normal = odd.values[by], odd.calibration.get(by)
    every = np.concatenate([values] + ([] if normal is None else [normal]) + ([] if limit is None else [[limit]]))
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.histogram(values, edges)[0]
    outline = None if normal is None else np.histogram(normal, edges)[0] * (len(values) / len(normal))
    tallest = max(counts.max(), 0 if outline is None else outline.max())
    width, height, foot = 720, 240, 40
    step = width / BINS

    def up(count: float) -> float:
        return height * (1 - count / tallest)

    parts = [
        f'<rect class="bar" x="{i * step + 1:.1f}" y="{up(n):.1f}" width="{step - 2:.1f}" '
        f'height="{height - up(n):.1f}"/>'
        for i, n in enumerate(counts)
        if n
    ]
    if outline is not None:
        points = " ".join(f"{i * step:.1f},{up(n):.1f} {(i + 1) * step:.1f},{up(n):.1f}" for i, n in enumerate(outline))
        parts.append(f'<polyline class="normal" points="0,{height} {points} {width},{height}"/>')
    if limit is not None:
        x = width * (limit - edges[0]) / (edges[-1] - edges[0])
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>')
    for place, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        value = format_value(by, edges[0] + place * (edges[-1] - edges[0]))
        parts.append(f'<text x="{place * width:.0f}" y="{height + 26}" text-anchor="{anchor}">{value}</text>')
    said = (
        f"Histogram of {COLUMNS[by].title}: {len(values):,} images from {format_value(by, values.min())} to "
        f"{format_value(by, values.max())} {COLUMNS[by].unit}, median {format_value(by, float(np.median(values)))}"
    )
    keys = [f'<li><i style="background: var(--bar)"></i>{len(values):,} images</li>']
    if normal is not None:
        outlined = "border: 2px solid var(--other); border-bottom: 0"
        keys.append(f'<li><i style="{outlined}"></i>{len(normal):,} normal images, scaled to the same area</li>')
    if limit is not None:
        side = "below" if COLUMNS[by].smaller_is_odder else "above"
        told = f"threshold: odd {side} {format_value(by, limit)}"
        keys.append(f'<li><i style="border-left: 2px dashed var(--mark); width: 2px"></i>{told}</li>')
    return (
        f'<svg viewBox="0 0 {width} {height + foot}" role="img" aria-label="{text(said)}">{"".join(parts)}</svg>\n'
        f'<ul class="key">{"".join(keys)}<li>in {text(COLUMNS[by].unit)}</li></ul>'
    )


def _p(value: float) -> str:
    return f"{value:.2g}"
