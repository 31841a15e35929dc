"""Recipes: pretraining settings in flat TOML files."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from nextpixel.config.runs import PretrainConfig, RunConfig
from nextpixel.config.settings import unknown_name
from nextpixel.errors import InputError
from nextpixel.limits import read_bytes

RECIPE_BYTES = 1 << 20


def read_recipe(name_or_path: str) -> PretrainConfig:
    """The settings of a recipe, given by the name of a shipped one or the path of a flat TOML file."""
    path = Path(name_or_path)
    shipped = {
        file.name.removesuffix(".toml"): file
        for file in (resources.files("nextpixel") / "recipes").iterdir()
        if file.name.endswith(".toml")
    }
    is_file = path.suffix == ".toml" and path.is_file()
    if not is_file and name_or_path not in shipped:
        raise InputError(
            f"expected the path of a .toml file or one of {', '.join(sorted(shipped))}, got {name_or_path!r}",
            argument="recipe",
        )
    try:
        content = read_bytes(path, RECIPE_BYTES) if is_file else shipped[name_or_path].read_bytes()
        values = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name_or_path}: expected a valid TOML file: {error}") from None
    try:
        return replace_checked(PretrainConfig(), values)
    except InputError as error:
        sentence = str(error).replace("`", "")  # the file has keys, not options
        raise InputError(f"{name_or_path}: {sentence}") from None


C = TypeVar("C", bound=RunConfig)


def replace_checked(config: C, values: Mapping[str, Any]) -> C:
    """A copy with these values. Raises InputError for an unknown name or a value of the wrong type."""
    kinds = get_type_hints(type(config))
    for name, value in values.items():
        if name not in kinds:
            raise InputError(unknown_name(name, kinds))
        if not _fits(value, kinds[name]):
            raise InputError(f"expected {_spell(kinds[name])}, got {value!r}", argument=name)
    return dataclasses.replace(config, **values)


def _fits(value: Any, kind: Any) -> bool:
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and len(value) == len(options) and all(map(_fits, value, options))
    if options:
        return any(_fits(value, option) for option in options)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _spell(kind: Any) -> str:
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, options))
    if get_origin(kind) is tuple:
        return "two whole numbers"
    if options:
        return " or ".join(_spell(option) for option in options if option is not type(None))
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, str(kind))
