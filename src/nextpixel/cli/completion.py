"""nextpixel completion"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from nextpixel.cli.arguments import parse
from nextpixel.cli.spelling import flag, options_of
from nextpixel.config import OutputOptions


@dataclass(frozen=True)
class Completion:
    """Print a script that completes commands and options in a shell.

    In bash, add to ~/.bashrc: eval "$(nextpixel completion bash)". In zsh, write the script to the file _nextpixel in a
    folder of $fpath; in fish, to ~/.config/fish/completions/nextpixel.fish.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]
    """bash, zsh or fish."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Completion, "completion", argv)
    import shtab

    from nextpixel.cli import VERBS

    parser = argparse.ArgumentParser("nextpixel")
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers()
    help_parser = verbs.add_parser("help", help="print the options of a command")
    help_parser.add_argument("command", choices=list(VERBS))
    for verb, what in VERBS.items():
        kind = options_of(importlib.import_module(f"nextpixel.cli.{verb}"))
        _add_options(verbs.add_parser(verb, help=what), kind)
    print(shtab.complete(parser, args.shell))


def _add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    import shtab

    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            _add_options(parser, hint)  # type: ignore[arg-type]
            continue
        words = [hint, *get_args(hint)]
        choices = next((get_args(word) for word in words if get_origin(word) is Literal), None)
        positional = tyro.conf.Positional in words
        settings: dict[str, Any] = {"nargs": "*"} if positional else {}
        if isinstance(one.default, bool):
            settings["action"] = "store_true"
        elif choices is not None:
            settings["choices"] = choices
        name = one.name if positional else flag(f"no_{one.name}" if one.default is True else one.name)
        added = parser.add_argument(name, **settings)
        if choices is None and (positional or Path in words or name == "--model"):
            added.complete = shtab.FILE  # type: ignore[attr-defined]
