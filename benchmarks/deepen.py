"""Double a model's depth without changing what it computes, so that training goes on in a larger network.

    python benchmarks/deepen.py embedded runs/deeper
    nextpixel pretrain data/cifar10 --split train --init runs/deeper ... --out runs/embedded

Each block is followed by a copy whose two output matrices are zero: it adds nothing until training fills them, while
its other matrices start from trained weights (LLaMA Pro, Wu et al. 2024). Class heads read the same states as before.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

import nextpixel


def deepen(model: nextpixel.ImageGPT) -> nextpixel.ImageGPT:
    layer = model.config.class_layer
    config = dataclasses.replace(model.config, layers=2 * model.config.layers, class_layer=layer and 2 * layer)
    deeper = nextpixel.ImageGPT(config)
    trained = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.")}
    for layer, block in enumerate(model.blocks):
        for name, value in block.state_dict().items():
            trained[f"blocks.{2 * layer}.{name}"] = value
            if name in ("attention.out.weight", "mlp.down.weight"):
                value = torch.zeros_like(value)
            elif name == "mix":  # the residual stream alone
                value = torch.tensor([1.0, 0.0])
            trained[f"blocks.{2 * layer + 1}.{name}"] = value
    deeper.load_state_dict(trained)
    deeper.tokenizer, deeper.fit, deeper.words, deeper.levels = model.tokenizer, model.fit, model.words, model.levels
    return deeper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    model = nextpixel.load(args.model)
    deeper = deepen(model)
    tokens = torch.randint(model.config.colors, (2, model.config.tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(deeper(tokens), model(tokens))
    nextpixel.save(deeper, args.out)
    print(f"{deeper} -> {args.out}")


if __name__ == "__main__":
    main()
