"""Settings of networks, runs, drawing and serving: frozen dataclasses, named sizes, recipes. Uses no torch.

The docstring under a field is its help text on the command line. Defaults are defined only here.
"""

from nextpixel.config.keywords import (
    DistillKeywords,
    FinetuneKeywords,
    PretrainKeywords,
    SamplingKeywords,
    check_keywords,
)
from nextpixel.config.options import ModelOptions, OutputOptions, SamplingConfig, ServeConfig, StudyConfig
from nextpixel.config.recipes import read_recipe, replace_checked
from nextpixel.config.runs import (
    INIT_RATE,
    LEARNING_RATES,
    MUON_RATE,
    DistillConfig,
    FinetuneConfig,
    GPTRunConfig,
    PretrainConfig,
    RunConfig,
    peak_rate,
)
from nextpixel.config.shapes import MODERN, SIZES, TAGS, ImageGPTConfig, ResNetConfig
from nextpixel.config.terms import (
    PICTURES_AT_MOST,
    Activation,
    Augment,
    Device,
    Fit,
    KeepSide,
    Levels,
    Objective,
    Pooling,
    Positions,
    Preset,
    Size,
    Speed,
    Switch,
    check_numbers,
    check_picture_count,
)

__all__ = [
    "INIT_RATE",
    "LEARNING_RATES",
    "MODERN",
    "MUON_RATE",
    "PICTURES_AT_MOST",
    "SIZES",
    "TAGS",
    "Activation",
    "Augment",
    "Device",
    "DistillConfig",
    "DistillKeywords",
    "FinetuneConfig",
    "FinetuneKeywords",
    "Fit",
    "GPTRunConfig",
    "ImageGPTConfig",
    "KeepSide",
    "Levels",
    "ModelOptions",
    "Objective",
    "OutputOptions",
    "Pooling",
    "Positions",
    "Preset",
    "PretrainConfig",
    "PretrainKeywords",
    "ResNetConfig",
    "RunConfig",
    "SamplingConfig",
    "SamplingKeywords",
    "ServeConfig",
    "Size",
    "Speed",
    "StudyConfig",
    "Switch",
    "check_numbers",
    "check_keywords",
    "check_picture_count",
    "peak_rate",
    "read_recipe",
    "replace_checked",
]
