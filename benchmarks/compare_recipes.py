#!/usr/bin/env python3
"""The classic against the modern preset at equal FLOPs: loss on test images, and a linear probe.

    python benchmarks/compare_recipes.py data/cifar10 --out runs/compare

Both presets get the same number of learning rates; the best of each, by validation images of the training set, is
repeated with more seeds, and the modern one with a half and a quarter of the steps, each with its own cool-down: where
its curve crosses classic's final loss tells how many FLOPs it needs for it. Parts taken off the modern preset one by
one make the ablation (--ablation). Every run is kept, so a stopped command resumes when it is repeated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import nextpixel
from nextpixel.config import MODERN, Preset
from nextpixel.evaluation.likelihood import image_nats
from nextpixel.images.sources import load_images, open_source
from nextpixel.network.cost import flops_per_image
from nextpixel.representation.probing import LinearProbe

RATES: dict[Preset, tuple[float, ...]] = {"classic": (0.0025, 0.005, 0.01), "modern": (0.01, 0.02, 0.04)}
OFF = {"positions": "learned", "activation": "quick-gelu", "logit_cap": 0.0}
SHAPES = {"3x64": (3, 64, 2), "4x128": (4, 128, 4)}  # layers, width, heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="labelled images with a train and a test split")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-images", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shapes", default="3x64,4x128")
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--probe-images", type=int, default=4_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ablation", action="store_true", help="also take each modern part off, at the first shape")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    first_best: dict[str, float] = {}
    for shape in args.shapes.split(","):
        best: dict[str, float] = {}
        for preset, rates in RATES.items():
            tried = [measured(args, shape, preset, rate, 0, args.steps) for rate in rates]
            best[preset] = min(tried, key=lambda row: row["validation_nats"])["rate"]
            rows += tried
            rows += [measured(args, shape, preset, best[preset], seed, args.steps) for seed in range(1, args.seeds)]
        for seed in range(args.seeds):
            rows += [measured(args, shape, "modern", best["modern"], seed, args.steps // part) for part in (2, 4)]
        tell(rows, shape, best, args.steps)
        first_best = first_best or best
    if args.ablation:
        shape = args.shapes.split(",")[0]
        rate = first_best["modern"]
        whole = measured(args, shape, "modern", rate, 0, args.steps)
        for name in MODERN:
            without = measured(args, shape, "modern", rate, 0, args.steps, {name: OFF.get(name, "off")})
            print(f"without {name}: {without['nats']:.4f} nats, {without['nats'] - whole['nats']:+.4f}")
        adam = measured(args, shape, "modern", 0.005, 0, args.steps, {"optimizer": "adam"})
        print(f"Adam at 0.005 instead of Muon: {adam['nats']:.4f} nats, {adam['nats'] - whole['nats']:+.4f}")
    (args.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(
    args: argparse.Namespace,
    shape: str,
    preset: Preset,
    rate: float,
    seed: int,
    steps: int,
    changed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One run and its figures; both are kept."""
    measure = f"{args.side}px{args.batch_images}", f"test{args.test_images}", f"probe{args.probe_images}"
    name = "-".join([shape, preset, f"{rate:g}", f"seed{seed}", f"{steps}", *measure, *(changed or {})])
    kept = args.out / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    layers, width, heads = SHAPES[shape]
    run = args.out / name
    if (run / "run.json").exists():
        model = nextpixel.pretrain(resume=run)
    else:
        model = nextpixel.pretrain(
            args.data,
            split="train",
            out=run,
            preset=preset,
            layers=layers,
            width=width,
            heads=heads,
            side=args.side,
            steps=steps,
            batch_images=args.batch_images,
            learning_rate=rate,
            seed=seed,
            clip_norm=1.0,
            sample_images=0,
            evaluate_every_steps=steps,
            checkpoint_every_steps=steps,
            checkpoint_every_minutes=5.0,
            validation_images=1_000,
            threads=args.threads,
            compile="on",
            **(changed or {}),
        )
    test = open_source(args.data, "test")
    squares = load_images(test, args.side)[: args.test_images]
    train = open_source(args.data, "train")
    chosen = np.sort(np.random.default_rng(7).choice(len(train), args.probe_images, replace=False))
    images = load_images(train, args.side)[chosen]
    probe = LinearProbe(model, pooling="mean").fit(images, np.asarray(train.labels)[chosen])
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [entry["images_per_second"] for entry in log if "images_per_second" in entry]
    row = {
        "shape": shape,
        "preset": preset,
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "changed": changed,
        "flops": flops_per_image(model.config) * steps * args.batch_images,
        "validation_nats": json.loads((run / "best.json").read_text(encoding="utf-8"))["nats"],
        "nats": float(image_nats(model, squares).mean()),
        "probe": float(probe.score(squares, np.asarray(test.labels)[: args.test_images])),
        "layers": probe.layers_,
        "images_per_second": float(np.median(speeds)),
    }
    kept.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return row


def tell(rows: list[dict[str, Any]], shape: str, best: dict[str, float], steps: int) -> None:
    """The table of one shape, and how many FLOPs modern needs for classic's final loss."""
    curve = []
    for preset in RATES:
        for count in sorted({row["steps"] for row in rows if row["shape"] == shape and row["preset"] == preset}):
            of = [
                row
                for row in rows
                if (row["shape"], row["preset"], row["steps"], row["rate"]) == (shape, preset, count, best[preset])
            ]
            of = list({row["seed"]: row for row in of}.values())
            nats, probe = np.array([row["nats"] for row in of]), np.array([row["probe"] for row in of])
            print(
                f"{shape} {preset:<8} rate {best[preset]:<7g} {count:>5} steps, {of[0]['flops']:.2e} FLOP, "
                f"{len(of)} seeds: {nats.mean():.4f} (spread {np.ptp(nats):.4f}) nats, "
                f"probe {probe.mean():.1%} (spread {np.ptp(probe):.1%}), {of[0]['images_per_second']:.0f} images/s"
            )
            if preset == "modern":
                curve.append((nats.mean(), np.log(of[0]["flops"])))
            elif count == steps:
                goal, budget = nats.mean(), of[0]["flops"]
    losses, logs = np.array(sorted(curve)).T
    if losses[0] <= goal <= losses[-1]:
        part = np.exp(np.interp(goal, losses, logs)) / budget
        print(f"{shape}: modern reaches classic's loss with {part:.2f} of its FLOPs")
    else:
        print(f"{shape}: classic's loss {goal:.4f} lies outside modern's {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
