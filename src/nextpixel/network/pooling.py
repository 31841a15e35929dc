"""Pooling: one vector of a layer's states, for probes and class heads."""

from __future__ import annotations

import torch
from torch import Tensor

from nextpixel.config import POOLED_SIDE


def pool(states: Tensor, rows: int, columns: int, pooling: str) -> Tensor:
    """States (B, T, D) of a grid of tokens in raster order to (B, D) or several D, see ImageGPTConfig.pooled_width.

    "mean" averages over tokens, as in the paper; "mean-std" appends the standard deviations. "grid" does both in each
    cell of a 4 x 4 grid, as equal as whole rows and columns allow, or single tokens where there are fewer: all means in
    raster order, then all deviations.
    """
    cells = [states]
    if pooling == "grid":
        bands = states.unflatten(1, (rows, columns)).tensor_split(min(POOLED_SIDE, rows), 1)  # (B, rows, columns, D)
        cells = [cell.flatten(1, 2) for band in bands for cell in band.tensor_split(min(POOLED_SIDE, columns), 2)]
    found = [cell.mean(1) for cell in cells]
    if pooling != "mean":
        found += [(cell.var(1, correction=0) + 1e-12).sqrt() for cell in cells]  # the root of zero has no gradient
    return torch.cat(found, 1)
