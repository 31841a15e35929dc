"""Pooling: one vector of a layer's states, for probes and class heads."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(states: Tensor, rows: int, columns: int, pooling: str) -> Tensor:
    """States (B, T, D) of a grid of tokens in raster order to (B, D) or several D, see ImageGPTConfig.pooled_width.

    "mean" averages over tokens, as in the paper; "mean-std" appends the standard deviations. The cells of "grid-N" are
    N x N, as equal as whole rows and columns allow, or single tokens where there are fewer.
    """
    if pooling == "mean":
        return states.mean(1)
    if pooling == "mean-std":
        variance = states.var(1, correction=0)
        return torch.cat([states.mean(1), (variance + 1e-12).sqrt()], 1)  # the root of zero has no gradient
    cells = int(pooling.removeprefix("grid-"))
    bands = states.unflatten(1, (rows, columns)).tensor_split(min(cells, rows), 1)  # of (B, rows, columns, D)
    return torch.cat([cell.mean((1, 2)) for band in bands for cell in band.tensor_split(min(cells, columns), 2)], 1)
