"""Attention, softmax(q k^T / sqrt(E)) v, each query seeing the keys that it is given.

torch's own is used but for bf16 on a CPU: its fused one multiplies there at a seventh of the speed of matrix products.
Blocks of queries against the keys they see, multiplied by oneDNN, take half the time: always without gradients, and
with them where torch.compile joins the steps between the products. Their scores are rounded to bf16, torch's are not.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # queries: a head's scores stay in the processor's cache; of 1,024 slots 3/8 of the products are left out


Seen = (
    Literal["causal", "all"] | Tensor
)  # keys up to the query's slot; all; or those where (..., queries, keys) is True


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
    """(B, N, queries, E) of queries (B, N, queries, E), keys and values (B, N, keys, E)."""
    if isinstance(seen, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    causal = seen == "causal"
    blocked = v.device.type == "cpu" and v.dtype == torch.bfloat16 and q.shape[2] == k.shape[2]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not blocked or (trained and not torch.compiler.is_compiling()):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    q, k = q.to(v.dtype), k.to(v.dtype)
    return _Blocked.apply(q, k, v, causal) if trained else _inferred(q, k, v, causal)


def _blocks(slots: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, last + 1, keys they see) of each block."""
    ends = [min(first + BLOCK, slots) for first in range(0, slots, BLOCK)]
    return [(first, end, end if causal else slots) for first, end in zip(range(0, slots, BLOCK), ends, strict=True)]


def _inferred(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Without gradients: the scores stay bf16, and the softmax, fp32 within, is taken where they lie."""
    q, parts = q * q.shape[-1] ** -0.5, []
    for first, end, seen in _blocks(q.shape[2], causal):
        scores = q[:, :, first:end] @ k[:, :, :seen].transpose(-1, -2)
        if causal:
            queries = end - first
            future = torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu(1)
            scores[..., first:].masked_fill_(future, -math.inf)
        parts.append(scores.softmax(-1) @ v[:, :, :seen])
    return torch.cat(parts, dim=2)


def _scores(q: Tensor, k: Tensor, first: int, causal: bool, *, by_key: bool = False) -> Tensor:
    """fp32 (B, N, queries, keys), or with `by_key` (B, N, keys, queries), for queries numbered from `first`.

    Of a key not to be seen, minus infinity.
    """
    products = k @ q.transpose(-1, -2) if by_key else q @ k.transpose(-1, -2)
    scores = products.float() * q.shape[-1] ** -0.5
    if causal:
        slots = torch.arange(k.shape[2], device=q.device)
        future = slots > slots[first : first + q.shape[2], None]
        scores = scores.masked_fill(future.T if by_key else future, -math.inf)
    return scores


class _Blocked(torch.autograd.Function):
    """Keeps what comes in and goes out, and makes the scores again on the way back (Dao et al. 2022, algorithm 4)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        parts, totals = [], []  # totals: the logarithm of the sum of exp(scores)
        for first, end, seen in _blocks(q.shape[2], causal):
            scores = _scores(q[:, :, first:end], k[:, :, :seen], first, causal)
            totals.append(scores.logsumexp(-1, keepdim=True))
            parts.append((scores - totals[-1]).exp().to(v.dtype) @ v[:, :, :seen])
        y = torch.cat(parts, dim=2)
        ctx.save_for_backward(q, k, v, y, torch.cat(totals, dim=2))
        ctx.causal = causal
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, totals = ctx.saved_tensors
        dq, dk, dv = [], torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        mean = (dy.float() * y.float()).sum(-1, keepdim=True)  # of the shares' gradients, weighted with the shares
        mean, totals = mean.transpose(-1, -2), totals.transpose(-1, -2)
        for first, end, seen in _blocks(q.shape[2], ctx.causal):
            ours, out = q[:, :, first:end], dy[:, :, first:end]
            # keys by queries: torch.compile would find the forward product again, and keep it instead
            shares = (_scores(ours, k[:, :, :seen], first, ctx.causal, by_key=True) - totals[..., first:end]).exp()
            dv[:, :, :seen] += shares.to(v.dtype) @ out
            dshares = (v[:, :, :seen] @ out.transpose(-1, -2)).float()
            dscores = (shares * (dshares - mean[..., first:end]) * q.shape[-1] ** -0.5).to(q.dtype)
            dq.append(dscores.transpose(-1, -2) @ k[:, :, :seen])
            dk[:, :, :seen] += dscores @ ours
        return torch.cat(dq, dim=2), dk.to(k.dtype), dv.to(v.dtype), None
