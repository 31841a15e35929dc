"""Copies of training pictures among drawn ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nextpixel.drawing.sampling import Drawing
from nextpixel.errors import InputError, WorkError
from nextpixel.network.model import ImageGPT
from nextpixel.tokens.training_pictures import NEAR_PIXELS

DRAWN_AT_MOST = 10  # times the pictures that are wanted


@dataclass(frozen=True)
class Copies:
    """How near drawn pictures are to the training pictures, in pixels that differ; see TrainingPictures."""

    distances: NDArray[np.int64]
    """(B,), to the nearest one."""
    nearest: NDArray[np.int64]
    """(B,), its index among the training pictures."""
    held_out: NDArray[np.int64]
    """(M,), the distances of held-out real pictures."""

    def figures(self) -> dict[str, float]:
        """Shares at distance 0 and of at most NEAR_PIXELS, of drawn and of held-out pictures."""
        shares: dict[str, float] = {}
        for name, distances in (("drawn", self.distances), ("held_out", self.held_out)):
            for key, limit in (("exact", 0), (f"within_{NEAR_PIXELS}", NEAR_PIXELS)):
                shares[f"{name}_{key}"] = float((distances <= limit).mean()) if len(distances) else float("nan")
        return shares

    def __str__(self) -> str:
        found = self.figures()
        words = [
            f"{found[f'{name}_exact']:.0%} (within {NEAR_PIXELS} pixels: {found[f'{name}_within_{NEAR_PIXELS}']:.0%})"
            for name in ("drawn", "held_out")
        ]
        return f"copies of training pictures: {words[0]} of those drawn; {words[1]} of the held-out real pictures"


def find_copies(model: ImageGPT, images: NDArray[np.uint8]) -> Copies | None:
    """The copies among images (B, H, W, 4); None for a model that does not keep its training pictures."""
    kept = model.training_pictures
    if kept is None:
        return None
    return Copies(*kept.distances(model.tokenizer.encode(images).numpy()), kept.held_out)


def draw_without_copies(model: ImageGPT, n: int, draw: Callable[[int, int], Drawing]) -> tuple[Drawing, int]:
    """n pictures that differ from every training picture in more than NEAR_PIXELS pixels, and the number of others.

    `draw(n, first)` draws n pictures, from that number on. After DRAWN_AT_MOST times n there may be fewer. Raises
    InputError for a model that does not keep its training pictures, and WorkError where all are copies.
    """
    kept = model.training_pictures
    if kept is None:
        raise InputError(
            "expected a model that keeps its training pictures, as one of `palette=exact` does, got another",
            argument="no_copies",
        )
    found: list[Drawing] = []
    drawn, count = 0, 0
    while count < n and drawn < DRAWN_AT_MOST * n:
        part = draw(n - count, drawn)
        drawn += len(part.images)
        distances, _ = kept.distances(model.tokenizer.encode(part.images).numpy())
        own = distances > NEAR_PIXELS
        found.append(replace(part, images=part.images[own], nats=part.nats[own]))
        count += int(own.sum())
    if count == 0:
        raise WorkError(f"all {drawn:,} drawn pictures were copies of training pictures")
    images, nats = (np.concatenate([getattr(one, name) for one in found]) for name in ("images", "nats"))
    return replace(found[0], images=images, nats=nats), drawn - count
