#!/usr/bin/env python3
"""The plan against reality: peak memory of training on a CPU beside what plan.py expects.

    python benchmarks/plan_memory.py --shapes 6x192@32x4 12x384@32x4 --compile on off

A shape is layers x width @ side x images of a micro-batch, with heads of width 64. In "exact" and "glibc" each trains
for two steps in a process of its own, and what counts is the growth of its peak over what a tiny model had taken
before. glibc keeps much of what is freed; in "exact" large blocks go back at once (MALLOC_MMAP_THRESHOLD_), which shows
what the plan's tensors need, without its allowance for the heap. A "run" is nextpixel.pretrain for three steps with an
evaluation and without drawing, and what counts is how far its peak exceeds what it held when it printed its plan.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextpixel import ImageGPT, ImageGPTConfig, pretrain
from nextpixel.config import MODERN
from nextpixel.devices import autocast
from nextpixel.heap import freed_memory_kept
from nextpixel.network.cost import memory
from nextpixel.network.losses import cross_entropy
from nextpixel.training import optim, pretraining

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
    tokens = torch.randint(0, config.colors, (batch, config.tokens))
    for _ in range(2):
        with autocast("cpu", dtype):
            logits = model(tokens)
        cross_entropy(logits, tokens).backward()
        for one in optimizers:
            one.step()
            one.zero_grad(set_to_none=True)


def held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(shape: str, preset: str, dtype: str, compiled: bool, recompute: bool) -> int:
    """Bytes of bare steps, in this process."""
    torch.set_num_threads(1)
    optimizer = PRESETS[preset][1]
    train(config_of("1x64@8x2", preset)[0], 2, dtype, compiled, optimizer, recompute)
    before = held()
    with freed_memory_kept():  # as in training; "exact" configures the heap itself
        train(*config_of(shape, preset), dtype, compiled, optimizer, recompute)
    return peak() - before


def measure_run(shape: str, preset: str, dtype: str, compiled: bool, recompute: bool) -> int:
    """Bytes of a whole run, in this process."""
    config, batch = config_of(shape, preset)
    report, before = pretraining.report_plan, []

    def tell(*args: Any, **named: Any) -> None:
        report(*args, **named)
        before.append(held())

    pretraining.report_plan = tell
    images = np.random.default_rng(0).integers(0, 256, (16 * batch, config.rows, config.columns, 3), dtype=np.uint8)
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("layers", "width", "heads", "side")}
    settings |= {"preset": preset, "dtype": dtype, "compile": "on" if compiled else "off", "device": "cpu"}
    settings |= {"steps": 3, "batch_images": batch, "micro_batch_images": batch, "validation_fraction": 0.5}
    settings |= {"sample_images": 0, "threads": 1, "checkpoint_activations": recompute}
    with tempfile.TemporaryDirectory() as folder:
        pretrain(images, out=Path(folder) / "run", force=True, **settings)
    return peak() - before[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["6x192@32x4", "8x256@32x8", "12x384@32x4"])
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["classic"])
    parser.add_argument("--dtype", nargs="+", choices=["fp32", "bf16"], default=["bf16"])
    parser.add_argument("--compile", nargs="+", choices=["on", "off"], default=["off"])
    parser.add_argument("--ways", nargs="+", choices=["exact", "glibc", "run"], default=["exact", "glibc"])
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--measure", choices=["steps", "run"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    kinds = itertools.product(args.shapes, args.preset, args.dtype, args.compile)
    if args.measure:
        ((shape, preset, dtype, compiled),) = kinds
        how = measure_run if args.measure == "run" else measure
        print(how(shape, preset, dtype, compiled == "on", args.checkpoint_activations))
        return
    print("| shape | preset | | compiled | tensors, MB | with the heap |" + "".join(f" {n} |" for n in args.ways))
    print("|---|---|---|---|---|---|" + "---|" * len(args.ways))
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
        one = [__file__, "--shapes", shape, "--preset", preset, "--dtype", dtype, "--compile", compiled]
        one += ["--checkpoint-activations"] * args.checkpoint_activations
        for way in args.ways:
            environment = os.environ | (EXACT if way == "exact" else {})
            command = [sys.executable, *one, "--measure", "run" if way == "run" else "steps"]
            found = int(subprocess.run(command, env=environment, stdout=-1, check=True).stdout)
            planned = tensors if way == "exact" else need.total
            line += f" {found / 1e6:,.0f} ({planned / found - 1:+.0%}) |"
        print(line, flush=True)


if __name__ == "__main__":
    main()
