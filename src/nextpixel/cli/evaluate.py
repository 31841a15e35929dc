"""nextpixel evaluate"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.drawings import PICTURES_AT_MOST, check_file, load_model, open_images, tell_split
from nextpixel.cli.hints import command
from nextpixel.config import ModelOptions, OutputOptions, SamplingConfig, flag
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nextpixel.comparison import Comparison, Nearness
    from nextpixel.model import ImageGPT
    from nextpixel.probing import Score
    from nextpixel.sources import Source

SHOWN = 12  # pictures in the grid of --nearest
CELL_PIXELS = 64


@dataclass(frozen=True)
class Evaluate:
    """The paper's figures of a model on a set: nats per pixel over all pixels, bits, standard error, speed.

    Of a fine-tuned model on labelled images also the accuracy, and with two classes the area under the ROC curve.

    With --samples or --pictures instead: Frechet and kernel distance, precision and recall, density and coverage of
    pictures against the images. Each metric is named after what the pictures are compared by, and holds for that and
    for this number of pictures alone; the same metric between real images, its floor, stands beside it.
    """

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, an array, a parquet file, a hub name, or OpenAI's token arrays (cifar10_teX.npy)."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    protocol: Literal["all", "openai"] = "all"
    """openai leaves out the last partial batch of 64 images, as the original program did."""
    accuracy: bool = False
    """Insist on the accuracy: an error where the model knows no classes or the images no labels."""
    labels: Path | None = None
    """Labels as a CSV file with the columns file and label; unless told folders or columns say them."""
    masks: int = 0
    """How often a masked model looks at each image to classify it, as in predict."""
    samples: int | None = None
    """Draw this many pictures and compare them with as many images of the set."""
    pictures: str | None = None
    """Compare these pictures instead. IMAGES and these may also be features, .npz files of nextpixel features."""
    extractor: str = "pixels"
    """What pictures are compared by, with commas between several.
    pixels: as they are; no network's opinion, but blind to all but colours and coarse layout.
    untrained: hidden states of a random network of the model's shape.
    NAME.onnx: a network, from uint8 (N, H, W, 3) or float32 (N, 3, H, W) in -1 to 1 to (N, D).
    Otherwise a model, by its hidden states; the judged one is blind to what it has not learned."""
    layer: int | None = None
    """Which hidden states; the middle layer unless told."""
    references: int | None = None
    """Real images to compare with, chosen by the seed; as many as pictures unless told."""
    train: str | None = None
    """What the model was trained on: tells how near pictures come to it, and how near other real images do."""
    nearest: Path | None = None
    """Draw the first pictures beside their nearest training images, a PNG file. Needs --train."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Evaluate, "evaluate", argv)
    _check(args)
    if args.pictures is not None and args.images.endswith(".npz"):
        from nextpixel.extractors import holds_features

        if holds_features(args.images):
            return _judge_features(args, args.pictures)
    if args.samples is not None or args.pictures is not None:
        return _judge(args)
    model = load_model(args.model)
    from nextpixel.evaluation import evaluate

    source = open_images(args.images, args.split)
    wanted = args.accuracy or args.labels is not None or args.masks > 0
    score = None
    if wanted or (model.config.classes and source.labels is not None):
        score = _score(model, source, args)  # first: what is asked wrongly is said before the long work
    figures = evaluate(model, args.images, split=args.split, protocol=args.protocol, seed=args.sampling.seed)
    for line in figures.unreadable:
        say(f"left out: {line}")
    masked = model.config.objective == "masked"
    if args.output.json:
        classified = None if score is None else asdict(score) | {"confusion": score.confusion.tolist()}
        print_json(asdict(figures) | {"palette_sha256": model.palette.hash, "classification": classified})
    else:
        kind = "hidden pixel" if masked else "pixel"
        print(
            f"{figures.nats_per_pixel:.4f} +- {figures.standard_error:.4f} nats per {kind} "
            f"({figures.bits_per_pixel:.4f} bits) over {figures.images:,} images, "
            f"{figures.images_per_second:.1f} images/s"
        )
        if score is not None:
            auc = "" if score.auc is None else f", AUC {score.auc:.3f}"
            print(f"accuracy {score.accuracy:.1%} of {score.images:,} images{auc}")
    following = command("features" if masked else "score", args.images, split=args.split, model=args.model.model)
    say(f"{'What it makes of each image' if masked else 'Which images are the least likely'}: {following}")


def _score(model: ImageGPT, source: Source, args: Evaluate) -> Score:
    from nextpixel.data import decode
    from nextpixel.probing import LinearProbe, given_labels, labels_of_readable

    if args.masks < 0:
        raise InputError(f"--masks: expected 0 or more, got {args.masks}")
    probe, labels = LinearProbe.of(model), given_labels(source, args.labels)
    images = decode(source, model.config.side, fit=model.fit)
    return probe.evaluate_squares(images.squares, labels_of_readable(labels, source, images), masks=args.masks)


def _check(args: Evaluate) -> None:
    """Options that go together, before any work."""
    if args.samples is None and args.pictures is None:
        for name in ("extractor", "layer", "references", "train", "nearest"):
            if getattr(args, name) != getattr(Evaluate, name):
                raise InputError(f"{flag(name)}: belongs to drawn pictures; expected --samples N or --pictures too")
        for name in ("temperature", "top_k", "top_p"):
            if getattr(args.sampling, name) != getattr(SamplingConfig, name):
                raise InputError(f"{flag(name)}: belongs to drawn pictures; expected --samples N too")
        return
    if args.samples is not None and args.pictures is not None:
        raise InputError("--pictures: all of them are compared and none is drawn; expected no --samples beside it")
    if args.samples is not None and args.samples > PICTURES_AT_MOST:
        raise InputError(f"--samples: expected at most {PICTURES_AT_MOST:,}, got {args.samples:,}")
    if args.protocol != "all":
        raise InputError("--protocol: belongs to nats per pixel; expected no --samples or --pictures beside it")
    if args.nearest is not None:
        if args.train is None:
            raise InputError("--nearest: expected --train too, the images that the model was trained on")
        check_file(args.nearest, ".png", [args.images, args.train], option="--nearest")


def _judge_features(args: Evaluate, pictures: str) -> None:
    from nextpixel.comparison import compare_feature_files

    if args.train is not None:
        raise InputError("--train: expected images to look for copies of, but IMAGES are features; give the pictures")
    if args.extractor != Evaluate.extractor or args.layer is not None:
        raise InputError("--extractor and --layer: expected none, because IMAGES are features already")
    found = compare_feature_files(args.images, pictures, references=args.references, seed=args.sampling.seed)
    _tell(args, [found], [])
    say("Are they copies: features do not show it; give the pictures themselves, with --train")


def _judge(args: Evaluate) -> None:
    model = load_model(args.model)
    from nextpixel.comparison import choose_real, compare_by, nearest_images
    from nextpixel.extraction import model_hash
    from nextpixel.extractors import PIXELS, open_extractor
    from nextpixel.sampling import draw

    wanted = list(dict.fromkeys(args.extractor.split(",")))
    extractors = {name: open_extractor(name, model, args.layer) for name in wanted}  # before anything is drawn
    own = model_hash(model)[:6]
    for name in (name for name, extractor in extractors.items() if own in extractor.name):
        say(f"--extractor {name} is the judged model itself, which is blind to what it has not learned")
    seed = args.sampling.seed
    source = open_images(args.images, args.split)
    real = _read(model, source)
    train = None if args.train is None else _read_train(model, args.train, source.fingerprint())
    if args.pictures is None:
        count = args.samples or 0
        choice, palette = choose_real(len(real), count, args.references, seed), model.palette
        pictures = draw(model, None, n=count, sampling=args.sampling).images
    else:
        pictures, palette = _read(model, args.pictures), None
        choice = choose_real(len(real), len(pictures), args.references, seed)
    found = [compare_by(one, real, pictures, choice, palette, seed=seed) for one in extractors.values()]
    near = []
    if train is not None:
        by = {PIXELS: open_extractor(PIXELS, model)} | extractors
        near = [nearest_images(one, pictures, real[choice.reference], train, model.palette) for one in by.values()]
    _tell(args, found, near)
    if args.nearest is not None and train is not None:
        _draw(args.nearest, pictures, train, near)
        say(f"The nearest training images: {args.nearest}")
    elif train is None:
        say("Are they copies: the same command with --train and the images it was trained on, --nearest copies.png")
    if args.pictures is None:
        changed = [f.name for f in fields(SamplingConfig) if getattr(args.sampling, f.name) != f.default]
        options = [word for name in changed for word in (flag(name), getattr(args.sampling, name))]
        same = command("sample", "-n", args.samples, *options, "--each", "pictures", model=args.model.model)
        say(f"These pictures as files: {same}")
    else:
        say(f"How likely each is to the model: {command('score', args.pictures, model=args.model.model)}")


def _read(model: ImageGPT, images: Any) -> NDArray[np.uint8]:
    from nextpixel.data import decode

    found = decode(images, model.config.side, fit=model.fit)
    for line in found.unreadable:
        say(f"left out: {line}")
    return found.squares


def _read_train(model: ImageGPT, images: str, compared: str) -> NDArray[np.uint8]:
    from nextpixel.sources import open_source

    source = open_source(images)
    tell_split(source, images)
    if source.fingerprint() == compared:
        raise InputError(
            "--train: expected other images than IMAGES, whose distances show what is usual, got the same; give as "
            "IMAGES some that the model was not trained on, or another --split"
        )
    return _read(model, source)


def _tell(args: Evaluate, found: Sequence[Comparison], near: Sequence[Nearness]) -> None:
    drawn = found[0].drawn
    if args.output.json:
        return print_json(
            {
                "samples": drawn.samples,
                "references": drawn.references,
                "floor": {"samples": found[0].floor.samples, "references": found[0].floor.references},
                "seed": args.sampling.seed,
                "metrics": {name: values for one in found for name, values in one.metrics().items()},
                "nearest": [
                    {
                        "extractor": one.extractor,
                        "median": one.median,
                        "real_median": one.real_median,
                        "ratio": one.ratio,
                        "places": one.places.tolist(),
                        "distances": one.distances.tolist(),
                    }
                    for one in near
                ],
            }
        )
    for one in found:
        _print(one)
    for by in near:
        closest = ", ".join(f"{distance:.3g}" for distance in by.distances[:SHOWN, 0])
        print(
            f"nearest training image [{by.extractor}]: median distance {by.median:.4g}, of real images "
            f"{by.real_median:.4g}, ratio {by.ratio:.3f}; the smallest {by.distances[:, 0].min():.4g}, of real images "
            f"{by.real_distances.min():.4g}; the first pictures: {closest}"
        )
    if near:
        print("A ratio near 1 or above: no copies. Far below 1: copies, or blander pictures than real ones; look.")


def _print(one: Comparison) -> None:
    drawn, floor = one.drawn, one.floor
    print(
        f"{drawn.samples:,} pictures and {drawn.references:,} real images by {one.extractor}, {one.width:,} numbers "
        f"each; floor: {floor.samples:,} other real images and {floor.references:,}"
    )
    heads = ["pictures", "floor", *(["in the model's colours"] if one.palette else [])]
    width = max(len(name) for name in one.metrics()) + 2
    print(" " * width + "".join(f"{head:<22}" for head in heads).rstrip())
    for name, values in one.metrics().items():
        cells = [f"{values[key]:.4g}" for key in ("value", "floor", "palette") if key in values]
        if "standard_error" in values:
            cells[0] += f" +- {values['standard_error']:.2g}"
        print(f"{name:<{width}}" + "".join(f"{cell:<22}" for cell in cells).rstrip())
    if min(drawn.samples, drawn.references) <= one.width:
        say(
            f"Fewer pictures than numbers each ({one.width:,}): much of frechet[{one.extractor}] is bias, which the "
            "floor has too; compare with it, and only at these numbers of pictures"
        )


def _draw(path: Path, pictures: NDArray[np.uint8], train: NDArray[np.uint8], near: Sequence[Nearness]) -> None:
    from nextpixel.images import grid, save_png

    shown, columns = min(SHOWN, len(pictures)), near[0].places.shape[1]
    titles = ["picture"] + [one.extractor if place == 0 else "" for one in near for place in range(columns)]
    cells: list[list[np.ndarray | None]] = []
    captions: list[list[str | None]] = []
    for row in range(shown):
        found = [place for one in near for place in one.places[row]]
        cells.append([pictures[row], *(train[place] if place >= 0 else None for place in found)])
        distances = [distance for one in near for distance in one.distances[row]]
        captions.append([None, *(f"{distance:.3g}" if distance < float("inf") else None for distance in distances)])
    zoom = max(1, CELL_PIXELS // pictures.shape[1])
    save_png(grid(cells, zoom, titles=titles, captions=captions), path)
