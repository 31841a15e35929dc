"""The masked (BERT) objective: what is seen, what is scored, what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively, some_tokens
from tiny_runs import figures, photos, settings
from transformers import AutoConfig

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.checkpoints import Run
from nextpixel.checkpoints.card import model_card
from nextpixel.data.decoded import masks
from nextpixel.evaluation.likelihood import evaluate
from nextpixel.network.losses import masked_cross_entropy

CONFIG = ImageGPTConfig(layers=2, width=32, heads=4, side=4, colors=10, objective="masked")


def pick(*pixels: int) -> torch.Tensor:
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, list(pixels)] = True
    return masked


def test_what_is_hidden_cannot_matter_and_everything_else_does() -> None:
    model, tokens = lively(CONFIG), some_tokens(1)
    masked, before = pick(3, 9), model(some_tokens(1), pick(3, 9))
    for pixel in range(16):
        changed = tokens.clone()
        changed[0, pixel] = (changed[0, pixel] + 1) % 10
        after = model(changed, masked)
        if masked[0, pixel]:
            assert torch.equal(before, after)
        else:
            assert (before != after).any(-1).all()  # in both directions: there is no causal mask


def test_a_hidden_pixel_leaves_its_place_and_nothing_else() -> None:
    """Written out: content zeroed, position kept, no start vector, no shift."""
    model, tokens = lively(CONFIG), some_tokens(1)
    h = model.token_embedding[tokens[0]] * (~pick(5)[0, :, None]) + model.position_embedding
    for block in model.blocks:
        h = block(h[None], h[None], None, "all")[0]
    assert torch.equal(model.head(model.norm(h)), model(tokens, pick(5))[0])
    assert "start" not in dict(model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) == CONFIG.parameters


def test_the_loss_is_the_mean_over_each_image_s_hidden_pixels() -> None:
    logits, tokens = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1, 2, 0]] * 2)
    masked = torch.tensor([[True, False, True, False], [False] * 4])
    logs = logits.log_softmax(-1)
    expected = -(logs[0, 0, 0] + logs[0, 2, 2]) / 2
    losses = masked_cross_entropy(logits, tokens, masked)
    assert losses[0].item() == pytest.approx(expected.item()) and losses[1] == 0  # nothing hidden: no loss, no NaN


def test_masks_depend_on_seed_epoch_and_image_alone() -> None:
    every = masks(np.arange(200), 1024, seed=1)
    assert every.mean() == pytest.approx(0.15, abs=0.003)
    assert np.array_equal(masks(np.array([7, 3]), 1024, seed=1), every[[7, 3]])
    assert masks(np.arange(50), 4, seed=1).any(1).all()
    for other in (masks(np.arange(200), 1024, seed=2), masks(np.arange(200), 1024, seed=1, epoch=1)):
        assert (every != other).mean() == pytest.approx(2 * 0.15 * 0.85, abs=0.01)


def test_a_new_masked_model_is_scored_ln_k_and_refuses_likelihoods_and_drawing() -> None:
    model = ImageGPT(CONFIG)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (10, 3)))
    pictures = np.random.default_rng(1).integers(0, 256, (70, 4, 4, 3), np.uint8)
    scored = evaluate(model, pictures)
    assert scored.images == 70 and scored.nats_per_pixel == pytest.approx(math.log(10), rel=1e-6)
    with pytest.raises(InputError, match="nextpixel evaluate"):
        nextpixel.nll(model, pictures)
    with pytest.raises(InputError, match="masked model"):
        nextpixel.sample(model)
    with pytest.raises(InputError, match="masked model"):
        nextpixel.complete(model, pictures)
    with pytest.raises(ValueError, match="expected none for an autoregressive model"):
        lively()(some_tokens(), pick(1))


def test_a_masked_model_is_trained_saved_and_loaded_as_one(tmp_path: Path) -> None:
    settings_of_run = settings(tmp_path, objective="masked", steps=400, learning_rate=0.02, evaluate_every_steps=200)
    model = nextpixel.pretrain(photos(tmp_path, count=60), out=tmp_path / "run", **settings_of_run)
    assert model.config.objective == "masked"
    losses = [value for _, name, value in figures(tmp_path / "run") if name == "loss"]
    assert losses[0] == pytest.approx(math.log(8), abs=1e-5) and np.mean(losses[-50:]) < 0.8 * losses[0]
    config = json.loads((Run(tmp_path / "run").best_checkpoint() / "config.json").read_text())
    assert config["model_type"] == "nextpixel"  # which transformers refuses to open as something else
    with pytest.raises(ValueError, match="nextpixel"):
        AutoConfig.from_pretrained(Run(tmp_path / "run").best_checkpoint())
    with pytest.raises(InputError, match="cannot be saved for transformers"):
        nextpixel.save(model, tmp_path / "theirs", for_transformers=True)
    nextpixel.save(model, tmp_path / "ours")
    again = nextpixel.load(tmp_path / "ours")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_card_does_not_promise_pictures() -> None:
    model = lively(CONFIG)
    model.tokenizer = Palette(np.random.default_rng(0).uniform(-1, 1, (10, 3)))
    assert "pipeline_tag: image-feature-extraction" in model_card(model, "ann/masked")
