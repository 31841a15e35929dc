"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

BETAS = (0.9, 0.95)  # Chen et al. 2020, section 3.4: 0.999 gave spikes
ADAM_PART = 0.25  # of Muon's rate, for parameters that are not matrices


def adam(model: nn.Module) -> list[Optimizer]:
    """Adam without weight decay, as in the paper. The rate is set before every step."""
    return [_adam([p for p in model.parameters() if p.requires_grad])]


def muon(model: nn.Module, adam_part: float = ADAM_PART, weight_decay: float = 0.0) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, Adam for the rest at a part of its rate.

    A step changes a matrix by the rate, whatever its gradient; weight decay limits how large that makes it.
    """
    matrices = [p for p in model.get_submodule("blocks").parameters() if p.requires_grad and p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    return [torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay), _adam(rest, rate_part=adam_part)]


def _adam(parameters: list[nn.Parameter], rate_part: float = 1.0) -> Optimizer:
    fused = parameters[0].device.type in ("cpu", "cuda")
    groups = [{"params": parameters, "rate_part": rate_part}]
    return torch.optim.Adam(groups, lr=0.0, betas=BETAS, fused=fused)


def sgd(model: nn.Module, weight_decay: float) -> list[Optimizer]:
    """SGD with Nesterov momentum 0.9 and no weight decay on gains and biases. The rate is set before every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)]


def set_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("rate_part", 1.0)


def cosine_rate(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of that step, counted from 0: linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def linear_rate(step: int, *, steps: int, warmup_steps: int, peak: float, cooldown_fraction: float) -> float:
    """The rate of that step, counted from 0: linear warm-up, constant, then linearly to zero."""
    falling = falling_steps(steps, cooldown_fraction)
    return peak * min(1.0, (step + 1) / max(1, warmup_steps), (steps - step) / falling)


def falling_steps(steps: int, cooldown_fraction: float) -> int:
    """Length of the cool-down."""
    return max(1, round(steps * cooldown_fraction))


def default_warmup_steps(steps: int, images: int, batch_images: int) -> int:
    """One epoch, as in the paper, but at most 5% of the steps."""
    return max(1, min(images // batch_images, steps // 20))
