"""Attention by blocks, as it is in bf16 on a CPU, against torch's own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nextpixel.network import attention as attention_module
from nextpixel.network.attention import _Blocked, attention

both = pytest.mark.parametrize("causal", [True, False])
lengths = pytest.mark.parametrize("slots", [1, 5, 8, 24, 27])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "BLOCK", 8)


def some(slots: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, slots, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    return q, k, v


def torchs(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


@both
@lengths
def test_in_bf16_without_gradients_it_is_torch_s_to_the_rounding(slots: int, causal: bool) -> None:
    q, k, v = some(slots, torch.bfloat16)
    with torch.no_grad():
        found = attention(q, k, v, "causal" if causal else "all")
    wanted = torchs(q.float(), k.float(), v.float(), causal)
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    assert (found - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("slots", [5, 8, 27])
def test_no_query_sees_a_later_key(slots: int) -> None:
    q, k, v = some(slots, torch.bfloat16)
    _, other_k, other_v = some(slots, torch.bfloat16, seed=1)
    with torch.no_grad():
        found = attention(q, k, v, "causal")
        for seen in range(1, slots):
            mixed = (torch.cat([a[:, :, :seen], b[:, :, seen:]], 2) for a, b in ((k, other_k), (v, other_v)))
            assert torch.equal(attention(q, *mixed, "causal")[:, :, :seen], found[:, :, :seen])


@both
@lengths
@pytest.mark.parametrize("size", [1, 30])  # scores up to some thousands, whose exponentials overflow
def test_gradients_in_fp32_are_torch_s(slots: int, causal: bool, size: int) -> None:
    ours, theirs = ([(size * x.detach()).requires_grad_() for x in some(slots)] for _ in range(2))
    weights = torch.randn(2, 3, slots, 16, generator=torch.Generator().manual_seed(9))
    found, wanted = _Blocked.apply(*ours, causal), torchs(*theirs, causal)
    torch.testing.assert_close(found, wanted, atol=2e-6 * size, rtol=1e-5)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=5e-6 * size**2, rtol=1e-4)


@both
def test_compiled_training_in_bf16_takes_the_blocks_and_gets_the_gradients(causal: bool) -> None:
    inputs, references = some(24, torch.bfloat16), some(24, torch.bfloat16)
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, "causal" if causal else "all"), backend="aot_eager")
    found = compiled(*inputs)
    assert torch.equal(found, _Blocked.apply(*some(24, torch.bfloat16), causal))
    found.float().square().sum().backward()
    wide = [x.detach().float().requires_grad_() for x in references]
    torchs(*wide, causal).square().sum().backward()
    for a, b in zip(inputs, wide, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).norm() < 0.02 * b.grad.norm()


@both
def test_compiled_training_keeps_no_scores(causal: bool) -> None:
    """Neither those of a block nor their transposes, (N * B or B, N, queries, keys): they are made again."""
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, "causal" if causal else "all"), backend="aot_eager_decomp_partition"
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compiled(*some(27, torch.bfloat16))
    assert len(kept) > 0
    scores = {frozenset((queries, keys)) for queries in (8, 3) for keys in (8, 24, 27)}
    assert [shape for shape in kept if frozenset(shape[-2:]) in scores] == []


def test_elsewhere_it_is_torch_s_own() -> None:
    q, k, v = some(24)
    assert torch.equal(attention(q, k, v, "causal"), torchs(q, k, v, True))
    q, k, v = some(24, torch.bfloat16)  # trained without compiling
    assert torch.equal(attention(q, k, v, "causal"), torchs(q, k, v, True))


@both
def test_mixed_types_follow_the_values(causal: bool) -> None:
    """Normalised queries and keys stay fp32 under autocast; torch's own attention would round them there."""
    q, k, v = some(24, torch.bfloat16)
    with torch.no_grad():
        wide = attention(q.float(), k.float(), v, "causal" if causal else "all")
    assert wide.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(wide, attention(q, k, v, "causal" if causal else "all"))
