"""Shared parts of self-contained pages: style, escaped text, embedded images and charts."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextpixel.images import png_bytes

SOFT, LINE, BAR, OTHER, MARK = "#5b6168", "#dcdcd6", "#3b6ea5", "#b0602a", "#a3263c"  # as in page.css, light
STYLES = {SOFT: "soft", LINE: "line", BAR: "bar", OTHER: "other", MARK: "mark"}


def fill(name: str, *, title: str, **values: str) -> str:
    """Fill the template of that name in assets with these values, which are HTML already."""
    assets = resources.files("nextpixel") / "assets"
    begin, style, page = ((assets / part).read_text(encoding="utf-8") for part in ("begin.html", "page.css", name))
    begin = Template(begin.rstrip()).substitute(title=title, style=style)
    return Template(page).substitute(begin=begin, title=title, **values)


def image(pixels: NDArray[np.uint8], alt: str) -> str:
    """An image (S, S, 3) as an HTML element; `alt` is escaped already."""
    height, width = pixels.shape[:2]
    return f'<img src="{data_url(png_bytes(pixels))}" width="{width}" height="{height}" alt="{alt}">'


def data_url(png: bytes) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def text(value: object) -> str:
    """Escaped for HTML and valid UTF-8, which file names need not be."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def new_axes(width: float, height: float = 2.6, x: str = "", y: str = "") -> Any:
    """Axes of a new figure of that size in inches, with these labels, in the colours of a page."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=9, length=0)
    axes.set_xlabel(x, color=SOFT)
    axes.set_ylabel(y, color=SOFT)
    return axes


def svg(axes: Any, label: str) -> str:
    """The figure of these axes as an SVG element that follows the style of the page; equal figures give equal text."""
    from matplotlib import rc_context

    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9, labelcolor=SOFT)
    file = io.StringIO()
    with rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):  # ids unlike those of the page's other figures
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        axes.figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("xlink:href", "href")
    drawn = re.sub(r' (id="[\w.]+_\d+"|xmlns(:xlink)?="[^"]*")', "", drawn)  # the ids are the same in every figure
    for color, name in STYLES.items():
        drawn = drawn.replace(color, f"var(--{name})")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{text(label)}" ', 1)
