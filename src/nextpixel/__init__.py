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

_HOMES = {
    "ImageGPT": "network.model",
    "ImageGPTConfig": "config",
    "InputError": "errors",
    "LinearProbe": "representation.probing",
    "ExactPalette": "tokens.exact",
    "Palette": "tokens.palette",
    "PictureList": "images.lists",
    "SIZES": "config",
    "WorkError": "errors",
    "compare_samples": "evaluation.comparison",
    "complete": "drawing.sampling",
    "distill": "training.distillation",
    "features": "representation.extraction",
    "finetune": "training.finetuning",
    "fit_convnet": "training.convnet",
    "grid": "images.lists",
    "load": "checkpoints",
    "load_backbone": "checkpoints",
    "nll": "evaluation.likelihood",
    "odd_images": "evaluation.oddness",
    "pretrain": "training.pretraining",
    "sample": "drawing.sampling",
    "save": "checkpoints",
    "stream": "drawing.sampling",
    "surprise": "evaluation.likelihood",
    "vary": "drawing.variations",
}

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
