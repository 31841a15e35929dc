"""Pictures that repeat without a seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nextpixel.config import SamplingConfig
from nextpixel.drawing.holes import Filling
from nextpixel.drawing.sampling import Drawing, draw
from nextpixel.network.model import ImageGPT

REDRAWN = 0.25  # of the height and of the width


def draw_tiles(
    model: ImageGPT,
    n: int,
    sampling: SamplingConfig,
    caption: str | Sequence[str] | None = None,
    first: int = 0,
) -> Drawing:
    """n tiles of each caption, by a model of textures that repeat (`augment=wrap`); `first` is as for draw.

    Each is drawn, rolled by half, so that its borders meet in the middle, and there redrawn with particles; `nats` are
    those of the first of the two.
    """
    drawing = draw(model, None, n=n, sampling=sampling, caption=caption, first=first)
    half = model.size[0] // 2, model.size[1] // 2
    cross = np.zeros(model.size, bool)
    for axis, (middle, length) in enumerate(zip(half, model.size, strict=True)):
        reach = max(1, round(length * REDRAWN / 2))
        cross.swapaxes(0, axis)[max(0, middle - reach) : middle + reach] = True
    of_each = caption if caption is None or isinstance(caption, str) else [one for one in caption for _ in range(n)]
    count = len(drawing.images) // n
    numbers = [(count + i // n, first + i % n) for i in range(len(drawing.images))]  # none of those drawn above
    rolled = np.roll(drawing.images, half, (1, 2))
    filled = Filling(model, rolled, cross[None], sampling=sampling, caption=of_each, numbers=numbers).draw().images
    return replace(drawing, images=np.roll(filled, (-half[0], -half[1]), (1, 2)))
