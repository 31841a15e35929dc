"""A small residual network for small pictures, from squares to pooled features and logits.

He et al. 2016, "Deep Residual Learning", section 4.2: three stages of n blocks with 16, 32 and 64 channels, each stage
at half the side of the one before, shortcuts without parameters (option A), 6 n + 2 weighted layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel.config import Fit, Levels, ResNetConfig, Size, check_fit, to_size

CHANNELS = 16, 32, 64


class Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, channels - before
        self.conv_1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_1(self.conv_1(x)))
        y = self.norm_2(self.conv_2(y))
        if self.stride > 1 or self.added:  # option A: subsample, and pad channels with zeros
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Squares uint8 (B, H, W, 3) in, logits (B, C) out; `features` gives the pooled features (B, D) before the head.

    It normalises its input by `mean` and `std` of each colour channel, which are saved with the weights. A student also
    has `projection`, which predicts its teacher's whitened features, and the statistics of the whitening. `seed` sets
    the random weights, except on the meta device.
    """

    levels = Levels()  # how values beyond 8 bits become colours
    _fit: Fit = "crop"

    def __init__(self, config: ResNetConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}  # its provenance, saved with the weights
        self.register_buffer("mean", torch.full((3,), 127.5))
        self.register_buffer("std", torch.full((3,), 127.5))
        self.mean: Tensor
        self.std: Tensor
        with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves; replaced below
            before = CHANNELS[0] * config.factor
            self.stem = nn.Conv2d(3, before, 3, 1, 1, bias=False)
            self.norm = nn.BatchNorm2d(before)
            blocks = []
            for stage, channels in enumerate(c * config.factor for c in CHANNELS):
                for number in range(config.blocks):
                    blocks.append(Block(before, channels, 2 if stage and not number else 1))
                    before = channels
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(config.width, config.classes) if config.classes else None
            self.projection: nn.Linear | None = None
            if config.targets:
                self.projection = nn.Linear(config.width, config.targets)
                self.register_buffer("teacher_mean", torch.zeros(config.targets))
                self.register_buffer("teacher_whiten", torch.eye(config.targets))
        if not self.stem.weight.is_meta:
            self.initialise(seed)
        for parameter in self.parameters():  # channels last: the fastest layout for convolutions on a CPU
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def __repr__(self) -> str:
        config = self.config
        return f"ResNet({6 * config.blocks + 2} layers, {config.width} features, {config.parameters:,} parameters)"

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """He et al. 2015 for convolutions; torch's default for projections; zeros for heads."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu", generator=generator)
            elif name == "projection.weight":
                nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)
            elif parameter.ndim == 2 or name.endswith("bias"):
                parameter.zero_()

    @property
    def fit(self) -> Fit:
        """How pictures become its own, see images.fit_image; place gives a channel that it does not take."""
        return self._fit

    @fit.setter
    def fit(self, fit: Fit) -> None:
        check_fit(fit, 3)
        self._fit = fit

    @property
    def size(self) -> Size:
        """Height and width of its pictures in pixels."""
        return to_size(self.config.side)

    @property
    def side(self) -> int | Size:
        """Pixels along each side of its pictures, or height and width where they are not square."""
        return self.config.side

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def set_scale(self, squares: NDArray[np.uint8]) -> None:
        """Mean and deviation of each colour channel, from training squares (N, H, W, 3)."""
        some, values = squares[:: max(1, len(squares) // 10_000)], np.arange(256.0)
        counts = np.zeros((3, 256), np.int64)
        for part in np.array_split(some, -(-len(some) // 256)):
            counts += [np.bincount(part[..., channel].ravel(), minlength=256) for channel in range(3)]
        mean, square = (counts @ powers / counts[0].sum() for powers in (values, values**2))
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.sqrt(np.maximum(square - mean**2, 1.0))))

    def features(self, squares: Tensor) -> Tensor:
        """Pooled features (B, D) of uint8 (B, H, W, 3)."""
        x = (squares.to(self.mean.dtype) - self.mean) / self.std
        x = x.permute(0, 3, 1, 2)  # (B, 3, H, W), channels last in memory, as in the input
        x = F.relu(self.norm(self.stem(x)))  # (B, 16 f, H, W)
        return self.blocks(x).mean((2, 3))  # (B, D)

    def forward(self, squares: Tensor) -> Tensor:
        if self.head is None:
            raise ValueError("this network has no head: it was built with classes=0")
        return self.head(self.features(squares))
