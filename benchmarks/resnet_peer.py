#!/usr/bin/env python3
"""What the ResNet-20 of `probe --against resnet20` reaches with all labels: is it a normal one?

    python benchmarks/resnet_peer.py data/fashion_mnist --side 28 --epochs 12

Trains on the train split with the settings of the first trial, tests once on the test split, prints one JSON object,
with FLOPs (of training three forward passes an image) and milliseconds of features for each of a batch of 64 images.
He et al. 2016 describe the network; on Fashion-MNIST such nets reach 92.5 to 94%.
"""

import argparse
import json
import math
import time

import numpy as np
import torch

from nextpixel.data.decoded import decode
from nextpixel.network.cost import feature_flops_per_image
from nextpixel.network.resnet import ResNet
from nextpixel.representation.extraction import features_of
from nextpixel.training.convnet import fit_convnet, predict_convnet, schedule


def timed(model: ResNet) -> float:
    """Milliseconds an image: the better of two runs after a warm-up."""
    squares, taken = np.zeros((64, *model.size, 3), np.uint8), []
    for _ in range(3):
        began = time.perf_counter()
        features_of(model, squares, [0])
        taken.append(time.perf_counter() - began)
    return 1e3 * min(taken[1:]) / len(squares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="labelled images with a train and a test split")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, test = (decode(args.data, args.side, split=split) for split in ("train", "test"))
    assert train.labels is not None and test.labels is not None
    wall, cpu = time.perf_counter(), time.process_time()
    model = fit_convnet(np.asarray(train.images), train.labels, epochs=args.epochs, seed=args.seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    right = predict_convnet(model, test.images).argmax(1) == test.labels
    found = {"accuracy": float(right.mean()), "train": len(train), "test": len(test), "wall": wall, "cpu": cpu}
    flops, passes = feature_flops_per_image(model.config), math.prod(schedule(len(train), args.epochs))
    found |= {"training_flops": 3 * passes * flops, "inference_flops_per_image": flops, "ms_per_image": timed(model)}
    print(json.dumps(vars(args) | found))


if __name__ == "__main__":
    main()
