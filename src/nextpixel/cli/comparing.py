"""The part of `nextpixel evaluate` that compares drawn pictures with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextpixel.cli.arguments import joined, print_json, show, show_table
from nextpixel.cli.common import decode_for, load_model
from nextpixel.cli.hints import command
from nextpixel.cli.sharing import Share, chunks, shared_drawing
from nextpixel.cli.spelling import flag
from nextpixel.config import SamplingConfig
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from nextpixel.cli.evaluate import Evaluate
    from nextpixel.drawing.sampling import Drawing
    from nextpixel.evaluation.comparison import Comparison, Nearness
    from nextpixel.network.model import ImageGPT

SHOWN = 12  # pictures in the grid of --nearest
PICTURES_PER_TASK = 64
CELL_PIXELS = 64


def compare_features(args: Evaluate, pictures: str, share: Share) -> None:
    from nextpixel.evaluation.comparison import compare_feature_files

    if args.train is not None:
        raise InputError("--train: cannot search for copies, because IMAGES are features; give the pictures instead")
    if args.extractor != type(args).extractor or args.layer is not None:
        raise InputError("--extractor and --layer: not allowed, because IMAGES are features already")
    if len(args.images) > 1:
        raise InputError(f"expected one file of features, got {len(args.images)}", argument="images")
    found = compare_feature_files(args.images[0], pictures, references=args.references, seed=args.sampling.seed)
    _report(args, [found], [], share)
    say("To search for copies, give the pictures themselves, with --train")


def compare(args: Evaluate, share: Share) -> None:
    model = load_model(share.join(args.model))
    from nextpixel.evaluation.comparison import choose_real, compare_by, nearest_images
    from nextpixel.evaluation.likelihood import image_tags
    from nextpixel.images.sources import open_source
    from nextpixel.representation.extraction import model_hash
    from nextpixel.representation.extractors import PIXELS, open_extractor, open_extractors

    wanted = list(dict.fromkeys(args.extractor.split(",")))
    extractors = dict(zip(wanted, open_extractors(wanted, model, args.layer)))  # fails before anything is drawn
    own = model_hash(model)[:6]
    for name in (name for name, extractor in extractors.items() if own in extractor.name):
        say(f"--extractor {name} is the evaluated model itself, which cannot see what it has not learned")
    source = open_source(joined(args.images), args.split)
    images = decode_for(model, source)
    real = images.images
    train = None if args.train is None else _read_train(model, args.train, source.fingerprint())
    pictures = None if args.pictures is None else _read(model, args.pictures)
    count = args.samples or 0 if pictures is None else len(pictures)
    choice = choose_real(len(real), count, args.references, args.sampling.seed)  # refuses before drawing
    tokenizer = model.tokenizer if pictures is None else None
    if pictures is None:
        tags = None if args.captions is None else image_tags(model, source, args.captions, images)[choice.reference]
        pictures = _draw_samples(model, args, share, tags)
    found = [compare_by(one, real, pictures, choice, tokenizer, seed=args.sampling.seed) for one in extractors.values()]
    near = []
    if train is not None:
        by = {PIXELS: open_extractor(PIXELS, model)} | extractors
        near = [nearest_images(one, pictures, real[choice.reference], train, model.tokenizer) for one in by.values()]
    _report(args, found, near, share)
    if args.nearest is not None and train is not None:
        _draw(args.nearest, pictures, train, near)
        say(f"Nearest training images: {args.nearest}")
    elif train is None:
        say("To search for copies of training images: add --train TRAINING_IMAGES --nearest copies.png")
    if args.samples is not None and args.captions is not None:
        return
    if args.pictures is None:
        changed = [f.name for f in fields(SamplingConfig) if getattr(args.sampling, f.name) != f.default]
        options = [word for name in changed for word in (flag(name), getattr(args.sampling, name))]
        same = command("sample", "-n", args.samples, *options, "--each", "pictures", model=args.model.model)
        say(f"To write these pictures to files: {same}")
    else:
        say(f"To score each picture: {command('score', args.pictures, model=args.model.model)}")


def _draw_samples(model: ImageGPT, args: Evaluate, share: Share, tags: Tensor | None) -> NDArray[np.uint8]:
    """Pictures, or one for each of these captions (R, TAGS, w), which are repeated as often as needed."""
    from nextpixel.drawing.sampling import draw
    from nextpixel.representation.extraction import model_hash

    count = args.samples or 0
    if tags is not None:
        if args.sampling.guidance != 1 and not tags.any(-1).any(-1).all():
            raise InputError("some captions have no word that the model knows, as guidance needs", argument="captions")
        tags = tags[[i % len(tags) for i in range(count)]]

    def draw_part(rows: slice) -> Drawing:
        if tags is not None:
            return draw(model, None, sampling=args.sampling, caption=tags[rows], first_picture=rows.start, of=count)
        return draw(model, None, n=rows.stop - rows.start, sampling=args.sampling, first=rows.start, of=count)

    if not share.active:
        return draw_part(slice(0, count)).images
    facts = [model_hash(model), count, args.sampling, *([] if tags is None else [tags.numpy()])]
    return shared_drawing(share, draw_part, chunks(count, PICTURES_PER_TASK), facts).images


def report(args: Evaluate, values: dict[str, Any], share: Share) -> None:
    """Write the figures to `out`, and print them with `json`."""
    if args.out is not None:
        print_json(values, args.out)
        share.clean()
    if args.output.json:
        print_json(values)


def _read(model: ImageGPT, images: Any) -> NDArray[np.uint8]:
    return decode_for(model, images).images


def _read_train(model: ImageGPT, images: str, compared: str) -> NDArray[np.uint8]:
    from nextpixel.images.sources import open_source

    source = open_source(images)
    if source.fingerprint() == compared:
        raise InputError(
            "--train: expected other images than IMAGES, got the same; IMAGES must be images that the model was not "
            "trained on, for reference: give others, or another --split"
        )
    return _read(model, source)


def _report(args: Evaluate, found: Sequence[Comparison], near: Sequence[Nearness], share: Share) -> None:
    drawn = found[0].drawn
    values = {
        "samples": drawn.samples,
        "references": drawn.references,
        "floor": {"samples": found[0].floor.samples, "references": found[0].floor.references},
        "seed": args.sampling.seed,
        "captions": args.captions,
        "guidance": args.sampling.guidance,
        "metrics": {name: values for one in found for name, values in one.metrics().items()},
        "nearest": [
            {
                "extractor": one.extractor,
                "median": one.median,
                "real_median": one.real_median,
                "ratio": one.ratio,
                "indices": one.indices.tolist(),
                "distances": one.distances.tolist(),
            }
            for one in near
        ],
    }
    report(args, values, share)
    if args.output.json:
        return
    for one in found:
        _print(one)
    for by in near:
        closest = ", ".join(f"{distance:.3g}" for distance in by.distances[:SHOWN, 0])
        show(
            f"nearest training image [{by.extractor}]: median distance {by.median:.4g}, of real images "
            f"{by.real_median:.4g}, ratio {by.ratio:.3f}; the smallest {by.distances[:, 0].min():.4g}, of real images "
            f"{by.real_distances.min():.4g}; the first pictures: {closest}"
        )
    if near:
        show("A ratio of about 1 or more: no copies. Far below 1: copies, or pictures with less detail than real ones.")


def _print(one: Comparison) -> None:
    drawn, floor = one.drawn, one.floor
    show(
        f"{drawn.samples:,} pictures and {drawn.references:,} real images by {one.extractor}, {one.width:,} features; "
        f"floor: {floor.samples:,} other real images and {floor.references:,}"
    )
    rows = []
    for name, values in one.metrics().items():
        value, *others = (f"{values[key]:.4g}" for key in ("value", "floor", "palette") if key in values)
        error = f"+- {values['standard_error']:.2g}" if "standard_error" in values else ""
        rows.append([name, value, error, *others])
    show_table(rows, ["", "pictures", "", "floor", *(["in the model's tokens"] if one.palette else [])])
    if min(drawn.samples, drawn.references) <= one.width:
        say(
            f"Fewer pictures than features ({one.width:,}): frechet[{one.extractor}] is largely bias, as is its floor; "
            "compare the two, and only at these numbers of pictures"
        )


def _draw(path: Path, pictures: NDArray[np.uint8], train: NDArray[np.uint8], near: Sequence[Nearness]) -> None:
    from nextpixel.images import grid, save_png

    shown, columns = min(SHOWN, len(pictures)), near[0].indices.shape[1]
    titles = ["picture"] + [one.extractor if column == 0 else "" for one in near for column in range(columns)]
    cells: list[list[np.ndarray | None]] = []
    captions: list[list[str | None]] = []
    for row in range(shown):
        found = [index for one in near for index in one.indices[row]]
        cells.append([pictures[row], *(train[index] if index >= 0 else None for index in found)])
        distances = [distance for one in near for distance in one.distances[row]]
        captions.append([None, *(f"{distance:.3g}" if distance < float("inf") else None for distance in distances)])
    zoom = max(1, CELL_PIXELS // pictures.shape[1])
    save_png(grid(cells, zoom, titles=titles, captions=captions), path)
