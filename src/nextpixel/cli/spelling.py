"""Write the arguments named in messages and help texts as command-line options."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Collection
from typing import get_args, get_type_hints

import tyro

NAMED = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


def flag(name: str) -> str:
    """The option for an argument."""
    return ("-" if len(name) == 1 else "--") + name.replace("_", "-")


def spell(text: str, positionals: Collection[str] = ()) -> str:
    """`batch_images` as --batch-images and `augment=orient` as --augment orient; positionals in capitals."""

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        return spell_name(name, positionals) + (f" {value}" if value else "")

    return NAMED.sub(option, text)


def spell_error(error: BaseException, verb: types.ModuleType | None = None) -> str:
    """The message of an error, with arguments written as options of that verb."""
    positionals = () if verb is None else positionals_of(verb)
    message = spell(str(getattr(error, "message", error)), positionals)
    names = getattr(error, "argument", None)
    if names is None:
        return message
    return f"{', '.join(spell_name(name, positionals) for name in names.split(', '))}: {message}"


def spell_name(name: str, positionals: Collection[str] = ()) -> str:
    return name.upper() if name in positionals or name.isupper() else flag(name)


def options_of(verb: types.ModuleType) -> type:
    """The dataclass of a verb's arguments: the one with output options."""
    return next(
        kind
        for kind in vars(verb).values()
        if isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and kind.__module__ == verb.__name__
        and "output" in {each.name for each in dataclasses.fields(kind)}
    )


def positionals_of(verb: types.ModuleType) -> set[str]:
    """The positional arguments of a verb."""
    hints = get_type_hints(options_of(verb), include_extras=True)
    return {name for name, hint in hints.items() if tyro.conf.Positional in get_args(hint)}
