"""The convolutional networks of tokenizers: a codec, and a decoder that repaints the patches of k-means."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel.devices import autocast, choose_dtype
from nextpixel.errors import InputError

SIDES = (2, 4)  # of a patch; float32 counts the squared distances of larger ones than 6 x 6 no longer exactly
LEVELS = {1_000: (8, 5, 5, 5), 4_096: (8, 8, 8, 8), 16_384: (8, 8, 8, 8, 4)}  # of each number, by vocabulary
PICTURES_AT_ONCE = 16  # whose activations fit into a CPU's cache


@dataclass(frozen=True)
class CodecShape:
    """The shape of a codec, or of a decoder alone."""

    patch: int = 4
    """Pixels along each side of a patch (p): 2 or 4."""
    codes: int | None = 4_096
    """Size of the vocabulary (K): 1,000, 4,096 or 16,384; None for a decoder alone."""
    width: int = 128
    """Channels (D)."""
    blocks: int = 4
    """Residual blocks of the decoder at one position a token; with p 4, half as many follow at twice the resolution."""

    def __post_init__(self) -> None:
        if self.patch not in SIDES:
            raise InputError(f"expected 2 or 4, got {self.patch!r}", argument="patch")
        if self.codes is not None and (type(self.codes) is not int or self.codes not in LEVELS):
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


def _stack(count: int, width: int, size: int, generator: torch.Generator) -> nn.Sequential:
    return nn.Sequential(*(Block(width, size, generator) for _ in range(count)))


class Decoder(nn.Module):
    """Convolutions that paint pictures from a vector for each token."""

    def __init__(self, shape: CodecShape, inputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.shape, width, fine = shape, shape.width, shape.width // 2
        self.expand = Conv(inputs, width, 3, generator)
        self.blocks = nn.ModuleDict({"coarse": _stack(shape.blocks, width, 3, generator)})
        if shape.patch == 4:
            self.widen = Conv(width, 4 * fine, 1, generator)
            self.blocks["fine"] = _stack(shape.blocks // 2, fine, 3, generator)
        self.paint = Conv(fine if shape.patch == 4 else width, 12, 3, generator)

    def render(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of vectors (B, inputs, rows, columns)."""
        x = self.expand(vectors.contiguous(memory_format=torch.channels_last))
        x = self.blocks["coarse"](x)
        if self.shape.patch == 4:
            x = self.blocks["fine"](F.pixel_shuffle(self.widen(x), 2))
        return F.pixel_shuffle(self.paint(F.silu(x)), 2).float()


class PatchDecoder(Decoder):
    """A decoder of pictures made of patches: what it adds to them, at first nothing."""

    def __init__(self, shape: CodecShape, seed: int = 0) -> None:
        super().__init__(shape, 3 * shape.patch**2, torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.paint.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) repainted, both in [-1, 1]."""
        return images + self.render(F.pixel_unshuffle(images, self.shape.patch))


class Codec(Decoder):
    """An encoder that sees one patch at a time, d numbers of few levels, and a decoder."""

    def __init__(self, shape: CodecShape, seed: int = 0) -> None:
        assert shape.codes is not None
        levels, generator = LEVELS[shape.codes], torch.Generator().manual_seed(seed)
        super().__init__(shape, len(levels), generator)
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.read = Conv(3 * shape.patch**2, shape.width, 1, generator)
        self.squeeze = Conv(shape.width, len(levels), 1, generator)
        self.blocks["encoder"] = _stack(3, shape.width, 1, generator)

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
        return self.render(levels / (self.get_buffer("levels")[:, None, None] - 1) * 2 - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, H, W) of images (B, 3, H, W), both in [-1, 1]."""
        return self.paint_levels(self.quantise(images))


Network = TypeVar("Network", bound=Decoder)


class Frozen(Generic[Network]):
    """A network of a tokenizer, no longer trained, with a copy on each device that asks for one."""

    def __init__(self, network: Network) -> None:
        self.network = copy.deepcopy(network).float().cpu().eval().requires_grad_(False)
        self._copies = {"cpu": self.network}

    def on(self, device: torch.device) -> Network:
        if str(device) not in self._copies:
            self._copies[str(device)] = copy.deepcopy(self.network).to(device)
        return self._copies[str(device)]

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}

    def digest(self) -> Iterator[bytes]:
        """The shape and the weights, for a hash."""
        yield repr(self.network.shape).encode()
        for name, array in sorted(self.weights().items()):
            yield name.encode() + array.tobytes()


def read_network(make: Callable[[CodecShape], Network], shape: Mapping[str, Any], values: Mapping[str, Any]) -> Network:
    """The network that `make` makes, with the weights of `values`. Raises InputError."""
    network = make(CodecShape(**shape))
    shapes = network.state_dict()
    for name, expected in shapes.items():
        value = values.get(name)
        if not isinstance(value, np.ndarray) or value.shape != expected.shape or value.dtype != np.float32:
            raise InputError(f"expected float32 weights of a codec, of shape {tuple(expected.shape)}", argument=name)
        if not np.isfinite(value).all():
            raise InputError("expected finite weights, got NaN or infinity", argument=name)
    network.load_state_dict({name: torch.from_numpy(values[name]) for name in shapes})
    return network


def centred(pixels: Tensor) -> Tensor:
    """Images float32 (B, 3, H, W) in [-1, 1], channels last in memory, of uint8 images (B, H, W, 3)."""
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2)


@torch.no_grad()
def painted(paint: Callable[[Tensor], Tensor], grids: Tensor) -> NDArray[np.uint8]:
    """uint8 images (B, H, W, 3) that `paint` makes of parts of `grids`, in bf16 where that is faster: pixels allow it,
    and tokens would not."""
    parts, device = [], str(grids.device)
    for part in grids.split(PICTURES_AT_ONCE):
        with autocast(device, choose_dtype("auto", device)):
            images = paint(part)
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.ascontiguousarray(np.concatenate(parts))
