#!/usr/bin/env python3
"""Give a model the tokens of another tokenizer, as the start of further training.

    nextpixel tokenizer data/photos --split train --kind learned --side 64 --out tok
    python benchmarks/change_tokenizer.py photos tok data/photos --out start
    nextpixel pretrain data/photos --split train --init start --out run

A new token's vector and its row of the output layer are the means of those of the old tokens that stand for the same
patches of the pictures, so the rest of the network goes on with what it knows. Both tokenizers must cut pictures into
the same patches. Exit code 2: something is wrong with the request.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import nextpixel
from nextpixel.errors import InputError
from nextpixel.images.sources import load_images
from nextpixel.network.model import ImageGPT
from nextpixel.tokens import Tokenizer, load_tokenizer

AT_ONCE = 1_000


def shares(new: Tokenizer, old: Tokenizer, images: NDArray[np.uint8]) -> torch.Tensor:
    """For each new token the shares of old ones among its patches of the images, float32 (K new, K old).

    Those of a token that the images lack are the shares among all patches.
    """
    counts = np.zeros(len(new) * len(old), np.int64)
    for start in range(0, len(images), AT_ONCE):
        part = np.ascontiguousarray(images[start : start + AT_ONCE])
        pairs = new.encode(part) * len(old) + old.encode(part)
        counts += np.bincount(pairs.flatten().numpy(), minlength=len(counts))
    table = counts.reshape(len(new), len(old)).astype(np.float32)
    table[table.sum(1) == 0] = table.sum(0)
    return torch.from_numpy(table / table.sum(1, keepdims=True))


def changed(model: ImageGPT, tokenizer: Tokenizer, images: NDArray[np.uint8]) -> ImageGPT:
    """The model over the tokens of `tokenizer`."""
    if tokenizer.patch != model.tokenizer.patch:
        raise InputError(f"expected patches of {model.tokenizer.patch}, got {tokenizer.patch}", argument="tokenizer")
    found = ImageGPT(replace(model.config, colors=len(tokenizer)))
    mixed, weights = shares(tokenizer, model.tokenizer, images), model.state_dict()
    for name in ("token_embedding", "head.weight"):
        weights[name] = mixed @ weights[name].float()
    found.load_state_dict(weights)
    found.tokenizer, found.words, found.facts = tokenizer, model.words, dict(model.facts)
    found.fit, found.levels = model.fit, model.levels
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokenizer", help="a folder that nextpixel tokenizer wrote")
    parser.add_argument("data", help="pictures of the kind that the model was trained on")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, required=True, help="the new model folder")
    args = parser.parse_args()
    try:
        model = nextpixel.load(args.model)
        images = load_images(args.data, model.size, split=args.split)
        nextpixel.save(changed(model, load_tokenizer(args.tokenizer), images), args.out)
    except InputError as error:
        print(f"change_tokenizer: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.model} over the tokens of {args.tokenizer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
