"""nextpixel probe"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nextpixel.cli.arguments import REQUIRED, joined, parse, print_json, show, whole_numbers
from nextpixel.cli.common import check_file, check_folder, check_sources, decode_for, load_features_model
from nextpixel.cli.hints import command
from nextpixel.cli.peers import check_peers, fit_peers, load_students, rows_report
from nextpixel.config import OutputOptions, PictureOptions, Pooling, check_numbers, refuse_given
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    import numpy as np

    from nextpixel.representation.extraction import Backbone
    from nextpixel.representation.few_labels import Result
    from nextpixel.representation.probing import LinearProbe
    from nextpixel.training.convnet import TrainedResult

OURS = "this model"


@dataclass(frozen=True)
class Probe:
    """Fit a linear classifier to the model's features of labelled images, and compare its accuracy with baselines.

    Layer, pooling and regularisation are chosen by the log loss on held-out training images. The baselines are the most
    common class, raw pixels, k-means patches (Coates et al. 2011, 200 codes) and an untrained model of the same shape.
    """

    train: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN", help_behavior_hint=REQUIRED)]
    """Labelled images: a folder per class, a parquet file, an .npz file or a hub name; several are concatenated."""
    test: str | None = None
    """Labelled test images; their test split, if they have several. Default: the test split of TRAIN."""
    labels: Path | None = None
    """Labels of TRAIN as a CSV file with the columns file and label; default: its folders or columns."""
    test_labels: Path | None = None
    """Labels of the test images, likewise."""
    layer: str = "best"
    """best, a number, or comma-separated numbers to concatenate."""
    pooling: Literal["best", Pooling] = "best"
    """How a layer's features of all pixels become one vector. best chooses; mean, as in the paper; mean-std: also the
    standard deviations, which helps with textures; grid: both in each cell of a 4 x 4 grid, which preserves
    location."""
    mirror: bool = False
    """Average the features of each picture with those of its mirror image, also for the baselines but not for networks
    trained by --against: better where left and right mean nothing, at twice the time; wrong where they do, as in digits
    or X-rays."""
    concatenate: str | None = None
    """With --layer best: also probe the concatenation of these layers, comma-separated numbers."""
    labels_per_class: str | None = None
    """Comma-separated numbers, as in 4,25,400: fit to random subsets with so many labels per class."""
    repeats: int = 5
    """With --labels-per-class: random subsets per number of labels."""
    seed: int = 0
    """Random seed of the subsets and the held-out images."""
    baselines: bool = True
    """Probe only the model."""
    against: str | None = None
    """Also train other networks on the same labels, comma-separated: resnet20, a ResNet-20 from scratch, or the run or
    folder of a student of nextpixel distill, probed and fine-tuned."""
    trials: int = 3
    """With --against: hyperparameter trials of each network on held-out labels; the model is also probed with as
    many."""
    epochs: int | None = None
    """With --against: epochs of each training; default: 30, or more to see at least 8,000 images."""
    figure: Path | None = None
    """Plot accuracy by layer, or by labels per class, to this PNG file."""
    out: Path | None = None
    """Save the probe of all labels to this new folder."""
    model: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Probe, "probe", argv)
    counts = [None] if args.labels_per_class is None else whole_numbers("labels_per_class", args.labels_per_class, 1)
    fixed = None if args.layer == "best" else whole_numbers("layer", args.layer, 0)
    joined = None if args.concatenate is None else whole_numbers("concatenate", args.concatenate, 0)
    if fixed is not None:
        refuse_given(args, "concatenate", "requires `layer=best`; `layer` itself also concatenates")
    if args.against is None:
        refuse_given(args, "trials epochs", "requires `against`")
    if args.labels_per_class is None:
        refuse_given(args, "repeats", "requires `labels_per_class`")
    check_numbers(args, at_least_one="repeats epochs", at_least_zero="seed")
    check_folder(args.out, "out")
    check_peers(args.against, args.trials)
    if args.figure is not None:
        check_file(args.figure, ".png", [*args.train, *filter(None, [args.test])], argument="figure")
        if fixed is not None and counts == [None]:
            raise InputError("--figure: there is no curve to draw; use --layer best or --labels-per-class")
    check_sources(*args.train, args.test)
    model = load_features_model(args.model)
    import numpy as np

    from nextpixel.data.labels import refuse_overlap, seen_before
    from nextpixel.files import EMBEDDED
    from nextpixel.representation.baselines import baseline_features, majority_accuracy
    from nextpixel.representation.extraction import check_layers, pooled_columns, poolings_to_try
    from nextpixel.representation.few_labels import FeatureSet, compare, layer_features, sampled_rows
    from nextpixel.representation.probing import LinearProbe
    from nextpixel.training.run_images import absolute_model

    students = load_students(args.against, model)
    layers = list(range(model.config.layers + 1)) if fixed is None else check_layers(model, fixed)
    if joined is not None:
        check_layers(model, joined, "concatenate")
    (squares, labels), (test_squares, test_labels) = _read(args, model)
    seen = seen_before(squares, test_squares, args.test or ", ".join(args.train))
    refuse_overlap(seen, args.test or ", ".join(args.train))
    rows = sampled_rows(labels, counts if args.out is None else [None], args.repeats, args.seed)
    images = len(rows) + len(test_squares)
    poolings = poolings_to_try(model, len(layers), images) if args.pooling == "best" else [args.pooling]
    how: dict[str, Any] = {"concatenate": fixed is not None, "poolings": poolings, "mirror": args.mirror}
    own = squares[rows]
    ours = layer_features(OURS, model, own, test_squares, layers, **how)
    feature_sets = [ours]
    if joined is not None:
        both = ours.train[:, joined], ours.test[:, joined]
        name = f"{OURS}, layers {args.concatenate}"
        feature_sets.append(replace(ours, name=name, train=both[0], test=both[1], layers=joined, concatenate=True))
    if args.baselines:
        how |= {"seed": args.seed, "unlabelled": squares}
        feature_sets += baseline_features(model, own, test_squares, layers, **how)
    if args.against:
        middle, name = len(ours.layers) // 2, f"{OURS}, {args.trials} trial{'s' if args.trials > 1 else ''}"
        simplest = pooled_columns(model, poolings)[poolings[0]]
        one = ours.train[:, [middle], simplest], ours.test[:, [middle], simplest], [ours.layers[middle]]
        feature_sets.append(FeatureSet(name, *one, args.trials))
    for name, student in students.items():
        more: dict[str, Any] = {"trials": args.trials, "mirror": args.mirror}
        feature_sets.append(layer_features(f"{name}, probe", student, own, test_squares, [0], **more))
    protocol: dict[str, Any] = {"labels_per_class": counts, "repeats": args.repeats, "seed": args.seed, "seen": seen}
    results = compare(feature_sets, labels, test_labels, rows=rows, **protocol)
    training: dict[str, Any] = {"trials": args.trials, "epochs": args.epochs, "device": str(model.device)}
    train, test = (squares, labels), (test_squares, test_labels)
    peers = fit_peers(args.against, students, train, test, **protocol, **training)
    majority = majority_accuracy(labels, test_labels)
    probe = None
    if counts == [None]:
        [probe] = results[0].probes
        probe.model, probe.mirror = model, args.mirror
    elif args.out is not None:
        choice: Any = "best" if fixed is None else fixed
        probe = LinearProbe(model, choice, seed=args.seed, pooling=args.pooling, mirror=args.mirror)
        probe.fit_features(ours.train, labels, layers=layers, columns=ours.columns)
    if probe is not None and args.out is not None:
        probe.save(args.out, model_name=absolute_model(args.model.model) or EMBEDDED)
    if args.figure is not None:
        _draw(args.figure, [*results, *peers], probe)
    if args.output.json:
        report = _report(args, results, probe, majority)
        print_json(report | {"classes": np.unique(labels).tolist()} | ({"peers": rows_report(peers)} if peers else {}))
    else:
        _print(results, peers, probe, majority, len(labels), len(test_labels))
    if args.out is not None:
        following = command("predict", args.out, "new/", "--out", "predictions.csv", model=args.model.model)
        say(f"To classify new images: {following}")
    elif counts == [None]:
        fewest = np.unique(labels, return_counts=True)[1].min()
        few = ",".join(str(n) for n in (4, 25, 400) if n <= fewest)
        if few:
            say(f"To probe with few labels: --labels-per-class {few}")


def _read(args: Probe, model: Backbone) -> list[tuple[np.ndarray, np.ndarray]]:
    """Squares and labels of the training and test images, without unreadable pictures."""
    from nextpixel.data.labels import given_labels, labelled
    from nextpixel.images.sources import open_source, sprites_of, train_and_test
    from nextpixel.training.finetuning import open_test

    if args.test is None:
        sources = train_and_test(joined(args.train), "; name test images with `test`")
    else:
        sources = [open_source(joined(args.train)), open_test(args.test)]
    sources = [sprites_of(source, model.size, model.fit, model.levels) for source in sources]
    labels = [given_labels(sources[0], args.labels)]
    try:
        labels.append(given_labels(sources[1], args.test_labels))
    except InputError as error:
        if error.argument == "labels" and args.test_labels is not None:
            error.argument = "test_labels"
        raise
    found = []
    for source, names in zip(sources, labels, strict=True):
        found.append(labelled(names, source, decode_for(model, source))[:2])
    return found


def _draw(path: Path, results: Sequence[Result | TrainedResult], probe: LinearProbe | None) -> None:
    from nextpixel.reports.figures import label_figure, layer_figure

    if results[0].labels_per_class is not None:
        label_figure(results, path)
    elif probe is not None and probe.sweep_:
        layer_figure(probe.sweep_, path)
    else:
        return say("no figure: no class has a second image to hold out, by which to compare layers")
    say(f"Figure: {path}")


def _print(
    results: Sequence[Result],
    peers: Sequence[TrainedResult],
    probe: LinearProbe | None,
    majority: float,
    images: int,
    test_images: int,
) -> None:
    import numpy as np

    from nextpixel.representation.few_labels import Result
    from nextpixel.stats import mean_interval, per_class_accuracy, wilson_interval

    show(f"{images:,} training and {test_images:,} test images; most common class: {majority:.1%}")
    rows: list[Result | TrainedResult] = [*results, *peers]
    widest = max(18, *(len(row.method) + 2 for row in rows))
    for result in rows:
        mean, spread, half = mean_interval([score.accuracy for score in result.scores])
        if result.labels_per_class is None:
            low, high = wilson_interval(mean, test_images)
            text = f"all labels     {mean:>6.1%}  (95% {low:.1%} to {high:.1%})"
        else:
            text = f"{result.labels_per_class:>4} a class   {mean:>6.1%}"
            if len(result.scores) > 1:
                text += f" +- {spread:.1%}  (mean within {half:.1%})"
        auc = ""
        if areas := [score.auc for score in result.scores if score.auc is not None]:
            area, areas_spread, _ = mean_interval(areas)
            auc = f"  AUC {area:.3f}" + (f" +- {areas_spread:.3f}" if len(areas) > 1 else "")
        without = [s.accuracy_without_them for s in result.scores if s.accuracy_without_them is not None]
        if without:
            auc += f"  without training images {mean_interval(without)[0]:.1%}"
            if areas := [s.auc_without_them for s in result.scores if s.auc_without_them is not None]:
                auc += f", AUC {mean_interval(areas)[0]:.3f}"
        if isinstance(result, Result):
            last = f"  nearest neighbours {mean_interval(result.nearest_neighbours)[0]:.1%}"
        else:
            last = f"  trained in {np.mean(result.seconds):,.1f} s"
        show(f"{result.method:<{widest}}{text}{auc}{last}")
    for count in dict.fromkeys(result.labels_per_class for result in results):
        means = {r.method: np.mean([score.accuracy for score in r.scores]) for r in rows if r.labels_per_class == count}
        ahead = [name for name, accuracy in means.items() if not name.startswith(OURS) and accuracy >= means[OURS]]
        if ahead:
            labels = "all labels" if count is None else f"{count} labels a class"
            show(f"{labels}: this model does not beat {', '.join(ahead)}")
    if results[0].labels_per_class is None and probe is not None:
        score = results[0].scores[0]
        if score.top_5 is not None:
            without_them = score.top_5_without_them
            rest = "" if without_them is None else f", without training images {without_them:.1%}"
            show(f"{OURS}, top 5: {score.top_5:.1%}{rest}")
        each = per_class_accuracy(score.confusion)
        show("by class: " + " ".join(f"{name}:{a:.2f}" for name, a in zip(probe.classes_, each, strict=True)))
    if probe is not None:
        layers = f"layer{'s' if len(probe.layers_) > 1 else ''} {','.join(map(str, probe.layers_))}"
        how = "not calibrated, as no class has a second image to hold out"
        if probe.temperature_ is not None:
            how = f"calibrated on held-out images (temperature {probe.temperature_:.3g})"
        show(
            f"chosen: {layers}, {probe.pooling_} pooling{', mirrored' * probe.mirror}, "
            f"strength {probe.strength_:g} (C); probabilities {how}"
        )
    if probe is not None and len(found := _by_pooling(probe)) > 1:
        show("held-out log loss by pooling: " + " ".join(f"{pooling}:{loss:.3f}" for pooling, loss in found.items()))
    if probe is not None and probe.sweep_:
        accuracies = " ".join(f"{layer}:{accuracy:.3f}" for layer, accuracy in probe.sweep_.items())
        show(f"held-out accuracy by layer, {probe.pooling_} pooling: {accuracies}")


def _by_pooling(probe: LinearProbe) -> dict[str, float]:
    """The lowest held-out log loss of each pooling tried, in nats."""
    found: dict[str, float] = {}
    for trial in probe.trials_:
        found[trial["pooling"]] = min(found.get(trial["pooling"], math.inf), trial["held_out_log_loss"])
    return found


def _report(args: Probe, results: Sequence[Result], probe: LinearProbe | None, majority: float) -> dict[str, Any]:
    report: dict[str, Any] = {
        "seed": args.seed,
        "pooling": args.pooling,
        "mirror": args.mirror,
        "most_common_class": majority,
        "results": rows_report(results),
    }
    if probe is not None:
        report |= {"layers": probe.layers_, "pooling": probe.pooling_, "strength": probe.strength_}
        report |= {"temperature": probe.temperature_, "held_out_accuracy_by_layer": probe.sweep_}
        report |= {"held_out_log_loss_by_pooling": _by_pooling(probe)}
    return report
