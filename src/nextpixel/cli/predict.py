"""nextpixel predict"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from nextpixel.cli.arguments import Images, joined, parse, print_json, show, show_table
from nextpixel.cli.common import check_file, check_sources, decode_for, load_classifier, load_model, write_rows
from nextpixel.cli.sharing import Share, ShareOptions
from nextpixel.config import OutputOptions, PictureOptions, check_numbers
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.representation.probing import LinearProbe

SHOWN_FROM = 0.05  # probability of a word
SHOWN_AT_LEAST = 3


@dataclass(frozen=True)
class Predict:
    """Classify images with a probe saved by `nextpixel probe --out`, or with a fine-tuned model.

    A model with words also names what it sees, with no probe: --words or --among. Unreadable pictures are left out and
    listed.
    """

    probe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBE")]
    """The folder of a probe, a run of `nextpixel finetune`, or a fine-tuned model; with --words or --among a model that
    was trained with captions."""
    images: Images
    """Pictures to classify: files, folders, arrays; several are concatenated."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    out: Path | None = None
    """Write file, class and probabilities to this CSV file."""
    words: bool = False
    """The probability of each word of the model, by Bayes: its share of the training captions, times how much likelier
    the picture is with that word as its caption than without one."""
    among: str | None = None
    """Comma-separated tags, of which each picture has exactly one, as in "red hair, black hair" or the names of class
    folders: the probability of each."""
    masks: int = 0
    """For a masked model: number of random masks per image (5 in the paper). The class is a majority vote, the
    probabilities are means. Default: one pass over the unmasked image."""
    share: ShareOptions = field(default_factory=ShareOptions)
    model: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Predict, "predict", argv)
    if args.out is not None:
        check_file(args.out, ".csv", args.images)
    check_numbers(args, at_least_zero="masks")
    check_sources(*args.images)
    if args.words or args.among is not None:
        return _by_captions(args)
    share = Share(args, "`masks`" if args.masks else None)
    probe = load_classifier(args.probe, share.join(args.model))
    model = probe.model
    assert model is not None
    images = decode_for(model, joined(args.images), args.split)
    features = _shared_features(share, probe, images.images) if share.active else None
    probabilities, chosen = probe.predictions(images.images, masks=args.masks, features=features)
    columns = ["file", "class"]
    for name in map(str, probe.classes_):
        while name in columns:
            name = f"class {name}"
        columns.append(name)
    columns = columns[2:]
    rows = [
        {"file": name, "class": str(probe.classes_[number])}
        | {name: round(float(p), 6) for name, p in zip(columns, row, strict=True)}
        for name, row, number in zip(images.names, probabilities, chosen, strict=True)
    ]
    if probe.temperature_ is None:
        say("The probabilities are not calibrated on held-out images: use only their order")
    if args.output.json:
        print_json({"predictions": rows, "unreadable": images.unreadable})
    else:
        show_table(
            [
                (str(row["file"]), str(row["class"]), f"{each[number]:.3f}")
                for row, each, number in zip(rows, probabilities, chosen, strict=True)
            ]
        )
    if args.out is not None:
        write_rows(args.out, rows)
        share.clean()
        say(f"{len(rows):,} predictions: {args.out}")


def _shared_features(share: Share, probe: LinearProbe, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    from nextpixel.representation.extraction import model_hash
    from nextpixel.representation.scoring import by_chunks

    def measure(rows: slice) -> dict[str, NDArray[np.float32]]:
        return {"features": probe.features(squares[rows])}

    assert probe.model is not None
    facts = [model_hash(probe.model), probe.layers_, probe.pooling_, probe.mirror, squares]
    return by_chunks(measure, len(squares), share.run, facts)["features"]


def _by_captions(args: Predict) -> None:
    """Print the probabilities of words, the likeliest first, or of tags."""
    Share(args, "`words` or `among`")
    if args.words and args.among is not None:
        raise InputError("cannot be combined with `among`", argument="words")
    if args.model.model is not None:
        raise InputError("cannot be combined with `words` or `among`: PROBE is the model", argument="model")
    if args.masks:
        raise InputError("cannot be combined with `words` or `among`", argument="masks")
    model = load_model(replace(args.model, model=args.probe), "probe")
    from nextpixel.evaluation.naming import caption_gains, tag_probabilities, word_probabilities

    if model.words is None:
        given = "words" if args.words else "among"
        raise InputError("expected a model that was trained with captions, got one without words", argument=given)
    images = decode_for(model, joined(args.images), args.split)
    if args.among is None:
        found = word_probabilities(model, images.images, dtype=args.model.dtype)
        names = list(model.words.table)
    else:
        names = [tag.strip() for tag in args.among.split(",") if tag.strip()]
        if len(set(names)) < max(len(names), 2):
            raise InputError(f"expected at least two different tags, got {args.among!r}", argument="among")
        found = tag_probabilities(caption_gains(model, images.images, names, dtype=args.model.dtype, argument="among"))
    columns = [f"word {name}" if name in ("file", "class") else name for name in names]
    rows = [
        {"file": file} | {name: round(float(p), 6) for name, p in zip(columns, row, strict=True)}
        for file, row in zip(images.names, found, strict=True)
    ]
    if args.output.json:
        print_json({"predictions": rows, "unreadable": images.unreadable})
    else:
        for file, row in zip(images.names, found, strict=True):
            likely = np.argsort(-row, kind="stable")[: max(SHOWN_AT_LEAST, (row >= SHOWN_FROM).sum())]
            show(f"{file}  " + ", ".join(f"{names[i]} {row[i]:.2f}" for i in likely))
    if args.out is not None:
        write_rows(args.out, rows)
        say(f"{len(rows):,} predictions: {args.out}")
