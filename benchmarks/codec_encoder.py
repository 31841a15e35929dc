"""What an encoder that sees one patch costs a learned tokenizer: the same codec with one that sees its neighbours.

    python benchmarks/codec_encoder.py data/photos --steps 100 --width 64

Trains both from the same seed on the same batches, on one thread, and prints a table: held-out PSNR, the codes used,
CPU seconds, and the share of the tokens above the middle that stay when the half below is another picture's.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from nextpixel.config import CodecConfig
from nextpixel.data.decoded import Batches, decode
from nextpixel.devices import autocast, choose_dtype
from nextpixel.progress import say
from nextpixel.tokens import reconstruction
from nextpixel.tokens.codec import Block, Codec, CodecShape, Conv, centred
from nextpixel.tokens.learned import Learned
from nextpixel.training import optim
from nextpixel.training.codecs import ADAM_PART, HELD_OUT_AT_MOST, WARMUP_STEPS, WEIGHT_DECAY, codec_loss


class Wide(Codec):
    """The codec with 3 x 3 convolutions in its encoder, which sees 15 x 15 patches."""

    def __init__(self, shape: CodecShape, seed: int = 0) -> None:
        super().__init__(shape, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.read = Conv(3 * shape.patch**2, shape.width, 3, generator)
        self.blocks["encoder"] = nn.Sequential(*(Block(shape.width, 3, generator) for _ in range(3)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=CodecShape.width)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    shape = CodecShape(width=args.width)
    train, held = (np.asarray(decode(args.images, args.side, split=split).images) for split in ("train", "test"))
    held = held[:: -(-len(held) // HELD_OUT_AT_MOST)]
    print("| encoder | PSNR | codes used | training, CPU s | tokens that stay |\n|---|---:|---:|---:|---:|")
    for name, kind in (("1 x 1, its own patch", Codec), ("3 x 3, its neighbours", Wide)):
        codec = kind(shape, args.seed)
        seconds = fit(codec, train, args)
        tokenizer = Learned(codec)
        found = reconstruction(tokenizer, held)
        other = held.copy()
        other[:, args.side // 2 :] = held[::-1, args.side // 2 :]
        above = [tokenizer.encode(images)[:, : (args.side // shape.patch) ** 2 // 2] for images in (held, other)]
        stay = (above[0] == above[1]).float().mean()
        print(f"| {name} | {found.psnr_db:.2f} dB | {found.codes_used:.1%} | {seconds:,.0f} | {stay:.1%} |")


def fit(codec: Codec, images: np.ndarray, args: argparse.Namespace) -> float:
    """Train on images uint8 (N, H, W, 3) as `nextpixel tokenizer --kind learned` does; returns the CPU seconds."""
    config, dtype = CodecConfig(), choose_dtype("auto", "cpu")
    optimizers, size = optim.muon(codec, ADAM_PART, WEIGHT_DECAY), (args.side, args.side)
    rows = np.arange(len(images))
    batches = Batches(images, rows, size=size, batch_images=config.batch_images, augment="flip", seed=args.seed)
    begun = time.process_time()
    for step in range(args.steps):
        rate = optim.linear_rate(
            step,
            steps=args.steps,
            warmup_steps=WARMUP_STEPS,
            peak=config.learning_rate,
            cooldown_fraction=0.5,
        )
        optim.set_rate(optimizers, rate)
        pictures = centred(torch.from_numpy(batches(step)))
        with autocast("cpu", dtype):
            painted = codec(pictures)
        codec.zero_grad()
        loss = codec_loss(painted, pictures)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 100 == 99:
            say(f"{type(codec).__name__}, step {step + 1:,}: loss {loss.item():.4f}")
    return time.process_time() - begun


if __name__ == "__main__":
    main()
