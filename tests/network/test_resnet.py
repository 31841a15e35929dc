"""The convolutional peer."""

import torch

from nextpixel.network.resnet import ResNet, ResNetConfig


def test_convolutions_are_stored_channels_last() -> None:
    weights = [p for p in ResNet(ResNetConfig(blocks=1)).parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert len(weights) == 7 and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
