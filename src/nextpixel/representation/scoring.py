"""The loop that scores and features share: encode images, cut them into batches, run the network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextpixel.data.decoded import masks
from nextpixel.devices import autocast
from nextpixel.heap import freed_memory_kept
from nextpixel.network.model import ImageGPT
from nextpixel.progress import progress
from nextpixel.tokens import covers_pixels

BATCH_IMAGES = 16
CHUNK_IMAGES = 512  # of a task; whole batches, so that results do not depend on it
Arrays = Mapping[str, NDArray[Any]]
Runner = Callable[[Sequence[Callable[[], Arrays]], Iterable[object]], Sequence[Arrays]]
R = TypeVar("R")


def by_chunks(
    measure: Callable[[slice], Arrays], count: int, run: Runner | None, facts: Iterable[object]
) -> dict[str, NDArray[Any]]:
    """What `measure` finds for all of `count` images, or by `run` as tasks of CHUNK_IMAGES, which `facts` determine."""
    if run is None:
        return dict(measure(slice(0, count)))
    parts = [slice(start, min(start + CHUNK_IMAGES, count)) for start in range(0, count, CHUNK_IMAGES)]
    return joined_arrays(run([functools.partial(measure, rows) for rows in parts], facts))


def joined_arrays(results: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Each array of the tasks, one after the other."""
    return {name: np.concatenate([one[name] for one in results]) for name in results[0]}


@torch.inference_mode()
def batches(
    model: ImageGPT,
    pictures: NDArray[np.uint8] | Tensor,
    score: Callable[[Tensor, Tensor | None], R],
    *,
    dtype: str = "fp32",
    mask_seed: int | None = None,
    first: int = 0,
    batch_images: int = BATCH_IMAGES,
    label: str = "scoring",
) -> Iterator[R]:
    """Yield score(tokens (b, T), masked (b, T) or None), which runs the network, for each batch of pictures.

    `pictures` are uint8 (N, H, W, 3) at the model's side, or their tokens (N, T). With `mask_seed`, decoded.masks hides
    tokens by that seed and the picture's index, from `first`; `dtype` is that of the matrix products within `score`.
    """
    device = str(model.device)
    with freed_memory_kept(), progress(label, len(pictures), "images") as advance:
        for start in range(0, len(pictures), batch_images):
            part = pictures[start : start + batch_images]
            tokens = part if isinstance(part, Tensor) else _encode(model, np.ascontiguousarray(part))
            masked = None
            if mask_seed is not None:
                indices = first + np.arange(start, start + len(tokens))
                masked = torch.from_numpy(masks(indices, tokens.shape[1], seed=mask_seed)).to(device)
            with autocast(device, dtype):
                result = score(tokens.to(device), masked)
            yield result
            advance(len(tokens))


def _encode(model: ImageGPT, squares: NDArray[np.uint8]) -> Tensor:
    """Their tokens; patches are encoded on the model's device, colours by a table in the CPU's memory."""
    return model.tokenizer.encode(
        torch.tensor(squares, device=model.device) if covers_pixels(model.tokenizer) else squares
    )


def pixel_maps(model: ImageGPT, values: Tensor) -> NDArray[np.float32]:
    """Values of tokens (b, T) spread evenly over their pixels, (b, H, W); sums are preserved."""
    height, width = model.tokenizer.patch
    grid = values.float().cpu().numpy().reshape(-1, model.config.rows, model.config.columns)
    return (grid.repeat(height, 1).repeat(width, 2) / (height * width)).astype(np.float32)
