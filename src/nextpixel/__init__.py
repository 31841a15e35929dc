"""nextpixel: Image GPT. Complete and draw pictures, pretrain, and score, in Python and in the terminal."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextpixel.checkpoints import load as load
    from nextpixel.checkpoints import load_backbone as load_backbone
    from nextpixel.checkpoints import save as save
    from nextpixel.comparison import compare_samples as compare_samples
    from nextpixel.config import SIZES as SIZES
    from nextpixel.config import ImageGPTConfig as ImageGPTConfig
    from nextpixel.convnet import fit_convnet as fit_convnet
    from nextpixel.distillation import distill as distill
    from nextpixel.errors import InputError as InputError
    from nextpixel.errors import WorkError as WorkError
    from nextpixel.evaluation import nll as nll
    from nextpixel.evaluation import surprise as surprise
    from nextpixel.extraction import features as features
    from nextpixel.finetuning import finetune as finetune
    from nextpixel.model import ImageGPT as ImageGPT
    from nextpixel.oddness import odd_images as odd_images
    from nextpixel.palette import Palette as Palette
    from nextpixel.pretraining import pretrain as pretrain
    from nextpixel.probing import LinearProbe as LinearProbe
    from nextpixel.sampling import complete as complete
    from nextpixel.sampling import sample as sample
    from nextpixel.sampling import stream as stream

__version__ = "0.1.0"

_HOMES = {
    "ImageGPT": "model",
    "ImageGPTConfig": "config",
    "InputError": "errors",
    "LinearProbe": "probing",
    "Palette": "palette",
    "SIZES": "config",
    "WorkError": "errors",
    "compare_samples": "comparison",
    "complete": "sampling",
    "distill": "distillation",
    "features": "extraction",
    "finetune": "finetuning",
    "fit_convnet": "convnet",
    "load": "checkpoints",
    "load_backbone": "checkpoints",
    "nll": "evaluation",
    "odd_images": "oddness",
    "pretrain": "pretraining",
    "sample": "sampling",
    "save": "checkpoints",
    "stream": "sampling",
    "surprise": "evaluation",
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
