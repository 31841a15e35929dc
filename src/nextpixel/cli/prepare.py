"""nextpixel prepare"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.hints import command
from nextpixel.config import Augment, Fit, Levels, OutputOptions
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.images.sources import MapSource


@dataclass(frozen=True)
class Prepare:
    """Decode images once into a folder that trains, scores and probes without decoding again.

    Several jobs, on one machine or many, may share the work: give each --job and, when all are done, --merge OUT. What
    was stopped goes on when the same command is typed again. The result is the same for any number of jobs and workers.
    """

    images: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]")] = None
    """A folder, an array, a parquet file, WebDataset shards (.tar, a folder or a pattern of them, as in
    'shards/{000..127}.tar') or a hub name, which is streamed."""
    out: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OUT]")] = None
    """The new folder. Until it is whole, its parts lie beside it, in OUT.parts."""
    merge: Path | None = None
    """Put the parts of all jobs together; takes no other setting."""
    side: int = 32
    """Pixels along each side of the model's pictures."""
    fit: Fit = "crop"
    """How pictures become squares, as pretrain --help tells; what is trained on them must be told the same."""
    range: str | None = None
    """LOW,HIGH: which numbers are black and white where a format does not state it (more than 8 bits, floats, DICOM
    without a window); by default looked for over the images."""
    bands: str | None = None
    """R,G,B: which bands are shown of pictures with more than three, counted from 1; by default the first three."""
    augment: Augment = "flip"
    """What they are to be trained with: crop needs squares of twice the side, the others of the side."""
    store_side: int | None = None
    """Pixels along each side of the stored squares; by --augment unless told."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    job: str | None = None
    """Do one share only, as in 3/16: the third of sixteen."""
    workers: int | None = None
    """Threads that decode; as many as there are cores unless told."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Prepare, "prepare", argv)
    if args.merge is not None:
        others = [a for a in argv if a.startswith("-") and not a.startswith(("--merge", "--json", "--verbose"))]
        if others or args.images is not None:
            raise InputError(f"--merge: expected nothing else, got {' '.join(others) or args.images}")
    elif args.images is None or args.out is None:
        raise InputError("expected images and a new folder, as in: nextpixel prepare photos/ prepared/")
    from nextpixel.data.decoded import stored_side
    from nextpixel.data.prepared import Job, merge, missing_jobs, prepare
    from nextpixel.files import parts_folder

    if args.merge is not None:
        _tell(merge(args.merge), args.merge, args.output.json)
        return
    assert args.images is not None and args.out is not None
    job = None if args.job is None else Job.parse(args.job)
    store_side = args.store_side if args.store_side is not None else stored_side(args.side, args.augment)
    try:
        found = prepare(
            args.images,
            args.out,
            side=args.side,
            fit=args.fit,
            levels=Levels.of(args.range, args.bands),
            store_side=store_side,
            split=args.split,
            job=job,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; whole chunks are kept in {parts_folder(Path(args.out))}; go on with: {command('prepare', *argv)}"
        ) from None
    if found is not None:
        _tell(found, Path(args.out), args.output.json)
        return
    assert job is not None
    missing = missing_jobs(args.out)
    if args.output.json:
        print_json({"out": args.out, "job": args.job, "missing": missing})
    else:
        show(f"{args.out}: job {args.job} is done")
    if missing:
        say(f"Still to be done: {', '.join(f'{number}/{job.jobs}' for number in missing)}")
    say(f"When all are done: {command('prepare', '--merge', args.out)}")


def _tell(found: MapSource, out: Path, json: bool) -> None:
    for line in found.unreadable[:10]:
        say(f"left out: {line}")
    if len(found.unreadable) > 10:
        say(f"and {len(found.unreadable) - 10:,} more: {out / 'meta.json'}")
    if json:
        facts = {"out": str(out), "images": len(found), "side": found.side, "serves": found.serves, "fit": found.fit}
        print_json(facts | {"labelled": found.labels is not None, "unreadable": found.unreadable})
    else:
        labelled = " with labels" if found.labels is not None else ""
        show(f"{out}: {len(found):,} images at {found.side} x {found.side}{labelled}")
    crops = ["--augment", "crop"] if found.side == 2 * found.serves else []
    other = ["--fit", found.fit] if found.fit != "crop" else []
    say(f"Train on it: {command('pretrain', out, '--side', found.serves, *other, *crops, '--out', 'run')}")
