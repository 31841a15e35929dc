#!/usr/bin/env python3
"""Do drawn faces show what their captions state? Read from the pixels by program, without a network.

    python benchmarks/adherence.py data/faces                                  # real pictures and shuffled captions
    python benchmarks/adherence.py data/faces --model faces --out adherence.json
    python benchmarks/adherence.py data/faces --model faces --halves 500

A picture is read part by part from the top: the pixels of a hat, of the hair and so on are those in the exact colours
of that part where it can be. A part is there if these pixels match one of the design's variants (intersection over
union at least 0.75, over what the parts above leave uncovered); its colour is that of most of its pixels, and its
shape (long, happy, ...) what all best matching variants share. A stated word holds if its part is there and has it.

For real pictures with their captions (the ceiling), with another picture's (the floor), and for pictures drawn by the
model at each --guidance, from captions of the test sets: full ones, and one, two and three of their tags in random
order; those of the held-out pairs of colours always state both. Intervals are Wilson's at 95%. With a model, also how
many drawn faces are a training face to the last pixel, and the nats per pixel of the test faces with their caption,
with another's and with none.

With --halves, only this instead: the lower and the upper half of as many held-in test faces are drawn anew by
particles, with the face's caption, with another's and with none; it counts the tags of the given caption (with none: of
the face's own) whose parts are hidden.

Exit code 2: something is wrong with the request.
"""

import argparse
import io
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faces import LAYERS, SIDE, Design, numbers
from fetch_datasets import BadRequest, atomic
from PIL import Image

import nextpixel
from nextpixel.config import SamplingConfig
from nextpixel.drawing.holes import Filling
from nextpixel.errors import InputError

MATCH = 0.75  # intersection over union, at least
Z = 1.96  # 95%
NOUNS = {"sunglasses": "glasses"}  # parts are called as in captions, but for this one
SHAPES = {"long": "length", "short": "length", "curly": "curls", "happy": "mood", "sad": "mood"}


HIDDEN = {"lower": ("shirt", "mouth", "beard"), "upper": ("hat", "glasses", "sunglasses", "hair")}


@dataclass(frozen=True)
class Part:
    color: str
    """The word for the colour of most of its pixels."""
    shape: frozenset[str]
    """The words that all best matching variants share."""


def read_face(pixels: np.ndarray, design: Design) -> dict[str, Part]:
    """The parts that a picture, uint8 (16, 16, 4), shows."""
    face = numbers(pixels)
    found = {}
    covered = np.zeros((SIDE, SIDE), bool)
    for part in reversed(LAYERS):
        masks = design.masks[part]
        region = np.logical_or.reduce(list(masks.values())) & ~covered
        by_color = {word: region & np.isin(face, list(colors)) for word, colors in design.colors[part].items()}
        mine = np.logical_or.reduce(list(by_color.values()))
        covered = covered | mine
        overlaps = {variant: overlap(mine, mask, covered & ~mine) for variant, mask in masks.items()}
        best = max(overlaps.values())
        if best >= MATCH:
            alike = [variant for variant, value in overlaps.items() if value == best]
            shape = frozenset.intersection(*(design.kinds[part][variant] for variant in alike))
            found[part] = Part(max(by_color, key=lambda word: int(by_color[word].sum())), shape)
    return found


def overlap(mine: np.ndarray, mask: np.ndarray, covered: np.ndarray) -> float:
    """Intersection over union of a part's pixels and a variant, outside of what is covered; 0 where nothing is left."""
    rest = mask & ~covered
    return float((mine & rest).sum() / max(1, (mine | rest).sum()))


def check_tag(tag: str, face: dict[str, Part]) -> dict[str, bool]:
    """By kind ("hair length", "hair colour", "beard", ...), whether what the tag states is there."""
    *adjectives, noun = tag.split()
    name = NOUNS.get(noun, noun)
    part = face.get(name)
    lenses = face.get("lenses")
    checks = {}
    if name in ("glasses", "hat", "earrings", "beard"):
        checks[name] = part is not None
    if name == "glasses":
        checks["glasses lenses"] = part is not None and lenses is not None and lenses.color == noun
    for word in adjectives:
        holds = part is not None and (word in part.shape if word in SHAPES else word == part.color)
        checks[f"{name} {SHAPES.get(word, 'colour')}"] = holds
    return checks


@dataclass
class Share:
    right: int = 0
    of: int = 0

    def add(self, right: int, of: int = 1) -> None:
        self.right, self.of = self.right + right, self.of + of

    def interval(self) -> tuple[float, float]:
        """Wilson's interval for a share (Wilson 1927)."""
        share, spread = self.right / self.of, Z * Z / self.of
        middle = (share + spread / 2) / (1 + spread)
        half = Z * math.sqrt(share * (1 - share) / self.of + spread / 4 / self.of) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)

    def row(self) -> dict[str, Any]:
        low, high = self.interval()
        return {"share": self.right / self.of, "low": low, "high": high, "right": self.right, "of": self.of}


def adherence(pictures: np.ndarray, captions: Sequence[str], design: Design) -> dict[str, Share]:
    """The share of what captions state that pictures, uint8 (N, 16, 16, 4), show: by kind, and for

    stated         every colour, shape and part
    tags           whole tags
    captions       whole captions
    """
    shares: dict[str, Share] = defaultdict(Share)
    for pixels, caption in zip(pictures, captions, strict=True):
        face = read_face(pixels, design)
        tags = [check_tag(tag, face) for tag in caption.split(", ") if tag]
        for checks in tags:
            for kind, holds in checks.items():
                shares[kind].add(holds)
            shares["stated"].add(sum(checks.values()), len(checks))
            shares["tags"].add(all(checks.values()))
        if tags:
            shares["captions"].add(all(all(checks.values()) for checks in tags))
    last = ("stated", "tags", "captions")
    return {kind: shares[kind] for kind in (*sorted(set(shares) - set(last)), *last) if kind in shares}


def read_set(path: Path) -> tuple[np.ndarray, list[str]]:
    """Pictures uint8 (N, 16, 16, 4) and captions of a parquet file that faces.py wrote."""
    import pyarrow.parquet

    if not path.is_file():
        raise BadRequest(f"there is no file {path}: make the set first, python benchmarks/faces.py")
    table = pyarrow.parquet.read_table(path, columns=["image", "caption"]).to_pydict()
    pictures = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGBA")) for image in table["image"]]
    return np.stack(pictures), table["caption"]


def shorter(caption: str, tags: int, rng: np.random.Generator, pair: bool) -> str:
    """`tags` of the caption's tags in random order; with `pair`, the hair's and the shirt's among them."""
    every = caption.split(", ")
    first = [tag for tag in every if tag.split()[-1] in ("hair", "shirt")] if pair else []
    others = [tag for tag in every if tag not in first]
    chosen = [*first, *(others[i] for i in rng.permutation(len(others)))][:tags]
    return ", ".join(chosen[i] for i in rng.permutation(len(chosen)))


def make_captions(full: Sequence[str], count: int, rng: np.random.Generator, pair: bool) -> dict[str, list[str]]:
    """`count` captions of each length."""
    chosen = [full[i] for i in rng.permutation(len(full))[:count]]
    kinds = {"full": chosen}
    for tags in (2, 3) if pair else (1, 2, 3):
        kinds[f"{tags} tag{'s' * (tags > 1)}"] = [shorter(caption, tags, rng, pair) for caption in chosen]
    return kinds


def draw(model: Any, captions: Sequence[str], guidance: float, seed: int) -> np.ndarray:
    """One picture of each caption, uint8 (N, 16, 16, 4)."""
    drawn = nextpixel.sample(model, 1, caption=list(captions), guidance=guidance, seed=seed)
    return np.stack([np.asarray(picture.convert("RGBA")) for picture in drawn])


def repaint(model: Any, pictures: np.ndarray, captions: Sequence[str], half: str, seed: int) -> np.ndarray:
    """Pictures, uint8 (N, 16, 16, 4), with that half drawn anew."""
    mask = (np.arange(SIDE)[:, None].repeat(SIDE, 1) >= SIDE // 2) == (half == "lower")
    filling = Filling(model, pictures, mask, caption=list(captions), sampling=SamplingConfig(seed=seed))
    return filling.draw().images


def hidden_tags(captions: Sequence[str], half: str) -> list[str]:
    """The tags of parts that the half hides."""
    kept = ([tag for tag in caption.split(", ") if tag.split()[-1] in HIDDEN[half]] for caption in captions)
    return [", ".join(tags) for tags in kept]


def measure_halves(args: argparse.Namespace, design: Design) -> dict[str, Any]:
    rng, model = np.random.default_rng(args.seed), nextpixel.load(args.model)
    pictures, captions = read_set(args.data / "test.parquet")
    pictures, captions, rows = pictures[: args.halves], captions[: args.halves], []
    for half in HIDDEN:
        for name, wanted in {"own": captions, "another's": shuffled(captions, rng), "no": [""] * len(captions)}.items():
            drawn = repaint(model, pictures, wanted, half, args.seed)
            shares = adherence(drawn, hidden_tags(wanted if any(wanted) else captions, half), design)
            tell(f"{half} half, {name} caption", shares, shares)
            found = {kind: share.row() for kind, share in shares.items()}
            rows.append({"half": half, "caption": name, "shares": found})
    return {"halves": rows}


def copies(pictures: np.ndarray, training: np.ndarray) -> int:
    """How many pictures are a training picture to the last pixel."""
    known = {picture.tobytes() for picture in training}
    return sum(picture.tobytes() in known for picture in pictures)


def likelihoods(model: Any, pictures: np.ndarray, captions: list[str], rng: np.random.Generator) -> dict[str, float]:
    """Mean nats per pixel with the right, another picture's and no caption."""
    images = [Image.fromarray(picture) for picture in pictures]
    given: dict[str, dict[str, Any]] = {
        "right": {"captions": captions},
        "shuffled": {"captions": shuffled(captions, rng)},
        "no": {},
    }
    return {name: float(nextpixel.nll(model, images, **settings).mean()) for name, settings in given.items()}


def shuffled(captions: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Each picture gets another one's caption: a cyclic shift along a random order."""
    order = rng.permutation(len(captions))
    given = [""] * len(captions)
    for mine, other in zip(order, np.roll(order, 1), strict=True):
        given[mine] = captions[other]
    return given


def tell(title: str, shares: dict[str, Share], kinds: Iterable[str]) -> None:
    cells = []
    for kind in kinds:
        low, high = shares[kind].interval()
        cells.append(f"{kind} {100 * shares[kind].right / shares[kind].of:.1f} ({100 * low:.1f}-{100 * high:.1f})")
    print(f"{title:44} {'; '.join(cells)}", flush=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    design = Design.read(args.data / "design.json")
    rng = np.random.default_rng(args.seed)
    sets = {
        "held-in": read_set(args.data / "test.parquet"),
        "held-out pairs": read_set(args.data / "test_pairs.parquet"),
    }
    if args.halves:
        return measure_halves(args, design)
    results: dict[str, Any] = {"adherence": []}

    def add(title: str, pictures: np.ndarray, captions: list[str], *, in_full: bool = False) -> None:
        shares = adherence(pictures, captions, design)
        tell(title, shares, shares if in_full else ("stated", "tags", "captions"))
        rows = {kind: share.row() for kind, share in shares.items()}
        results["adherence"].append({"pictures": title, "captions": len(captions), "shares": rows})

    for name, (pictures, captions) in sets.items():
        add(f"{name}: real", pictures, captions, in_full=True)
        add(f"{name}: real, shuffled captions", pictures, shuffled(captions, rng), in_full=True)
    if args.model is None:
        return results

    model = nextpixel.load(args.model)
    training, _ = read_set(args.data / "train.parquet")
    results["copies"] = Counter()
    for name, (_, full) in sets.items():
        for length, captions in make_captions(full, args.captions, rng, name == "held-out pairs").items():
            for guidance in args.guidance:
                drawn = draw(model, captions, guidance, args.seed)
                add(f"{name}: {length}, guidance {guidance:g}", drawn, captions)
                results["copies"]["drawn"] += len(drawn)
                results["copies"]["copies"] += copies(drawn, training)
    print(f"copies of a training face: {results['copies']['copies']} of {results['copies']['drawn']}")
    results["nats"] = {name: likelihoods(model, *pair, rng) for name, pair in sets.items()}
    for name, nats in results["nats"].items():
        print(f"{name}: nats per pixel {', '.join(f'{k} caption {v:.4f}' for k, v in nats.items())}")
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that faces.py wrote")
    parser.add_argument("--model", help="a model of faces with captions; without it, only real pictures are measured")
    parser.add_argument("--captions", type=int, default=500, help="captions of each length (default: 500)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--halves", type=int, default=0, help="faces of which a half is drawn anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    args = parser.parse_args(argv)
    try:
        results = measure(args)
    except (BadRequest, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out:
        with atomic(args.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
