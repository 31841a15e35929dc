#!/usr/bin/env python3
"""Random order against raster order with particles, for holes: two networks alike, trained equally.

    python benchmarks/any_order.py data/cifar10/train.parquet --out any-order.json --grid any-order.png
    python benchmarks/any_order.py data/faces/train.parquet --test data/faces/test.parquet --judge faces

Both see the same pictures in the same order, 16 x 16 pixels, by the modern recipe. In random order each picture has an
order of its own at every step; a slot knows where the token that it predicts lies by the rotary angles of its query.
Such a network is given what is known first, and then predicts the hole exactly; raster order needs particles
(drawing/particles.py).

Nats of a true hole: with random order -ln p(hole | known), for one random order of the known tokens and one of the
hole's. With raster order -ln p(everything) + ln p(known), where p(known) is the particles' estimate. That is unbiased,
but its logarithm is too low on average, so these nats are too low too, even below zero: they are a bound in favour of
raster order, tighter with more particles, and exact where nothing known follows the hole (the upper half of
photographs, which is turned). It also prints the nats of whole pictures, how far colours step across the rim and the
root mean square error of fillings (masks.py), their nats by another model (--judge), and for labelled pictures the
accuracy of a probe.

Without --test, the last pictures are held out.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch_datasets import atomic
from masks import KINDS, make_mask, measure, pick
from torch import Tensor

import nextpixel
from nextpixel.config import MODERN, MUON_RATE, Fit, ImageGPTConfig, SamplingConfig
from nextpixel.drawing.guide import FREE
from nextpixel.drawing.holes import Filling, make_hole
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.images import grid, orient, save_png
from nextpixel.network.losses import cross_entropy
from nextpixel.network.model import ImageGPT
from nextpixel.network.positions import Positions
from nextpixel.tokens.exact import ExactPalette
from nextpixel.training import optim

SIDE = 16


class Orders(Positions):
    """An order for each picture of a batch: rotations (4, B, slots, E / 2)."""

    def rotations_of(self, slots: slice | Tensor) -> Tensor | None:
        assert self.rotations is not None
        return self.rotations[:, :, slots].unsqueeze(2)


def orders(config: ImageGPTConfig, each: Tensor) -> Positions:
    """Positions for pictures whose tokens come in these orders (B, T)."""
    found = [Positions.of(config, torch.device("cpu"), order).rotations for order in each]
    none = torch.empty(0, dtype=torch.int64)  # only learned positions need them
    return Orders(none, none, torch.stack([one for one in found if one is not None], 1))


def train(model: ImageGPT, tokens: Tensor, *, random: bool, steps: int, batch_images: int, seed: int) -> None:
    """The modern recipe on tokens (N, T)."""
    optimizers, rng = optim.muon(model), np.random.default_rng(seed)
    numbers = np.concatenate([rng.permutation(len(tokens)) for _ in range(-(-steps * batch_images // len(tokens)))])
    model.train()
    for step in range(steps):
        batch = tokens[numbers[step * batch_images : (step + 1) * batch_images]]
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(tokens.shape[1]), (len(batch), 1)), axis=1))
        rate = optim.linear_rate(step, steps=steps, warmup_steps=steps // 20, peak=MUON_RATE, cooldown_fraction=0.5)
        optim.set_rate(optimizers, rate)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        batch = batch.gather(1, order) if random else batch
        loss = cross_entropy(model(batch, positions=orders(model.config, order) if random else None), batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", file=sys.stderr, flush=True)
    model.eval()


@torch.inference_mode()
def nats(model: ImageGPT, tokens: Tensor, order: Tensor | None = None) -> np.ndarray:
    """-ln p (N, T) of tokens (N, T), in the order in which they are predicted; by default raster order."""
    if order is None:
        return torch.cat([cross_entropy(model(part), part, reduction="none") for part in tokens.split(50)]).numpy()
    positions = Positions.of(model.config, model.device, order)
    parts = tokens[:, order].split(50)
    losses = [cross_entropy(model(part, positions=positions), part, reduction="none") for part in parts]
    return torch.cat(losses).numpy()


def known_first(free: np.ndarray, rng: np.random.Generator) -> Tensor:
    """An order (T,) of the tokens of a grid, those that are not `free` first."""
    places = [rng.permutation(np.flatnonzero(one)) for one in (~free.reshape(-1), free.reshape(-1))]
    return torch.from_numpy(np.concatenate(places))


@torch.inference_mode()
def fill(model: ImageGPT, tokens: Tensor, order: Tensor, known: int, seed: int) -> Tensor:
    """Tokens (N, T) of which those after the first `known` of the order are drawn."""
    generator, filled = torch.Generator().manual_seed(seed), tokens.clone()
    cache, positions = model.new_cache(len(tokens)), Positions.of(model.config, model.device, order)
    given = tokens[:, order[:known]]
    for place in order[known:]:
        probabilities = model.extend(given, cache, positions=positions)[:, -1].softmax(-1)
        given = torch.multinomial(probabilities, 1, generator=generator)
        filled[:, place] = given[:, 0]
    return filled


def raster_hole_nats(model: ImageGPT, squares: np.ndarray, mask: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """-ln p (N,) of true holes, from estimates (N,) of the logarithm of the evidence."""
    found = []
    for square, log_evidence in zip(squares, evidence, strict=True):
        hole = make_hole(model, square, mask)  # turned
        turned = orient(square[None], hole.orientation)
        first = int(np.flatnonzero(hole.known == FREE)[0])
        found.append(nats(model, model.tokenizer.encode(turned))[0, first:].sum() + log_evidence)
    return np.array(found)


def summary(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "error": float(values.std(ddof=1) / len(values) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--test", help="held-out pictures")
    parser.add_argument("--judge", help="a model of pictures of this size")
    parser.add_argument("--train-images", type=int, default=40_000)
    parser.add_argument("--test-images", type=int, default=24)
    parser.add_argument("--probe-images", type=int, default=3_000, help="0: none, as for pictures without labels")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-images", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the results as JSON")
    parser.add_argument("--grid", type=Path, help="a PNG of the first pictures of each kind")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    exact = "faces" in args.images
    fit: Fit = "place" if exact else "crop"
    squares, labels = pick(args.images, (SIDE, SIDE), fit, range(args.train_images))
    if args.test is None:
        last = range(args.train_images + 1_000, args.train_images + 1_000 + max(args.test_images, args.probe_images))
        tests, test_labels = pick(args.images, (SIDE, SIDE), fit, last)
    else:
        tests, test_labels = pick(args.test, (SIDE, SIDE), fit, range(args.test_images))
    tokenizer: Any = ExactPalette.fit(squares) if exact else nextpixel.load().tokenizer
    tokens = tokenizer.encode(squares)
    config = ImageGPTConfig(args.layers, args.width, args.heads, SIDE, len(tokenizer), **MODERN)
    shown = tests[: args.test_images]
    given = tokenizer.encode(shown)
    originals = tokenizer.decode(given, SIDE)
    rng = np.random.default_rng(args.seed)
    masks = {kind: make_mask(kind, (SIDE, SIDE), rng) for kind in args.kinds}
    found: dict[str, Any] = {"parameters": config.parameters, "steps": args.steps, "pictures": len(shown)}
    judge = args.judge and nextpixel.load(args.judge)
    if judge:
        found["judged_originals"] = summary(np.concatenate(list(square_nats(judge, originals))).mean((1, 2)))
        print("originals judged", found["judged_originals"], flush=True)
    filled: dict[str, dict[str, np.ndarray]] = {}
    for name in ("raster", "random"):
        start = time.process_time()
        model = ImageGPT(config, seed=args.seed)
        model.tokenizer, model.fit = tokenizer, fit
        train(model, tokens, random=name == "random", steps=args.steps, batch_images=args.batch_images, seed=args.seed)
        mine = found[name] = {"cpu_minutes": (time.process_time() - start) / 60}
        filled[name] = {}
        order = None if name == "raster" else torch.from_numpy(rng.permutation(config.tokens))
        mine["nats_per_pixel"] = summary(nats(model, tokenizer.encode(tests[:500]), order).mean(1))
        print(name, json.dumps(mine), flush=True)
        for kind, mask in masks.items():
            start = time.process_time()
            if name == "raster":
                sampling = SamplingConfig(seed=args.seed, speed="exact")
                drawing = Filling(model, shown, mask, particles=args.particles, sampling=sampling).draw()
                assert drawing.evidence is not None
                hole, images = raster_hole_nats(model, shown, mask, drawing.evidence.log_evidence), drawing.images
            else:
                order, known = known_first(mask, rng), int((~mask).sum())
                hole = nats(model, given, order)[:, known:].sum(1)
                images = tokenizer.decode(fill(model, given, order, known, args.seed), SIDE)
            row = {
                "nats": summary(hole / mask.sum()),
                "pixels": int(mask.sum()),
                "seconds": time.process_time() - start,
            }
            measured = measure(images, originals, np.broadcast_to(mask, shown.shape[:3]))
            mine[kind] = row | {what: float(np.mean(values)) for what, values in measured.items()}
            if judge:
                mine[kind]["judged"] = summary(np.concatenate(list(square_nats(judge, images))).mean((1, 2)))
            filled[name][kind] = images
            print(name, kind, json.dumps(mine[kind]), flush=True)
        if labels is not None and test_labels is not None and args.probe_images:
            probe = nextpixel.LinearProbe(model, layer="best")
            probe.fit(squares[: args.probe_images], labels[: args.probe_images])
            mine["probe"] = probe.score(tests[: args.probe_images], test_labels[: args.probe_images])
            print(name, "probe", mine["probe"], flush=True)
    if args.out is not None:
        with atomic(args.out) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    if args.grid is not None:
        hidden = np.array([225, 225, 225, 255], np.uint8)[: originals.shape[3]]
        rows = [
            [
                picture
                for i in (0, 1)
                for picture in (
                    np.where(mask[..., None], hidden, originals[i]),
                    filled["raster"][kind][i],
                    filled["random"][kind][i],
                    originals[i],
                )
            ]
            for kind, mask in masks.items()
        ]
        save_png(grid(rows, zoom=6, titles=["given", "raster", "random", "original"] * 2), args.grid)


if __name__ == "__main__":
    main()
