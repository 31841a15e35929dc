"""Shared parts of self-contained pages: style, escaped text, embedded images."""

from __future__ import annotations

import base64
from html import escape
from importlib import resources
from string import Template

import numpy as np
from numpy.typing import NDArray

from nextpixel.images import png_bytes


def fill(name: str, *, title: str, **values: str) -> str:
    """Fill the template of that name in assets with these values, which are HTML already."""
    assets = resources.files("nextpixel") / "assets"
    begin, style, page = ((assets / part).read_text(encoding="utf-8") for part in ("begin.html", "page.css", name))
    begin = Template(begin.rstrip()).substitute(title=title, style=style)
    return Template(page).substitute(begin=begin, title=title, **values)


def image(pixels: NDArray[np.uint8], alt: str) -> str:
    """An image (S, S, 3) as an HTML element; `alt` is escaped already."""
    side = len(pixels)
    return f'<img src="{data_url(png_bytes(pixels))}" width="{side}" height="{side}" alt="{alt}">'


def data_url(png: bytes) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def text(value: object) -> str:
    """Escaped for HTML and valid UTF-8, which file names need not be."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))
