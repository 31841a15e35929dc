"""nextpixel features"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nextpixel import __version__
from nextpixel.cli.arguments import Images, joined, parse, print_json, show, whole_numbers
from nextpixel.cli.common import check_sources, load_features_model
from nextpixel.cli.hints import command, placing
from nextpixel.cli.sharing import Share, ShareOptions
from nextpixel.config import OutputOptions, PictureOptions, Pooling
from nextpixel.errors import InputError
from nextpixel.progress import say, say_left_out

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FeaturesModel(PictureOptions):
    """The model, and how it runs."""

    dtype: Literal["fp32", "bf16", "int8"] = "fp32"  # type: ignore[assignment]
    """Type of matrix products; bf16 also stores the weights. bf16 and int8 are less precise and faster on a CPU."""


@dataclass(frozen=True)
class Features:
    """Extract features of images: hidden states of a layer, averaged over pixels or the cells of a grid.

    Repeat the command to resume stopped work.
    """

    images: Images
    """Picture files, folders, arrays, parquet files or hub names; several are concatenated."""
    layer: str | None = None
    """A number, or comma-separated numbers to concatenate; default: the middle layer."""
    pooling: Pooling = "mean"
    """mean over the pixels, as in the paper; mean-std: also the standard deviations, after the means of each layer;
    grid: both in each cell of a 4 x 4 grid, all means before all deviations."""
    out: Path = Path("features.npz")
    """A .npz file (features, names, extractor) or a .parquet file (one row per image: file, features)."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    share: ShareOptions = field(default_factory=ShareOptions)
    model: FeaturesModel = field(default_factory=FeaturesModel)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Features, "features", argv)
    if args.out.suffix not in (".npz", ".parquet"):
        raise InputError(f"--out: expected a file name that ends in .npz or .parquet, got {str(args.out)!r}")
    wanted = None if args.layer is None else whole_numbers("layer", args.layer, 0)
    from nextpixel.files import check_output

    check_output(args.out)
    if args.out.exists():
        raise InputError(f"--out: {args.out} exists already; name a new file, or remove it first")
    check_sources(*args.images)
    from nextpixel.images.sources import open_source
    from nextpixel.representation.extraction import check_dtype, check_layers, extract, extract_chunks, features_name
    from nextpixel.training import distributed

    share = Share(args)
    model = load_features_model(share.join(args.model))
    check_dtype(model, args.model.dtype)
    layers = check_layers(model, wanted)
    source = open_source(joined(args.images), args.split)
    assert share.parts is not None
    parts = share.parts / __version__  # results of another version are not used
    try:
        paths = distributed.on_all_ranks(
            lambda: extract_chunks(
                model, source, layers, parts, dtype=args.model.dtype, pooling=args.pooling, part=share.part
            ),
            patient=True,
        )
        share.end(paths)
        values, names, unreadable = extract(model, source, layers, parts, dtype=args.model.dtype, pooling=args.pooling)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; repeat the command to resume") from None
    _write(args.out, values, names, features_name(model, layers, pooling=args.pooling))
    shutil.rmtree(share.parts)
    say_left_out(unreadable)
    if args.output.json:
        print_json({"out": str(args.out), "shape": list(values.shape), "layers": layers, "unreadable": unreadable})
    else:
        show(f"{args.out}: {values.shape[0]:,} images, {values.shape[1]:,} features of layers {layers}")
    labelled = args.images if source.labels is not None and source.split else ["labelled/"]
    say(f"To probe them: {command('probe', *labelled, *placing(args.model), model=args.model.model)}")


def _write(out: Path, values: np.ndarray, names: list[str], extractor: str) -> None:
    from nextpixel.files import new_file

    with new_file(out) as file:
        if out.suffix == ".npz":
            import numpy as np

            np.savez(file, features=values, names=np.array(names), extractor=np.array(extractor))
        else:
            import pyarrow
            import pyarrow.parquet

            rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])
            names = [name.encode("utf-8", "backslashreplace").decode() for name in names]  # which need not be text
            pyarrow.parquet.write_table(pyarrow.table({"file": names, "features": rows}), file)
