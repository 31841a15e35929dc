"""Largest logit differences between transformers' ImageGPT and ours, both ways through a folder on disk.

    python benchmarks/transformers_parity.py --size s

Weights and tokens are random. "out" is a folder of ours opened by transformers, "in" is that model saved by
transformers and opened by us.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import ImageGPTForCausalImageModeling

import nextpixel


def differences(size: str, dtype: torch.dtype) -> dict[str, float]:
    config = nextpixel.SIZES[size]
    model = nextpixel.ImageGPT(config, seed=1).eval()
    torch.nn.init.normal_(model.head.weight, std=0.05, generator=torch.Generator().manual_seed(2))
    model.palette = nextpixel.Palette.openai()
    tokens = torch.randint(0, config.colors, (1, config.tokens), generator=torch.Generator().manual_seed(3))
    shifted = torch.cat([torch.full((1, 1), config.colors), tokens[:, :-1]], 1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        nextpixel.save(model, ours, for_transformers=True)
        reference = ImageGPTForCausalImageModeling.from_pretrained(ours).eval()
        reference.save_pretrained(theirs)
        shutil.copy(ours / "preprocessor_config.json", theirs)
        logits = reference.to(dtype)(shifted).logits
        return {
            "out": float((nextpixel.load(ours, dtype=dtype)(tokens) - logits).abs().max()),
            "in": float((nextpixel.load(theirs, dtype=dtype)(tokens) - logits).abs().max()),
            "largest_logit": float(logits.abs().max()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=nextpixel.SIZES, default="s")
    size = parser.parse_args().size
    print(json.dumps({name: differences(size, getattr(torch, name)) for name in ("float32", "float64")}, indent=2))


if __name__ == "__main__":
    main()
