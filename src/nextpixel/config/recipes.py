"""Recipes: runs as flat TOML files; and settings taken by name, each checked."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from nextpixel.config.runs import PretrainConfig, RunConfig
from nextpixel.errors import InputError


def read_recipe(name_or_path: str) -> PretrainConfig:
    """The run a recipe describes: the name of a shipped one, or the path of a flat TOML file."""
    path = Path(name_or_path)
    shipped = {
        file.name.removesuffix(".toml"): file
        for file in (resources.files("nextpixel") / "recipes").iterdir()
        if file.name.endswith(".toml")
    }
    is_file = path.suffix == ".toml" and path.is_file()
    if not is_file and name_or_path not in shipped:
        raise InputError(
            f"--recipe: expected the path of a .toml file or one of {', '.join(sorted(shipped))}, got {name_or_path!r}"
        )
    try:
        values = tomllib.loads((path if is_file else shipped[name_or_path]).read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no text at all
        raise InputError(f"{name_or_path}: expected a TOML file, got a mistake: {error}") from None
    return replace_checked(PretrainConfig(), values, where=name_or_path)


C = TypeVar("C", bound=RunConfig)


def replace_checked(config: C, values: dict[str, Any], where: str) -> C:
    """A copy with these values, each of a known name and the right type."""
    import difflib
    import typing

    kinds = typing.get_type_hints(type(config))
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(kinds)}"
            raise InputError(f"{where}: unknown setting {name!r}{hint}")
        if not _fits(value, kinds[name]):
            raise InputError(f"{where}: {name} = {value!r} is not {_spell(kinds[name])}")
    try:
        return dataclasses.replace(config, **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _fits(value: Any, kind: Any) -> bool:
    import typing

    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in options
    if options:
        return any(_fits(value, option) for option in options)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _spell(kind: Any) -> str:
    import typing

    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, options))
    if options:
        return " or ".join(_spell(option) for option in options if option is not type(None))
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, str(kind))
