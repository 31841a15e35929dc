"""The base class of all settings, and the error for an unknown keyword of settings and functions."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The message for an unknown argument: suggests the closest match, or lists the known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown argument {name!r}; {hint}"


class Settings:
    """Base class of the dataclasses: an unknown keyword raises a TypeError that suggests the closest field."""

    def __new__(cls, *args: Any, **values: Any) -> Self:
        _check(cls, values, [field.name for field in dataclasses.fields(cls)])  # type: ignore[arg-type]
        return super().__new__(cls)


def check_keywords(*settings: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function whose keywords are its parameters and the keys of these TypedDicts; reject others alike."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(function).parameters.values()
        known = [p.name for p in parameters if p.kind not in variadic and p.name != "self"]
        known += [name for kind in settings for name in kind.__annotations__]

        @functools.wraps(function)
        def call(*args: P.args, **values: P.kwargs) -> R:
            _check(function, values, known)
            return function(*args, **values)

        return call

    return decorate


def _check(what: Any, values: Iterable[str], known: list[str]) -> None:
    for name in values:
        if name not in known:
            raise TypeError(f"{what.__qualname__.removesuffix('.__init__')}: {unknown_name(name, known)}")
