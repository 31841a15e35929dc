"""nextpixel: Image GPT. Complete and draw pictures, pretrain, and score, in Python and in the terminal."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextpixel.checkpoints import load as load
    from nextpixel.checkpoints import load_backbone as load_backbone
    from nextpixel.checkpoints import save as save
    from nextpixel.config import SIZES as SIZES
    from nextpixel.config import ImageGPTConfig as ImageGPTConfig
    from nextpixel.drawing.sampling import complete as complete
    from nextpixel.drawing.sampling import sample as sample
    from nextpixel.drawing.sampling import stream as stream
    from nextpixel.drawing.variations import vary as vary
    from nextpixel.errors import InputError as InputError
    from nextpixel.errors import WorkError as WorkError
    from nextpixel.evaluation.comparison import compare_samples as compare_samples
    from nextpixel.evaluation.likelihood import nll as nll
    from nextpixel.evaluation.likelihood import surprise as surprise
    from nextpixel.evaluation.oddness import odd_images as odd_images
    from nextpixel.images.lists import PictureList as PictureList
    from nextpixel.images.lists import grid as grid
    from nextpixel.network.model import ImageGPT as ImageGPT
    from nextpixel.representation.extraction import features as features
    from nextpixel.representation.probing import LinearProbe as LinearProbe
    from nextpixel.tokens.exact import ExactPalette as ExactPalette
    from nextpixel.tokens.palette import Palette as Palette
    from nextpixel.training.convnet import fit_convnet as fit_convnet
    from nextpixel.training.distillation import distill as distill
    from nextpixel.training.finetuning import finetune as finetune
    from nextpixel.training.pretraining import pretrain as pretrain

__version__ = "0.1.0"

_NAMES = {
    "checkpoints": "load load_backbone save",
    "config": "ImageGPTConfig SIZES",
    "drawing.sampling": "complete sample stream",
    "drawing.variations": "vary",
    "errors": "InputError WorkError",
    "evaluation.comparison": "compare_samples",
    "evaluation.likelihood": "nll surprise",
    "evaluation.oddness": "odd_images",
    "images.lists": "PictureList grid",
    "network.model": "ImageGPT",
    "representation.extraction": "features",
    "representation.probing": "LinearProbe",
    "tokens.exact": "ExactPalette",
    "tokens.palette": "Palette",
    "training.convnet": "fit_convnet",
    "training.distillation": "distill",
    "training.finetuning": "finetune",
    "training.pretraining": "pretrain",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Public names are found when first used (PEP 562): importing the package does nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nextpixel' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nextpixel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
