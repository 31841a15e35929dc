#!/usr/bin/env python3
"""How far plain counting gets: nats per pixel of count models on a test set, the floor under any network.

    python benchmarks/count_models.py data/cifar10/train.parquet --test data/cifar10/test.parquet \
        --train-images 45000 --seed 0

A model mixes the relative frequencies of a colour given different parts of its surroundings:

    unigram           nothing
    left              the pixel on the left
    left and above    both neighbours; the left one; the one above; nothing

and always the uniform distribution, so that no colour is impossible (interpolated smoothing, Jelinek and
Mercer 1980). Frequencies are counted on the training images. The mixing weights depend on how often a context
was seen and are fitted by expectation maximisation on the images that pretraining holds out for validation
with the same seed. Beyond the border lies a symbol of its own, so the first row and column are contexts like
any other.

45,000 + 5,000 + 10,000 images of 32 x 32 pixels take about a minute on two cores and 2 GB of memory.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHUNK_IMAGES = 1000
# Contexts share mixing weights when their counts have the same number of binary digits.
BUCKETS = 33

Tokens = np.ndarray  # integers (B, H, W) in 0..colours-1

# Each model: the contexts it mixes, the most specific one first. "" is no context at all.
MODELS: dict[str, tuple[str, ...]] = {
    "unigram": ("",),
    "left": ("left", ""),
    "left and above": ("left above", "left", "above", ""),
}


def context_keys(tokens: Tokens, context: str, colors: int) -> np.ndarray:
    """int64 (B*H*W,): one number per distinct context of each pixel, in raster order."""
    batch, height, width = tokens.shape
    padded = np.full((batch, height + 1, width + 1), colors, dtype=np.int64)
    padded[:, 1:, 1:] = tokens
    neighbours = {"left": padded[:, 1:, :-1], "above": padded[:, :-1, 1:]}
    keys = np.zeros(tokens.shape, dtype=np.int64)
    for name in context.split():
        keys = keys * (colors + 1) + neighbours[name]
    return keys.ravel()


class Tally:
    """How often each key occurred; keys that never did count zero. Sparse, sorted."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys, counts = np.unique(keys, return_counts=True)
        self.counts = counts.astype(np.uint32)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.keys, keys)
        places[places == len(self.keys)] = 0
        return np.where(self.keys[places] == keys, self.counts[places], 0)


class Frequencies:
    """Relative frequency of a colour given one context; uniform where the context was never seen."""

    def __init__(self, tokens: Tokens, context: str, colors: int) -> None:
        self.context, self.colors = context, colors
        keys = context_keys(tokens, context, colors)
        self.seen = Tally(keys)
        keys *= colors
        keys += tokens.ravel()
        self.joint = Tally(keys)

    def __call__(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each pixel and the count of its context: float64 and integer (B*H*W,)."""
        keys = context_keys(tokens, self.context, self.colors)
        seen = self.seen(keys)
        joint = self.joint(keys * self.colors + tokens.ravel())
        return np.where(seen > 0, joint / np.maximum(seen, 1), 1 / self.colors), seen


@dataclass(frozen=True)
class CountModel:
    """A mixture of frequencies with weights (BUCKETS, parts); the last part is the uniform distribution."""

    parts: tuple[Frequencies, ...]
    weights: np.ndarray

    def probabilities(self, tokens: Tokens) -> np.ndarray:
        """float64 (B*H*W,): the probability of each pixel given its neighbours."""
        parts, buckets = evidence(self.parts, tokens)
        return np.einsum("mp,mp->m", parts, self.weights[buckets])

    def image_nats(self, tokens: Tokens) -> np.ndarray:
        """float64 (B,): nats per pixel of each image."""
        nats = [-np.log(self.probabilities(chunk)).reshape(len(chunk), -1) for chunk in chunks(tokens)]
        return np.concatenate(nats).mean(axis=1)


def evidence(parts: tuple[Frequencies, ...], tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of each pixel under every part and the uniform one (M, parts), and its bucket (M,)."""
    answers = [part(tokens) for part in parts]
    uniform = np.full(tokens.size, 1 / parts[0].colors)
    buckets = np.frexp(answers[0][1].astype(np.float64))[1]  # 0 for an unseen context, 1 for 1, 2 for 2 and 3
    return np.stack([*(probability for probability, _ in answers), uniform], axis=1), buckets


def fit_weights(parts: np.ndarray, buckets: np.ndarray, rounds: int = 50) -> np.ndarray:
    """Mixing weights (BUCKETS, parts) that maximise the likelihood of held-out pixels, by EM per bucket.

    Each bucket starts even and counts one imaginary pixel for each part, which keeps every weight above zero
    and leaves a bucket without pixels even.
    """
    weights = np.full((BUCKETS, parts.shape[1]), 1 / parts.shape[1])
    for bucket in np.unique(buckets):
        held_out = parts[buckets == bucket]
        for _ in range(rounds):
            shares = held_out * weights[bucket]
            shares /= shares.sum(axis=1, keepdims=True)
            credit = shares.sum(axis=0) + 1
            weights[bucket] = credit / credit.sum()
    return weights


def fit(contexts: tuple[str, ...], train: Tokens, held_out: Tokens, colors: int) -> CountModel:
    """Count on `train`, choose the mixing weights on `held_out`."""
    parts = tuple(Frequencies(train, context, colors) for context in contexts)
    answers = [evidence(parts, chunk) for chunk in chunks(held_out)]
    probabilities = np.concatenate([probability for probability, _ in answers])
    return CountModel(parts, fit_weights(probabilities, np.concatenate([bucket for _, bucket in answers])))


def chunks(tokens: Tokens) -> Iterator[Tokens]:
    for start in range(0, len(tokens), CHUNK_IMAGES):
        yield tokens[start : start + CHUNK_IMAGES]


def tokenize(images: np.ndarray) -> tuple[Tokens, int]:
    """int32 tokens (B, H, W) of uint8 images (B, H, W, 3) in OpenAI's palette, and its number of colours."""
    from nextpixel.tokens.palette import Palette

    palette = Palette.openai()
    encoded = [palette.encode(chunk).numpy().astype(np.int32) for chunk in chunks(images)]
    return np.concatenate(encoded).reshape(images.shape[:3]), len(palette)


def read(args: argparse.Namespace) -> tuple[Tokens, Tokens, Tokens, int]:
    """Tokens for counting, for the weights and for the test, and the number of colours."""
    from nextpixel.data.decoded import split_indices
    from nextpixel.images.sources import load_images

    images = load_images(args.train, args.side)
    if not 0 < args.train_images < len(images):
        raise ValueError(
            f"--train-images: expected 1 to {len(images) - 1}, so that images are left for the weights, "
            f"got {args.train_images}"
        )
    count, held_out = split_indices(len(images), 1 - args.train_images / len(images), args.seed)
    tokens, colors = tokenize(images)
    test, _ = tokenize(load_images(args.test, args.side))
    return tokens[count], tokens[held_out], test, colors


def main(argv: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("train", type=Path, help="training images, anything nextpixel reads")
    parser.add_argument("--test", type=Path, required=True, help="test images")
    parser.add_argument("--train-images", type=int, required=True, help="how many to count on; the rest: weights")
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, as in pretraining (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    try:
        train, held_out, test, colors = read(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = {}
    for name, contexts in MODELS.items():
        start = time.monotonic()
        nats = fit(contexts, train, held_out, colors).image_nats(test)
        spread = float(nats.std(ddof=1) / np.sqrt(len(nats))) if len(nats) > 1 else 0.0
        results[name] = {"nats_per_pixel": float(nats.mean()), "standard_error": spread}
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    counts = {"train_images": len(train), "weight_images": len(held_out), "test_images": len(test)}
    if args.json:
        print(json.dumps({**counts, "colors": colors, "seed": args.seed, "models": results}))
        return 0
    print(f"{len(train):,} images counted, {len(held_out):,} for the weights, {len(test):,} tested")
    for name, result in results.items():
        print(f"{name:<16}{result['nats_per_pixel']:.4f} +- {result['standard_error']:.4f} nats per pixel")
    return 0


if __name__ == "__main__":
    sys.exit(main())
