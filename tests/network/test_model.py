import math

import pytest
import torch
from models import CONFIG, lively, some_tokens
from torch import Tensor

from nextpixel import ImageGPT, ImageGPTConfig
from nextpixel.network.losses import cross_entropy
from nextpixel.network.model import Norm


def test_a_new_model_knows_nothing_its_first_loss_is_ln_k() -> None:
    tokens = some_tokens()
    assert cross_entropy(ImageGPT(CONFIG)(tokens), tokens).item() == pytest.approx(math.log(10), abs=1e-6)


def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = ImageGPT(CONFIG, seed=1), ImageGPT(CONFIG, seed=1), ImageGPT(CONFIG, seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.start, other.start)


def test_initial_spreads_are_those_of_the_released_code() -> None:
    model = ImageGPT(ImageGPTConfig(layers=4, width=256, heads=4, side=32, colors=512))
    block = model.blocks[2]
    spreads = {
        model.position_embedding: 0.01,
        model.token_embedding: 0.02,
        model.start: 0.02,
        block.attention.qkv.weight: 256**-0.5,
        block.attention.out.weight: (256 * 4) ** -0.5,
        block.mlp.up.weight: 0.02,
        block.mlp.down.weight: 0.02,
    }
    for weight, spread in spreads.items():
        assert weight.std().item() == pytest.approx(spread, rel=0.1 if weight.numel() < 1000 else 0.02)
    assert not model.head.weight.any()
    assert all((p == 1).all() for name, p in model.named_parameters() if name.endswith("gain"))


def test_no_parameter_is_a_bias_and_all_get_a_gradient() -> None:
    model = ImageGPT(CONFIG)
    torch.nn.init.normal_(model.head.weight)
    tokens = some_tokens()
    cross_entropy(model(tokens), tokens).backward()
    for name, parameter in model.named_parameters():
        assert "bias" not in name
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pixel", range(16))
def test_a_pixel_changes_only_the_logits_behind_it(pixel: int) -> None:
    model, tokens = lively(), some_tokens(1)
    changed = tokens.clone()
    changed[0, pixel] = (changed[0, pixel] + 1) % 10
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[: pixel + 1], after[: pixel + 1])
    if pixel < 15:
        assert (before[pixel + 1 :] != after[pixel + 1 :]).any(-1).all()


@pytest.mark.parametrize("chunks", [[0] + [1] * 15, [5, 1, 4, 2, 1, 1, 1], [15], [0, 15], [1, 14]])
def test_cached_logits_equal_uncached_ones_at_every_position(chunks: list[int]) -> None:
    model, tokens = lively(), some_tokens()
    cache, parts, at = model.new_cache(3), [], 0
    for chunk in chunks:
        parts.append(model.extend(tokens[:, at : at + chunk], cache))
        at += chunk
    assert (torch.cat(parts, 1) - model(tokens)).abs().max() < 1e-12


def test_selected_cache_rows_go_on_as_their_pictures() -> None:
    model, tokens = lively(), some_tokens()
    cache = model.new_cache(3)
    model.extend(tokens[:, :6], cache)
    rows = torch.tensor([2, 0, 0, 1])
    chosen = cache.select(rows)
    logits = model.extend(tokens[rows, 6:7], chosen)[:, 0]
    assert (logits - model(tokens)[rows, 7]).abs().max() < 1e-12
    assert cache.length == 7 and chosen.length == 8


def test_more_pixels_than_the_model_has_are_refused() -> None:
    model = lively()
    with pytest.raises(ValueError, match=r"at most 16 \(4 x 4\)"):
        model(torch.zeros(1, 18, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at most 16 \(4 x 4\)"):
        model.extend(torch.zeros(1, 16, dtype=torch.int64), model.new_cache(1))


def test_the_norm_survives_half_precision_and_subtracts_no_mean() -> None:
    x = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert torch.allclose(Norm(4).half()(x), torch.ones(1, 4, dtype=torch.float16))


def test_activation_checkpointing_changes_no_gradient() -> None:
    tokens, grads = some_tokens(), []
    for checkpointed in (False, True):
        model = lively().requires_grad_(True)
        model.checkpoint_activations = checkpointed
        cross_entropy(model(tokens), tokens).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_bf16_stays_close_to_fp32() -> None:
    model, tokens = lively(dtype=torch.float32), some_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens)
    assert abs(cross_entropy(half, tokens) - cross_entropy(model(tokens), tokens)) < 0.01


def test_logits_of_one_layer_equal_the_formulas_written_out() -> None:
    """Chen et al. 2020 and its code, one picture, pixel by pixel, in plain loops over heads."""
    config = ImageGPTConfig(layers=1, width=8, heads=2, side=2, colors=5)
    model, tokens = lively(config), some_tokens(1, config)
    w = {name: p for name, p in model.named_parameters()}

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    h = torch.stack([w["start"][0], *w["token_embedding"][tokens[0, :3]]]) + w["position_embedding"]
    q, k, v = (norm(h, w["blocks.0.norm_1.gain"]) @ w["blocks.0.attention.qkv.weight"].T).split(8, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[:, part] @ k[:, part].T / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[:, part])
    h = h + torch.cat(heads, -1) @ w["blocks.0.attention.out.weight"].T
    y = norm(h, w["blocks.0.norm_2.gain"]) @ w["blocks.0.mlp.up.weight"].T
    h = h + (y * torch.sigmoid(1.702 * y)) @ w["blocks.0.mlp.down.weight"].T
    logits = norm(h, w["norm.gain"]) @ w["head.weight"].T
    assert (model(tokens)[0] - logits).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_every_time_on_two_threads(dtype: torch.dtype) -> None:
    """Indexing the embedding table would add its gradients in whatever order the threads come."""
    config = ImageGPTConfig(layers=1, width=32, heads=2, side=16, colors=64)
    tokens, threads = some_tokens(8, config), torch.get_num_threads()

    def gradients() -> list[Tensor]:
        model = lively(config, torch.float32).requires_grad_(True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(tokens)
        cross_entropy(logits, tokens).backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.set_num_threads(2)
    try:
        first = gradients()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_network_trains_after_it_was_used_for_inference(objective: str, positions: str) -> None:
    config = ImageGPTConfig(layers=1, width=16, heads=2, side=3, colors=7, objective=objective, positions=positions)
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    with torch.inference_mode():
        ImageGPT(config, seed=1)(tokens)
    model = ImageGPT(config, seed=1)
    model(tokens).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
