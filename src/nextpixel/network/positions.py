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
    """The grid positions of a sequence's slots, numbered in raster order; T stands for no position."""

    carried: Tensor
    """The position of the token that a slot carries, (slots,)."""
    predicted: Tensor
    """The position of the token that it predicts, (slots,)."""
    rotations: Tensor | None
    """With rotary positions (4, slots, E / 2): cos and sin for queries, at the predicted positions, and for keys, at
    the carried ones."""

    @classmethod
    @torch.inference_mode(False)  # computed while drawing, they may be used in training later
    def of(cls, config: ImageGPTConfig, device: torch.device, order: Tensor, prefix_slots: int = 1) -> Positions:
        """Those of a prefix, whose last slot predicts the first token, and of the grid's tokens in this order (T,).

        A masked model has no prefix, and each slot predicts the token it carries.
        """
        carried = predicted = order.cpu()
        if config.objective == "autoregressive":
            none = torch.full((prefix_slots,), config.tokens, device="cpu")
            carried, predicted = torch.cat([none, carried[:-1]]), torch.cat([none[1:], carried])
        rotations = None
        if config.positions == "rotary":
            cos, sin = _angles(config)
            rotations = torch.stack([cos[predicted], sin[predicted], cos[carried], sin[carried]]).float().to(device)
        return cls(carried.to(device), predicted.to(device), rotations)

    def rotations_of(self, slots: slice | Tensor) -> Tensor | None:
        """The rotations of these slots, (4, 1, slots, E / 2), or (4, B, 1, slots, E / 2) for slots (B, slots)."""
        return None if self.rotations is None else self.rotations[:, slots].unsqueeze(-3)


@functools.lru_cache(maxsize=8)
def raster(config: ImageGPTConfig, device: torch.device, prefix_slots: int = 1) -> Positions:
    """From left to right and top to bottom, as in the paper."""
    with torch.inference_mode(False):  # as above
        return Positions.of(config, device, torch.arange(config.tokens, device="cpu"), prefix_slots)


def _angles(config: ImageGPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles at each position, float64 (T + 1, E / 2); zero angles for no position.

    Half of the angles depend on the row, half on the column.
    """
    # on the CPU: mps has no float64
    frequencies = 100.0 ** -torch.linspace(0, 1, config.head_width // 4 + 1, dtype=torch.float64, device="cpu")[:-1]
    numbers = torch.arange(config.tokens, device="cpu")
    grid = torch.stack([numbers // config.columns, numbers % config.columns], dim=1).to(torch.float64)  # (T, 2)
    angles = F.pad((grid[:, :, None] * frequencies).flatten(1), (0, 0, 0, 1))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of x (B, N, slots, E) by angles (1 or B, 1, slots, E / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
