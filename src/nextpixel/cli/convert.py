"""nextpixel convert"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.hints import first_use
from nextpixel.config import Fit, OutputOptions
from nextpixel.progress import say


@dataclass(frozen=True)
class Convert:
    """Turn a TensorFlow checkpoint of openai/image-gpt, autoregressive or BERT, into a model folder."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """The common start of its files, as folder/model.ckpt-1000000; TensorFlow is not needed."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The new model folder."""
    palette: Path | None = None
    """The colours of its tokens, a .npy file such as kmeans_centers.npy; OpenAI's 512 colours unless told."""
    fit: Fit = "imagenet"
    """How pictures become squares for this model: imagenet, as the paper evaluates; crop; squash, as transformers
    does."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Convert, "convert", argv)
    from nextpixel.checkpoints import load_openai, save
    from nextpixel.checkpoints.files import new_output
    from nextpixel.palette import Palette

    new_output(args.out, "OUT")
    palette = Palette.read(args.palette) if args.palette else None
    model = load_openai(args.checkpoint, palette=palette)
    model.fit = args.fit
    save(model, args.out)
    shape = asdict(model.config)
    if args.output.json:
        print_json({"out": str(args.out), "shape": shape, "parameters": model.config.parameters})
    else:
        print(f"{args.out}: {', '.join(f'{name} {value}' for name, value in shape.items())}")
    say(first_use(model, args.out))
