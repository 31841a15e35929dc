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

BLOCK = 256  # slots: a head's scores fit into the CPU cache, and 3/8 of the products of 1,024 slots are skipped

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


def _scores(q: Tensor, k: Tensor, future: Tensor | None) -> Tensor:
    """fp32 q k^T / sqrt(E), and minus infinity where `future` is True; with q and k exchanged, keys by queries."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return scores if future is None else scores.masked_fill(future, -math.inf)


def _future(queries: Tensor, keys: Tensor) -> Tensor:
    """(queries, keys) from the slots of both: True where a query does not see a key."""
    return keys > queries[:, None]


class _Blocked(torch.autograd.Function):
    """Saves inputs and outputs only, and recomputes the scores in the backward pass (Dao et al. 2022, algorithm 4).

    Forward, a block of queries takes all keys it sees; backward, a block of keys takes all queries that see it, so that
    only the queries' gradients are sums over blocks. Their parts are held to the end: 2.5 times the numbers of q for
    1,024 causal slots, 8.5 times for 4,096.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        parts, totals = [], []  # totals: the logarithm of the sum of exp(scores)
        slots = torch.arange(q.shape[2], device=q.device, dtype=torch.int32)  # 64 bits would be compared more slowly
        for first, end, keys in _blocks(q.shape[2], causal):
            future = _future(slots[first:end], slots[:keys]) if causal else None
            scores = _scores(q[:, :, first:end], k[:, :, :keys], future)
            highest = scores.amax(-1, keepdim=True)
            weights = (scores - highest).exp()
            # masked once more, though zero there already: torch.compile then sums in the loop that computes them
            total = (weights if future is None else weights.masked_fill(future, 0)).sum(-1, keepdim=True)
            parts.append((weights.to(v.dtype) @ v[:, :, :keys]).float() / total)
            totals.append(highest + total.log())
        y = torch.cat(parts, dim=2).to(v.dtype)
        ctx.save_for_backward(q, k, v, y, torch.cat(totals, dim=2))
        ctx.causal = causal
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, totals = ctx.saved_tensors
        count, scale = q.shape[2], q.shape[-1] ** -0.5
        slots = torch.arange(count, device=q.device, dtype=torch.int32)
        mean = (dy.float() * y.float()).sum(-1, keepdim=True)  # of the weights' gradients, by the weights
        mean, totals = mean.transpose(-1, -2), totals.transpose(-1, -2)
        dq: list[list[Tensor]] = [[] for _ in range(0, count, BLOCK)]
        dk, dv = [], []
        for start in range(0, count, BLOCK):
            end, first = min(start + BLOCK, count), start if ctx.causal else 0
            keys, queries, out = k[:, :, start:end], q[:, :, first:], dy[:, :, first:]
            # keys by queries: the other way, torch.compile recognises the forward product and saves that instead
            future = _future(slots[first:], slots[start:end]).T if ctx.causal else None
            weights = (_scores(keys, queries, future) - totals[..., first:]).exp()
            dv.append(weights.to(v.dtype) @ out)
            dweights = (v[:, :, start:end] @ out.transpose(-1, -2)).float()
            dscores = (weights * (dweights - mean[..., first:]) * scale).to(q.dtype)
            dk.append(dscores @ queries)
            parts = (dscores.transpose(-1, -2) @ keys).float().split(BLOCK, dim=2)
            for block, part in enumerate(parts, first // BLOCK):
                dq[block].append(part)
        sums = [sum(parts[1:], start=parts[0]) for parts in dq]
        return torch.cat(sums, dim=2).to(q.dtype), torch.cat(dk, dim=2), torch.cat(dv, dim=2), None
