#!/usr/bin/env python3
"""Everything about speed that only a GPU can tell, stage by stage: each writes its figures as soon as it has them.

    python benchmarks/on_gpu.py --out gpu                    # on a GPU: S, M and L, some minutes
    python benchmarks/on_gpu.py --out try --quick            # anywhere: the same stages on a tiny model

modes     whether rows at slots of their own draw what the plain network draws, and how fast (decode_modes.py)
train     steps of each size beside transformers' in the same run, and model FLOPs over the datasheet's bf16 peak
decode    single pixels behind three quarters of a picture at batch 1, 8, 32 and 256, beside transformers
sample    256 whole pictures of S in one batch

Needs torch, numpy, pillow and safetensors, and transformers to compare with. Each batch size has its own file; existing
ones are not measured again, and after a failure the next one begins.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nextpixel import ImageGPT, ImageGPTConfig
from nextpixel.bench import bench, random_model, table
from nextpixel.devices import choose_device
from nextpixel.hardware import find_hardware
from nextpixel.network import cost as plan
from nextpixel.tokens.palette import Palette

# Images a step beside transformers, which keeps all scores (2, 5 and 10 GB an image in fp32), and of ours alone.
TRAINED_AT = {"s": (32, 128), "m": (16, 64), "l": (4, 32)}
DRAWN_AT = {"s": [1, 8, 32, 256], "m": [1, 8, 32], "l": [1, 8]}  # three caches lie side by side, two of them fp32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    stages = ["modes", "train", "decode", "sample"]
    parser.add_argument("--stages", nargs="+", default=stages, choices=stages)
    parser.add_argument("--sizes", nargs="+", default=["s", "m", "l"], choices=list(TRAINED_AT))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model in the place of each size, small batches")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = choose_device("auto")

    def model_of(size: str) -> ImageGPT:
        model = ImageGPT(ImageGPTConfig(layers=2, width=64, heads=2, side=8)) if args.quick else random_model(size)
        model.palette = Palette.openai()
        return model.to(device).eval()

    def modes(size: str, batch: int) -> dict[str, Any]:
        out = args.out / f"modes-{size}-{batch}.raw.json"
        which = ["--model", "embedded"] if args.quick else ["--size", size]
        script = str(Path(__file__).with_name("decode_modes.py"))
        subprocess.run([sys.executable, script, *which, "--batch", str(batch), "--out", str(out)], check=True)
        return dict(json.loads(out.read_text()))

    def timed(work: str, size: str, batch: int, *, against: bool) -> dict[str, Any]:
        model = model_of(size)
        found = bench(model, [work], [batch], repeats=args.repeats, against=against)
        print(table(found), flush=True)
        return found | ({"utilisation": utilisation(model, found)} if work == "train" else {})

    def utilisation(model: ImageGPT, found: dict[str, Any]) -> dict[str, float]:
        """Model FLOPs of each row over the datasheet's bf16 peak; empty for a device that hardware.py does not know."""
        if device != "cuda":
            return {}
        properties = torch.cuda.get_device_properties(0)
        known = find_hardware(properties.name, properties.total_memory)
        if known is None or known.bf16_flops_per_second is None:
            return {}
        each = plan.flops_per_image(model.config) / known.bf16_flops_per_second
        shares = {f"{row['contender']}, {row['batch']}": row["images_per_second"] * each for row in found["rows"]}
        print("of the peak: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)
        return shares

    jobs: list[tuple[str, str, int, Callable[[str, int], dict[str, Any]]]] = []
    for stage in args.stages:
        for size in args.sizes:
            if stage == "train":
                raced, alone = (1, 2) if args.quick else TRAINED_AT[size]
                jobs.append((stage, size, raced, partial(timed, "train", against=True)))
                jobs.append((stage, size, alone, partial(timed, "train", against=False)))
            elif stage == "sample" and size == "s":
                jobs.append((stage, size, 2 if args.quick else 256, partial(timed, "sample", against=False)))
            elif stage in ("modes", "decode"):
                work: Callable[[str, int], dict[str, Any]] = partial(timed, "decode", against=True)
                work = modes if stage == "modes" else work
                jobs += [(stage, size, batch, work) for batch in ([1, 2] if args.quick else DRAWN_AT[size])]
    failed = False
    for stage, size, batch, work in jobs:
        path = args.out / f"{stage}-{size}-{batch}.json"
        if path.exists():
            continue
        print(f"== {stage} {size}, batch {batch}", flush=True)
        try:
            found = work(size, batch)
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        path.with_suffix(".tmp").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
    sys.exit(failed)


if __name__ == "__main__":
    main()
