"""Turn a finished run into the embedded model: bf16 weights, card, uncurated completions, test nats.

    python benchmarks/export_embedded.py runs/embedded data/cifar10 --counts counts.json --hardware "2 cores of ..." \\
        --command "nextpixel pretrain ..."

The best checkpoint on validation is taken. The test set is read here, once, with the weights as shipped.
`--counts` is what `benchmarks/count_models.py --json` printed for the same split. Of a run that went on from another
(--init), name the steps, images and minutes of that one with --before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

import nextpixel
from nextpixel.checkpoints import Run, write_model
from nextpixel.config import SamplingConfig
from nextpixel.drawing.sampling import draw
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.files import new_folder
from nextpixel.images import grid, save_png
from nextpixel.images.sources import load_images

COUNT_MODELS = {"unigram": "unigram", "left": "left", "left_above": "left and above"}
CARD = """# The embedded model

An Image GPT of the modern preset ({layers} layers, width {width}, {heads} heads, {parameters:,} parameters), 32 x 32,
OpenAI's 512 colours. It is small and briefly trained, so that everything can be tried at once.

| | |
|---|---|
| data | CIFAR-10 training images without labels: {train_images:,} to train on, {held_out:,} to choose the checkpoint |
| commands | {command} |
| licence | weights: MIT; the palette's: [modified MIT](../README.md), OpenAI |
| seed | {seed} |
| steps | {step:,}, {images:,} images seen ({epochs:.2f} epochs) |
| hardware | {hardware}, {minutes:.0f} minutes |
| precision | trained in {dtype} with fp32 weights; shipped as bf16; scored with bf16 products |
| validation | {validation:.4f} nats per pixel (the best checkpoint, on {validation_images:,} held-out images) |
| test | **{test:.4f} +- {error:.4f} nats per pixel** (all 10,000 test images, scored once, {date}) |

Count models fitted on the same {train_images:,} images with the same colours, on the same test images:

| model | test nats per pixel |
|---|---|
| unigram | {unigram:.4f} |
| the pixel to the left | {left:.4f} |
| the pixels to the left and above | {left_above:.4f} |
| **embedded model** | **{test:.4f}** |

Completions of test images 0 to 7, with seeds 0 to 7, uncurated (each row: prompt, four completions with their nats
per pixel, original):

![completions](completions.png)

Limits: it was trained on CIFAR-10 only (ten classes of animals and vehicles, 32 x 32). Completions are plausible in
colour and outline, not in detail; other kinds of pictures are completed as if they were such scenes; and simple
pictures are rated likely whatever they show. CIFAR-10's photographs were collected from the web (Krizhevsky 2009); no
claim is made about them beyond research use.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", help="a folder with train.parquet and test.parquet")
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--command", required=True, nargs="+", help="the commands that trained it, in order")
    parser.add_argument("--before", type=int, nargs=3, default=(0, 0, 0), metavar=("STEPS", "IMAGES", "MINUTES"))
    parser.add_argument("--out", type=Path, default=Path("src/nextpixel/assets/embedded"))
    args = parser.parse_args()

    run = Run.open(args.run)
    facts, best = run.facts(), run.best()
    config, data = facts["config"], facts["data"]
    model = nextpixel.load(args.run)
    test = load_images(args.data, model.size, split="test")
    shutil.rmtree(args.out, ignore_errors=True)
    with new_folder(args.out) as part:
        model.facts = {
            "trained_on": "CIFAR-10 training images, no labels",
            "steps": best["step"] + args.before[0],
            "seed": config["seed"],
        }
        write_model(model, part, dtype=torch.bfloat16)
    model = nextpixel.load(args.out)

    nats = np.concatenate([maps.mean((1, 2)) for maps in square_nats(model, test, dtype="bf16")]).astype(np.float64)
    error = nats.std(ddof=1) / len(nats) ** 0.5
    rows, captions = [], []
    for i in range(8):
        drawing = draw(model, test[i : i + 1], keep=0.5, n=4, sampling=SamplingConfig(seed=i))
        given = np.where(drawing.kept[..., None], drawing.images[0], np.uint8(225))
        rows.append([given, *drawing.images, test[i]])
        captions.append([None, *(f"{value:.2f}" for value in drawing.nats), None])
    titles = ["given", "1", "2", "3", "4", "original"]
    save_png(grid(rows, zoom=3, titles=titles, captions=captions), args.out / "completions.png")

    counts = json.loads(args.counts.read_text())
    losses = [entry for entry in run.read_log() if "loss" in entry and entry["step"] <= best["step"]]
    every = config["log_every_steps"] * config["batch_images"]
    seen = best["step"] * config["batch_images"] + args.before[1]
    card = CARD.format(
        layers=model.config.layers,
        width=model.config.width,
        heads=model.config.heads,
        parameters=model.config.parameters,
        train_images=data["train_images"],
        held_out=50_000 - data["train_images"],
        command=", then ".join(f"`{command}`" for command in args.command),
        seed=config["seed"],
        step=best["step"] + args.before[0],
        images=seen,
        epochs=seen / data["train_images"],
        hardware=args.hardware,
        minutes=sum(every / entry["images_per_second"] for entry in losses) / 60 + args.before[2],
        dtype=facts["decisions"]["dtype"],
        validation=best["nats"],
        validation_images=data["validation_images"],
        test=nats.mean(),
        error=error,
        date=datetime.date.today().isoformat(),
        **{name: counts["models"][model]["nats_per_pixel"] for name, model in COUNT_MODELS.items()},
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")
    size = (args.out / "model.safetensors").stat().st_size
    json.dump({"test_nats": nats.mean(), "standard_error": error, "bytes": size}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
