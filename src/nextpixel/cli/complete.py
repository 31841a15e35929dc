"""nextpixel complete"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextpixel.cli.arguments import joined, parse, print_json, show
from nextpixel.cli.common import (
    GRID_PIXELS,
    PictureFiles,
    check_drawing,
    check_folder,
    check_sources,
    drawing_facts,
    load_model,
    read_pictures,
    say_changed,
    show_pictures,
    shown_in_grid,
    write_each,
    write_pictures,
)
from nextpixel.cli.sharing import Share, ShareOptions, chunks, shared_drawing
from nextpixel.config import (
    KeepSide,
    OutputOptions,
    PictureOptions,
    SamplingConfig,
    check_no_keep,
    check_numbers,
    refuse_given,
)
from nextpixel.errors import InputError
from nextpixel.progress import duration, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nextpixel.drawing.sampling import Drawing
    from nextpixel.images import Picture
    from nextpixel.network.model import ImageGPT


PICTURES_PER_TASK = 16


@dataclass(frozen=True)
class Complete:
    """Complete pictures: keep the top rows of each, or all but a hole, and draw the rest, several times.

    Writes a grid of the given part, the completions with their nats per pixel (lower is more likely), and the original.
    Completions are neither sorted nor selected, as selection by likelihood would not be sampling.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PICTURES]")] = ()
    """Picture files, folders, or other sources of images; default: the bundled cat."""
    keep: float = 0.5
    """Fraction of the rows to keep, or of the columns with --keep-side left or right."""
    keep_side: KeepSide = "top"
    """The side to keep; all but top need a model trained with --augment orient."""
    mask: str | None = None
    """A picture of what to fill instead: white is filled, black is kept; any size with the proportions of PICTURES, or
    the model's size; for pixel art the size of the picture, of its sheet or of the model. alpha: the transparent pixels
    of PICTURES."""
    invert_mask: bool = False
    """Fill black and keep white."""
    box: str | None = None
    """LEFT,TOP,RIGHT,BOTTOM: fill this box, in pixels of the model, the last two excluded."""
    particles: int = 8
    """Versions of each completion with --mask or --box, of which the known pixels select one: more are nearer to the
    model's own distribution, and slower."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Completions per picture."""
    caption: str | None = None
    """What the pictures show, for a model with words, see nextpixel sample."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    out: Path = Path("completions.png")
    """The grid, a PNG file."""
    zoom: int | None = None
    """Pixels of the grid for each pixel of a picture; default: pictures about 160 pixels high."""
    full: Path | None = None
    """Also write each completion at the resolution of its picture to this new folder, the part that the model sees:
    kept rows are those of the picture, drawn ones are enlarged by a smooth filter."""
    show: bool = False
    """Show the result in the terminal."""
    files: PictureFiles = field(default_factory=PictureFiles)
    share: ShareOptions = field(default_factory=ShareOptions)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        check_numbers(self, below_one="keep", at_least_one="particles zoom")
        if self.mask is not None and self.box is not None:
            raise InputError("cannot be combined with `box`", argument="mask")
        if self.mask is None and self.box is None:
            refuse_given(self, "invert_mask particles", "requires `mask` or `box`")
        else:
            check_no_keep("mask" if self.box is None else "box", self.keep, self.keep_side)


def run(argv: Sequence[str]) -> None:
    args = parse(Complete, "complete", argv)
    images = args.images or (str(resources.files("nextpixel") / "assets" / "pictures" / "cat.jpg"),)
    check_drawing(args, images if args.mask in (None, "alpha") else (*images, args.mask))
    check_folder(args.full, "full")
    if args.full is not None and args.files.each is not None and args.full.resolve() == args.files.each.resolve():
        raise InputError(f"expected another folder than that of `each`, got {args.full}", argument="full")
    check_sources(*images)
    try:
        check_sources(None if args.mask == "alpha" else args.mask)
    except InputError as error:
        raise InputError(error.message, argument="mask") from None
    began = time.perf_counter()
    share = Share(args, "`mask`" if args.mask else "`box`" if args.box else None)
    model = load_model(share.join(args.model))
    if not args.images and model.fit == "place":
        raise InputError("expected some, as the bundled cat is no pixel art, got none", argument="images")
    if args.full is not None and model.fit == "place":
        raise InputError("expected a model that resizes pictures, got one that places them", argument="full")
    import numpy as np

    from nextpixel.drawing.holes import PARTICLES_AT_MOST, Filling, check_particles, free_tokens
    from nextpixel.drawing.sampling import draw
    from nextpixel.images import grid, save_png
    from nextpixel.images.sources import open_source
    from nextpixel.images.sources.masks import box_mask, load_masks
    from nextpixel.representation.extraction import model_hash
    from nextpixel.tokens import covers_pixels

    squares, names, unreadable = read_pictures(model, images, args.split)
    masks = None
    if args.box is not None:
        masks = box_mask(args.box, model.size)[None] ^ args.invert_mask
    elif args.mask is not None:
        source = open_source(joined(images), args.split)
        masks = load_masks(
            args.mask, source, squares, model.fit, invert=args.invert_mask, levels=model.levels, names=names
        )
    if masks is not None:
        check_particles(args.particles)
        counts = sorted({f"{count:,}" for count in masks.sum((1, 2))}, key=len)
        tokens = f", by at most {free_tokens(model, masks).sum((1, 2)).max():,} tokens, each drawn whole"
        text = f"{' or '.join(counts[:3])} of {math.prod(model.size):,} pixels will be filled"
        say(text + tokens * covers_pixels(model.tokenizer))
    pictures, columns = shown_in_grid(args, len(squares), "completions")
    loaded = time.perf_counter()
    options: dict[str, Any] = {"n": args.n, "sampling": args.sampling, "caption": args.caption}
    if masks is None:
        options |= {"keep": args.keep, "keep_side": args.keep_side, "of": len(squares) * args.n}

        def draw_part(part: slice) -> Drawing:
            return draw(model, squares[part], first_picture=part.start, **options)

        if share.active:
            parts = chunks(len(squares), PICTURES_PER_TASK)
            drawing = shared_drawing(share, draw_part, parts, [model_hash(model), *options.items(), squares])
        else:
            drawing = draw_part(slice(0, len(squares)))
    else:
        drawing = Filling(model, squares, masks, particles=args.particles, **options).draw()
    kept = np.broadcast_to(drawing.kept, drawing.images.shape[:3])
    drawn = time.perf_counter()
    changed = say_changed(model, squares, kept[:: args.n])

    rows, captions = [], []
    hidden = np.array([225, 225, 225, 255], np.uint8)[: drawing.images.shape[3]]
    for i, square in enumerate(squares[:pictures]):
        mine = slice(i * args.n, i * args.n + columns)
        given = np.where(kept[mine.start][..., None], drawing.images[mine.start], hidden)
        rows.append([given, *drawing.images[mine], square])
        captions.append([None, *(f"{nats:.2f}" for nats in drawing.nats[mine]), None])
    titles = ["given", *(str(k + 1) for k in range(columns)), "original"]
    zoom = args.zoom or max(1, GRID_PIXELS // drawing.images.shape[1])
    save_png(
        grid(rows, zoom=zoom, titles=titles, captions=captions),
        args.out,
    )
    stems = [f"{Path(name).stem}_{k}" for name in names for k in range(args.n)]
    files = write_pictures(args.files, model, drawing, stems)
    if args.full is not None:
        files["full"] = write_each(args.full, _join(model, drawing.images, kept, images, args.split, names), stems)
    share.clean()
    show_pictures(rows, args)
    if args.output.json:
        print_json(
            {
                "out": str(args.out),
                **files,
                "kept_rows": int(kept[0].any(1).sum()),
                "kept_columns": int(kept[0].any(0).sum()),
                "changed_pixels": changed,
                **drawing_facts(args, drawing),
                "seconds": {"load": loaded - began, "draw": drawn - loaded},
                "pictures": [
                    {
                        "file": name,
                        "nats_per_pixel": drawing.nats[i * args.n : (i + 1) * args.n].tolist(),
                        **hole_facts(drawing, i, args.n),
                    }
                    for i, name in enumerate(names)
                ],
                "unreadable": unreadable,
            }
        )
    else:
        widest = max(map(len, names)) + 1
        for i, name in enumerate(names):
            nats = " ".join(f"{value:.3f}" for value in drawing.nats[i * args.n : (i + 1) * args.n])
            show(f"{name + ':':<{widest}} nats per pixel {nats}")
        show(*filter(None, (args.out, args.full, *args.files.written())))
    if args.output.verbose:
        say(f"loaded in {duration(loaded - began)}, drew {len(drawing.images)} in {drawn - loaded:.1f} s")
        say(f"drawn with {drawing.mode}")
    if model.fit != "place":
        joins = "; --full FOLDER joins the drawn part to the picture at its own resolution" if args.full is None else ""
        say(f"The model sees each picture at {model.size[1]} x {model.size[0]} pixels{joins}")
    if drawing.evidence is None:
        hint = ". To keep more of the picture: --keep 0.75" if args.keep < 0.75 else ""
        say(f"For other completions: --seed {args.sampling.seed + 1}{hint}")
        return
    for i, name in enumerate(names if args.output.verbose else ()):
        facts = hole_facts(drawing, i, args.n)
        say(
            f"{name}: log-evidence {sum(facts['log_evidence']) / args.n:.1f} nats, spread "
            f"{facts['log_evidence_spread']:.1f}; ancestors left {' '.join(map(str, facts['ancestors']))} "
            f"of {args.particles}"
        )
    if blind := int(drawing.evidence.blind.max()):
        say(
            f"{blind:,} pixels were drawn before anything known near them: of these, each completion is only the best "
            f"of {args.particles}"
        )
    more = min(4 * args.particles, PARTICLES_AT_MOST)
    weighed = bool(drawing.evidence.log_evidence.any()) and more > args.particles
    hint = f". For better ones: --particles {more}" if weighed else ""
    say(f"For other completions: --seed {args.sampling.seed + 1}{hint}")


def hole_facts(drawing: Drawing, i: int, n: int) -> dict[str, Any]:
    """JSON about the hole of picture i, of which there are n completions; empty where rows were kept."""
    if drawing.evidence is None:
        return {}
    own, found = slice(i * n, (i + 1) * n), drawing.evidence
    drawn_at = drawing.drawn_at if drawing.drawn_at.ndim == 2 else drawing.drawn_at[own.start]
    return {
        "filled_pixels": int((drawn_at > 0).sum()),
        "particles": found.particles,
        "log_evidence": found.log_evidence[own].tolist(),
        "log_evidence_spread": float(found.log_evidence[own].std()),
        "ancestors": found.ancestors[own].tolist(),
        "blind_pixels": int(found.blind[own.start]),
    }


def _join(
    model: ImageGPT,
    drawn: NDArray[np.uint8],
    kept: NDArray[np.bool_],
    images: Sequence[str],
    split: str | None,
    names: Sequence[str],
) -> Iterator[Picture]:
    """Each completion (M * n, H, W, 3) at the resolution of its picture."""
    from nextpixel.images import join_pictures
    from nextpixel.images.sources import open_source
    from nextpixel.images.sources.levels import settle

    source, levels, _ = settle(open_source(joined(images), split), model.size, model.fit, model.levels)
    numbers = {name: number for number, name in enumerate(source.names)}
    n = len(drawn) // len(names)
    for i, name in enumerate(names):
        picture = source.read(numbers[name], levels)
        for k in range(i * n, (i + 1) * n):
            yield join_pictures(picture, drawn[k], kept[k], model.fit)
