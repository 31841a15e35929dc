"""Colours to tokens: ours against transformers' image processor, interleaved in one run.

    python benchmarks/encode.py data/cifar10 --images 10000 --theirs 500 --repeats 5

"first run" starts with an empty cache, "later run" is a new Palette that finds the table on disk. transformers is
timed on fewer images (its time is linear in their number) with torch's default threads, one image a call, as it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nextpixel import Palette
from nextpixel.images.sources import load_images


def rate(work: Callable[[Any], object], images: Any) -> float:
    """Images per second."""
    start = time.perf_counter()
    work(images)
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    from transformers import ImageGPTImageProcessor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--theirs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    squares = load_images(args.data, 32, split="test")[: args.images]
    processor = ImageGPTImageProcessor(clusters=Palette.openai().colors, size={"height": 32, "width": 32})
    some = list(squares[: args.theirs])
    rates: dict[str, list[float]] = {"first run": [], "later run": [], "transformers": []}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            first, later = Palette.openai(cache), Palette.openai(cache)
            rates["first run"].append(rate(first.encode, squares))
            rates["later run"].append(rate(later.encode, squares))
        rates["transformers"].append(rate(processor, some))
    theirs = np.asarray(processor(some)["input_ids"]).reshape(len(some), -1)
    differ = int((theirs != Palette.openai().encode(squares[: args.theirs]).numpy()).sum())
    report = {
        name: {"images_per_second": statistics.median(values), "all": [round(v) for v in values]}
        for name, values in rates.items()
    }
    for name in ("first run", "later run"):
        ratios = np.array(rates[name]) / np.array(rates["transformers"])
        report[name]["times_transformers"] = float(np.median(ratios))
    print(json.dumps({"images": len(squares), "tokens_that_differ": differ, **report}, indent=2))


if __name__ == "__main__":
    main()
