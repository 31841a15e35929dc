"""The learned tokenizer: a small convolutional codec around finite scalar quantisation (Mentzer et al. 2023)."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel.devices import autocast, choose_dtype
from nextpixel.errors import InputError
from nextpixel.tokens.palette import grid_of
from nextpixel.tokens.patches import SIDES, cut

LEVELS = {1_000: (8, 5, 5, 5), 4_096: (8, 8, 8, 8), 16_384: (8, 8, 8, 8, 4)}  # of each number, by vocabulary
PICTURES_AT_ONCE = 16  # whose activations fit into a CPU's cache


@dataclass(frozen=True)
class CodecShape:
    """The shape of a codec."""

    patch: int = 4
    """Pixels along each side of a patch (p): 2 or 4."""
    codes: int = 4_096
    """Size of the vocabulary (K): 1,000, 4,096 or 16,384."""
    width: int = 128
    """Channels (D)."""
    blocks: int = 4
    """Residual blocks of the decoder at one position a token; with p 4, half as many follow at twice the resolution."""

    def __post_init__(self) -> None:
        if self.patch not in SIDES:
            raise InputError(f"expected 2 or 4, got {self.patch!r}", argument="patch")
        if type(self.codes) is not int or self.codes not in LEVELS:
            raise InputError(f"expected one of {', '.join(map(str, LEVELS))}, got {self.codes!r}", argument="codes")
        for name, most in (("width", 512), ("blocks", 8)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= most or value % 2:
                raise InputError(f"expected an even number from 2 to {most}, got {value!r}", argument=name)


class Conv(nn.Module):
    """A convolution whose weight is a matrix, (out, in * size * size), as Muon takes it."""

    def __init__(self, inputs: int, outputs: int, size: int, generator: torch.Generator, gain: float = 1.0) -> None:
        super().__init__()
        self.size, fan = size, inputs * size * size
        self.weight = nn.Parameter(torch.randn(outputs, fan, generator=generator) * gain / math.sqrt(fan))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        if self.size == 1:  # on a GPU a convolution would round to TF32, and tokens would differ from those of a CPU
            return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        weight = self.weight.unflatten(1, (-1, self.size, self.size)).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, padding=self.size // 2)


class Block(nn.Module):
    """x + convolution(silu(convolution(silu(x)))), at first x."""

    def __init__(self, width: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = Conv(width, width, size, generator)
        self.second = Conv(width, width, size, generator, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Codec(nn.Module):
    """An encoder that sees one patch at a time, d numbers of few levels, and a convolutional decoder."""

    def __init__(self, shape: CodecShape, seed: int = 0) -> None:
        super().__init__()
        self.shape, generator = shape, torch.Generator().manual_seed(seed)
        levels, width, fine = LEVELS[shape.codes], shape.width, shape.width // 2
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

        def stack(count: int, width: int, size: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width, size, generator) for _ in range(count)))

        self.read = Conv(3 * shape.patch**2, width, 1, generator)
        self.squeeze = Conv(width, len(levels), 1, generator)
        self.expand = Conv(len(levels), width, 3, generator)
        self.blocks = nn.ModuleDict({"encoder": stack(3, width, 1), "coarse": stack(shape.blocks, width, 3)})
        if shape.patch == 4:
            self.widen = Conv(width, 4 * fine, 1, generator)
            self.blocks["fine"] = stack(shape.blocks // 2, fine, 3)
        self.paint = Conv(fine if shape.patch == 4 else width, 12, 3, generator)

    def quantise(self, images: Tensor) -> Tensor:
        """Levels (B, d, rows, columns), whole numbers from 0, of images (B, 3, H, W) in [-1, 1].

        Gradients pass as if nothing were rounded.
        """
        x = self.read(F.pixel_unshuffle(images, self.shape.patch))
        x = self.squeeze(self.blocks["encoder"](x)).float()
        top = self.get_buffer("levels")[:, None, None] - 1
        x = torch.sigmoid(2 * x) * top
        return x + (x.round() - x).detach()

    def paint_levels(self, levels: Tensor) -> Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of levels (B, d, rows, columns)."""
        x = levels / (self.get_buffer("levels")[:, None, None] - 1) * 2 - 1
        x = self.expand(x.contiguous(memory_format=torch.channels_last))
        x = self.blocks["coarse"](x)
        if self.shape.patch == 4:
            x = self.blocks["fine"](F.pixel_shuffle(self.widen(x), 2))
        return F.pixel_shuffle(self.paint(F.silu(x)), 2).float()

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, H, W) of images (B, 3, H, W), both in [-1, 1]."""
        return self.paint_levels(self.quantise(images))


class Learned:
    """A tokenizer of patches of p x p pixels by a codec.

    What a token says depends on its own patch alone; how it looks also depends on the tokens around it.
    """

    kind: ClassVar[str] = "learned"
    channels = 3

    def __init__(self, codec: Codec) -> None:
        self.codec = copy.deepcopy(codec).float().cpu().eval().requires_grad_(False)
        self.patch = codec.shape.patch, codec.shape.patch
        self._codecs = {"cpu": self.codec}  # by device

    def __len__(self) -> int:
        return self.codec.shape.codes

    def __repr__(self) -> str:
        return f"Learned({len(self)} of {self.patch[0]} x {self.patch[1]} pixels, {self.hash[:12]})"

    @property
    def hash(self) -> str:
        """sha256 of the codec's shape and weights."""
        found = hashlib.sha256(repr(self.codec.shape).encode())
        for name, array in sorted(self._weights().items()):
            found.update(name.encode() + array.tobytes())
        return found.hexdigest()

    def _weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.numpy() for name, tensor in self.codec.state_dict().items()}

    def values(self) -> dict[str, Any]:
        return {"codec": asdict(self.codec.shape), **self._weights()}

    @classmethod
    def from_values(cls, values: dict[str, Any], cache: str | Path | None = None) -> Learned:
        with torch.device("meta"):
            shapes = Codec(shape := CodecShape(**values["codec"])).state_dict()
        for name, expected in shapes.items():
            value = values.get(name)
            if not isinstance(value, np.ndarray) or value.shape != expected.shape or value.dtype != np.float32:
                raise InputError(
                    f"expected float32 weights of a codec, of shape {tuple(expected.shape)}", argument=name
                )
            if not np.isfinite(value).all():
                raise InputError("expected finite weights, got NaN or infinity", argument=name)
        codec = Codec(shape)
        codec.load_state_dict({name: torch.from_numpy(values[name]) for name in shapes})
        return cls(codec)

    def _on(self, device: torch.device) -> Codec:
        if str(device) not in self._codecs:
            self._codecs[str(device)] = copy.deepcopy(self.codec).to(device)
        return self._codecs[str(device)]

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Tokens int64 (B, T) in raster order, of uint8 images (B, H, W, 3), on the device of the images.

        Raises ValueError where H or W is not a multiple of p.
        """
        pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, requirements=("C", "W")))
        cut(pixels, self.patch[0])  # raises
        codec = self._on(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            found = [codec.quantise(centred(part)).round().long() for part in pixels.split(PICTURES_AT_ONCE)]
        return (torch.cat(found) * codec.get_buffer("strides")[:, None, None]).sum(1).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Tensor | NDArray[np.integer], columns: int | None = None) -> NDArray[np.uint8]:
        """uint8 images (B, H, W, 3) of tokens (B, T), with W / p = `columns`; by default T is a square number."""
        array = torch.atleast_2d(torch.as_tensor(tokens))
        rows, columns = grid_of(array.shape[1], columns)
        side = self.patch[0]
        if not array.numel():
            return np.empty((len(array), rows * side, columns * side, 3), np.uint8)
        codec = self._on(array.device)
        strides, levels = (codec.get_buffer(name)[:, None, None] for name in ("strides", "levels"))
        parts, device = [], str(array.device)
        for part in array.unflatten(1, (rows, columns)).split(PICTURES_AT_ONCE):
            with autocast(device, choose_dtype("auto", device)):  # tokens need fp32, pixels do not
                painted = codec.paint_levels((part[:, None] // strides % levels.long()).float())
            pixels = ((painted + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            parts.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return np.ascontiguousarray(np.concatenate(parts))


def centred(pixels: Tensor) -> Tensor:
    """Images float32 (B, 3, H, W) in [-1, 1], channels last in memory, of uint8 images (B, H, W, 3)."""
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2)
