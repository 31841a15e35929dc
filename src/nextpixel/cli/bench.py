"""nextpixel bench"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.drawings import check_file, load_model
from nextpixel.cli.hints import command
from nextpixel.cli.numbers import whole_numbers
from nextpixel.config import ModelOptions, OutputOptions, Speed
from nextpixel.errors import InputError
from nextpixel.progress import say


@dataclass(frozen=True)
class Bench:
    """How fast a model works here: images and pixels per second, and per cent of what memory and matrix products allow.

    Prints a Markdown table of medians. Close other programs first, or take --clock cpu with --threads 1.
    """

    work: str = "complete,decode,features,score,encode,train"
    """What to time, with commas: complete, sample, decode, features, score, encode, train."""
    batch: str = "1,8,32"
    """Batch sizes, with commas."""
    size: Literal["xxs", "xs", "s", "m", "l", "xl"] | None = None
    """A named size with random weights, instead of --model: weights do not matter for speed."""
    pixels: int | None = None
    """Draw only so many pixels of each picture; decode draws 32 unless told."""
    repeats: int = 5
    """Timed repetitions, after one that is not."""
    against: Literal["transformers"] | None = None
    """Time transformers too, in turns, in fp32 and bf16; the ratio is to the faster."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: the time this process had a processor, for a machine that others use."""
    speed: Speed = "auto"
    """How to draw, as sample --help tells; auto also takes features in int8 where there are any."""
    out: Path | None = None
    """Also write everything, each repetition included, into this .json file."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        for name in ("repeats", "pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name}: expected at least 1, got {value}")
        if self.size and self.model.model:
            raise InputError("--size takes random weights of a named size; expected no --model beside it")
        if self.size and self.model.dtype != "fp32":
            raise InputError("--size: its weights are fp32; expected no --dtype beside it")


def run(argv: Sequence[str]) -> None:
    args = parse(Bench, "bench", argv)
    batches = whole_numbers("batch", args.batch, 1)
    if args.out:
        check_file(args.out, ".json")
    works = [work.strip() for work in args.work.split(",")]
    from nextpixel.bench import bench, random_model, table
    from nextpixel.devices import choose_device, set_threads

    if args.size:
        device = choose_device(args.model.device)
        set_threads(args.model.threads)
        model = random_model(args.size).to(device)
    else:
        model = load_model(args.model)
    result = bench(
        model,
        works,
        batches,
        repeats=args.repeats,
        pixels=args.pixels,
        speed=args.speed,
        against=args.against is not None,
        clock=args.clock,
    )
    if args.out:
        from nextpixel.files import write_text

        write_text(args.out, json.dumps(result, indent=2) + "\n")
    if args.output.json:
        print_json(result)
    else:
        show(*table(result).splitlines())
    if args.against is None:
        say(f"Beside transformers: {command('bench', '--against', 'transformers', model=args.model.model)}")
    else:
        say(f"Half of a picture: {command('complete', 'photo.jpg', model=args.model.model)}")
