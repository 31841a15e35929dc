"""Models on disk: the only place that knows file layouts and foreign names."""

from nextpixel.checkpoints.models import EMBEDDED, find_model, load, load_with_facts, save, write_model
from nextpixel.checkpoints.openai import load_openai
from nextpixel.checkpoints.runs import Run

__all__ = ["EMBEDDED", "Run", "find_model", "load", "load_openai", "load_with_facts", "save", "write_model"]
