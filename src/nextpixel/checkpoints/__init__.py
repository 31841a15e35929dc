"""Models on disk: the only place that knows file layouts and the weight names of other programs.

May use data. load finds the folder of a name (find_model), picks its layout by model_type (transformers, native;
load_backbone also resnet), and reads its config, weights, tokenizer and preprocessing. save writes the same files.
"""

from nextpixel.checkpoints.models import find_model, load, load_backbone, save, write_model
from nextpixel.checkpoints.openai import load_openai
from nextpixel.checkpoints.runs import Run, planned_steps
