#!/usr/bin/env python3
"""Everything about speed that only a GPU can tell, stage by stage: each writes its figures as soon as it has them.

    python benchmarks/on_gpu.py --out gpu                    # on a GPU: S, M and L, some minutes
    python benchmarks/on_gpu.py --out try --quick            # anywhere: the same stages on a tiny model

modes     whether the CUDA graphs draw what the plain network draws, and how fast (decode_modes.py): before all else
train     steps of each size beside transformers' in the same run, and model FLOPs over the datasheet's bf16 peak
decode    single pixels behind three quarters of a picture at batch 1, 8, 32 and 256, beside transformers
sample    256 whole pictures in one batch

Needs torch, numpy, pillow and safetensors, and transformers to race against. A stage whose file is there is not run
again; one that fails says so and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nextpixel import ImageGPT, ImageGPTConfig, plan
from nextpixel.bench import bench, random_model, table
from nextpixel.devices import choose_device
from nextpixel.hardware import hardware_called
from nextpixel.palette import Palette

TRAINED_AT = {"s": [32, 128], "m": [16, 64], "l": [8, 32]}  # images a step
DRAWN_AT = [1, 8, 32, 256]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["modes", "train", "decode", "sample"])
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

    def modes(size: str) -> dict[str, Any]:
        out = args.out / f"modes-{size}.raw.json"
        which = ["--model", "embedded"] if args.quick else ["--size", size]
        batches = ["1", "2"] if args.quick else [str(batch) for batch in DRAWN_AT]
        script = str(Path(__file__).with_name("decode_modes.py"))
        subprocess.run([sys.executable, script, *which, "--batch", *batches, "--out", str(out)], check=True)
        return dict(json.loads(out.read_text()))

    def raced(work: str, batches: list[int], **more: Any) -> Callable[[str], dict[str, Any]]:
        def run(size: str) -> dict[str, Any]:
            model = model_of(size)
            several = [1, 2] if args.quick else TRAINED_AT[size] if work == "train" else batches
            found = bench(model, [work], several, repeats=args.repeats, **more)
            print(table(found), flush=True)
            return found | ({"utilisation": utilisation(model, found)} if work == "train" else {})

        return run

    def utilisation(model: ImageGPT, found: dict[str, Any]) -> dict[str, float]:
        """Model FLOPs of each row over the datasheet's bf16 peak; empty for a device that plan.py does not know."""
        if device != "cuda":
            return {}
        properties = torch.cuda.get_device_properties(0)
        known = hardware_called(properties.name, properties.total_memory)
        if known is None or known.bf16_flops_per_second is None:
            return {}
        each = plan.flops_per_image(model.config) / known.bf16_flops_per_second
        shares = {f"{row['contender']}, {row['batch']}": row["images_per_second"] * each for row in found["rows"]}
        print("of the peak: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)
        return shares

    stages: dict[str, Callable[[str], dict[str, Any]]] = {
        "modes": modes,
        "train": raced("train", [], against=True),
        "decode": raced("decode", DRAWN_AT, against=True),
        "sample": raced("sample", [256]),
    }
    failed = False
    for stage in args.stages:
        for size in args.sizes if stage != "sample" else args.sizes[:1]:
            path = args.out / f"{stage}-{size}.json"
            if path.exists():
                continue
            print(f"== {stage} {size}", flush=True)
            try:
                found = stages[stage](size)
            except Exception:
                traceback.print_exc()
                failed = True
                continue
            path.with_suffix(".tmp").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            path.with_suffix(".tmp").replace(path)
    sys.exit(failed)


if __name__ == "__main__":
    main()
