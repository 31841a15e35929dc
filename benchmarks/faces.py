#!/usr/bin/env python3
"""Make the set of pixel-art faces with captions: 16 x 16 pixels, RGBA, transparent background.

    python benchmarks/faces.py --out data/faces

Needs node and npm. Faces of the npm package @dicebear/pixel-art (designs by DiceBear, CC0 1.0; code MIT) are drawn by
faces.mjs, with hats, glasses, beards and earrings more often than by default and with solid beards. Written are

    train.parquet       30,000 faces
    test.parquet         2,000 faces
    test_pairs.parquet     600 faces, 100 of each of the six pairs of hair and shirt colours (HELD_OUT) that no other
                        face has
    design.json         the pixels, colours and words of each part, by which adherence.py reads a picture

with the columns `image` (PNG), `caption` (tags with commas between: "long red hair, dark skin, green shirt") and
`attributes` (JSON: what DiceBear drew). No two faces have the same pixels. A caption says only what the pixels show:
no hair under a hat that hides it, no beard in the colour of the skin. In training captions a tenth of the adjectives
are left out, so that "glasses" means something without its colour. The same seed makes the same set.

Exit code 2: something is wrong with the request; 1: a download or the drawing failed.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fetch_datasets import BadRequest, DownloadFailed, atomic, png, run

PACKAGES = ("@dicebear/core@9.4.3", "@dicebear/pixel-art@9.4.3", "@resvg/resvg-js@2.6.2")
OPTIONS = {"hatProbability": 20, "glassesProbability": 30, "beardProbability": 20, "accessoriesProbability": 25}
SIDE = 16
TRAIN, TEST, OF_A_PAIR = 30_000, 2_000, 100
ADJECTIVES_LEFT_OUT = 0.1
HELD_OUT = (
    ("red", "green"),
    ("blond", "navy"),
    ("blue", "yellow"),
    ("green", "red"),
    ("black", "coral"),
    ("brown", "mint"),
)

# DiceBear's colours in plain words, near ones merged.
COLORS = {
    "hair": {
        "blond": "cab188 a78961",
        "brown": "603a14 603015 83623b",
        "auburn": "611c17 612616",
        "black": "28150a",
        "blue": "009bbd",
        "red": "bd1700",
        "green": "91cb15",
    },
    "skin": {"light": "ffdbac f5cfa0 eac393", "medium": "e0b687 cb9e6e b68655", "dark": "a26d3d 8d5524"},
    "glasses": {"black": "4b4b4b 323232 191919", "blue": "43677d", "green": "5f705c", "red": "a04b5d"},
    "hat": {
        "black": "2e1e05",
        "blue": "2663a3",
        "gray": "989789",
        "green": "3d8a6b",
        "pink": "cc6192",
        "purple": "614f8a",
        "red": "a62116",
    },
    "earrings": {"gold": "daa520 ffd700", "silver": "d3d3d3 a9a9a9"},
    "shirt": {
        "blue": "5bc0de 428bca",
        "navy": "03396c",
        "mint": "88d8b0",
        "green": "44c585 00b159",
        "coral": "ff6f69",
        "red": "d11141 ae0001",
        "cream": "ffeead",
        "yellow": "ffd969 ffc425",
    },
}
WORD_OF = {
    part: {f"#{color}": word for word, colors in words.items() for color in colors.split()}
    for part, words in COLORS.items()
}

# From the lowest to the highest, as they are drawn; DiceBear's names.
LAYERS = {
    "skin": "skin",
    "earrings": "accessories",
    "shirt": "clothing",
    "eyes": "eyes",
    "lenses": "glasses",
    "glasses": "glasses",
    "beard": "beard",
    "mouth": "mouth",
    "hair": "hair",
    "hat": "hat",
}
# The head and neck, which DiceBear has no variants of: a row of 16 pixels each, in hexadecimal.
HEAD = "0000 0000 0ff0 1ff8 1ff8 1ff8 3ffc 3ffc 1ff8 1ff8 1ff8 0ff0 0180 1ff8 3ffc 3ffc".split()
CURLY = ("long15", "short11", "short13")
# The other mouths are flat, round or closed.
HAPPY = [f"happy{number:02}" for number in (3, 4, 6, 7, 8, 9, 10, 11, 12, 13)]
SAD = [f"sad{number:02}" for number in (1, 2, 3, 8, 9, 10)]

Masks = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Design:
    """What the parts of a face look like.

    masks[part][variant]: bool (16, 16); kinds[part][variant]: words for its shape; colors[part][word]: RGBA colours as
    32-bit numbers that the part has where it is called so ("" where its colours have no word).
    """

    masks: Masks
    kinds: dict[str, dict[str, frozenset[str]]]
    colors: dict[str, dict[str, frozenset[int]]]

    def write(self, path: Path) -> None:
        stored = {
            "masks": {p: {v: rows_of(mask) for v, mask in vs.items()} for p, vs in self.masks.items()},
            "kinds": {p: {v: sorted(words) for v, words in vs.items()} for p, vs in self.kinds.items()},
            "colors": {p: {w: sorted(f"{c:08x}" for c in cs) for w, cs in ws.items()} for p, ws in self.colors.items()},
        }
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(stored, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Design":
        if not path.is_file():
            raise BadRequest(f"there is no file {path}: make the set first, python benchmarks/faces.py")
        stored = json.loads(path.read_text())
        return cls(
            {p: {v: mask_of(rows) for v, rows in vs.items()} for p, vs in stored["masks"].items()},
            {p: {v: frozenset(words) for v, words in vs.items()} for p, vs in stored["kinds"].items()},
            {p: {w: frozenset(int(c, 16) for c in cs) for w, cs in ws.items()} for p, ws in stored["colors"].items()},
        )


def rows_of(mask: np.ndarray) -> list[str]:
    return ["".join(".#"[int(pixel)] for pixel in row) for row in mask]


def mask_of(rows: Iterable[str]) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def numbers(pixels: np.ndarray) -> np.ndarray:
    """uint32 (...): each RGBA colour of uint8 (..., 4) as one number, 0xRRGGBBAA."""
    return np.ascontiguousarray(pixels).view(">u4")[..., 0].astype(np.uint32)


def masks_of(alphas: dict[str, dict[str, list[int]]]) -> Masks:
    """The masks of each part from the alpha of each variant drawn alone; lenses are the half-transparent part."""
    masks: Masks = {"skin": {"head": mask_of(f"{int(row, 16):016b}".replace("1", "#") for row in HEAD)}}
    for part, source in LAYERS.items():
        if part != "skin":
            alpha = {name: np.array(values).reshape(SIDE, SIDE) for name, values in sorted(alphas[source].items())}
            masks[part] = {n: (a > 0) & (a < 255) if part == "lenses" else a == 255 for n, a in alpha.items()}
    return masks


def kinds_of(masks: Masks) -> dict[str, dict[str, frozenset[str]]]:
    """The words that describe the shape of each variant. Hair that ends beside the chin has no word for its length."""

    def hair(name: str) -> Iterable[str]:
        lowest = int(np.flatnonzero(masks["hair"][name].any(1)).max())
        if lowest >= 10:
            yield "long"
        elif lowest <= 7:
            yield "short"
        if name in CURLY:
            yield "curly"

    def mouth(name: str) -> Iterable[str]:
        return ("happy",) if name in HAPPY else ("sad",) if name in SAD else ()

    words = {"hair": hair, "mouth": mouth}
    return {part: {v: frozenset(words[part](v) if part in words else ()) for v in masks[part]} for part in masks}


def variants(attributes: dict[str, Any]) -> dict[str, str]:
    """The variant of each part that this face has."""
    return {"skin": "head", **{part: attributes[name] for part, name in LAYERS.items() if attributes.get(name)}}


def visible(masks: Masks, attributes: dict[str, Any]) -> dict[str, np.ndarray]:
    """bool (16, 16) by part: where it is the topmost one."""
    shown: dict[str, np.ndarray] = {}
    covered = np.zeros((SIDE, SIDE), bool)
    for part, variant in reversed(variants(attributes).items()):
        mask = masks[part][variant]
        shown[part] = mask & ~covered
        covered = covered | mask
    return shown


def color_word(part: str, attributes: dict[str, Any]) -> str:
    """The word for the colour of a part; "" where it has none."""
    if part == "lenses":
        return "sunglasses" if attributes["glasses"].startswith("dark") else "glasses"
    return WORD_OF.get(part, {}).get(attributes.get(f"{LAYERS[part]}Color", ""), "")


def colors_of(faces: list[tuple[np.ndarray, dict[str, Any]]], masks: Masks) -> dict[str, dict[str, frozenset[int]]]:
    """The colours of each part by word, from faces; colours that would stand for two words are left out."""
    seen: dict[str, dict[str, set[int]]] = {part: defaultdict(set) for part in LAYERS}
    for pixels, attributes in faces:
        face = numbers(pixels)
        for part, mask in visible(masks, attributes).items():
            seen[part][color_word(part, attributes)].update(face[mask].tolist())
    colors = {}
    for part, words in seen.items():
        uses = Counter(color for all_ in words.values() for color in all_)
        colors[part] = {w: frozenset(c for c in all_ if uses[c] == 1) for w, all_ in sorted(words.items())}
    return colors


def tags(pixels: np.ndarray, attributes: dict[str, Any], design: Design) -> list[list[str]]:
    """The tags of a face, each a list of words with its noun last: only what the pixels show."""
    shown, of = visible(design.masks, attributes), variants(attributes)
    words = {part: color_word(part, attributes) for part in of}
    found = []
    if "hair" in of and shown["hair"].sum() >= 3:
        hat = design.masks["hat"][of["hat"]] if "hat" in of else np.zeros((SIDE, SIDE), bool)
        # Under a hat, several variants may look the same.
        alike = [v for v, mask in design.masks["hair"].items() if np.array_equal(mask & ~hat, shown["hair"])]
        shape = frozenset.intersection(*(design.kinds["hair"][v] for v in alike))
        found.append([w for w in ("long", "short", "curly") if w in shape] + [words["hair"], "hair"])
    found.append([words["skin"], "skin"])
    mood = design.kinds["mouth"][of["mouth"]]
    if mood:
        found.append([*mood, "mouth"])
    if "glasses" in of and shown["glasses"].sum() >= 3 and shown["lenses"].sum() >= 3:
        found.append([words["glasses"], words["lenses"]])
    if "hat" in of:
        found.append([words["hat"], "hat"])
    if "earrings" in of and shown["earrings"][:, : SIDE // 2].any() and shown["earrings"][:, SIDE // 2 :].any():
        found.append([*filter(None, [words["earrings"]]), "earrings"])
    if "beard" in of and shown["beard"].sum() >= 3 and contrast(pixels, shown["beard"], shown["skin"]) >= 32:
        found.append(["beard"])
    if shown["shirt"].sum() >= 4:
        found.append([words["shirt"], "shirt"])
    return found


def contrast(pixels: np.ndarray, mask: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of a channel between the commonest colours of two parts."""
    ours, theirs = (Counter(map(tuple, pixels[m].tolist())).most_common(1)[0][0] for m in (mask, other))
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def shortened(found: list[list[str]], rng: np.random.Generator) -> list[list[str]]:
    """The tags without some of their adjectives; "hair", "skin", "mouth" and "shirt" alone would say nothing."""
    kept = [[*(w for w in tag[:-1] if rng.random() >= ADJECTIVES_LEFT_OUT), tag[-1]] for tag in found]
    return [tag for tag in kept if len(tag) > 1 or tag[0] not in ("hair", "skin", "mouth", "shirt")]


def caption(found: list[list[str]]) -> str:
    return ", ".join(" ".join(tag) for tag in found)


def draw(seed: int, count: int) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, dict[str, list[int]]]]:
    """`count` faces by faces.mjs: pixels uint8 (N, 16, 16, 4), their attributes, and the alphas of the design."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["npm", "install", "--silent", "--no-save", *PACKAGES], folder)
        shutil.copy(Path(__file__).with_name("faces.mjs"), folder)
        (folder / "request.json").write_text(json.dumps({"seed": seed, "count": count, "options": OPTIONS}))
        run(["node", "faces.mjs", "request.json", "."], folder)
        pixels = np.fromfile(folder / "pixels.bin", np.uint8).reshape(-1, SIDE, SIDE, 4)
        attributes, alphas = (json.loads((folder / f"{name}.json").read_text()) for name in ("attributes", "design"))
    drawn = re.compile("primaryBackground|secondaryBackground|background")
    return pixels, [{k: v for k, v in row.items() if not drawn.match(k)} for row in attributes], alphas


def write_parquet(path: Path, rows: list[tuple[np.ndarray, str, dict[str, Any]]]) -> None:
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    columns = {
        "image": [{"bytes": png(p), "path": f"{path.stem}_{i:05d}.png"} for i, (p, _, _) in enumerate(rows)],
        "caption": [text for _, text, _ in rows],
        "attributes": [json.dumps(attributes) for _, _, attributes in rows],
    }
    features = Features({"image": ImageFeature(), "caption": Value("string"), "attributes": Value("string")})
    with atomic(path) as temporary:
        Dataset.from_dict(columns, features=features).to_parquet(str(temporary))


def make(out: Path, seed: int, train: int, test: int, of_a_pair: int) -> None:
    # A tenth of the faces have a held-out pair, the rarest of the six one in 132.
    pixels, attributes, alphas = draw(seed, max(int((train + test) * 1.15), of_a_pair * 300))
    if set(np.unique(pixels[..., 3])) - {0, 255}:
        raise DownloadFailed("expected pixels that are opaque or transparent, got others")
    _, first = np.unique(pixels.reshape(len(pixels), -1), axis=0, return_index=True)
    faces = [(pixels[i], attributes[i]) for i in sorted(first)]
    masks = masks_of(alphas)
    design = Design(masks, kinds_of(masks), colors_of(faces, masks))
    rng = np.random.default_rng(seed)
    rows: dict[str, list[tuple[np.ndarray, str, dict[str, Any]]]] = {"test": [], "train": [], "test_pairs": []}
    pairs: Counter[tuple[str, str]] = Counter()
    for face, described in faces:
        pair = (color_word("hair", described), color_word("shirt", described))
        found = tags(face, described, design)
        if pair in HELD_OUT:
            if {"hair", "shirt"} <= {tag[-1] for tag in found} and pairs[pair] < of_a_pair:
                pairs[pair] += 1
                rows["test_pairs"].append((face, caption(found), described))
        elif len(rows["test"]) < test:
            rows["test"].append((face, caption(found), described))
        elif len(rows["train"]) < train:
            rows["train"].append((face, caption(shortened(found, rng)), described))
    wanted = {"test": test, "train": train, "test_pairs": of_a_pair * len(HELD_OUT)}
    made = {split: len(its) for split, its in rows.items()}
    if made != wanted:
        raise DownloadFailed(f"expected {wanted}, got {made}")
    design.write(out / "design.json")
    every = numbers(pixels[sorted(first)])
    print(f"{len(pixels):,} faces drawn, {len(faces):,} different, {len(np.unique(every))} RGBA colours")
    for split, its in rows.items():
        write_parquet(out / f"{split}.parquet", its)
        words = Counter(word for _, text, _ in its for word in text.replace(",", "").split())
        count = [len(text.split(", ")) if text else 0 for _, text, _ in its]
        print(
            f"{out / split}.parquet: {len(its):,} faces; {len(words)} words, the rarest {words.most_common()[-1]}; "
            f"{np.mean(count):.1f} tags a face ({min(count)} to {max(count)})"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/faces"), help="where the set goes (default: data/faces)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=TRAIN, help=f"training faces (default: {TRAIN:,})")
    parser.add_argument("--test", type=int, default=TEST, help=f"test faces (default: {TEST:,})")
    parser.add_argument("--pairs", type=int, default=OF_A_PAIR, help=f"faces of each pair (default: {OF_A_PAIR})")
    args = parser.parse_args(argv)
    try:
        make(args.out, args.seed, args.train, args.test, args.pairs)
    except BadRequest as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DownloadFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
