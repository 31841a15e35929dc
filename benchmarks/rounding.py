"""What drawing with rounded weights changes: nats per pixel of test images under each mode, against fp32.

    python benchmarks/rounding.py data/cifar10 --split test --images 1000

Every image is scored as it would be drawn, pixel by pixel through the cache and the loops of the decode engine, and by
the plain network at once; --known N reads the first N tokens at once, as a prompt, and scores the rest. The change is
a mean over the same images, +- its standard error; the divergence is of fp32 from the mode, in nats a pixel.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from torch import Tensor

import nextpixel
from nextpixel.evaluation.likelihood import mean_and_error
from nextpixel.images.sources import load_images
from nextpixel.network.decoding import Decoder, Int8Decoder, PackedDecoder
from nextpixel.progress import progress
from nextpixel.tokens import pixels_of

MODES = {"int8": Int8Decoder, "fp32": PackedDecoder}
ROWS = 32


@torch.inference_mode()
def differences(
    model: nextpixel.ImageGPT, tokens: Tensor, mode: type[Decoder], known: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats per pixel under fp32 and under the mode, and the mean divergence, each (B,)."""
    exact, decoder, every = model(tokens), mode(model, len(tokens)), torch.arange(len(tokens))
    logits, cache = decoder.prefill(tokens[:, :known])
    decoder.fill(every, cache, every)
    sums = torch.zeros(3, len(tokens), dtype=torch.float64)
    for t in range(known, tokens.shape[1]):
        plain, rounded = (x.double().log_softmax(-1) for x in (exact[:, t], logits))
        for total, logs in zip(sums, (plain, rounded)):
            total -= logs.gather(-1, tokens[:, t : t + 1])[:, 0]
        sums[2] += (plain.exp() * (plain - rounded)).sum(-1)
        if t + 1 < tokens.shape[1]:
            logits = decoder.step(tokens[:, t])
    plain_nats, rounded_nats, divergence = sums / ((tokens.shape[1] - known) * pixels_of(model.tokenizer))
    return plain_nats, rounded_nats, divergence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--split")
    parser.add_argument("--model")
    parser.add_argument("--images", dest="count", type=int, default=1_000)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["int8"])
    parser.add_argument("--known", type=int, default=0, help="tokens of the prompt")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = nextpixel.load(args.model)
    tokens = model.tokenizer.encode(load_images(args.images, model.size, split=args.split)[: args.count])
    found = {}
    for name in args.modes:
        parts = []
        with progress(name, len(tokens), "images") as advance:
            for batch in tokens.split(ROWS):
                parts.append(differences(model, batch, MODES[name], args.known))
                advance(len(batch))
        plain, rounded, divergence = (torch.cat(values).numpy() for values in zip(*parts))
        change, error = mean_and_error(rounded - plain)
        found[name] = {
            "images": len(plain),
            "nats_fp32": float(np.mean(plain)),
            "nats": float(np.mean(rounded)),
            "change": change,
            "standard_error": error,
            "change_per_cent": 100 * change / float(np.mean(plain)),
            "divergence": float(np.mean(divergence)),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
