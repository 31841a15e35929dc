#!/usr/bin/env python3
"""Make the set of emoji with captions: 32 x 32 pixels, RGBA, without anti-aliasing, transparent background.

    python benchmarks/emoji.py --out data/emoji

Needs node and npm. The pictures are Twemoji's (Twitter and contributors, CC BY 4.0), from the npm package @twemoji/svg;
the names are those of the npm package emojibase-data (Miles Johnson, MIT licence). Written are train.parquet and
test.parquet (every twentieth picture, chosen by the seed) with the columns `image` (PNG) and `caption`: the parts of
its name and its group, "woman, light skin tone, red hair, person". Emoji with half-transparent pixels are left out, no
two have the same pixels, and those with the most colours of their own are left out until 1,024 colours are enough.

Exit code 2: something is wrong with the request; 1: a download or the drawing failed.
"""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fetch_datasets import BadRequest, DownloadFailed, atomic, png, run
from sprite_sheet import rasterise

PACKAGES = ("@twemoji/svg@15.0.0", "emojibase-data@17.0.0", "@resvg/resvg-js@2.6.2")
SIDE, COLORS, TEST_EVERY = 32, 1_024, 20


def draw() -> tuple[dict[str, np.ndarray], list[dict[str, Any]], dict[str, str]]:
    """Pictures by their code points, the entries of emojibase and the names of its subgroups."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["npm", "install", "--silent", "--no-save", *PACKAGES], folder)
        pictures = rasterise(folder, "node_modules/@twemoji/svg", SIDE)
        data = folder / "node_modules" / "emojibase-data"
        entries = json.loads((data / "en" / "data.json").read_text())
        return pictures, entries, json.loads((data / "meta" / "groups.json").read_text())["subgroups"]


def file_name(code_points: str, names: dict[str, np.ndarray]) -> str | None:
    """The name of the file for 0023-FE0F-20E3: Twemoji leaves out leading zeros and most variation selectors."""
    whole = code_points.lower()
    bare = "-".join(part.lstrip("0") for part in whole.split("-") if part != "fe0f")
    return next((name for name in (whole, bare) if name in names), None)


def caption(label: str, group: str) -> str:
    parts = [*re.split("[:,]", label.lower()), group.replace("-", " ")]
    words = [" ".join(re.findall(r"\w[\w'’-]*", part)) for part in parts]
    return ", ".join(dict.fromkeys(filter(None, words)))


def with_few_colors(pictures: list[np.ndarray]) -> list[int]:
    """Which pictures to keep so that they have at most COLORS colours: those with the most of their own go first."""
    colors = [set(np.unique(np.ascontiguousarray(picture).view(np.uint32)).tolist()) for picture in pictures]
    uses = Counter(color for its in colors for color in its)
    kept = dict(enumerate(colors))
    while len(uses) > COLORS:
        worst = max(kept, key=lambda i: sum(uses[color] == 1 for color in kept[i]))
        uses -= Counter(kept.pop(worst))
    return list(kept)


def make(out: Path, seed: int) -> None:
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    pictures, entries, groups = draw()
    chosen: dict[bytes, tuple[np.ndarray, str]] = {}
    for entry in [*entries, *(skin for its in entries for skin in its.get("skins", []))]:
        name = file_name(entry["hexcode"], pictures)
        if name and "subgroup" in entry and set(np.unique(pictures[name][..., 3])) <= {0, 255}:
            row = (pictures[name], caption(entry["label"], groups[str(entry["subgroup"])]))
            chosen.setdefault(pictures[name].tobytes(), row)
    rows = list(chosen.values())
    rows = [rows[i] for i in with_few_colors([picture for picture, _ in rows])]
    colors = len(np.unique(np.stack([picture for picture, _ in rows]).view(np.uint32)))
    order = np.random.default_rng(seed).permutation(len(rows))
    print(
        f"{len(pictures):,} pictures drawn, {len(chosen):,} different ones named, {len(rows):,} kept; {colors} colours"
    )
    disable_progress_bars()
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    splits = {
        "train": [i for place, i in enumerate(order) if place % TEST_EVERY],
        "test": order[::TEST_EVERY].tolist(),
    }
    for split, numbers in splits.items():
        columns = {
            "image": [{"bytes": png(rows[i][0]), "path": f"{split}_{n:04d}.png"} for n, i in enumerate(numbers)],
            "caption": [rows[i][1] for i in numbers],
        }
        with atomic(out / f"{split}.parquet") as temporary:
            Dataset.from_dict(columns, features=features).to_parquet(str(temporary))
        words = Counter(word for text in columns["caption"] for word in text.replace(",", "").split())
        often = sum(count >= 3 for count in words.values())
        print(f"{out / split}.parquet: {len(numbers):,} emoji; {len(words):,} words, {often:,} at least three times")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="default: data/emoji")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        make(args.out, args.seed)
    except BadRequest as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DownloadFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
