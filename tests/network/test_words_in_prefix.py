"""The caption in the prefix: what the network makes of it, and the checkpoints that carry its words."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CONFIG, lively, some_tokens
from torch.nn import functional as F

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.config import MODERN, TAGS
from nextpixel.network.losses import cross_entropy
from nextpixel.tokens.words import Words

WORDS = Words(["red", "hair", "glasses", "long", "shirt"], [0.5, 0.25, 0.25, 0.125, 0.1])
CAPTIONS = ["long red hair, glasses", "", "red shirt"]
CLASSIC = dataclasses.replace(CONFIG, words=len(WORDS))
PALETTE = Palette(np.random.default_rng(0).uniform(-1, 1, (10, 3)))


@pytest.fixture(params=[{}, MODERN, {"positions": "rotary"}], ids=["classic", "modern", "rotary"])
def model(request: pytest.FixtureRequest) -> ImageGPT:
    model = lively(ImageGPTConfig(**dataclasses.asdict(CLASSIC) | request.param))
    with torch.no_grad():
        model.word_embedding.normal_(0, 1, generator=torch.Generator().manual_seed(9))
        for block in model.blocks:  # which the modern preset begins with zeros
            for name in ("attention.out.weight", "mlp.down.weight"):
                block.get_parameter(name).normal_(0, 0.2, generator=torch.Generator().manual_seed(8))
    model.words, model.tokenizer = WORDS, PALETTE
    return model


def test_a_tag_is_the_sum_of_its_words_and_a_slot_without_one_has_row_0(model: ImageGPT) -> None:
    prefix, table = model.prefix(0, WORDS.encode(CAPTIONS)), model.word_embedding
    assert prefix.shape == (3, TAGS + 1, CONFIG.width)
    assert torch.allclose(prefix[0, 0], table[4] + table[1] + table[2])
    assert torch.equal(prefix[0, 1], table[3])
    assert (prefix[0, 2:TAGS] == table[0]).all() and (prefix[1, :TAGS] == table[0]).all()
    assert (prefix[:, TAGS] == model.start[0]).all()
    assert torch.equal(model.prefix()[0], prefix[1])


def test_the_caption_changes_every_logit_and_its_order_of_words_none(model: ImageGPT) -> None:
    tokens = some_tokens()
    plain, told = model(tokens), model(tokens, tags=WORDS.encode(CAPTIONS))
    assert (plain - told).abs().amax(-1)[[0, 2]].min() > 1e-6
    assert (plain - told).abs().max(-1).values[1].max() < 1e-12
    assert torch.allclose(model(tokens, tags=WORDS.encode(["hair red long, glasses", "", "shirt red"])), told)


def test_cached_logits_with_a_caption_equal_uncached_ones(model: ImageGPT) -> None:
    tokens, tags = some_tokens(), WORDS.encode(CAPTIONS)
    cache, parts, at = model.new_cache(3), [], 0
    for chunk in [5, 1, 4, 2, 1, 1, 1]:
        parts.append(model.extend(tokens[:, at : at + chunk], cache, model.prefix(0, tags)))
        at += chunk
    assert (torch.cat(parts, 1) - model(tokens, tags=tags)).abs().max() < 1e-12


def test_features_are_those_of_the_tokens_alone(model: ImageGPT) -> None:
    tokens = some_tokens()
    hidden = dict(model.hidden(tokens, range(4)))
    assert {h.shape for h in hidden.values()} == {(3, 16, 32)}
    assert (model.logits(hidden[3]) - model(tokens)).abs().max() < 1e-12


def test_every_row_of_the_table_that_a_caption_uses_gets_a_gradient(model: ImageGPT) -> None:
    model.requires_grad_(True)
    cross_entropy(model(some_tokens(), tags=WORDS.encode(["long red hair"] * 3)), some_tokens()).backward()
    assert model.word_embedding.grad is not None
    assert (model.word_embedding.grad.abs().amax(-1) > 0).tolist() == [True, True, True, False, True, False]


def test_gradients_of_a_deep_network_without_a_caption_are_finite() -> None:
    model = ImageGPT(ImageGPTConfig(layers=40, width=64, heads=2, side=2, colors=10, words=5))
    torch.nn.init.normal_(model.head.weight)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    cross_entropy(model(tokens), tokens).backward()
    largest = [p.grad.abs().max().item() for p in model.parameters() if p.grad is not None]
    assert max(largest) < 1000 and len(largest) == len(list(model.parameters()))  # zeros in row 0 make it NaN


def test_a_model_without_words_is_as_before() -> None:
    model, told = lively(), lively(CLASSIC)
    assert CONFIG.prefix_slots == 1 and CLASSIC.prefix_slots == TAGS + 1
    assert sum(p.numel() for p in told.parameters()) == CLASSIC.parameters == CONFIG.parameters + 6 * 32
    for name, weight in model.named_parameters():  # the words draw their weights last
        assert torch.equal(weight, told.get_parameter(name))
    assert model.words is None and model.prefix().shape == (1, 1, 32)
    with pytest.raises(ValueError, match="tags: expected none"):
        model.prefix(0, WORDS.encode(["red"]))
    with pytest.raises(ValueError, match="words: expected 0, got 5"):
        model.words = WORDS


def test_words_travel_beside_the_weights(tmp_path: Path, model: ImageGPT) -> None:
    nextpixel.save(model, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["model_type"] == "nextpixel" and values["shape"]["words"] == 5  # transformers refuses it
    again = nextpixel.load(tmp_path / "model", dtype=torch.float64)
    assert again.words is not None and again.words.values() == WORDS.values()
    tags = WORDS.encode(CAPTIONS)
    assert (again(some_tokens(), tags=tags) - model(some_tokens(), tags=tags)).abs().max() < 1e-5


def test_config_files_of_models_without_words_do_not_mention_them(tmp_path: Path) -> None:
    model = lively(dataclasses.replace(CONFIG, qk_norm=True))
    model.tokenizer = PALETTE
    nextpixel.save(model, tmp_path / "model")
    for name in ("config.json", "preprocessor_config.json"):
        assert "words" not in (tmp_path / "model" / name).read_text()


@pytest.mark.parametrize("words", [None, {"table": ["red"]}, {"table": "red"}, ["red"], {"table": ["Red", 1, 2, 3, 4]}])
def test_checkpoints_with_a_damaged_table_are_refused(tmp_path: Path, model: ImageGPT, words: object) -> None:
    nextpixel.save(model, tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values["nextpixel"]["words"] = words
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"preprocessor_config.json: words: expected"):
        nextpixel.load(tmp_path / "model")


@pytest.mark.parametrize("words", [-1, 1 << 21, 2.0, True, "5"])
def test_bad_numbers_of_words_are_refused(words: object) -> None:
    with pytest.raises(InputError, match="words: expected a whole number"):
        ImageGPTConfig(words=words)  # type: ignore[arg-type]


def test_a_masked_model_takes_no_captions() -> None:
    with pytest.raises(InputError, match="words: a masked model"):
        ImageGPTConfig(words=5, objective="masked")


def test_transformers_would_not_compute_it(model: ImageGPT, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which would compute it wrongly"):
        nextpixel.save(model, tmp_path / "theirs", for_transformers=True)


def test_the_class_head_works_without_a_caption(model: ImageGPT) -> None:
    model.set_classes(["a", "b"])
    assert model.class_head is not None
    torch.nn.init.normal_(model.class_head.weight)
    logits, classes = model.forward_both(some_tokens())
    assert logits.shape == (3, 16, 10) and torch.allclose(classes, model.classify(some_tokens()))
    assert torch.allclose(F.linear(dict(model.hidden(some_tokens(), [3]))[3].mean(1), model.class_head.weight), classes)
