"""Arguments from dataclasses, through tyro; its complaints in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from nextpixel.errors import InputError

T = TypeVar("T")
BOX = "╭╮╰╯─│ "


def parse(kind: type[T], verb: str, argv: Sequence[str], default: T | None = None) -> T:
    """The dataclass that argv describes. --help prints and exits; a mistake is an InputError."""
    said = io.StringIO()
    chosen: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"nextpixel {verb}",
                args=list(argv),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                **chosen,
            )
    except SystemExit as stop:
        if stop.code:
            raise InputError(_sentence(said.getvalue(), verb)) from None
        raise


def _sentence(box: str, verb: str) -> str:
    """What tyro says in a box, on one line: the complaint, the nearest option, where the help is."""
    lines = [line.strip(BOX) for line in box.splitlines()[1:]]
    lines = [line for line in lines if line]
    complaint = []
    for line in lines:
        if line.startswith(("Perhaps you meant", "Argument helptext", "For full helptext", "Similar", "Full help")):
            break
        complaint.append(line)
    near = [line.split()[0] for line in lines if line.startswith("--")]
    hint = f"; did you mean {near[0]}?" if near and "nrecogni" in box else "."
    return f"{' '.join(complaint).rstrip('.')}{hint} See nextpixel {verb} --help"


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
