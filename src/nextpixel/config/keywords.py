"""Keyword arguments of functions, for editors and type checkers.

Each TypedDict lists the fields of the dataclass that validates them; defaults and help texts are only in the dataclass.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from nextpixel.config.shapes import PretrainSize
from nextpixel.config.terms import Activation, Anchor, Device, Fit, Objective, Positions, Preset, Size, Speed, Switch


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
    anchor: Anchor | None
    slice: int | Size | None
    scale: int | None
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
    size: PretrainSize | None
    layers: int | None
    width: int | None
    heads: int | None
    side: int | Size | None
    palette: str | None
    tokenizer: str | None
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
    captions: str | None
    words: int | None
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
    labels_per_class: int | None
    head: Literal["best", "last"]
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
