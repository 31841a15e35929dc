"""nextpixel predict"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import check_file, decode_for, load_classifier, write_rows
from nextpixel.config import ModelOptions, OutputOptions, check_numbers
from nextpixel.progress import say


@dataclass(frozen=True)
class Predict:
    """Classify images with a probe saved by `nextpixel probe --out`, or with a fine-tuned model.

    Unreadable pictures are left out and listed.
    """

    probe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBE")]
    """The folder of a probe, a run of `nextpixel finetune`, or a fine-tuned model."""
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Pictures to classify: a folder, a file, an array."""
    split: str | None = None
    """The split to use, if the source has several (train, test)."""
    out: Path | None = None
    """Write file, class and probabilities to this CSV file."""
    masks: int = 0
    """For a masked model: number of random masks per image (5 in the paper). The class is a majority vote, the
    probabilities are means. Default: one pass over the unmasked image."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Predict, "predict", argv)
    if args.out is not None:
        check_file(args.out, ".csv", [args.images])
    check_numbers(args, at_least_zero="masks")
    probe = load_classifier(args.probe, args.model)
    model = probe.model
    assert model is not None
    images = decode_for(model, args.images, args.split)
    probabilities, chosen = probe.predictions(images.images, masks=args.masks)
    columns = [f"class {c}" if str(c) in ("file", "class") else str(c) for c in probe.classes_]
    rows = [
        {"file": name, "class": str(probe.classes_[number])}
        | {name: round(float(p), 6) for name, p in zip(columns, row, strict=True)}
        for name, row, number in zip(images.names, probabilities, chosen, strict=True)
    ]
    if probe.temperature_ is None:
        say("The probabilities are not calibrated on held-out images: use only their order")
    if args.output.json:
        print_json({"predictions": rows, "unreadable": images.unreadable})
    else:
        for row, each, number in zip(rows, probabilities, chosen, strict=True):
            show(f"{row['file']}  {row['class']}  {each[number]:.3f}")
    if args.out is not None:
        write_rows(args.out, rows)
        say(f"{len(rows):,} predictions: {args.out}")
