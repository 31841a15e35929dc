"""Settings of networks, runs, drawing and serving: frozen dataclasses, named sizes, recipes. Uses no torch.

The docstring under a field is its help text on the command line. Defaults are defined only here.
"""

from nextpixel.config.keywords import (
    DistillKeywords,
    FinetuneKeywords,
    PretrainKeywords,
    SamplingKeywords,
)
from nextpixel.config.options import (
    ModelOptions,
    OutputOptions,
    PictureOptions,
    SamplingConfig,
    ServeConfig,
    StudyConfig,
)
from nextpixel.config.recipes import read_recipe, replace_checked
from nextpixel.config.runs import (
    EXACT,
    INIT_RATE,
    MUON_RATE,
    WORDS,
    CodecConfig,
    DistillConfig,
    FinetuneConfig,
    GPTRunConfig,
    PretrainConfig,
    RunConfig,
    peak_rate,
)
from nextpixel.config.settings import check_keywords
from nextpixel.config.shapes import (
    MODERN,
    POOLED_SIDE,
    SIZES,
    TAGS,
    ImageGPTConfig,
    ResNetConfig,
    SizeName,
    stated,
)
from nextpixel.config.terms import (
    AUGMENTATIONS,
    COMPARED_AT_LEAST,
    PICTURES_AT_MOST,
    Activation,
    Anchor,
    Device,
    Fit,
    Job,
    KeepSide,
    Levels,
    Objective,
    Part,
    Pooling,
    Positions,
    Preset,
    Size,
    Speed,
    Switch,
    augmentations,
    channels_of,
    check_fit,
    check_no_keep,
    check_number,
    check_numbers,
    check_origin,
    check_picture_count,
    refuse_given,
    side_text,
    to_side,
    to_size,
)
