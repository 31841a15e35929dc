"""nextpixel predict"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.drawings import check_file, decode_for, load_classifier, write_rows
from nextpixel.config import ModelOptions, OutputOptions
from nextpixel.errors import InputError
from nextpixel.progress import say


@dataclass(frozen=True)
class Predict:
    """Classify images with a probe that `nextpixel probe --out` saved, or with a fine-tuned model.

    Pictures that cannot be read are left out and listed.
    """

    probe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBE")]
    """The folder of the probe; or a run of `nextpixel finetune`, or a fine-tuned model."""
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Pictures to classify: a folder, a file, an array."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    out: Path | None = None
    """Write file, class and probabilities into this CSV file."""
    masks: int = 0
    """Let a masked model look this often, each time with other pixels hidden, and take the class that it names most
    often (the paper: 5); the probabilities are means. Unless told it looks once, at every pixel."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Predict, "predict", argv)
    if args.out is not None:
        check_file(args.out, ".csv", [args.images])
    if args.masks < 0:
        raise InputError(f"--masks: expected 0 or more, got {args.masks}")
    probe = load_classifier(args.probe, args.model)
    model = probe.model
    assert model is not None
    images = decode_for(model, args.images, args.split)
    chances, chosen = probe.predictions(images.squares, masks=args.masks)
    columns = [f"class {c}" if str(c) in ("file", "class") else str(c) for c in probe.classes_]
    rows = [
        {"file": name, "class": str(probe.classes_[number])}
        | {name: round(float(p), 6) for name, p in zip(columns, row, strict=True)}
        for name, row, number in zip(images.names, chances, chosen, strict=True)
    ]
    if probe.temperature_ is None:
        say("These probabilities were not calibrated on held-out images: take them as an order, not as chances")
    if args.output.json:
        print_json({"predictions": rows, "unreadable": images.unreadable})
    else:
        for row, chance, number in zip(rows, chances, chosen, strict=True):
            show(f"{row['file']}  {row['class']}  {chance[number]:.3f}")
    if args.out is not None:
        write_rows(args.out, rows)
        say(f"{len(rows):,} predictions: {args.out}")
