"""Attention, softmax(q k^T / sqrt(E)) v, under a mask.

torch's own, except for bf16 on a CPU, where its fused attention reaches a seventh of the speed of matrix products.
There, blocks of queries are multiplied by the keys they see with oneDNN, in half the time: always without gradients,
and with gradients where torch.compile fuses the steps between the products. These scores are rounded to bf16; torch's
are not.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # queries: a head's scores fit into the CPU cache, and 3/8 of the products of 1,024 slots are skipped

# a query sees the keys up to its own slot, or all, or those where the tensor (..., queries, keys) is True
Mask = Literal["causal", "all"] | Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """(B, N, queries, E) from queries (B, N, queries, E), keys and values (B, N, keys, E)."""
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    causal = mask == "causal"
    blocked = v.device.type == "cpu" and v.dtype == torch.bfloat16 and q.shape[2] == k.shape[2]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not blocked or (trained and not torch.compiler.is_compiling()):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    q, k = q.to(v.dtype), k.to(v.dtype)
    return _Blocked.apply(q, k, v, causal) if trained else _inferred(q, k, v, causal)


def _blocks(slots: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, last query + 1, number of keys they see) of each block."""
    ends = [min(first + BLOCK, slots) for first in range(0, slots, BLOCK)]
    return [(first, end, end if causal else slots) for first, end in zip(range(0, slots, BLOCK), ends, strict=True)]


def _inferred(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Without gradients: the scores stay bf16; the softmax computes in fp32."""
    q, parts = q * q.shape[-1] ** -0.5, []
    for first, end, keys in _blocks(q.shape[2], causal):
        scores = q[:, :, first:end] @ k[:, :, :keys].transpose(-1, -2)
        if causal:
            queries = end - first
            future = torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu(1)
            scores[..., first:].masked_fill_(future, -math.inf)
        parts.append(scores.softmax(-1) @ v[:, :, :keys])
    return torch.cat(parts, dim=2)


def _scores(q: Tensor, k: Tensor, first: int, causal: bool, *, by_key: bool = False) -> Tensor:
    """fp32 (B, N, queries, keys), or with `by_key` (B, N, keys, queries), for queries numbered from `first`.

    Keys that a query does not see have a score of minus infinity.
    """
    products = k @ q.transpose(-1, -2) if by_key else q @ k.transpose(-1, -2)
    scores = products.float() * q.shape[-1] ** -0.5
    if causal:
        slots = torch.arange(k.shape[2], device=q.device)
        future = slots > slots[first : first + q.shape[2], None]
        scores = scores.masked_fill(future.T if by_key else future, -math.inf)
    return scores


class _Blocked(torch.autograd.Function):
    """Saves inputs and outputs only, and recomputes the scores in the backward pass (Dao et al. 2022, algorithm 4)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        parts, totals = [], []  # totals: the logarithm of the sum of exp(scores)
        for first, end, keys in _blocks(q.shape[2], causal):
            scores = _scores(q[:, :, first:end], k[:, :, :keys], first, causal)
            totals.append(scores.logsumexp(-1, keepdim=True))
            parts.append((scores - totals[-1]).exp().to(v.dtype) @ v[:, :, :keys])
        y = torch.cat(parts, dim=2)
        ctx.save_for_backward(q, k, v, y, torch.cat(totals, dim=2))
        ctx.causal = causal
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, totals = ctx.saved_tensors
        dq, dk, dv = [], torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        mean = (dy.float() * y.float()).sum(-1, keepdim=True)  # of the weights' gradients, by the weights
        mean, totals = mean.transpose(-1, -2), totals.transpose(-1, -2)
        for first, end, keys in _blocks(q.shape[2], ctx.causal):
            part, out = q[:, :, first:end], dy[:, :, first:end]
            # keys by queries: the other way, torch.compile recognises the forward product and saves that instead
            weights = (_scores(part, k[:, :, :keys], first, ctx.causal, by_key=True) - totals[..., first:end]).exp()
            dv[:, :, :keys] += weights.to(v.dtype) @ out
            dweights = (v[:, :, :keys] @ out.transpose(-1, -2)).float()
            dscores = (weights * (dweights - mean[..., first:end]) * q.shape[-1] ** -0.5).to(q.dtype)
            dq.append(dscores.transpose(-1, -2) @ k[:, :, :keys])
            dk[:, :, :keys] += dscores @ part
        return torch.cat(dq, dim=2), dk.to(k.dtype), dv.to(v.dtype), None
