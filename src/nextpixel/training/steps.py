"""A training step of an Image GPT: the placed network, its batches as tokens, micro-batches, and writing the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextpixel.checkpoints import Run, load, write_model
from nextpixel.config import GPTRunConfig, augmentations
from nextpixel.data.decoded import Batches
from nextpixel.data.encoded import encode_set
from nextpixel.data.recolour import ColourWords
from nextpixel.network.losses import cross_entropy, masked_cross_entropy
from nextpixel.network.model import ImageGPT
from nextpixel.progress import is_first, say
from nextpixel.tokens import covers_pixels
from nextpixel.training import distributed, parallel
from nextpixel.training.decisions import Decisions
from nextpixel.training.setup import OpenRun

# tokens (B, T), or squares to encode; hidden tokens (B, T); orientations (B,), see images.orient; tags (B, TAGS, w)
TokenBatch = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def place_model(model: ImageGPT, config: GPTRunConfig, decided: Decisions, method: str = "__call__") -> nn.Module:
    """Move the model to its device in train mode, compile its parts if decided, and wrap it for several processes.

    Calling the result calls that method of the model; see parallel.wrap.
    """
    if not config.shard:  # a sharded model is moved shard by shard
        model.to(decided.device)
    model.train()
    model.checkpoint_activations = config.checkpoint_activations
    if decided.compile:
        for part in (*model.blocks, model.soft_cap):
            part.compile()
    blocks = list(model.blocks) if config.shard else None
    network = parallel.wrap(model, method, device=decided.device, shard=blocks, dtype=decided.dtype)
    return network.to(decided.device)


def write_full_model(model: ImageGPT, folder: Path) -> None:
    """write_model for a model that may be sharded; all processes call this, the first one writes."""
    whole = model
    if parallel.is_sharded(model):
        state = parallel.full_state_dict(model)
        if is_first():
            with torch.device("meta"):
                whole = ImageGPT(model.config)
            whole.load_state_dict(state, assign=True)
            whole.tokenizer, whole.fit, whole.facts = model.tokenizer, model.fit, model.facts
            whole.levels, whole.words = model.levels, model.words
            whole.training_pictures = model.training_pictures
    distributed.on_first_rank(lambda: write_model(whole, folder))


@contextmanager
def evaluated_model(model: ImageGPT, run: Run, step: int, device: str) -> Iterator[ImageGPT]:
    """The model in eval mode in one process: itself, or, if it is sharded, its checkpoint of that step."""
    if parallel.is_sharded(model):
        yield load(run.folder(step), device=device)
        return
    model.eval()
    yield model
    model.train()


class TokenBatches:
    """This process's part of the training batches as tokens, with masks, orientations or tags where the model has them.

    `numbers` are those of the training images; `tags` (N, t, w) those of the set's captions, if any. Where a token
    stands for several pixels, the set is encoded once, unless augmentation changes more than left and right. Otherwise
    pixels are encoded at every step: on a CPU by `tokens`, which the loop calls in a second thread, or on the device.
    """

    def __init__(
        self, opened: OpenRun[Any], numbers: NDArray[np.int64], tags: NDArray[np.integer] | None = None
    ) -> None:
        config, self.tokenizer, self.shape = opened.config, opened.tokenizer, opened.shape
        self.device, self.tags = opened.decided.device, tags
        self.batches = Batches(
            opened.train_set.images,
            numbers,
            size=opened.size,
            batch_images=config.batch_images,
            augment=config.augment,
            seed=config.seed,
            part=(distributed.rank(), distributed.world_size()),
            colour_words=None if tags is None or opened.words is None else ColourWords(tags, opened.words.table),
        )
        self.encoded: NDArray[np.uint16] | None = None  # (N, 1 or 2, T)
        changes = augmentations(config.augment)
        if covers_pixels(self.tokenizer) and changes <= {"flip"}:
            self.encoded = distributed.node_by_node(
                lambda: encode_set(
                    opened.train_set,
                    self.tokenizer,
                    mirrored="flip" in changes,
                    device=self.device,
                    cache=config.cache,
                )
            )
        elif covers_pixels(self.tokenizer):
            say(f"augmentation ({config.augment}) changes pixels, so pictures are encoded at every step, not once")

    def tokens(self, step: int) -> TokenBatch:
        batches, shape = self.batches, self.shape
        hidden = torch.from_numpy(batches.masks(step, shape.tokens)) if shape.objective == "masked" else None
        orientations = torch.from_numpy(batches.orientations(step)) if shape.orientations > 1 else None
        tags = None if self.tags is None else torch.from_numpy(batches.tags(step, self.tags))
        if self.encoded is not None:
            rows = self.encoded[batches.numbers(step), batches.mirrored(step).astype(np.int64)]
            return torch.from_numpy(rows.astype(np.int64)), hidden, orientations, tags
        squares = torch.from_numpy(batches(step))
        return self.tokenizer.encode(squares) if self.device == "cpu" else squares, hidden, orientations, tags

    def to_device(self, batch: TokenBatch) -> TokenBatch:
        pixels, *others = (None if one is None else one.to(self.device) for one in batch)
        assert pixels is not None
        hidden, orientations, tags = others
        return pixels if pixels.ndim == 2 else self.tokenizer.encode(pixels), hidden, orientations, tags


def pixel_loss(logits: Tensor, tokens: Tensor, hidden: Tensor | None) -> Tensor:
    """The mean generative loss: over all tokens, or, for a masked model, over the hidden ones of each image."""
    if hidden is None:
        return cross_entropy(logits, tokens)
    return masked_cross_entropy(logits, tokens, hidden).mean()


def choose_pixel_loss(decided: Decisions) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """pixel_loss, compiled if decided: then no copy of the logits is made in fp32."""
    return torch.compile(pixel_loss) if decided.compile else pixel_loss


def accumulate(network: nn.Module, loss_of: Callable[[slice], Tensor], images: int, decided: Decisions) -> Tensor:
    """Backward of a batch's mean loss by micro-batches; returns it, detached.

    `loss_of(rows)` is the mean loss of those rows of the batch. Gradients are averaged over processes in the last
    micro-batch only.
    """
    total = torch.zeros((), device=decided.device)
    for start in range(0, images, decided.micro_batch_images):
        rows = slice(start, min(start + decided.micro_batch_images, images))
        with parallel.gradient_sync(network, rows.stop == images):
            loss = loss_of(rows) * ((rows.stop - rows.start) / images)
            loss.backward()
        total += loss.detach()
    return total
