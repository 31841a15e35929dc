"""nextpixel evaluate"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.drawings import load_model, open_images
from nextpixel.cli.hints import command
from nextpixel.config import ModelOptions, OutputOptions
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.model import ImageGPT
    from nextpixel.probing import Score
    from nextpixel.sources import Source


@dataclass(frozen=True)
class Evaluate:
    """The paper's figures of a model on a set: nats per pixel over all pixels, bits, standard error, speed.

    Of a fine-tuned model on labelled images also the accuracy, and with two classes the area under the ROC curve.
    """

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, an array, a parquet file, a hub name, or OpenAI's token arrays (cifar10_teX.npy)."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    protocol: Literal["all", "openai"] = "all"
    """openai leaves out the last partial batch of 64 images, as the original program did."""
    accuracy: bool = False
    """Insist on the accuracy: an error where the model knows no classes or the images no labels."""
    labels: Path | None = None
    """Labels as a CSV file with the columns file and label; unless told folders or columns say them."""
    masks: int = 0
    """How often a masked model looks at each image to classify it, as in predict."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Evaluate, "evaluate", argv)
    model = load_model(args.model)
    from nextpixel.evaluation import evaluate

    source = open_images(args.images, args.split)
    wanted = args.accuracy or args.labels is not None or args.masks > 0
    score = None
    if wanted or (model.config.classes and source.labels is not None):
        score = _score(model, source, args)  # first: what is asked wrongly is said before the long work
    figures = evaluate(model, args.images, split=args.split, protocol=args.protocol)
    for line in figures.unreadable:
        say(f"left out: {line}")
    masked = model.config.objective == "masked"
    if args.output.json:
        classified = None if score is None else asdict(score) | {"confusion": score.confusion.tolist()}
        print_json(asdict(figures) | {"palette_sha256": model.palette.hash, "classification": classified})
    else:
        kind = "hidden pixel" if masked else "pixel"
        print(
            f"{figures.nats_per_pixel:.4f} +- {figures.standard_error:.4f} nats per {kind} "
            f"({figures.bits_per_pixel:.4f} bits) over {figures.images:,} images, "
            f"{figures.images_per_second:.1f} images/s"
        )
        if score is not None:
            auc = "" if score.auc is None else f", AUC {score.auc:.3f}"
            print(f"accuracy {score.accuracy:.1%} of {score.images:,} images{auc}")
    following = command("features" if masked else "score", args.images, split=args.split, model=args.model.model)
    say(f"{'What it makes of each image' if masked else 'Which images are the least likely'}: {following}")


def _score(model: ImageGPT, source: Source, args: Evaluate) -> Score:
    from nextpixel.data import decode
    from nextpixel.probing import LinearProbe, given_labels, labels_of_readable

    if args.masks < 0:
        raise InputError(f"--masks: expected 0 or more, got {args.masks}")
    probe, labels = LinearProbe.of(model), given_labels(source, args.labels)
    images = decode(source, model.config.side, fit=model.fit)
    return probe.evaluate_squares(images.squares, labels_of_readable(labels, source, images), masks=args.masks)
