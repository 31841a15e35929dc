"""Drawing from captions: guidance over every decoder, and colours that may be used."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from models import lively, with_words
from torch import Tensor

from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette, complete, sample, stream
from nextpixel.config import SamplingConfig
from nextpixel.drawing import sampling as sampling_module
from nextpixel.drawing.loop import Row, Table, choose, token_noise
from nextpixel.drawing.sampling import draw
from nextpixel.network.decoding import Decoder, GuidedDecoder, Int8Decoder, PackedDecoder, RowDecoder
from nextpixel.network.losses import cross_entropy
from nextpixel.tokens.colors import allowed_tokens, colors_of, hex_color

CLASSIC = ImageGPTConfig(layers=2, width=64, heads=2, side=4, colors=12)
OPTIONS = dict(positions="rotary", qk_norm=True, activation="squared-relu", mix_input=True, logit_cap=15.0)
MODERN = ImageGPTConfig(2, 64, 2, 4, 12, **OPTIONS)
CAPTIONS = ["long red hair, glasses", "green shirt", "happy, hat"]
PICTURES = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8)

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
EVERY = [Decoder, RowDecoder, PackedDecoder, pytest.param(Int8Decoder, id="int8", marks=needs_compiler)]


@pytest.fixture(params=[CLASSIC, MODERN], ids=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> ImageGPT:
    return with_words(request.param, torch.float32)


def tags(model: ImageGPT, captions: list[str]) -> Tensor:
    assert model.words is not None
    return model.words.encode(captions)


def drawn(model: ImageGPT, decoder: Decoder, guidance: list[float], known: int = 4, **settings: Any) -> list[list[Any]]:
    """Tokens and nats of rows that continue the same prompt after the captions, in turn, with these guidances."""
    of = [i % len(CAPTIONS) for i in range(len(guidance))]
    rows = [
        Row(token_noise(1, i, 0, 16), SamplingConfig(guidance=s, seed=i, **settings), known)
        for i, s in enumerate(guidance)
    ]
    table: Table[Row] = Table(decoder)
    table.begin(rows, prompt(known).expand(len(CAPTIONS), -1), of, model.prefix(0, tags(model, CAPTIONS)))
    found: list[list[Any]] = [[] for _ in rows]
    for together, tokens, nats in table:
        for row, pair in zip(together, zip(tokens.tolist(), nats.tolist()), strict=True):
            found[rows.index(row)].append(pair)
    return found


def prompt(known: int) -> Tensor:
    return torch.randint(0, 12, (1, known), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", EVERY)
def test_with_guidance_1_everything_is_as_without(model: ImageGPT, kind: type[Decoder]) -> None:
    plain, guided = drawn(model, kind(model, 6), [1] * 6), drawn(model, GuidedDecoder(kind, model, 6), [1] * 6)
    for one, other in zip(plain, guided, strict=True):
        assert [token for token, _ in one] == [token for token, _ in other]
        assert np.allclose([nats for _, nats in one], [nats for _, nats in other], atol=1e-4)


@pytest.mark.parametrize("kind", EVERY)
def test_rows_of_different_guidance_are_drawn_as_by_themselves(model: ImageGPT, kind: type[Decoder]) -> None:
    strengths = [1.0, 3.0, 0.5, 1.0, 0.0, 2.0]
    together = drawn(model, GuidedDecoder(kind, model, 6), strengths)
    for i in range(6):
        alone = drawn(model, GuidedDecoder(kind, model, 6), [strengths[i]] * 6)[i]
        assert [token for token, _ in alone] == [token for token, _ in together[i]]
    assert len({tuple(token for token, _ in row) for row in together}) > 3


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("known", [0, 5])
def test_guided_logits_are_those_of_two_passes(model: ImageGPT, kind: type[Decoder], known: int) -> None:
    tokens = torch.randint(0, 12, (3, 16), generator=torch.Generator().manual_seed(3))
    decoder = GuidedDecoder(kind, model, 3)
    logits, read = decoder.prefill(tokens[:, :known], model.prefix(0, tags(model, CAPTIONS)))
    decoder.fill(torch.arange(3), read, torch.arange(3))
    parts = [logits, *(decoder.step(tokens[:, t]).clone() for t in range(known, 15))]
    found = torch.stack(parts, 2)  # (3, 2, 16 - known, K)
    expected = torch.stack([model(tokens, tags=tags(model, CAPTIONS)), model(tokens)], 1)[:, :, known:]
    spread = expected.std()
    assert (expected[:, 0] - expected[:, 1]).abs().max() > spread / 2
    bound = 0.2 * spread if kind is Int8Decoder else 1e-4
    assert (found - expected).abs().max() < bound
    if kind is Int8Decoder:  # whose rows are bit for bit those of an unguided decoder
        for half, prefix in enumerate([model.prefix(0, tags(model, CAPTIONS)), model.prefix().expand(3, -1, -1)]):
            plain = kind(model, 3)
            logits, read = plain.prefill(tokens[:, :known], prefix)
            plain.fill(torch.arange(3), read, torch.arange(3))
            steps = [logits, *(plain.step(tokens[:, t]).clone() for t in range(known, 15))]
            assert torch.equal(torch.stack(steps, 1), found[:, half])


@pytest.mark.parametrize("strength", [0.0, 1.5, 4.0])
def test_tokens_are_drawn_from_the_guided_logits_and_nats_are_the_model_s(strength: float) -> None:
    model = with_words(CLASSIC)
    sampling = SamplingConfig(guidance=strength, speed="exact", seed=5)
    drawing = draw(model, PICTURES, keep=0.25, n=2, sampling=sampling, caption=CAPTIONS)
    tokens = model.tokenizer.encode(drawing.images)
    own, plain = model(tokens, tags=tags(model, CAPTIONS).repeat_interleave(2, 0)), model(tokens)
    by_hand = plain + strength * (own - plain)
    for i in range(6):
        noise = torch.from_numpy(token_noise(5, i // 2, i % 2, 16))
        assert torch.equal(choose(by_hand[i], noise, SamplingConfig())[4:], tokens[i, 4:])
    nats = cross_entropy(own, tokens, reduction="none")[:, 4:].mean(1)
    assert np.allclose(drawing.nats, nats, atol=1e-5)


@pytest.mark.parametrize("kind", [RowDecoder, PackedDecoder, EVERY[-1]])
def test_guided_rows_join_leave_and_change_places(model: ImageGPT, kind: type[RowDecoder]) -> None:
    prefix = model.prefix(0, tags(model, CAPTIONS))
    tokens = torch.randint(0, 12, (3, 16), generator=torch.Generator().manual_seed(3))
    expected = []
    for i, known in enumerate((2, 0, 9)):
        alone: Table[Row] = Table(GuidedDecoder(kind, model, 1))
        row = Row(token_noise(0, i, 0, 16), SamplingConfig(guidance=1 + i), known)
        alone.begin([row], tokens[i : i + 1, :known], [0], prefix[i : i + 1])
        expected.append([int(drawn) for _, drawn, _ in alone])
    table: Table[Row] = Table(GuidedDecoder(kind, model, 2))
    rows = [Row(token_noise(0, i, 0, 16), SamplingConfig(guidance=1 + i), known) for i, known in enumerate((2, 0, 9))]
    table.begin(rows[:1], tokens[:1, :2], [0], prefix[:1])
    found: list[list[int]] = [[], [], []]
    for number, (together, chosen, _) in enumerate(table):
        for one, token in zip(together, chosen.tolist(), strict=True):
            found[rows.index(one)].append(token)
        if number == 3:
            table.begin(rows[2:], tokens[2:, :9], [0], prefix[2:])
        if table.free + sum(one.position == 16 for one in table.rows) and number == 11:
            table.drop_finished()
            table.begin(rows[1:2], tokens[1:2, :0], [0], prefix[1:2])
    assert found == expected


def test_several_captions_are_drawn_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_words(CLASSIC)
    settings = SamplingConfig(guidance=2.0, speed="exact")
    whole = draw(model, None, n=3, sampling=settings, caption=CAPTIONS)
    assert whole.images.shape == (9, 4, 4, 3)
    first = draw(model, None, n=3, sampling=settings, caption=CAPTIONS[0])
    assert np.array_equal(first.images, whole.images[:3])
    monkeypatch.setattr(sampling_module, "MAX_ROWS", 2)
    cut = draw(model, None, n=3, sampling=settings, caption=CAPTIONS)
    assert np.array_equal(cut.images, whole.images)
    completed = draw(model, PICTURES, n=2, sampling=settings, caption=CAPTIONS)
    single = draw(model, PICTURES[:1], n=2, sampling=settings, caption=CAPTIONS[:1])
    assert np.array_equal(completed.images[:2], single.images)
    assert not np.array_equal(completed.images, draw(model, PICTURES, n=2, sampling=settings, caption="hat").images)


def test_public_functions_take_captions() -> None:
    model = with_words(CLASSIC)
    assert len(sample(model, 2, caption="red hair", guidance=1.5)) == 2
    assert len(sample(model, 2, caption=CAPTIONS)) == 6
    assert len(complete(model, PICTURES, n=2, caption="red hair")) == 6
    rows = list(stream(model, PICTURES[:1], caption="hat", guidance=2, speed="exact"))
    assert [row.y for row in rows] == [2, 3]
    [whole] = draw(model, PICTURES[:1], sampling=SamplingConfig(guidance=2, speed="exact"), caption="hat").images
    assert np.array_equal(whole[2:], np.stack([row.pixels[0] for row in rows]))


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (True, {"caption": "red zebra"}, r"caption: expected words that the model knows, got 'zebra'"),
        (True, {"caption": ", ".join(["red"] * 17)}, r"caption: expected at most 16 tags"),
        (True, {"guidance": 2.0}, r"guidance: expected 1, without `caption`, got 2"),
        (True, {"guidance": 101.0, "caption": "red"}, r"guidance: expected at most 100, got 101"),
        (True, {"guidance": float("nan"), "caption": "red"}, r"guidance: expected a number of 0 or more"),
        (True, {"caption": []}, r"caption: expected at least one, got none"),
        (True, {"caption": 3}, r"caption: expected text, or several texts, got 3"),
        (True, {"caption": ["red", None]}, r"caption: expected text, or several texts, got \['red', None\]"),
        (False, {"caption": "red"}, r"caption: expected none, as the model was trained without captions, got one"),
        (False, {"guidance": 2.0}, r"guidance: expected 1, as the model was trained without captions, got 2"),
        (False, {"allow_colors": "#012345"}, r"allow_colors: expected colours of the model, got #012345, which is"),
        (False, {"allow_colors": "12"}, r"allow_colors: expected #rrggbb, #rrggbbaa or a number up to 11"),
        (False, {"forbid_colors": "red"}, r"forbid_colors: expected #rrggbb, .* got 'red'"),
        (False, {"allow_colors": "3", "forbid_colors": "3"}, r"forbid_colors: expected at least one of 12 colours"),
        (False, {"allow_colors": 3}, r"allow_colors: expected text as in"),
        (False, {"allow_colors": ""}, r"allow_colors: expected #rrggbb, .* got ''"),
    ],
)
def test_bad_captions_guidance_and_colours_are_refused(words: bool, settings: Any, message: str) -> None:
    model = with_words(CLASSIC)
    if not words:
        model = lively(CLASSIC)
        model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    with pytest.raises(InputError, match=message):
        sample(model, 1, **settings)


def test_a_number_of_captions_unlike_that_of_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="caption: expected one, or one for each of 3 pictures, got 2"):
        complete(with_words(CLASSIC), PICTURES, caption=CAPTIONS[:2])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 30.0}])
def test_only_allowed_colours_are_drawn(settings: Any) -> None:
    model = with_words(CLASSIC)
    colors = colors_of(model.tokenizer)
    assert colors is not None
    named = f"{hex_color(colors[4])}, 7,{hex_color(colors[9]).upper()}ff"
    pictures = np.stack([np.asarray(p) for p in sample(model, 8, allow_colors=named, speed="exact", **settings)])
    assert set(model.tokenizer.encode(pictures).unique().tolist()) <= {4, 7, 9}
    pictures = np.stack([np.asarray(p) for p in sample(model, 8, forbid_colors=named, speed="exact", **settings)])
    assert not set(model.tokenizer.encode(pictures).unique().tolist()) & {4, 7, 9}
    both = sample(model, 8, allow_colors=named, forbid_colors="7,4", **settings)
    assert set(model.tokenizer.encode(np.stack([np.asarray(p) for p in both])).unique().tolist()) == {9}


def test_allowed_colours_leave_their_relative_probabilities(model: ImageGPT) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).expand(20_000, -1)
    allowed = torch.zeros(12, dtype=torch.bool)
    allowed[[2, 5, 11]] = True
    noise = torch.from_numpy(np.random.default_rng(0).random(20_000))
    counts = choose(logits, noise, SamplingConfig(), allowed).bincount(minlength=12) / 20_000
    assert (counts - logits[0].masked_fill(~allowed, float("-inf")).softmax(0)).abs().max() < 0.015


def test_transparent_colours_and_all_tokens_of_a_colour_are_found() -> None:
    class Four:
        rgba = np.array([[0, 0, 0, 0], [255, 0, 0, 255], [255, 0, 0, 128], [255, 0, 0, 255]], np.uint8)

        def __len__(self) -> int:
            return 4

    four: Any = Four()
    for named, tokens in [("#ff0000", [1, 3]), ("#ff000080", [2]), ("#12345600", [0]), ("0,2", [0, 2])]:
        found = allowed_tokens(four, named, None)
        assert found is not None and np.flatnonzero(found).tolist() == tokens
    with pytest.raises(InputError, match="near: #ff0000, #ff000080, #00000000"):
        allowed_tokens(four, "#fe0000", None)
    assert allowed_tokens(four, None, None) is None


def test_rows_with_other_colours_stand_side_by_side() -> None:
    model = with_words(CLASSIC)
    table: Table[Row] = Table(RowDecoder(model, 3))
    masks = [None, torch.arange(12) < 3, torch.arange(12) >= 9]
    rows = [Row(token_noise(0, i, 0, 16), SamplingConfig(), 0, mask) for i, mask in enumerate(masks)]
    table.begin(rows, torch.empty((1, 0), dtype=torch.int64), [0, 0, 0])
    drawn = torch.stack([tokens for _, tokens, _ in table])
    assert (drawn[:, 1] < 3).all() and (drawn[:, 2] >= 9).all() and drawn[:, 0].unique().numel() > 3
