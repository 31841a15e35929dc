"""Optimisers and rates."""

from __future__ import annotations

import math

import torch
from torch import nn

BETAS = (0.9, 0.95)  # Chen et al. 2020, section 3.4: 0.999 gave spikes


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam as in the paper: no weight decay on anything. The rate is set before every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(parameters, lr=0.0, betas=BETAS, fused=fused)


def sgd(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9; gains, biases and norms do not decay. The rate is set before every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_rate(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of that step, counted from 0: linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def default_warmup_steps(steps: int, images: int, batch_images: int) -> int:
    """One epoch, as in the paper, but at most 5 % of the steps."""
    return max(1, min(images // batch_images, steps // 20))
