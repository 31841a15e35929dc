"""Cross-entropy of logits, over all tokens or over masked ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, tokens: Tensor, reduction: str = "mean") -> Tensor:
    """-ln softmax(logits)[tokens] in fp32 or better: logits (B, T, K), tokens (B, T); (B, T) or its mean."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction=reduction)
    return loss.view(tokens.shape) if reduction == "none" else loss


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
    """The loss of each image (B,): -ln p averaged over its pixels where `masked` (B, T) is True; 0 where none is."""
    losses = cross_entropy(logits, tokens, reduction="none") * masked
    return losses.sum(1) / masked.sum(1).clamp_min(1)
