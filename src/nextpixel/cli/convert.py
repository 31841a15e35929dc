"""nextpixel convert"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import check_file
from nextpixel.cli.hints import first_use
from nextpixel.config import Fit, OutputOptions, stated
from nextpixel.errors import InputError, model_argument
from nextpixel.progress import say


@dataclass(frozen=True)
class Convert:
    """Convert a TensorFlow checkpoint of openai/image-gpt, autoregressive or BERT, to a model folder, or a model folder
    or run to another layout.

    With --to, convert a student of nextpixel distill to an ONNX file. Its input is uint8 (batch, height, width, 3), its
    outputs are features and, if it was trained on labels, logits.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """The common prefix of the checkpoint files, as folder/model.ckpt-1000000 (TensorFlow is not needed); or a model
    folder or run."""
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OUT]")] = None
    """The new model folder."""
    to: Path | None = None
    """Write the student in CHECKPOINT, its run or folder, to this new .onnx file."""
    palette: Path | None = None
    """The colours of the tokens, a .npy file such as kmeans_centers.npy; default: OpenAI's 512 colours."""
    fit: Fit | None = None
    """How pictures get the size of this model, see pretrain --help; default: imagenet for OpenAI's checkpoints."""
    for_transformers: bool = False
    """Write a model fine-tuned with --head last as an ImageGPTForImageClassification of transformers, and refuse models
    that transformers computes incorrectly."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Convert, "convert", argv)
    if (args.out is None) == (args.to is None):
        raise InputError("expected either OUT, a new folder, or --to with the name of a new .onnx file")
    if args.to is not None:
        _write_onnx(args, args.to)
        return
    assert args.out is not None
    if args.out.suffix.lower() == ".onnx":
        raise InputError(f"expected a new folder, got {args.out}; for an .onnx file use `to`", argument="out")
    from nextpixel.checkpoints import load, load_openai, save
    from nextpixel.files import new_output
    from nextpixel.tokens.palette import Palette

    new_output(args.out, "OUT")
    if any((Path(args.checkpoint) / name).is_file() for name in ("config.json", "run.json")):
        if args.palette:
            raise InputError("--palette: cannot be combined with a model folder, which has its own palette")
        with model_argument("checkpoint"):
            model = load(args.checkpoint)
        model.fit = args.fit or model.fit
    else:
        model = load_openai(args.checkpoint, palette=Palette.read(args.palette) if args.palette else None)
        model.fit = args.fit or "imagenet"
    save(model, args.out, for_transformers=args.for_transformers)
    shape = stated(asdict(model.config))
    if args.output.json:
        print_json({"out": str(args.out), "shape": shape, "parameters": model.config.parameters})
    else:
        show(f"{args.out}: {', '.join(f'{name} {value}' for name, value in shape.items())}")
    if not (args.for_transformers and model.config.classes):  # which only transformers can load
        say(first_use(model, args.out))


def _write_onnx(args: Convert, to: Path) -> None:
    check_file(to, ".onnx", argument="to")
    from nextpixel.checkpoints import load_backbone
    from nextpixel.checkpoints.onnx import export_onnx
    from nextpixel.network.resnet import ResNet

    student = load_backbone(args.checkpoint)
    if not isinstance(student, ResNet):
        raise InputError(f"--to: expected a student of nextpixel distill, got an Image GPT: {args.checkpoint}")
    outputs = export_onnx(student, to)
    if args.output.json:
        print_json({"out": str(to), "outputs": outputs, "parameters": student.config.parameters})
    else:
        height, width = student.size
        show(f"{to}: images uint8 (batch, {height}, {width}, 3) to {' and '.join(outputs)}")
