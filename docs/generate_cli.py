"""Writes docs/cli.md, the help of every command: python docs/generate_cli.py"""

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from nextpixel.cli import VERBS, main

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted.

<!-- Generated: python docs/generate_cli.py -->
"""


def page() -> str:
    """The whole of cli.md."""
    return HEAD + _section("nextpixel") + "".join(_section(f"nextpixel {verb}", verb) for verb in VERBS)


def _section(title: str, *arguments: str) -> str:
    lines = (line.rstrip() for line in _help(*arguments).strip().splitlines())
    return "\n".join(["", f"## {title}", "", "```text", *lines, "```", ""])


def _help(*arguments: str) -> str:
    """What the command prints, 100 columns wide and without colour."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(out):
        main([*arguments, "--help"])
    out.seek(0)
    return out.read()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
