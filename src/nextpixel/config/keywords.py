"""Keyword arguments of functions: their types, for editors and type checkers, and the error for an unknown one.

Each TypedDict lists the fields of the dataclass that validates them; defaults and help texts are only in the dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec, Self, TypedDict, TypeVar

from nextpixel.config.terms import Activation, Device, Fit, Objective, Positions, Preset, Size, Speed, Switch

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


class SamplingKeywords(TypedDict, total=False):
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance: float
    allow_colors: str | None
    forbid_colors: str | None
    seed: int
    speed: Speed


class RunKeywords(TypedDict, total=False):
    batch_images: int
    warmup_steps: int | None
    clip_norm: float
    fit: Fit | None
    range: str | None
    bands: str | None
    seed: int
    validation_fraction: float
    checkpoint_every_steps: int
    checkpoint_every_minutes: float
    log_every_steps: int
    device: Device
    dtype: Literal["auto", "fp32", "bf16"]
    threads: int | None
    cache: str | None
    tracker: Literal["wandb"] | None


class GPTRunKeywords(RunKeywords, total=False):
    learning_rate: float | None
    micro_batch_images: int | None
    augment: str
    compile: Literal["auto", "on", "off"]
    checkpoint_activations: bool
    shard: bool
    timeout_minutes: float


class PretrainKeywords(GPTRunKeywords, total=False):
    size: Literal["xxs", "xs", "s", "m", "l", "xl"] | None
    layers: int | None
    width: int | None
    heads: int | None
    side: int | Size | None
    palette: str | None
    preset: Preset | None
    positions: Positions | None
    activation: Activation | None
    qk_norm: Switch | None
    zero_projections: Switch | None
    mix_input: Switch | None
    logit_cap: float | None
    init: str | None
    steps: int
    optimizer: Literal["adam", "muon"] | None
    schedule: Literal["cosine", "linear"] | None
    cooldown_fraction: float
    objective: Objective | None
    validation: str | None
    validation_images: int
    evaluate_every_steps: int
    patience: int | None
    sample_images: int
    probe_data: str | None
    probe_images: int
    probe_every_evaluations: int


class FinetuneKeywords(GPTRunKeywords, total=False):
    epochs: int
    patience: int
    evaluate_every_epochs: int
    labels_per_class: int | None
    freeze_trunk: bool


class DistillKeywords(RunKeywords, total=False):
    learning_rate: float
    layer: str
    loss: Literal["cosine", "squared"]
    shrinkage: float
    blocks: int
    factor: int
    augment: Literal["none", "flip", "pad", "pad-flip"]
    steps: int
    weight_decay: float
    evaluate_every_steps: int
