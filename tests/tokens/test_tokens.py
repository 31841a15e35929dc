"""Tokens that are not colours, on a grid that is not square: averages of 2 x 2 pixels, in pictures of 6 x 4."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from averages import Averages
from models import lively

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.checkpoints.card import model_card
from nextpixel.config import SamplingConfig, ServeConfig
from nextpixel.drawing.loop import Row, Table, token_noise
from nextpixel.drawing.sampling import draw
from nextpixel.evaluation.oddness import measure
from nextpixel.images.sources import load_images
from nextpixel.network.decoding import Decoder, Int8Decoder, PackedDecoder, RowDecoder
from nextpixel.network.int8 import kernels
from nextpixel.network.int8.packing import Int8Hidden, supports_int8
from nextpixel.network.losses import cross_entropy
from nextpixel.network.positions import Positions, raster
from nextpixel.server.engine import Done, Engine, Event, Ticket
from nextpixel.server.engine import Row as ToldRow
from nextpixel.tokens import KINDS, Tokenizer, read_tokenizer, reconstruct, write_tokenizer
from nextpixel.tokens.patches import Patches
from nextpixel.tokens.words import Words

CONFIG = ImageGPTConfig(layers=2, width=32, heads=4, side=(3, 2), colors=5)
MODERN = dict(positions="rotary", qk_norm=True, activation="squared-relu", mix_input=True, logit_cap=15.0)
PICTURES = np.random.default_rng(1).integers(0, 256, (4, 6, 4, 3), np.uint8)
EXACT = SamplingConfig(speed="exact", seed=3)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, Averages.kind, Averages)


@pytest.fixture(params=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> ImageGPT:
    config = CONFIG if request.param == "classic" else ImageGPTConfig(3, 32, 4, (3, 2), 5, **MODERN)
    model = lively(config, torch.float32)
    model.tokenizer = Averages(5)
    return model


def token_nats(model: ImageGPT, tokens: torch.Tensor) -> np.ndarray:
    """-ln p (B, rows, columns) of every token."""
    return cross_entropy(model(tokens), tokens, reduction="none").detach().numpy().reshape(-1, 3, 2)


@pytest.mark.parametrize(
    "tokenizer",
    [
        Averages(7),
        Palette(np.random.default_rng(0).uniform(-1, 1, (7, 3))),
        ExactPalette(np.random.default_rng(0).integers(0, 256, (7, 4))),
        Patches(np.random.default_rng(0).integers(0, 256, (7, 2, 2, 3), np.uint8)),
        Patches(np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)),
    ],
)
def test_what_every_tokenizer_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    height, width = tokenizer.patch
    tokens = torch.arange(24).view(2, 12) % len(tokenizer)
    pictures = tokenizer.decode(tokens, 3)  # 4 rows of 3
    assert pictures.shape == (2, 4 * height, 3 * width, tokenizer.channels) and pictures.dtype == np.uint8
    assert torch.equal(tokenizer.encode(pictures), tokens)
    assert torch.equal(tokenizer.encode(torch.from_numpy(pictures)), tokens)
    assert np.array_equal(tokenizer.decode(tokens[:, 3:6], 3), pictures[:, height : 2 * height])  # a row alone
    assert tokenizer.decode(tokens[:, :0], 3).shape == (2, 0, 3 * width, tokenizer.channels)
    again = read_tokenizer(json.loads(json.dumps(write_tokenizer(tokenizer, tmp_path))), tmp_path)
    assert again.hash == tokenizer.hash and again.patch == tokenizer.patch
    assert torch.equal(again.encode(pictures), tokens)


def test_a_kind_that_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="palette, exact, patches, learned, averages, got 'wavelets'"):
        read_tokenizer({"kind": "wavelets"})


def test_a_grid_is_its_rows_and_columns() -> None:
    assert (CONFIG.rows, CONFIG.columns, CONFIG.tokens) == (3, 2, 6)
    assert ImageGPTConfig(side=(4, 4)) == ImageGPTConfig(side=4)
    assert CONFIG.parameters == sum(p.numel() for p in ImageGPT(CONFIG).parameters())
    for side in ((3, 0), (3, 2, 1), (3, True), "32", 2.0):
        with pytest.raises(InputError, match="side: expected a whole number"):
            ImageGPTConfig(side=side)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"orientations: .* square grid"):
        ImageGPTConfig(side=(3, 2), orientations=8)


def test_only_a_tokenizer_of_the_model_s_vocabulary_fits(model: ImageGPT) -> None:
    with pytest.raises(ValueError, match="vocabulary of 5, got 6"):
        model.tokenizer = Averages(6)
    assert model.size == model.side == (6, 4)


def test_nats_of_a_token_are_shared_by_its_pixels(model: ImageGPT) -> None:
    nats = token_nats(model, model.tokenizer.encode(PICTURES))
    maps = nextpixel.surprise(model, PICTURES)
    assert np.allclose(maps, np.kron(nats, np.full((1, 2, 2), 0.25)), atol=1e-6)
    assert np.allclose(nextpixel.nll(model, PICTURES), nats.sum((1, 2)) / 24, atol=1e-6)
    assert np.allclose(measure(model, PICTURES).nats_per_pixel, nats.sum((1, 2)) / 24, atol=1e-6)


def test_a_card_says_under_what_likelihoods_compare(model: ImageGPT) -> None:
    assert "only between models of the same tokenizer," in model_card(model, "ann/averages")
    for palette in (Palette(np.zeros((5, 3))), ExactPalette(np.arange(20).reshape(5, 4) + 1)):
        model.tokenizer = palette
        assert "only between models of the same palette," in model_card(model, "ann/colours")
    model.tokenizer = Patches(np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8))
    assert "only between models of the same tokenizer," in model_card(model, "ann/patches")


def test_features_are_means_over_tokens(model: ImageGPT) -> None:
    [(_, hidden)] = model.hidden(model.tokenizer.encode(PICTURES), [1])
    assert np.allclose(nextpixel.features(model, PICTURES, 1), hidden.detach().mean(1).numpy(), atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (2, 0), (0, 0)])
def test_pictures_of_other_sizes_are_cut_to_the_grid_s_proportions(model: ImageGPT, rows: int, columns: int) -> None:
    wider = np.pad(PICTURES[0], ((rows, rows), (columns, columns), (0, 0)))
    assert np.array_equal(load_images(wider, model.size)[0], PICTURES[0])
    squashed = np.array_equal(load_images(wider, model.size, fit="squash")[0], PICTURES[0])
    assert squashed == (rows == columns == 0)
    twice = wider.repeat(2, 0).repeat(2, 1)
    assert load_images(twice, model.size).shape == (1, 6, 4, 3)
    assert np.allclose(nextpixel.surprise(model, wider), nextpixel.surprise(model, PICTURES[:1]), atol=1e-6)


def test_completions_keep_rows_of_tokens_and_show_rows_of_pixels(model: ImageGPT) -> None:
    drawing = draw(model, PICTURES, keep=0.4, n=2, sampling=EXACT)  # one row of three
    assert drawing.images.shape == (8, 6, 4, 3)
    assert drawing.kept.all(1).tolist() == [True] * 2 + [False] * 4
    assert np.array_equal(drawing.images[:, :2], PICTURES[:, :2].repeat(2, 0))  # with the detail that tokens lose
    coarse = draw(model, reconstruct(model.tokenizer, PICTURES), keep=0.4, n=2, sampling=EXACT)  # nothing is blended
    tokens = model.tokenizer.encode(coarse.images)
    assert torch.equal(tokens[:, :2], model.tokenizer.encode(PICTURES)[:, :2].repeat_interleave(2, 0))
    assert np.allclose(drawing.nats, token_nats(model, tokens)[:, 1:].mean((1, 2)) / 4, atol=1e-5)
    shown = list(nextpixel.stream(model, PICTURES, keep=0.4, n=2, seed=3, speed="exact"))
    assert [row.y for row in shown] == [2, 3, 4, 5]
    assert all(np.array_equal(row.pixels, drawing.images[:, row.y]) for row in shown)
    assert [picture.size for picture in nextpixel.complete(model, PICTURES, keep=0.4)] == [(4, 6)] * 4
    assert [picture.size for picture in nextpixel.sample(model, n=2)] == [(4, 6)] * 2


def test_a_fraction_that_leaves_nothing_is_refused_in_rows_of_pixels(model: ImageGPT) -> None:
    message = "keep: .* leaves at least 2 of 6 rows to draw, as a token covers 2, got 0.9"
    with pytest.raises(InputError, match=message):
        draw(model, PICTURES, keep=0.9)


def test_the_server_s_engine_draws_the_same(model: ImageGPT) -> None:
    worker, events = ThreadPoolExecutor(1), list[Event]()
    engine = Engine(model, ServeConfig(slots=2, speed="exact"), lambda what, value: None, worker)
    prompt = model.tokenizer.encode(PICTURES[:1])[:, :2]
    for streamed in (False, True):
        events.clear()
        engine.submit(Ticket(prompt, 6, 2, EXACT, 60.0, events.append, square=PICTURES[:1], streamed=streamed))
        while not events or not isinstance(events[-1], Done):
            worker.submit(lambda: None).result(60)
        assert streamed or len(events) == 1
    drawing = draw(model, PICTURES[:1], keep=0.4, n=2, sampling=EXACT)
    assert np.array_equal(events[-1].images, drawing.images)
    assert np.allclose(events[-1].nats, drawing.nats, atol=1e-5)
    rows = [event for event in events if isinstance(event, ToldRow)]
    assert sorted((row.candidate, row.y) for row in rows) == [(i, y) for i in range(2) for y in (2, 3, 4, 5)]
    assert all(np.array_equal(row.pixels, drawing.images[row.candidate, row.y]) for row in rows)
    engine.close()
    worker.shutdown()


@pytest.mark.parametrize("kind", [Decoder, RowDecoder, PackedDecoder, Int8Decoder])
@pytest.mark.parametrize("front", [1, 3])
def test_every_decoder_takes_a_prefix_and_an_order(model: ImageGPT, kind: type[Decoder], front: int) -> None:
    """Bottom up, behind a prefix of any length, against the whole network at once."""
    if kind is Int8Decoder and not supports_int8(model):
        pytest.skip("needs a C compiler")
    tokens = model.tokenizer.encode(PICTURES)
    prefix = torch.randn(1, front, 32, generator=torch.Generator().manual_seed(0))
    positions = Positions.of(model.config, model.device, torch.arange(5, -1, -1), front)
    exact = model(tokens, prefix=prefix, positions=positions)
    decoder = kind(model, 4, front, torch.arange(5, -1, -1))
    logits, read = decoder.prefill(tokens[:, :2], prefix)
    decoder.fill(torch.arange(4), read, torch.arange(4))
    found = [logits, *(decoder.step(tokens[:, t]) for t in range(2, 5))]
    assert (torch.stack(found, 1) - exact[:, 2:]).abs().max() < (0.2 if kind is Int8Decoder else 1e-4)
    other = model(tokens, prefix=prefix)
    assert (other - exact).abs().max() > 1e-3, "the order does not matter"


def test_rows_behind_one_long_prefix_are_drawn_as_the_network_scores_them(model: ImageGPT) -> None:
    prefix = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    table: Table[Row] = Table(RowDecoder(model, 2, 3))
    rows = [Row(token_noise(0, 0, i, 6), SamplingConfig(), 0) for i in range(2)]
    table.begin(rows, torch.empty((1, 0), dtype=torch.int64), [0, 0], prefix)
    tokens, nats = (torch.stack(found, 1) for found in list(zip(*table, strict=True))[1:])
    expected = cross_entropy(model(tokens, prefix=prefix), tokens, reduction="none")
    assert (nats - expected).abs().max() < 1e-4


def test_the_mask_of_attention_is_an_argument(model: ImageGPT) -> None:
    tokens = model.tokenizer.encode(PICTURES)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert torch.allclose(model(tokens, attention_mask=causal), model(tokens), atol=1e-5)
    every = model(tokens, attention_mask="all")
    assert (every - model(tokens)).abs().max() > 1e-3
    assert torch.allclose(model(tokens, attention_mask=torch.ones_like(causal)), every, atol=1e-5)


@pytest.mark.parametrize("options", [{}, MODERN])
def test_the_int8_blocks_see_all_slots_where_the_network_does(options: dict[str, Any]) -> None:
    model = lively(ImageGPTConfig(3, 64, 2, (5, 3), 8, objective="masked", **options), torch.float32)
    if kernels.load() is None:
        pytest.skip("needs a C compiler")
    tokens = torch.randint(0, 8, (6, 15), generator=torch.Generator().manual_seed(0))
    masked = torch.rand(6, 15, generator=torch.Generator().manual_seed(1)) < 0.3
    exact, rounded = (dict(hidden(tokens, [1, 3], masked)) for hidden in (model.hidden, Int8Hidden(model)))
    for layer in (1, 3):
        assert (rounded[layer] - exact[layer]).norm() < 0.05 * exact[layer].norm()
        assert not torch.equal(rounded[layer], exact[layer])


def test_raster_order_and_one_start_vector_are_the_default(model: ImageGPT) -> None:
    tokens = model.tokenizer.encode(PICTURES)
    places = raster(model.config, model.device)
    assert places.carried.tolist() == [6, 0, 1, 2, 3, 4] and places.predicted.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(model(tokens, prefix=model.prefix(), positions=places), model(tokens))


@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
def test_a_model_of_such_tokens_learns_and_is_saved(tmp_path: Path, objective: Any) -> None:
    """Through pretrain and its resumption, on square pictures of 6 x 6 pixels."""
    first = ImageGPT(ImageGPTConfig(1, 16, 2, 3, 5, objective=objective))
    first.tokenizer = Averages(5)
    nextpixel.save(first, tmp_path / "first")
    grey = np.linspace(0, 255, 16).astype(np.uint8)[:, None, None, None]
    pictures = np.broadcast_to(grey, (16, 6, 6, 3)).copy()  # every token of a picture is the same
    settings: dict[str, Any] = dict(batch_images=8, learning_rate=0.02, device="cpu", dtype="fp32", compile="off")
    run = tmp_path / "run"
    made = nextpixel.pretrain(pictures, init=str(tmp_path / "first"), out=run, steps=60, **settings)
    assert isinstance(made.tokenizer, Averages) and made.size == (6, 6)
    facts = json.loads((run / "run.json").read_text())
    assert facts["tokenizer"] == {"kind": "averages", "sha256": "averages in 5 steps", "patch": [2, 2], "levels": 5}
    losses = [json.loads(line).get("loss") for line in (run / "log.jsonl").read_text().splitlines()]
    assert min(loss for loss in losses if loss is not None) < 0.8 * np.log(5) / 4  # per pixel
    assert nextpixel.features(made, pictures, 1).shape == (16, 16)
    if objective == "autoregressive":
        assert nextpixel.nll(made, pictures).mean() < 0.8 * np.log(5) / 4
        assert len(list((run / "samples").iterdir())) > 0


def test_a_model_of_other_tokens_or_a_grid_that_is_no_square_keeps_its_own_folder(
    model: ImageGPT, tmp_path: Path
) -> None:
    nextpixel.save(model, tmp_path / "model")
    again = nextpixel.load(tmp_path / "model")
    tokens = model.tokenizer.encode(PICTURES)
    assert torch.equal(again(tokens), model(tokens)) and again.config == model.config and again.size == (6, 4)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["model_type"] == "nextpixel" and values["shape"]["side"] == [3, 2]
    with pytest.raises(InputError, match="cannot be saved for transformers"):
        nextpixel.save(model, tmp_path / "theirs", for_transformers=True)
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"levels": 5', '"levels": 4'))
    with pytest.raises(InputError, match=r"preprocessor_config.json: tokenizer: expected 5 tokens, got 4"):
        nextpixel.load(tmp_path / "model")


def test_the_card_of_a_model_with_words_draws_from_a_caption(model: ImageGPT) -> None:
    model.set_words(Words(["lemon", "cat"]))
    card = model_card(model, "ann/words")
    assert 'caption="lemon", guidance=2' in card and "pipeline_tag: text-to-image" in card and "2 words" in card
    model.set_classes(["a", "b"])
    assert "pipeline_tag: image-classification" in model_card(model, "ann/words")
