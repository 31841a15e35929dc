"""nextpixel predict"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.drawings import check_file, load_features_model, open_images
from nextpixel.config import ModelOptions, OutputOptions
from nextpixel.progress import say


@dataclass(frozen=True)
class Predict:
    """Classify images with a probe that `nextpixel probe --out` saved."""

    probe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBE")]
    """The folder of the probe."""
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Pictures to classify: a folder, a file, an array."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    out: Path | None = None
    """Write file, class and probabilities into this CSV file."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Predict, "predict", argv)
    if args.out is not None:
        check_file(args.out, ".csv", [args.images])
    from dataclasses import replace

    from nextpixel.checkpoints.files import read_json
    from nextpixel.probing import LinearProbe

    options = args.model
    if options.model is None:
        options = replace(options, model=str(read_json(Path(args.probe) / "probe.json").get("model")))
    probe = LinearProbe.load(args.probe, load_features_model(options))
    source = open_images(args.images, args.split)
    chances = probe.predict_proba(source)
    rows = [
        {"file": name, "class": str(probe.classes_[row.argmax()])}
        | {str(c): round(float(p), 6) for c, p in zip(probe.classes_, row, strict=True)}
        for name, row in zip(source.names, chances, strict=True)
    ]
    if args.output.json:
        print_json({"predictions": rows})
    else:
        for row, chance in zip(rows, chances, strict=True):
            print(f"{row['file']}  {row['class']}  {chance.max():.3f}")
    if args.out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        part = args.out.with_name(f".{args.out.name}.part")
        part.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
        os.replace(part, args.out)
        say(f"{len(rows):,} predictions: {args.out}")
