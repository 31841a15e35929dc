"""nextpixel probe"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.drawings import check_folder, load_model, tell_split
from nextpixel.cli.hints import command
from nextpixel.cli.numbers import whole_numbers
from nextpixel.config import ModelOptions, OutputOptions
from nextpixel.errors import InputError
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.probing import LinearProbe, Result

OURS = "this model"


@dataclass(frozen=True)
class Probe:
    """How well a linear classifier on the model's features tells labelled images apart, beside what it has to beat.

    Layer and strength are chosen on held-out training images. Beside it: the commonest class, raw pixels, k-means
    patches (Coates et al. 2011, 200 codes) and a model of the same shape that was never trained.
    """

    train: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")]
    """Labelled images: a folder a class, a parquet file, .npz, a hub name."""
    test: str | None = None
    """Labelled test images; the test split of TRAIN unless told."""
    layer: str = "best"
    """best, a number, or numbers with commas to concatenate."""
    labels_per_class: str | None = None
    """Numbers with commas, as in 4,25,400: the few-label protocol, over random subsets."""
    repeats: int = 5
    """Random subsets for each number of labels."""
    seed: int = 0
    """Fixes the subsets and what is held out."""
    baselines: bool = True
    """Without it only the model itself is probed."""
    out: Path | None = None
    """Save the probe of all labels into this new folder."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Probe, "probe", argv)
    counts = [None] if args.labels_per_class is None else whole_numbers("--labels-per-class", args.labels_per_class, 1)
    fixed = None if args.layer == "best" else whole_numbers("--layer", args.layer, 0)
    if args.repeats < 1 or args.seed < 0:
        raise InputError(f"--repeats and --seed: expected at least 1 and 0, got {args.repeats} and {args.seed}")
    check_folder(args.out, "--out")
    model = load_model(args.model)
    import numpy as np

    from nextpixel import baselines
    from nextpixel.data import decode
    from nextpixel.extraction import check_layers, pooled
    from nextpixel.probing import LinearProbe, Reading, compare, labels_of
    from nextpixel.sources import open_source

    layers = list(range(model.config.layers + 1)) if fixed is None else check_layers(model, fixed)
    source = open_source(args.train, "train" if args.test is None else None)
    test_source = open_source(args.train, "test") if args.test is None else open_source(args.test)
    labels, test_labels = labels_of(source), labels_of(test_source)
    if args.test is not None:
        tell_split(source, args.train)
        tell_split(test_source, args.test)
    sets = [decode(s, model.config.side, fit=model.fit) for s in (source, test_source)]
    for line in sets[0].unreadable + sets[1].unreadable:
        say(f"left out: {line}")
    squares, test_squares = (s.squares for s in sets)
    labels = labels[np.isin(list(source.names), sets[0].names)]
    test_labels = test_labels[np.isin(list(test_source.names), sets[1].names)]
    features, test_features = (pooled(model, model.palette.encode(s), layers) for s in (squares, test_squares))
    if fixed is not None:  # concatenated
        features, test_features = (f.reshape(len(f), 1, -1) for f in (features, test_features))
    readings = [Reading(OURS, features, test_features, layers if fixed is None else layers[:1])]
    if args.baselines:
        codes = baselines.PatchCodes(squares, args.seed)
        middle = model.config.layers // 2
        describers: dict[str, Callable[[Any], Any]] = {
            "raw pixels": baselines.raw_pixels,
            "k-means patches": codes,
            "untrained model": lambda s: baselines.untrained_features(model, s, middle),
        }
        for name, describe in describers.items():
            readings.append(Reading(name, describe(squares)[:, None], describe(test_squares)[:, None], [0]))
    results = compare(readings, labels, test_labels, labels_per_class=counts, repeats=args.repeats, seed=args.seed)

    commonest = float(np.unique(test_labels, return_counts=True)[1].max() / len(test_labels))
    probe = None
    if args.out is not None or counts == [None]:
        probe = LinearProbe(model, "best" if fixed is None else fixed, seed=args.seed).fit_features(
            features, labels, layers=layers
        )
        if args.out is not None:
            probe.save(args.out, model_name=str(args.model.model or "embedded"))
    if args.output.json:
        print_json(_report(args, results, probe, commonest))
    else:
        _print(results, probe, commonest, len(labels), len(test_labels))
    if args.out is not None:
        following = command("predict", args.out, "new/", "--out", "predictions.csv", model=args.model.model)
        say(f"Classify new images: {following}")
    elif counts == [None]:
        fewest = np.unique(labels, return_counts=True)[1].min()
        few = ",".join(str(n) for n in (4, 25, 400) if n <= fewest)
        if few:
            say(f"With few labels: the same command with --labels-per-class {few}")


def _print(
    results: Sequence[Result], probe: LinearProbe | None, commonest: float, images: int, test_images: int
) -> None:
    from nextpixel.metrics import mean_interval, wilson_interval

    print(f"{images:,} training and {test_images:,} test images; always the commonest class: {commonest:.1%}")
    for result in results:
        mean, spread, half = mean_interval(result.accuracies)
        if result.labels_per_class is None:
            low, high = wilson_interval(mean, test_images)
            text = f"all labels     {mean:.1%}  (95 % {low:.1%} to {high:.1%})"
        else:
            text = f"{result.labels_per_class:>4} a class   {mean:.1%} +- {spread:.1%}  (mean within {half:.1%})"
        auc = f"  AUC {sum(result.aucs) / len(result.aucs):.3f}" if result.aucs else ""
        print(f"{result.reading:<18}{text}{auc}")
    for count in dict.fromkeys(result.labels_per_class for result in results):
        rows = {r.reading: mean_interval(r.accuracies)[0] for r in results if r.labels_per_class == count}
        ahead = [name for name, accuracy in rows.items() if name != OURS and accuracy >= rows[OURS]]
        if ahead:
            print(f"{'all' if count is None else count} labels: this model does not beat {', '.join(ahead)}")
    if probe is not None and probe.sweep_:
        print("held-out accuracy by layer: " + " ".join(f"{layer}:{a:.3f}" for layer, a in probe.sweep_.items()))


def _report(args: Probe, results: Sequence[Result], probe: LinearProbe | None, commonest: float) -> dict[str, Any]:
    report: dict[str, Any] = {
        "seed": args.seed,
        "commonest_class": commonest,
        "results": [asdict(result) for result in results],
    }
    if probe is not None:
        report |= {"layers": probe.layers_, "strength": probe.strength_, "held_out_accuracy_by_layer": probe.sweep_}
    return report
