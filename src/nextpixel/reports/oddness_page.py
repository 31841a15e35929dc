"""The report of `nextpixel score`: a self-contained HTML page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextpixel.evaluation.oddness import COLUMNS, Oddness, local_nats
from nextpixel.images import HEAT, heatmap
from nextpixel.reports.pages import BAR, MARK, OTHER, fill, image, new_axes, svg, text

MAX_CARDS = 24
MAX_ROWS = 2_000
BINS = 40
HEAT_QUANTILE = 0.99

LIMITATIONS = (
    "Odd to the model does not mean wrong, rare or broken. A kind of image that it never saw in training can be "
    "unlikely as a whole.",
    "Texture dominates. Leaves, gravel and noise cost many nats, flat and simple images few, whatever they show. "
    "Correcting for the file size helps in one direction and can hurt in the other: compare the columns.",
    "The images were scored as small squares. Anything outside the square or finer than its pixels is lost, and images "
    "that were resized or compressed differently differ by that alone.",
    "The model sees colours through its palette: small colour shifts are lost.",
    "A small flaw hardly changes the mean over all pixels: look at the maps and the hottest spot. A flaw of a single "
    "colour is dark inside, and only its edges are bright.",
    "Duplicates are close to each other, so distances within one folder miss images that are odd twice.",
    "A p-value holds for images taken like the normal ones (same camera, same preparation) and for a single column "
    "chosen beforehand: the oddest of six columns falls below 0.01 more often than once in a hundred.",
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
    """The HTML text. `maps` (K, H, W) are the nats per pixel of the K oddest images by column `by`, in order."""
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
        facts.append(f"{len(odd.unreadable):,} files were skipped because they cannot be read")
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
        rows_note=text(_rows_note(len(odd), bool(odd.p_values))),
        head=_head(by),
        rows="\n".join(_row(odd, row, by, beyond) for row in order[:MAX_ROWS]),
        columns="\n".join(
            f"<dt>{text(f'{column.title} ({column.unit})')}</dt><dd>{text(column.meaning)}</dd>"
            for column in COLUMNS.values()
        ),
        limitations="\n".join(f"<li>{text(line)}</li>" for line in LIMITATIONS),
    )


def format_value(column: str, value: float) -> str:
    """A value of that column, formatted for tables."""
    return (
        f"{value:,.0f}" if column == "png_bytes" else f"{value:.4f}" if column == "nats_per_pixel" else f"{value:.3f}"
    )


def _verdict(odd: Oddness, by: str, false_alarms: float | None, beyond: NDArray[np.bool_]) -> str:
    if false_alarms is not None:
        rate = f"{100 * false_alarms:g}%"
        return (
            f"{beyond.sum():,} of {len(odd):,} images are beyond the threshold for {rate} false alarms by "
            f"{COLUMNS[by].title}; of as many normal images about {false_alarms * len(odd):,.1f} would be."
        )
    if odd.p_values:
        return "A p-value of 0.01 means: one normal image in a hundred is at least as odd by that column."
    return (
        "Without normal images to compare with, this is only a ranking: every folder has an oddest image. "
        "Distances are to the other images of the folder itself."
    )


def _rows_note(count: int, has_p: bool) -> str:
    shown = f"The oddest {MAX_ROWS:,} of {count:,} images; the CSV file has all. " if count > MAX_ROWS else ""
    return shown + ("Each value with its p-value. " if has_p else "") + "Click a heading to sort."


def _card(odd: Oddness, row: int, rank: int, by: str, heat: NDArray[np.uint8], beyond: bool) -> str:
    name = text(odd.names[row])
    score = f"{format_value(by, odd.values[by][row])} {COLUMNS[by].unit}"
    if odd.p_values:
        score += f", p {_p(odd.p_values[by][row])}"
    mark = ' class="beyond"' if beyond else ""
    return (
        f'<li><div class="pair">{image(odd.images[row], f"number {rank}: {name}")}'
        f"{image(heat, f'nats of {name}')}</div><b>{name}</b><span{mark}>{score}</span></li>"
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
    """The sorting column, then the others."""
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
    """Bars for the images, an outline for the normal ones scaled to the same area, a line at the threshold."""
    values, normal, unit = odd.values[by], odd.calibration.get(by), COLUMNS[by].unit
    every = np.concatenate([values] + ([] if normal is None else [normal]) + ([] if limit is None else [[limit]]))
    edges = np.histogram_bin_edges(every, BINS)
    axes = new_axes(7.5, x=unit)
    axes.hist(values, edges, color=BAR, rwidth=0.9, label=f"{len(values):,} images")
    if normal is not None:
        counts = np.histogram(normal, edges)[0] * (len(values) / len(normal))
        axes.stairs(counts, edges, color=OTHER, lw=1.5, label=f"{len(normal):,} normal images, scaled to the same area")
    if limit is not None:
        side = "below" if COLUMNS[by].smaller_is_odder else "above"
        axes.axvline(limit, color=MARK, ls="--", lw=1.5, label=f"threshold: odd {side} {format_value(by, limit)}")
    label = (
        f"Histogram of {COLUMNS[by].title}: {len(values):,} images from {format_value(by, values.min())} to "
        f"{format_value(by, values.max())} {unit}, median {format_value(by, float(np.median(values)))}"
    )
    return svg(axes, label)


def _p(value: float) -> str:
    return f"{value:.2g}"
