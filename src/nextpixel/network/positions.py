"""Positions of a sequence's slots on the grid, and rotary position encoding (Su et al. 2021) on two axes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nextpixel.config import ImageGPTConfig


@dataclass(frozen=True)
class Positions:
    """Where the slots of a sequence stand on the grid; places are numbered in raster order, and T is none of them."""

    carried: Tensor
    """The place whose token a slot carries, (slots,)."""
    predicted: Tensor
    """The place whose token it predicts, (slots,)."""
    turns: Tensor | None
    """With rotary positions cos and sin for its query, which stands at the predicted place, and cos and sin for its
    key, which stands at the carried one: (4, slots, E / 2)."""

    @classmethod
    @torch.inference_mode(False)  # made while drawing, they may serve training later
    def of(cls, config: ImageGPTConfig, device: torch.device, order: Tensor, prefix_slots: int = 1) -> Positions:
        """A prefix of so many slots, the last of which predicts the first token, and the places in this order (T,).

        A masked model has no prefix, and predicts what it carries.
        """
        carried = predicted = order.cpu()
        if config.objective == "autoregressive":
            none = torch.full((prefix_slots,), config.tokens, device="cpu")
            carried, predicted = torch.cat([none, carried[:-1]]), torch.cat([none[1:], carried])
        turns = None
        if config.positions == "rotary":
            cos, sin = _angles(config)
            turns = torch.stack([cos[predicted], sin[predicted], cos[carried], sin[carried]]).float().to(device)
        return cls(carried.to(device), predicted.to(device), turns)


@functools.lru_cache(maxsize=8)
def raster(config: ImageGPTConfig, device: torch.device, prefix_slots: int = 1) -> Positions:
    """From left to right and top to bottom, as in the paper."""
    with torch.inference_mode(False):  # training may be next to use them
        return Positions.of(config, device, torch.arange(config.tokens, device="cpu"), prefix_slots)


def _angles(config: ImageGPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, float64 (T + 1, E / 2), by which vectors at each place of the grid are turned; at none, not at all.

    Rotary positions (Su et al. 2021) on two axes: half of the angles turn with the row, half with the column.
    """
    # On the CPU: mps knows no float64.
    frequencies = 100.0 ** -torch.linspace(0, 1, config.head_width // 4 + 1, dtype=torch.float64, device="cpu")[:-1]
    numbers = torch.arange(config.tokens, device="cpu")
    grid = torch.stack([numbers // config.columns, numbers % config.columns], dim=1).to(torch.float64)  # (T, 2)
    angles = F.pad((grid[:, :, None] * frequencies).flatten(1), (0, 0, 0, 1))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x (B, N, slots, E) by angles of (1 or B, 1, slots, E / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
