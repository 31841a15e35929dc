"""What pages that need nothing but themselves share: the style, safe text, pictures within the file."""

from __future__ import annotations

import base64
from html import escape
from importlib import resources
from string import Template

import numpy as np
from numpy.typing import NDArray

from nextpixel.images import png_bytes


def fill(name: str, *, title: str, **values: str) -> str:
    """The template of that name in assets, with the common beginning, and these values, which are HTML already."""
    assets = resources.files("nextpixel") / "assets"
    begin, style, page = ((assets / part).read_text(encoding="utf-8") for part in ("begin.html", "page.css", name))
    begin = Template(begin.rstrip()).substitute(title=title, style=style)
    return Template(page).substitute(begin=begin, title=title, **values)


def image(pixels: NDArray[np.uint8], alt: str) -> str:
    """A square picture (S, S, 3); `alt` is safe text."""
    side = len(pixels)
    return f'<img src="{data_url(png_bytes(pixels))}" width="{side}" height="{side}" alt="{alt}">'


def data_url(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def text(value: object) -> str:
    """Safe in HTML and as UTF-8: a file name need not be text."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))
