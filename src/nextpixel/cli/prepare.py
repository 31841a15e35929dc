"""nextpixel prepare"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nextpixel.cli.arguments import check_alone, joined, parse, print_json, show
from nextpixel.cli.hints import command
from nextpixel.config import Anchor, Fit, ImageGPTConfig, Job, Levels, OutputOptions, Size, side_text, to_side, to_size
from nextpixel.errors import InputError
from nextpixel.progress import say, say_left_out

if TYPE_CHECKING:
    from nextpixel.images.sources import MapSource


@dataclass(frozen=True)
class Prepare:
    """Decode images once, into a folder that other commands read without decoding.

    Several jobs, on one or many machines, can share the work: give each --job, then use --merge OUT. Repeat the command
    to resume stopped work. The result does not depend on the number of jobs and workers.
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES OUT]")] = ()
    """IMAGES: picture files, folders, arrays, parquet files, WebDataset shards (a .tar file, a folder of them, or a
    pattern such as 'shards/{000..127}.tar') or a hub name, which is streamed if it is the only one; several are
    concatenated. OUT: the new folder. Incomplete parts are kept in OUT.parts."""
    merge: Path | None = None
    """Merge the parts of all jobs; no other setting is allowed."""
    side: int | Size | None = None
    """Pixels along each side of the model's pictures, or rows x columns as in 24x16; default: 32, or with `fit=place`
    the size of the largest picture up to 32."""
    fit: Fit = "crop"
    """How pictures get the size of the model, see pretrain --help; training must use the same."""
    range: str | None = None
    """LOW,HIGH: the values shown as black and white where the format does not define them (more than 8 bits, floats,
    DICOM without a window); default: the range of the images."""
    bands: str | None = None
    """R,G,B: the bands to use of pictures with more than three, counted from 1; default: the first three."""
    anchor: Anchor | None = None
    """Where on the canvas `fit=place` puts smaller pictures; default: center. bottom suits sprites that stand."""
    slice: int | Size | None = None
    """Rows x columns of pixels of the tiles that sheets are cut into, as in 16x16, with `fit=place`."""
    scale: int | None = None
    """The factor by which pixel art is enlarged in its files, undone with `fit=place`; default: that common to all."""
    augment: str = "flip"
    """Augmentation in training: crop needs images of twice the side, the others of the side."""
    store_side: int | Size | None = None
    """Pixels along each side of the stored images; default: by --augment."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    captions: str | None = None
    """Keep captions in the folder, for training with the same option, see pretrain --help."""
    job: str | None = None
    """Do one share of the work, as in 3/16: the third of sixteen."""
    workers: int | None = None
    """Decoding threads; default: the number of cores."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Prepare, "prepare", argv)
    if args.merge is not None:
        check_alone(argv, args.paths, "--merge")
    elif len(args.paths) < 2:
        raise InputError("expected images and a new folder, as in: nextpixel prepare photos/ prepared/")
    from nextpixel.data.decoded import stored_size
    from nextpixel.data.prepared import merge, missing_jobs, prepare
    from nextpixel.files import parts_folder

    if args.merge is not None:
        _report(merge(args.merge), args.merge, args.output.json)
        return
    *images, out = args.paths
    job = None if args.job is None else Job.parse(args.job)
    store_side = args.store_side
    if store_side is None and args.fit != "place":
        store_side = stored_size(to_size(args.side or ImageGPTConfig.side), args.augment)
    try:
        found = prepare(
            joined(images),
            out,
            side=args.side,
            fit=args.fit,
            levels=Levels.among(vars(args)),
            store_side=store_side,
            split=args.split,
            captions=args.captions,
            job=job,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; finished chunks are in {parts_folder(Path(out))}; resume with: {command('prepare', *argv)}"
        ) from None
    if found is not None:
        _report(found, Path(out), args.output.json)
        return
    assert job is not None
    missing = missing_jobs(out)
    if args.output.json:
        print_json({"out": out, "job": args.job, "missing": missing})
    else:
        show(f"{out}: job {args.job} is done")
    if missing:
        say(f"Jobs left: {', '.join(f'{number}/{job.jobs}' for number in missing)}")
    say(f"When all jobs are done: {command('prepare', '--merge', out)}")


def _report(found: MapSource, out: Path, json: bool) -> None:
    say_left_out(found.unreadable)
    if json:
        sides = {"side": to_side(found.size), "serves": to_side(found.serves)}
        facts = {"out": str(out), "images": len(found), **sides, "fit": found.fit}
        print_json(facts | {"labelled": found.labels is not None, "unreadable": found.unreadable})
    else:
        labelled = " with labels" if found.labels is not None else ""
        show(f"{out}: {len(found):,} images at {found.size[0]} x {found.size[1]}{labelled}")
    crops = ["--augment", "crop"] if found.size[0] == 2 * found.serves[0] else []
    other = ["--fit", found.fit] if found.fit != "crop" else []
    side = "--side", side_text(found.serves)
    captions = ["--captions", found.captions_from] if found.captions_from is not None else []
    say(f"To train on it: {command('pretrain', out, *side, *other, *crops, *captions, '--out', 'run')}")
