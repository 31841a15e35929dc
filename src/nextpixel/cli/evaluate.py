"""nextpixel evaluate"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nextpixel.cli.arguments import Images, joined, parse, show
from nextpixel.cli.common import auc_text, check_file, check_sources, load_model, psnr_text
from nextpixel.cli.comparing import compare, compare_features, report
from nextpixel.cli.hints import command, placing
from nextpixel.cli.sharing import Arrays, Share, ShareOptions, chunks
from nextpixel.config import (
    COMPARED_AT_LEAST,
    PICTURES_AT_MOST,
    OutputOptions,
    PictureOptions,
    SamplingConfig,
    check_numbers,
    refuse_given,
)
from nextpixel.errors import InputError
from nextpixel.progress import say, say_left_out

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nextpixel.images.sources import Source
    from nextpixel.network.model import ImageGPT
    from nextpixel.representation.probing import LinearProbe


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a model on a dataset: nats per pixel, bits, standard error, speed.

    For a fine-tuned model and labelled images also the accuracy and, with two classes, the area under the ROC curve.

    With --samples or --pictures instead: Frechet and kernel distance, precision and recall, density and coverage of
    pictures with respect to the images. Values compare only for the same extractor and number of pictures. The floor is
    the same metric between two sets of real images. The options of drawing, except --seed, require --samples.
    """

    images: Images
    """Picture files, folders, arrays, parquet files, hub names, or OpenAI's token arrays (cifar10_teX.npy); several are
    concatenated."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    captions: str | None = None
    """Score the images given their captions, and without: names, folders, a .csv or .jsonl file of file,caption, or a
    text column, see pretrain --help. With --samples: draw from the captions of the images to compare with, one each."""
    protocol: Literal["all", "openai"] = "all"
    """openai: leave out the last partial batch of 64 images, as the original code did."""
    accuracy: bool = False
    """Require the accuracy: fail if the model has no classes or the images have no labels."""
    labels: Path | None = None
    """Labels as a CSV file with the columns file and label; default: folders or columns of IMAGES."""
    masks: int = 0
    """Number of random masks per image in a masked model's classification, see predict --help."""
    samples: int | None = None
    """Draw this many pictures and compare them with as many images of the dataset."""
    pictures: str | None = None
    """Compare these pictures instead. These and IMAGES may also be .npz files of nextpixel features."""
    extractor: str = "pixels"
    """Features to compare pictures by, comma-separated.
    pixels: the pixels themselves, which show only colours and coarse layout.
    untrained: hidden states of a random network of the model's shape.
    NAME.onnx: a network, from uint8 (N, H, W, 3) or float32 (N, 3, H, W) in -1 to 1 to (N, D).
    Otherwise hidden states of a model; the evaluated one cannot see what it has not learned."""
    layer: int | None = None
    """Layer of the hidden states; default: the middle one."""
    references: int | None = None
    """Number of real images to compare with, chosen by the seed; default: the number of pictures."""
    train: str | None = None
    """Training images of the model; default: those recorded in its run, or the train split of IMAGES. Results are also
    given without the images that are among them. Pictures are compared with their nearest training images."""
    nearest: Path | None = None
    """Write a PNG file of the first pictures with their nearest training images. Needs --train."""
    out: Path | None = None
    """Write the figures to this .json file."""
    share: ShareOptions = field(default_factory=ShareOptions)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Evaluate, "evaluate", argv)
    _check(args)
    check_sources(*args.images, args.train, args.pictures)
    if args.out is not None:
        check_file(args.out, ".json", args.images)
    share = Share(args, "`masks`" if args.masks else "`pictures`" if args.pictures else None)
    if args.pictures is not None and args.images[0].endswith(".npz"):
        from nextpixel.representation.extractors import holds_features

        if holds_features(args.images[0]):
            return compare_features(args, args.pictures, share)
    if args.samples is not None or args.pictures is not None:
        return compare(args, share)
    model = load_model(share.join(args.model))
    from nextpixel.evaluation.likelihood import evaluate
    from nextpixel.images.sources import open_source
    from nextpixel.representation.scoring import CHUNK_IMAGES, joined_arrays

    source = open_source(joined(args.images), args.split)
    seen = _seen(model, source, args)
    wanted = args.accuracy or args.labels is not None or args.masks > 0
    score = labelled = None
    if wanted or (model.config.classes and source.labels is not None):
        try:
            labelled = _labelled(model, source, args, seen)  # first, as it may raise before the long evaluation
            if not share.active:
                probe, squares, names, own = labelled
                score = probe.evaluate_squares(squares, names, masks=args.masks, seen=own)
        except InputError as error:
            if wanted:
                raise
            say(f"no accuracy: {error}")

    def run(tasks: Sequence[Callable[[], Arrays]], facts: Iterable[object]) -> list[Arrays]:
        nonlocal score
        if labelled is None:
            return share.run(tasks, facts)
        probe, squares, names, own = labelled
        more = [lambda rows=rows: {"x": probe.features(squares[rows])} for rows in chunks(len(squares), CHUNK_IMAGES)]
        results = share.run([*tasks, *more], [*facts, squares])
        score = probe.evaluate_features(joined_arrays(results[len(tasks) :])["x"], names, seen=own)
        return results[: len(tasks)]

    figures = evaluate(
        model, joined(args.images), split=args.split, captions=args.captions, protocol=args.protocol,
        seed=args.sampling.seed, seen=seen, run=run if share.active else None,
    )  # fmt: skip
    say_left_out(figures.unreadable)
    masked = model.config.objective == "masked"
    classified = None if score is None else score.report()
    report(args, asdict(figures) | {"palette_sha256": model.tokenizer.hash, "classification": classified}, share)
    if not args.output.json:
        kind = "hidden pixel" if masked else "pixel"
        show(
            f"{figures.nats_per_pixel:.4f} +- {figures.standard_error:.4f} nats per {kind} "
            f"({figures.bits_per_pixel:.4f} bits) over {figures.images:,} images, "
            f"{figures.images_per_second:.1f} images/s"
        )
        if (kept := figures.reconstruction) is not None:
            show(f"{figures.nats_per_token:.4f} nats per token; tokens reconstruct these images at {psnr_text(kept)}")
        if figures.nats_per_pixel_without_captions is not None:
            show(f"{figures.nats_per_pixel_without_captions:.4f} without the captions")
        if figures.nats_per_pixel_without_them is not None:
            show(
                f"{figures.nats_per_pixel_without_them:.4f} without the {figures.training_images:,} that are training "
                "images"
            )
        if score is not None:
            show(f"accuracy {score.accuracy:.1%} of {score.images:,} images{auc_text(score.auc)}")
            if score.accuracy_without_them is not None:
                auc = auc_text(score.auc_without_them)
                show(f"accuracy without training images {score.accuracy_without_them:.1%}{auc}")
    words = [*args.images, *placing(args.model)]
    words += ["--captions", args.captions] if args.captions is not None and not masked else []
    following = command("features" if masked else "score", *words, split=args.split, model=args.model.model)
    say(f"{'To extract features' if masked else 'To find the least likely images'}: {following}")


def _seen(model: ImageGPT, source: Source, args: Evaluate) -> NDArray[np.bool_] | None:
    """Which images are training images: those of --train, else of the model's run, else of the train split of IMAGES.

    None where those are not known.
    """
    from nextpixel.data.decoded import decode
    from nextpixel.evaluation.likelihood import find_training_images
    from nextpixel.images.sources import open_source
    from nextpixel.training.run_images import training_set

    try:
        if args.train is None and (train := training_set(args.model.model)) is not None:
            return find_training_images(train, model, joined(args.images), args.split)
    except InputError as error:
        say(f"could not look for training images of {args.model.model} among these: {error}")
        return None
    if args.train is None and source.split in (None, "train"):
        return None
    known = open_source(args.train or joined(args.images))
    if args.train is None and known.split != "train":
        return None
    train = decode(known, model.size, fit=model.fit, levels=model.levels)
    return find_training_images(train, model, joined(args.images), args.split)


def _labelled(
    model: ImageGPT, source: Source, args: Evaluate, seen: NDArray[np.bool_] | None
) -> tuple[LinearProbe, NDArray[np.uint8], NDArray[Any], NDArray[np.bool_] | None]:
    """The model's class head, the labelled images, their labels, and which are training images."""
    from nextpixel.data.decoded import decode
    from nextpixel.data.labels import class_numbers, given_labels, labelled
    from nextpixel.images.sources import sprites_of
    from nextpixel.representation.probing import LinearProbe

    source = sprites_of(source, model.size, model.fit, model.levels)
    probe, labels = LinearProbe.of(model), given_labels(source, args.labels)
    images = decode(source, model.size, fit=model.fit, levels=model.levels)
    squares, names, rows = labelled(labels, source, images)
    class_numbers(names, probe.classes_)  # refuses bad labels
    return probe, squares, names, None if seen is None else seen[rows]


def _check(args: Evaluate) -> None:
    """Raise InputError for options that cannot be combined."""
    check_numbers(args, at_least_zero="masks")
    if args.samples is None:
        drawing = "temperature top_k top_p guidance allow_colors forbid_colors speed"
        refuse_given(args.sampling, drawing, "requires `samples`")
    if args.samples is None and args.pictures is None:
        return refuse_given(args, "extractor layer references nearest", "requires `samples` or `pictures`")
    if args.samples is not None and args.pictures is not None:
        raise InputError("--pictures: cannot be combined with --samples")
    if args.samples is not None and not COMPARED_AT_LEAST <= args.samples <= PICTURES_AT_MOST:
        raise InputError(f"--samples: expected {COMPARED_AT_LEAST} to {PICTURES_AT_MOST:,}, got {args.samples:,}")
    for names, what in (("accuracy labels masks", "accuracy"), ("protocol", "nats per pixel")):
        refuse_given(args, names, f"belongs to {what}; cannot be combined with `samples` or `pictures`")
    if args.captions is not None and args.pictures is not None:
        raise InputError("--captions: cannot be combined with --pictures")
    if args.samples is not None and args.captions is None and args.sampling.guidance != 1:
        raise InputError("--guidance: requires --captions, from which pictures are drawn")
    if args.nearest is not None:
        if args.train is None:
            raise InputError("--nearest: requires --train, the images that the model was trained on")
        inputs = [*args.images, args.train, *filter(None, [args.pictures])]
        check_file(args.nearest, ".png", inputs, argument="nearest")
