#!/usr/bin/env python3
"""Every way to draw that a device has, side by side: pixels per second, and how far its logits are from plain fp32.

    python benchmarks/decode_modes.py --size s --batch 1 8 32 --device cuda --out modes.json
    python benchmarks/decode_modes.py --model embedded --batch 8

Random tokens stand behind three quarters of a picture and are followed by `--pixels` more, so all modes read the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

import nextpixel
from nextpixel.bench import floors, random_model
from nextpixel.devices import choose_device, set_threads
from nextpixel.network.decoding import CompiledDecoder, Decoder, Int8Decoder, PackedDecoder, RowDecoder

MODES = {
    "cpu": [Decoder, RowDecoder, CompiledDecoder, PackedDecoder, Int8Decoder],
    "cuda": [Decoder, RowDecoder, CompiledDecoder],
}


@torch.inference_mode()
def steps(
    model: nextpixel.ImageGPT, mode: type[Decoder], tokens: Tensor, known: int
) -> tuple[Tensor, list[float], float]:
    """Logits (B, pixels, K), seconds of each step, and of making the decoder and reading the prompt."""
    now, wait = time.perf_counter, torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    start = now()
    decoder, every = mode(model, len(tokens)), torch.arange(len(tokens), device=model.device)
    logits, cache = decoder.prefill(tokens[:, :known])
    decoder.fill(every, cache, every)
    found = [logits]
    wait()
    begun, seconds = now() - start, []
    for t in range(known, tokens.shape[1]):
        start = now()
        logits = decoder.step(tokens[:, t])
        wait()
        seconds.append(now() - start)
        found.append(logits.clone())
    return torch.stack(found, 1), seconds, begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", help="a named size with random weights")
    parser.add_argument("--model", help="or a model, by which the differences mean something")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    set_threads(args.threads)
    model = random_model(args.size) if args.size else nextpixel.load(args.model)
    model = model.to(device).eval()
    limits = floors(torch.device(device), time.perf_counter)
    known = model.config.tokens * 3 // 4
    rows = []
    print("| batch | mode | pixels/s | ms a step (slowest) | ms to begin | largest difference of logits |")
    print("|---|---|---|---|---|---|")
    for batch in args.batch:
        tokens = torch.randint(
            0, model.config.colors, (batch, known + args.pixels), generator=torch.Generator().manual_seed(0)
        ).to(device)
        exact = None
        for mode in MODES[torch.device(device).type]:
            logits, seconds, begun = steps(model, mode, tokens, known)
            exact = logits if exact is None else exact
            median, off = statistics.median(seconds[2:]), (logits - exact).abs().max().item()
            rows.append({"batch": batch, "mode": mode.__name__, "seconds": seconds, "begin": begun, "difference": off})
            print(
                f"| {batch} | {mode.__name__} | {batch / median:,.0f} | "
                f"{median * 1e3:.2f} ({max(seconds[2:]) * 1e3:.2f}) | {begun * 1e3:,.0f} | {off:.1e} |",
                flush=True,
            )
    if args.out:
        facts = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads(), "floors": limits}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
