"""nextpixel bench"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nextpixel.cli.arguments import parse, print_json, show, whole_numbers
from nextpixel.cli.common import check_file, load_model
from nextpixel.cli.hints import command
from nextpixel.config import ModelOptions, OutputOptions, SizeName, Speed, check_numbers, refuse_given
from nextpixel.errors import InputError
from nextpixel.progress import say


@dataclass(frozen=True)
class Bench:
    """Measure the speed of a model: images and pixels per second, and the share of the machine's peak.

    Prints a Markdown table of medians. Close other programs first, or use --clock cpu with --threads 1.
    """

    work: str = "complete,decode,features,score,encode,train"
    """What to time, comma-separated: complete, sample, decode, features, score, encode, train."""
    batch: str = "1,8,32"
    """Comma-separated batch sizes."""
    size: SizeName | None = None
    """Use random weights of a named size instead of --model."""
    pixels: int | None = None
    """With work that draws: number of pixels drawn per picture; default: all, and 32 tokens for decode."""
    repeats: int = 5
    """Timed repetitions, after an untimed one."""
    against: Literal["transformers"] | None = None
    """Also time transformers, alternating, in fp32 and bf16; ratios are to the faster of the two."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: CPU time of this process, for a shared machine."""
    speed: Speed = "auto"
    """How to draw, see sample --help; auto also computes features in int8 where supported."""
    out: Path | None = None
    """Also write all results, with each repetition, to this .json file."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        check_numbers(self, at_least_one="repeats pixels")
        if not {"complete", "sample", "decode"}.intersection(self.works):
            refuse_given(self, "pixels", "requires `work` that draws: complete, sample or decode")
        if self.size and self.model.model:
            raise InputError("--size: uses random weights; cannot be combined with --model")
        if self.size and self.model.dtype != "fp32":
            raise InputError("--size: uses fp32 weights; cannot be combined with --dtype")

    @property
    def works(self) -> list[str]:
        return [work.strip() for work in self.work.split(",")]


def run(argv: Sequence[str]) -> None:
    args = parse(Bench, "bench", argv)
    batches = whole_numbers("batch", args.batch, 1)
    if args.out:
        check_file(args.out, ".json")
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
        args.works,
        batches,
        repeats=args.repeats,
        pixels=args.pixels,
        speed=args.speed,
        against=args.against is not None,
        clock=args.clock,
    )
    if args.out:
        print_json(result, args.out)
    if args.output.json:
        print_json(result)
    else:
        show(*table(result).splitlines())
    if args.against is None:
        say(f"To compare with transformers: {command('bench', '--against', 'transformers', model=args.model.model)}")
    else:
        say(f"To complete a picture: {command('complete', 'photo.jpg', model=args.model.model)}")
