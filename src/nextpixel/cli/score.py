"""nextpixel score"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nextpixel.cli.arguments import Images, joined, parse, print_json, show, show_table
from nextpixel.cli.common import check_file, check_folder, check_sources, decode_for, load_model, write_each, write_rows
from nextpixel.cli.hints import command, placing
from nextpixel.cli.sharing import Share, ShareOptions
from nextpixel.config import OutputOptions, PictureOptions, check_numbers, refuse_given
from nextpixel.errors import InputError
from nextpixel.progress import say, say_left_out

if TYPE_CHECKING:
    from nextpixel.evaluation.oddness import Oddness
    from nextpixel.network.model import ImageGPT

By = Literal["nats_per_pixel", "nats_corrected", "peak_nats", "feature_distance", "pixel_distance", "png_bytes"]


@dataclass(frozen=True)
class Score:
    """Score images by nats per pixel, the least likely first, and print the mean.

    Scores compare only under the same tokenizer. --report, --out and --against add five more scores: nats corrected for
    file size, the peak of a smoothed map, distances in features and in pixels, and the file size.
    """

    images: Images
    """Picture files, folders, arrays, parquet files or hub names; several are concatenated."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    heatmap: Path | None = None
    """Write each image with its map of nats per pixel to this new folder."""
    report: Path | None = None
    """Write a self-contained .html page: the oddest images with maps of nats, a histogram, a sortable table."""
    out: Path | None = None
    """Write all scores of all images to this .csv file."""
    against: str | None = None
    """Normal images. Distances are to a random half of them; the other half gives each score a p-value."""
    false_alarms: float | None = None
    """With --against: list only images beyond a threshold with this rate of false alarms, as in 0.01."""
    by: By | None = None
    """The score for order and threshold. Default: feature_distance; with --against and without --false-alarms the score
    that best separates the images from the held-out normal ones, if one clearly does. As that choice uses the images
    themselves, its p-values are slightly too small."""
    captions: str | None = None
    """Nats per pixel of the images given their captions: names, folders, a .csv or .jsonl file of file,caption, or a
    text column, see pretrain --help."""
    seed: int = 0
    """With --against: random seed of the split of the normal images."""
    share: ShareOptions = field(default_factory=ShareOptions)
    model: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        check_numbers(self, at_least_zero="seed", fraction="false_alarms")
        if self.against is None:
            refuse_given(self, "false_alarms seed", "requires `against` with normal images")
        if self.captions is not None and self.wants_table:
            raise InputError("cannot be combined with `report`, `out` or `against`", argument="captions")
        if not self.wants_table:
            refuse_given(self, "by", "requires `report`, `out` or `against`")

    @property
    def wants_table(self) -> bool:
        return any(option is not None for option in (self.report, self.out, self.against))


def run(argv: Sequence[str]) -> None:
    args = parse(Score, "score", argv)
    check_folder(args.heatmap, "heatmap")
    inputs = [*args.images, *([args.against] if args.against is not None else [])]
    if args.report is not None:
        check_file(args.report, ".html", inputs, "report")
    if args.out is not None:
        check_file(args.out, ".csv", inputs)
    check_sources(*inputs)
    share = Share(args)
    model = load_model(share.join(args.model))
    from nextpixel.evaluation.likelihood import mean_and_error, square_nats
    from nextpixel.evaluation.oddness import DEFAULT_COLUMN, odd_images
    from nextpixel.files import write_text

    if args.wants_table:
        maps, odd = None, odd_images(
            model, joined(args.images), split=args.split, against=args.against, false_alarms=args.false_alarms,
            dtype=args.model.dtype, seed=args.seed, run=share.run if share.active else None,
        )  # fmt: skip
        say_left_out(odd.unreadable)
        by = args.by or (DEFAULT_COLUMN if args.false_alarms is not None else odd.clearest)
    else:
        (odd, maps), by = _likelihoods(args, model), "nats_per_pixel"
    order = odd.order(by)
    rows = [_row(odd, i) for i in order]
    if args.out is not None:
        write_rows(args.out, rows)
    files: list[str] = []
    if args.heatmap is not None or args.report is not None:
        from nextpixel.reports.oddness_page import MAX_CARDS, page

        shown = order if args.heatmap is not None else order[:MAX_CARDS]
        maps = np.concatenate(list(square_nats(model, odd.images[shown]))) if maps is None else maps[shown]
        if args.heatmap is not None:
            files = _heatmaps(args.heatmap, odd.images[shown], maps, [odd.names[i] for i in shown])
        if args.report is not None:
            text = page(
                odd, maps[:MAX_CARDS], source=", ".join(args.images), model=args.model.model or "embedded", by=by,
                against=args.against, false_alarms=args.false_alarms,
            )  # fmt: skip
            write_text(args.report, text)
    share.clean()
    mean, error = mean_and_error(odd.values["nats_per_pixel"])
    alarms = _alarms(args, odd, by)
    if args.output.json:
        print_json(
            {
                "mean": mean,
                "standard_error": error,
                "by": by,
                "images": rows,
                **({"alarms": alarms} if alarms else {}),
                "report": None if args.report is None else str(args.report),
                "out": None if args.out is None else str(args.out),
                "heatmaps": files,
                "unreadable": odd.unreadable,
            }
        )
    else:
        _print(args, odd, by, order, alarms)
        show(f"mean {mean:.4f} +- {error:.4f} nats per pixel over {len(odd)} images")
        show(*(path for path in (args.report, args.out) if path is not None))
    _suggest(args)


def _likelihoods(args: Score, model: ImageGPT) -> tuple[Oddness, np.ndarray | None]:
    """Only nats per pixel, and the maps (N, H, W) if requested."""
    from nextpixel.evaluation.likelihood import image_tags, square_nats
    from nextpixel.evaluation.oddness import Oddness
    from nextpixel.images.sources import open_source

    source = open_source(joined(args.images), args.split)
    images = decode_for(model, source)
    tags = None if args.captions is None else image_tags(model, source, args.captions, images)
    parts = square_nats(model, images.images, tags=tags)
    maps = None if args.heatmap is None else np.concatenate(list(parts))
    nats = np.concatenate([part.mean((1, 2)) for part in (parts if maps is None else [maps])])
    return Oddness(images.names, {"nats_per_pixel": nats}, {}, {}, images.images, images.unreadable), maps


def _print(args: Score, odd: Oddness, by: str, order: np.ndarray, alarms: dict[str, Any]) -> None:
    from nextpixel.evaluation.oddness import COLUMNS
    from nextpixel.reports.oddness_page import format_value

    shown: list[tuple[str, ...]] = []
    for i in order:
        p = odd.p_values[by][i] if odd.p_values else None
        if args.false_alarms is None or (p is not None and p <= args.false_alarms):
            p_text = () if p is None else (f"p {p:.2g}",)
            shown.append((format_value(by, odd.values[by][i]), *p_text, odd.names[i]))
    show_table(shown)
    if alarms:
        show(
            f"{alarms['images']} of {len(odd)} images beyond {COLUMNS[by].title} "
            f"{format_value(by, alarms['thresholds'][by])}, as {100 * alarms['rate']:g}% of normal "
            f"images are; {alarms['rate'] * len(odd):.1f} expected by chance"
        )
    if args.wants_table and args.by is None:
        show(f"ordered by {COLUMNS[by].title}; use --by for another order")


def _suggest(args: Score) -> None:
    """Print the next command."""
    report = str(args.report or "odd.html")
    if not args.wants_table:
        done, what, words = args.heatmap, "To map nats per pixel", ["--heatmap", "surprise/"]
    elif args.against is None:
        done, what = None, "To add p-values from normal images"
        words = ["--against", "normal/", "--report", report]
    else:
        done, what, words = args.report, "To write a page", ["--against", args.against, "--report", report]
    words += placing(args.model)
    words += ["--captions", args.captions] if args.captions is not None else []
    if args.against is not None:
        chosen = {"--by": args.by, "--false-alarms": args.false_alarms, "--seed": args.seed or None}
        words += [word for name, value in chosen.items() if value is not None for word in (name, str(value))]
    if done is None:
        say(f"{what}: {command('score', *args.images, *words, split=args.split, model=args.model.model)}")


def _row(odd: Oddness, i: int) -> dict[str, Any]:
    """A row of the CSV file and of --json."""
    row: dict[str, Any] = {"file": odd.names[i]} | {name: float(values[i]) for name, values in odd.values.items()}
    if "png_bytes" in row:
        row["png_bytes"] = int(row["png_bytes"])
    return row | {f"p_{name}": float(values[i]) for name, values in odd.p_values.items()}


def _alarms(args: Score, odd: Oddness, by: str) -> dict[str, Any]:
    """The thresholds of all scores and the number of images beyond that of --by; empty without --false-alarms."""
    if args.false_alarms is None:
        return {}
    return {
        "rate": args.false_alarms,
        "images": int((odd.p_values[by] <= args.false_alarms).sum()),
        "thresholds": {name: odd.threshold(args.false_alarms, name) for name in odd.values},
    }


def _heatmaps(folder: Path, squares: np.ndarray, maps: np.ndarray, names: Sequence[str]) -> list[str]:
    """Write each square with its map, enlarged, to the folder; return the paths."""
    from nextpixel.images import from_array, heatmap

    top = float(np.quantile(maps, 0.999))
    pairs = (
        np.concatenate([np.asarray(from_array(image)), heatmap(m, vmax=top)], axis=1).repeat(8, 0).repeat(8, 1)
        for image, m in zip(squares, maps, strict=True)
    )
    return write_each(folder, pairs, [Path(name).stem for name in names])
