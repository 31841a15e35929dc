#!/usr/bin/env python3
"""The plan against reality: peak memory of training on a CPU beside what plan.py expects.

    python benchmarks/plan_memory.py --shapes 6x192@32x4 12x384@32x4 --compile on off

A shape is layers x width @ side x images of a micro-batch, with heads of width 64. Each trains for two steps in a
process of its own, and what counts is the growth of its peak over what a tiny model had taken before. glibc keeps much
of what is freed;
in "exact" large blocks go back at once (MALLOC_MMAP_THRESHOLD_), which shows what the plan's tensors need, without its
allowance for the heap.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from nextpixel import ImageGPT, ImageGPTConfig, optim
from nextpixel.config import MODERN
from nextpixel.devices import autocast
from nextpixel.model import cross_entropy
from nextpixel.plan import memory

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PRESETS = {"classic": ({}, "adam"), "modern": (MODERN, "muon")}


def config_of(shape: str, preset: str) -> tuple[ImageGPTConfig, int]:
    network, images = shape.split("@")
    layers, width = map(int, network.split("x"))
    side, batch = map(int, images.split("x"))
    return ImageGPTConfig(layers=layers, width=width, heads=width // 64, side=side, **PRESETS[preset][0]), batch


def train(config: ImageGPTConfig, batch: int, dtype: str, compiled: bool, optimizer: str, recompute: bool) -> None:
    model = ImageGPT(config)
    model.checkpoint_activations = recompute
    if compiled:
        for block in model.blocks:
            block.compile()
    optimizers = getattr(optim, optimizer)(model)
    tokens = torch.randint(0, config.colors, (batch, config.pixels))
    for _ in range(2):
        with autocast("cpu", dtype):
            logits = model(tokens)
        cross_entropy(logits, tokens).backward()
        for one in optimizers:
            one.step()
            one.zero_grad(set_to_none=True)


def measure(shape: str, preset: str, dtype: str, compiled: bool, recompute: bool) -> int:
    """Bytes, in this process."""
    torch.set_num_threads(1)
    optimizer = PRESETS[preset][1]
    train(config_of("1x64@8x2", preset)[0], 2, dtype, compiled, optimizer, recompute)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    train(*config_of(shape, preset), dtype, compiled, optimizer, recompute)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["6x192@32x4", "8x256@32x8", "12x384@32x4"])
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["classic"])
    parser.add_argument("--dtype", nargs="+", choices=["fp32", "bf16"], default=["bf16"])
    parser.add_argument("--compile", nargs="+", choices=["on", "off"], default=["off"])
    parser.add_argument("--allocator", nargs="+", choices=["exact", "glibc"], default=["exact", "glibc"])
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kinds = itertools.product(args.shapes, args.preset, args.dtype, args.compile)
    if args.measure:
        ((shape, preset, dtype, compiled),) = kinds
        print(measure(shape, preset, dtype, compiled == "on", args.checkpoint_activations))
        return
    print("| shape | preset | | compiled | tensors, MB | with the heap |" + "".join(f" {n} |" for n in args.allocator))
    print("|---|---|---|---|---|---|" + "---|" * len(args.allocator))
    for shape, preset, dtype, compiled in kinds:
        config, batch = config_of(shape, preset)
        need = memory(
            config,
            batch,
            dtype=dtype,
            optimizer=PRESETS[preset][1],
            compiled=compiled == "on",
            checkpointed=args.checkpoint_activations,
            on_cpu=True,
            accumulating=False,
        )
        tensors = need.total - need.heap
        line = f"| {shape} | {preset} | {dtype} | {compiled} | {tensors / 1e6:,.0f} | {need.total / 1e6:,.0f} |"
        one = [__file__, "--measure", "--shapes", shape, "--preset", preset, "--dtype", dtype, "--compile", compiled]
        one += ["--checkpoint-activations"] * args.checkpoint_activations
        for allocator in args.allocator:
            environment = os.environ | (EXACT if allocator == "exact" else {})
            found = int(subprocess.run([sys.executable, *one], env=environment, stdout=-1, check=True).stdout)
            told = tensors if allocator == "exact" else need.total
            line += f" {found / 1e6:,.0f} ({told / found - 1:+.0%}) |"
        print(line, flush=True)


if __name__ == "__main__":
    main()
