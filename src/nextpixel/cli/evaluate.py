"""nextpixel evaluate"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.drawings import load_model, open_images
from nextpixel.cli.hints import command
from nextpixel.config import ModelOptions, OutputOptions
from nextpixel.progress import say


@dataclass(frozen=True)
class Evaluate:
    """The paper's figures of a model on a set: nats per pixel over all pixels, bits, standard error, speed."""

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, an array, a parquet file, a hub name, or OpenAI's token arrays (cifar10_teX.npy)."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    protocol: Literal["all", "openai"] = "all"
    """openai leaves out the last partial batch of 64 images, as the original program did."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Evaluate, "evaluate", argv)
    model = load_model(args.model)
    from nextpixel.evaluation import evaluate

    if args.split is None:
        open_images(args.images, None)  # only to say which split it is
    figures = evaluate(model, args.images, split=args.split, protocol=args.protocol)
    for line in figures.unreadable:
        say(f"left out: {line}")
    masked = model.config.objective == "masked"
    if args.output.json:
        print_json(asdict(figures) | {"palette_sha256": model.palette.hash})
    else:
        kind = "hidden pixel" if masked else "pixel"
        print(
            f"{figures.nats_per_pixel:.4f} +- {figures.standard_error:.4f} nats per {kind} "
            f"({figures.bits_per_pixel:.4f} bits) over {figures.images:,} images, "
            f"{figures.images_per_second:.1f} images/s"
        )
    following = command("features" if masked else "score", args.images, split=args.split, model=args.model.model)
    say(f"{'What it makes of each image' if masked else 'Which images are the least likely'}: {following}")
