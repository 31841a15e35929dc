"""nextpixel score"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json
from nextpixel.cli.drawings import check_folder, load_model, open_images, write_each
from nextpixel.cli.hints import command
from nextpixel.config import ModelOptions, OutputOptions
from nextpixel.progress import say


@dataclass(frozen=True)
class Score:
    """Nats per pixel of each image under the model, the least likely first, and their mean.

    A score of 2.0 means that each pixel cost 2 nats on average; only scores under one palette compare.
    """

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A picture, a folder, an array, a parquet file or a hub name."""
    split: str | None = None
    """Which part, where the source has several (train, test)."""
    heatmap: Path | None = None
    """Write a picture of per-pixel surprise beside each image into this new folder."""
    model: ModelOptions = field(default_factory=ModelOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Score, "score", argv)
    check_folder(args.heatmap, "--heatmap")
    model = load_model(args.model)
    import numpy as np

    from nextpixel.data import decode
    from nextpixel.evaluation import square_nats
    from nextpixel.images import heatmap

    images = decode(open_images(args.images, args.split), model.config.side, fit=model.fit)
    for line in images.unreadable:
        say(f"left out: {line}")
    if args.heatmap is None:
        nats, maps = np.concatenate([part.mean((1, 2)) for part in square_nats(model, images.squares)]), None
    else:
        maps = np.concatenate(list(square_nats(model, images.squares)))
        nats = maps.mean((1, 2))
    order = np.argsort(-nats, kind="stable")
    mean = float(nats.mean(dtype=np.float64))
    error = float(nats.std(ddof=1) / len(nats) ** 0.5) if len(nats) > 1 else 0.0
    files = []
    if maps is not None:
        top = float(np.quantile(maps, 0.999))
        pairs = np.stack(
            [
                np.concatenate([images.squares[i], heatmap(maps[i], vmax=top)], axis=1).repeat(8, 0).repeat(8, 1)
                for i in order
            ]
        )
        files = write_each(args.heatmap, pairs, [Path(images.names[i]).stem for i in order])
    if args.output.json:
        scores = [{"name": images.names[i], "nats_per_pixel": float(nats[i])} for i in order]
        print_json(
            {
                "mean": mean,
                "standard_error": error,
                "images": scores,
                "heatmaps": files,
                "unreadable": images.unreadable,
            }
        )
    else:
        for i in order:
            print(f"{nats[i]:.4f}  {images.names[i]}")
        print(f"mean {mean:.4f} +- {error:.4f} nats per pixel over {len(nats)} images")
    if args.heatmap is None:
        again = command("score", args.images, "--heatmap", "surprise/", split=args.split, model=args.model.model)
        say(f"Where each image surprises: {again}")
