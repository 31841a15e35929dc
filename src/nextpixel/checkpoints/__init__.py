"""Models on disk: the only place that knows file layouts and foreign names."""

from nextpixel.checkpoints.models import EMBEDDED, find_model, load, load_backbone, save, write_model
from nextpixel.checkpoints.openai import load_openai
from nextpixel.checkpoints.runs import Run

__all__ = ["EMBEDDED", "Run", "find_model", "load", "load_backbone", "load_openai", "save", "write_model"]
