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
from nextpixel.errors import InputError
from nextpixel.progress import say


@dataclass(frozen=True)
class Convert:
    """Turn a TensorFlow checkpoint of openai/image-gpt, autoregressive or BERT, into a model folder; or a folder or run
    into another layout.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """The common start of its files, as folder/model.ckpt-1000000 (TensorFlow is not needed); or a model folder or a
    run."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The new model folder."""
    palette: Path | None = None
    """The colours of its tokens, a .npy file such as kmeans_centers.npy; OpenAI's 512 colours unless told."""
    fit: Fit | None = None
    """How pictures become squares for this model: imagenet, as the paper evaluates and OpenAI's checkpoints get unless
    told; crop; squash, as transformers does."""
    for_transformers: bool = False
    """Refuse what transformers would compute wrongly, and write a fine-tuned model as its
    ImageGPTForImageClassification."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Convert, "convert", argv)
    from nextpixel.checkpoints import load, load_openai, save
    from nextpixel.checkpoints.files import new_output
    from nextpixel.palette import Palette

    new_output(args.out, "OUT")
    if any((Path(args.checkpoint) / name).is_file() for name in ("config.json", "run.json")):
        if args.palette:
            raise InputError("--palette: the model folder brings its own colours; expected none beside it")
        model = load(args.checkpoint)
        model.fit = args.fit or model.fit
    else:
        model = load_openai(args.checkpoint, palette=Palette.read(args.palette) if args.palette else None)
        model.fit = args.fit or "imagenet"
    save(model, args.out, for_transformers=args.for_transformers)
    shape = {name: value for name, value in asdict(model.config).items() if value != ()}
    if args.output.json:
        print_json({"out": str(args.out), "shape": shape, "parameters": model.config.parameters})
    else:
        print(f"{args.out}: {', '.join(f'{name} {value}' for name, value in shape.items())}")
    if not (args.for_transformers and model.config.classes):  # which only transformers opens
        say(first_use(model, args.out))
