#!/usr/bin/env python3
"""Captions as tags, each the sum of its words, against words in order, one slot each, at equal training.

    python benchmarks/words_in_order.py data/faces --out words.json            # some 20 minutes of one core for each

Both networks have the same shape, the same table of words and a prefix of 16 slots, and see the same tags of the same
pictures in the same order; in the second, every word has a slot of its own, and what does not fit is left out. Printed
are the nats per pixel of test faces with their caption, with another's and with none, and the share of what captions
state that drawn faces show (adherence.py), for captions of one, two and three tags and full ones, held-out pairs of
colours too.

Exit code 2: something is wrong with the request.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adherence import adherence, draw, make_captions, read_set, shuffled, tell
from faces import Design
from fetch_datasets import BadRequest, atomic
from torch import Tensor

from nextpixel.config import MODERN, MUON_RATE, TAGS, ImageGPTConfig
from nextpixel.data.decoded import some_tags
from nextpixel.network.losses import cross_entropy
from nextpixel.network.model import ImageGPT
from nextpixel.tokens.exact import ExactPalette
from nextpixel.tokens.words import Words
from nextpixel.training import optim


class WordsInOrder(Words):
    """A word a slot."""

    def encode(self, captions: Sequence[str], **options: Any) -> Tensor:
        return one_a_slot(super().encode(captions, **options))


def one_a_slot(tags: Tensor) -> Tensor:
    """(B, TAGS, w) -> (B, TAGS, 1): the words of the tags in order, the first TAGS of them."""
    found = torch.zeros(len(tags), TAGS, 1, dtype=torch.int64)
    for row, numbers in zip(found, tags):
        words = numbers[numbers > 0][:TAGS]
        row[: len(words), 0] = words
    return found


def train(
    model: ImageGPT, tokens: Tensor, tags: np.ndarray, *, in_order: bool, steps: int, batch_images: int, seed: int
) -> None:
    """The modern recipe on tokens (N, T) and tags (N, TAGS, w)."""
    optimizers = optim.muon(model)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(-(-steps * batch_images // len(tokens)))])
    model.train()
    for step in range(steps):
        numbers = order[step * batch_images : (step + 1) * batch_images]
        epoch = step * batch_images // len(tokens)
        given = torch.from_numpy(some_tags(tags, numbers, seed=seed, epoch=epoch))
        given = one_a_slot(given) if in_order else given
        rate = optim.linear_rate(step, steps=steps, warmup_steps=steps // 20, peak=MUON_RATE, cooldown_fraction=0.5)
        optim.set_rate(optimizers, rate)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(tokens[numbers], tags=given), tokens[numbers])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", file=sys.stderr, flush=True)
    model.eval()


@torch.inference_mode()
def likelihoods(model: ImageGPT, tokens: Tensor, captions: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """Mean nats per pixel with the right, another picture's and no caption."""
    assert model.words is not None
    found = {}
    for name, given in {"right": captions, "shuffled": shuffled(captions, rng), "no": [""] * len(captions)}.items():
        tags = model.words.encode(given)
        parts = zip(tokens.split(50), tags.split(50))
        losses = [cross_entropy(model(some, tags=own), some, reduction="none") for some, own in parts]
        found[name] = torch.cat(losses).mean().item()
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    design = Design.read(args.data / "design.json")
    pictures, captions = read_set(args.data / "train.parquet")
    tests = {
        "held-in": read_set(args.data / "test.parquet"),
        "held-out pairs": read_set(args.data / "test_pairs.parquet"),
    }
    tokenizer = ExactPalette.fit(pictures)
    tokens = tokenizer.encode(pictures)
    table = Words.fit(captions)
    tags = table.encode(captions, strict=False).numpy()
    config = ImageGPTConfig(args.layers, args.width, args.heads, 16, len(tokenizer), words=len(table), **MODERN)
    results: dict[str, Any] = {"parameters": config.parameters, "words": len(table)}
    kinds: dict[str, type[Words]] = {"tags": Words, "words in order": WordsInOrder}
    for name, kind in kinds.items():
        start = time.process_time()
        model = ImageGPT(config, seed=args.seed)
        model.tokenizer, model.words, model.fit = tokenizer, kind(table.table, table.shares), "place"
        train(
            model, tokens, tags, in_order=kind is WordsInOrder, steps=args.steps, batch_images=args.batch_images,
            seed=args.seed,
        )  # fmt: skip
        found = results[name] = {"cpu_minutes": (time.process_time() - start) / 60}
        for where, (shown, full) in tests.items():
            rng = np.random.default_rng(args.seed)
            part = slice(args.test_images)
            nats = likelihoods(model, tokenizer.encode(shown[part]), full[part], rng)
            print(f"{name}, {where}: nats per pixel {', '.join(f'{k} caption {v:.4f}' for k, v in nats.items())}")
            rows = {}
            for length, asked in make_captions(full, args.captions, rng, where == "held-out pairs").items():
                shares = adherence(draw(model, asked, args.guidance, args.seed), asked, design)
                tell(f"{name}, {where}: {length}", shares, ("stated", "tags", "captions"))
                rows[length] = {of: share.row() for of, share in shares.items()}
            found[where] = {"nats": nats, "adherence": rows}
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that faces.py wrote")
    parser.add_argument("--steps", type=int, default=660)
    parser.add_argument("--batch-images", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--captions", type=int, default=200, help="captions of each length")
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    args = parser.parse_args(argv)
    try:
        results = measure(args)
    except BadRequest as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out:
        with atomic(args.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
