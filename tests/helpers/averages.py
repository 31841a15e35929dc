"""A tokenizer of 2 x 2 pixels: how bright they are on average, in K steps. All that adding a tokenizer takes."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Averages:
    kind: ClassVar[str] = "averages"
    channels = 3
    patch = (2, 2)

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.hash = f"averages in {levels} steps"

    def __len__(self) -> int:
        return self.levels

    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        pixels = torch.as_tensor(images).to(torch.float64).mean(-1)  # (B, H, W)
        means = pixels.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4))  # (B, rows, columns)
        return (means / 256 * self.levels).to(torch.int64).flatten(1)

    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        grid = np.asarray(torch.as_tensor(tokens).cpu())
        columns = columns or round(grid.shape[1] ** 0.5)
        grey = ((grid.reshape(len(grid), grid.shape[1] // columns, columns) + 0.5) * 256 / self.levels).astype(np.uint8)
        return grey.repeat(2, 1).repeat(2, 2)[..., None].repeat(3, 3)

    def values(self) -> dict[str, Any]:
        return {"levels": self.levels}

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> "Averages":
        return cls(values["levels"])
