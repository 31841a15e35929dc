"""Turn a finished run over learned tokens into the bundled model of photographs: bf16 weights, card, completions.

    python benchmarks/export_photos.py runs/photos data/photos --hardware "2 cores of ..." --command "nextpixel ..." \
        --tokenizer-command "nextpixel tokenizer ..."

The best checkpoint on validation is taken. The held-out pictures are read here, once, with the weights as shipped.
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
from nextpixel.data.captions import captions_of
from nextpixel.drawing.sampling import draw
from nextpixel.evaluation.likelihood import image_nats, mean_and_error
from nextpixel.files import new_folder
from nextpixel.images import grid, save_png
from nextpixel.images.sources import load_images, open_source
from nextpixel.tokens import load_tokenizer, reconstruct, reconstruction
from nextpixel.tokens.patches import Patches

SHOWN = 16
SAMPLES = 8
CAPTIONS = ["seashore", "lemon", "school bus", "monarch", "alp", "pizza", "jellyfish", "goldfish"]
AT_MOST_BYTES = 24_000_000
CARD = """# The model of photographs

An Image GPT of the modern preset ({layers} layers, width {width}, {heads} heads, {parameters:,} parameters) over
patches: 64 x 64 pixels as {rows} x {columns} tokens of {codes:,} codes, each for {high} x {wide} pixels, repainted by a
learned decoder.

```sh
nextpixel complete cat.jpg --model photos --full joined
nextpixel sample "{example}" --model photos -n 16 --guidance {guidance:g}
```

| | |
|---|---|
| data | Tiny ImageNet's training pictures, split by `python benchmarks/photos.py --names words.txt` |
| captions | the names of their classes, {words:,} words |
| pictures | {train_images:,} to train on, {validation_images:,} to choose the checkpoint, {test_images:,} held out |
| tokenizer | `{tokenizer_command}` |
| command | `{command}` |
| seed | {seed} |
| steps | {steps}; {images:,} images seen ({epochs:.2f} epochs) |
| hardware | {hardware}, {minutes:.0f} minutes for the GPT |
| precision | trained in {dtype} with fp32 weights; shipped as bf16; scored with bf16 products |
| size | {megabytes:.1f} MB with the tokenizer |
| licence | weights: MIT; the pictures it was trained on: see below |
| reconstruction | **{psnr:.2f} dB** mean PSNR of held-out pictures from tokens; {psnr_of_mean:.2f} of the mean error |
| codes used | {used:.1%} |
| held-out pictures | **{nats:.4f} +- {error:.4f} nats per pixel**, {nats_per_token:.4f} per token ({date}) |
| with their captions | {captioned:.4f} nats per pixel |

Nats compare only between models of the same tokenizer.

Completions of {shown} held-out pictures, every {every}th, with seeds 0 to {last}, uncurated (each row: the picture,
decoded from its tokens, the given half, four completions with their nats per pixel):

![completions](completions.png)

Drawn from eight of the 200 captions, seeds 0 to {last_drawn}, guidance {guidance:g}, uncurated:

![samples](samples.png)

## Captions

It was trained with these {names:,} captions, each also by its last word; words combine freely: {captions}.

## Limits

It was trained on the 200 classes of Tiny ImageNet only, at 64 x 64 pixels. Completions are plausible in light
and outline, not in detail. The pictures are ImageNet's, collected from the web (Russakovsky et al. 2015; Tiny ImageNet:
Stanford CS231n), for non-commercial research and education; no claim is made about them beyond that.
"""


def stretches(run: Run, step: int) -> list[tuple[Run, int]]:
    """The runs of which this one's step is the end, each begun from the one before it, and their last steps."""
    init = run.facts()["config"]["init"]
    if not init or not Path(init).name.startswith("step_"):
        return [(run, step)]
    before = Path(init)
    return [*stretches(Run.open(before.parent), int(before.name.removeprefix("step_"))), (run, step)]


def minutes(run: Run, step: int) -> float:
    """How long the training of these steps took, without evaluations."""
    config = run.facts()["config"]
    images_a_line = config["log_every_steps"] * config["batch_images"]
    losses = [entry for entry in run.read_log() if "loss" in entry and entry["step"] <= step]
    return sum(images_a_line / entry["images_per_second"] for entry in losses) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", help="a folder with train.parquet and test.parquet")
    parser.add_argument("--decoder", type=Path, help="a tokenizer of the same patches, with a learned decoder")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--command", required=True, help="the command that trained it")
    parser.add_argument("--tokenizer-command", required=True, help="the command that trained its tokenizer")
    parser.add_argument(
        "--before",
        nargs=3,
        type=int,
        default=(0, 0, 0),
        metavar=("STEPS", "IMAGES", "MINUTES"),
        help="those of the model over another tokenizer that it began from",
    )
    parser.add_argument("--captions", nargs="+", default=CAPTIONS, help="those of samples.png")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("src/nextpixel/assets/photos"))
    args = parser.parse_args()

    run = Run.open(args.run)
    facts = run.facts()
    config, data = facts["config"], facts["data"]
    parts = stretches(run, run.best()["step"])
    model = nextpixel.load(args.run)
    if args.decoder is not None:
        repainted, plain = load_tokenizer(args.decoder), model.tokenizer
        assert isinstance(repainted, Patches) and isinstance(plain, Patches)
        if not np.array_equal(repainted.codes, plain.codes):
            sys.exit(f"export_photos: {args.decoder} has other patches than {args.run}")
        model.tokenizer = repainted
    test = load_images(args.data, model.size, split="test")
    model.facts = {"trained_on": "Tiny ImageNet training images and the names of their classes"}
    steps_before, images_before, minutes_before = args.before
    model.facts |= {"steps": steps_before + sum(step for _, step in parts)}
    model.facts |= {"seed": config["seed"]}
    shutil.rmtree(args.out, ignore_errors=True)
    with new_folder(args.out) as part:
        write_model(model, part, dtype=torch.bfloat16)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    if size > AT_MOST_BYTES:
        sys.exit(f"export_photos: {args.out} has {size:,} bytes, expected at most {AT_MOST_BYTES:,}")
    model = nextpixel.load(args.out)

    mean, error = mean_and_error(image_nats(model, test, dtype="bf16"))
    assert model.words is not None
    names = captions_of(open_source(args.data, "test"), config["captions"])
    listed = sorted({caption.split(",")[0] for caption in names})
    captioned, _ = mean_and_error(image_nats(model, test, dtype="bf16", tags=model.words.encode(list(names))))
    kept = reconstruction(model.tokenizer, test)
    every = max(1, len(test) // SHOWN)
    rows, captions = [], []
    for seed, picture in enumerate(test[::every][:SHOWN, None]):
        drawing = draw(model, picture, keep=0.5, n=4, sampling=SamplingConfig(seed=seed))
        given = np.where(drawing.kept[..., None], picture[0], np.uint8(225))
        rows.append([picture[0], reconstruct(model.tokenizer, picture)[0], given, *drawing.images])
        captions.append([None, None, None, *(f"{value:.2f}" for value in drawing.nats)])
    titles = ["original", "tokens", "given", "1", "2", "3", "4"]
    save_png(grid(rows, zoom=2, titles=titles, captions=captions), args.out / "completions.png")

    sampling = [SamplingConfig(seed=seed, guidance=args.guidance) for seed in range(SAMPLES)]
    drawn = [draw(model, None, sampling=one, caption=args.captions).images for one in sampling]
    save_png(grid([list(row) for row in drawn], zoom=2, titles=args.captions), args.out / "samples.png")

    images = images_before + sum(step * part.facts()["config"]["batch_images"] for part, step in parts)
    steps = " without captions, then ".join(f"{step:,}" for _, step in parts) + " with captions"
    if steps_before:
        steps = f"{steps_before:,} over the tokens of an earlier tokenizer, then {steps}"
    high, wide = model.tokenizer.patch
    card = CARD.format(
        layers=model.config.layers,
        width=model.config.width,
        heads=model.config.heads,
        parameters=model.config.parameters,
        rows=model.config.rows,
        columns=model.config.columns,
        codes=len(model.tokenizer),
        high=high,
        wide=wide,
        train_images=data["train_images"],
        validation_images=data["validation_images"],
        test_images=len(test),
        tokenizer_command=args.tokenizer_command,
        command=args.command,
        seed=config["seed"],
        steps=steps,
        images=images,
        epochs=images / data["train_images"],
        words=len(model.words),
        example=args.captions[0],
        guidance=args.guidance,
        captioned=captioned,
        names=len(listed),
        captions=", ".join(listed),
        last_drawn=SAMPLES - 1,
        hardware=args.hardware,
        minutes=minutes_before + sum(minutes(part, step) for part, step in parts),
        dtype=facts["decisions"]["dtype"],
        megabytes=size / 1e6,
        psnr=kept.psnr_db,
        psnr_of_mean=kept.psnr_of_mean_error_db,
        used=kept.codes_used,
        nats=mean,
        error=error,
        nats_per_token=mean * high * wide,
        date=datetime.date.today().isoformat(),
        shown=len(rows),
        every=every,
        last=len(rows) - 1,
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")
    json.dump({"nats": mean, "standard_error": error, "psnr_db": kept.psnr_db, "bytes": size}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
