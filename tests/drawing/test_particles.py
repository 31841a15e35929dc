"""Particles against a model whose distribution over a hole is enumerated, and their other properties."""

import shutil
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import lively
from numpy.typing import NDArray

from nextpixel import ImageGPT, ImageGPTConfig, Palette
from nextpixel.config import SamplingConfig
from nextpixel.drawing.guide import FREE, REACH, Guide, steered
from nextpixel.drawing.loop import Row, Table, token_noise
from nextpixel.drawing.particles import Particles, effective_size, systematic
from nextpixel.network.decoding import Int8Decoder, PackedDecoder, RowDecoder

ROWS = 256  # of a table
GREYS = np.repeat(np.array([[-0.1], [-0.05], [0.0], [0.05]]), 3, 1)
KNOWN = np.array([1, FREE, 2, 0, 3, FREE, 0, 1, 3])  # 3 x 3, some known before, between and after
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")


def complete_greys(spread: float, **options: Any) -> ImageGPT:
    """A model of 3 x 3 pixels in four greys, whose logits have about this spread."""
    model = lively(ImageGPTConfig(layers=2, width=32, heads=2, side=3, colors=4, **options), torch.float32)
    with torch.no_grad():
        model.head.weight.normal_(0, spread / 32**0.5, generator=torch.Generator().manual_seed(4))
    model.palette = Palette(GREYS)
    return model


@cache
def case(kind: Any = RowDecoder) -> tuple[ImageGPT, NDArray[np.float64], float]:
    """The model, this decoder's true distribution over the 16 fillings of KNOWN, and the logarithm of the evidence."""
    model = complete_greys(1.2)
    filled = np.tile(KNOWN, (16, 1))
    filled[:, KNOWN == FREE] = np.indices((4, 4)).reshape(2, -1).T
    tokens, joint = torch.from_numpy(filled), torch.zeros(16, dtype=torch.float64)
    with torch.inference_mode():
        decoder, every = kind(model, 16), torch.arange(16)
        logits, cache = decoder.prefill(tokens[:1, :1])  # the first pixel is the prompt
        decoder.fill(every, cache, torch.zeros_like(every))
        for position in range(1, 9):
            joint += logits.double().log_softmax(-1).expand(16, -1)[every, tokens[:, position]]
            logits = decoder.step(tokens[:, position])
    return model, joint.softmax(0).numpy(), joint.logsumexp(0).item()


class Weighed(Particles):
    """Its `shares` (16,) are the probabilities with which each filling is drawn from these particles."""

    def _finish(self) -> None:
        if self.chosen is None:
            weights = np.exp(self.log_weights - self.log_weights.max())
            self.shares = np.bincount(numbers(self.tokens), weights / weights.sum(), 16)
        super()._finish()


def numbers(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the 16 fillings each of tokens (N, T) is."""
    return np.asarray(tokens[:, KNOWN == FREE] @ [4, 1])


def run(
    model: ImageGPT,
    known: NDArray[np.int64],
    completions: int,
    *,
    decoder: Any = RowDecoder,
    of: type[Particles] = Particles,
    **settings: Any,
) -> list[Particles]:
    """Completions of the particles of one picture, as many at a time as a table has rows."""
    table: Table[Row] = Table(decoder(model, ROWS))
    settings = {"particles": 8} | settings
    runs = [of(known, model.config.columns, completion=i, **settings) for i in range(completions)]
    waiting = [one for one in runs if one.position < len(known)]
    while waiting:
        taken = [waiting.pop() for _ in range(min(len(waiting), ROWS // len(waiting[0].rows)))]
        rows = [row for one in taken for row in one.rows]
        table.begin(rows, taken[0].prompt, [0] * len(rows))
        for _ in table:
            pass
    return runs


def shares(runs: list[Particles]) -> NDArray[np.float64]:
    """How often each of the 16 fillings was drawn."""
    drawn = np.stack([one.final for one in runs])
    assert (drawn[:, KNOWN != FREE] == KNOWN[KNOWN != FREE]).all()
    return np.bincount(numbers(drawn), minlength=16) / len(runs)


def variation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).sum() / 2)


@pytest.mark.parametrize(
    ("kind", "guided"),
    [
        pytest.param(RowDecoder, False, id="plain"),
        pytest.param(RowDecoder, True, id="guided"),
        pytest.param(PackedDecoder, True, id="packed"),
        pytest.param(Int8Decoder, True, id="int8", marks=needs_compiler),
    ],
)
def test_particles_draw_the_true_distribution_and_estimate_the_evidence(kind: Any, guided: bool) -> None:
    """Total variation and evidence against enumeration by the same decoder.

    300 draws of a perfect sampler differ by 0.05 from the true distribution. So the mean of the probabilities with
    which they are drawn is compared with it, and the draws with that mean.
    """
    model, true, evidence = case(kind)
    guide = Guide(model.tokenizer) if guided else None
    runs = run(model, KNOWN, 300, decoder=kind, of=Weighed, particles=32, sampling=SamplingConfig(), guide=guide)
    expected = np.mean([one.shares for one in runs if isinstance(one, Weighed)], 0)
    assert variation(expected, true) < 0.03
    perfect = np.random.default_rng(0).multinomial(300, expected / expected.sum(), 1_000) / 300
    assert variation(shares(runs), expected) < np.quantile(np.abs(perfect - expected).sum(1) / 2, 0.99)
    ratios = np.exp([one.log_evidence - evidence for one in runs])
    assert abs(ratios.mean() - 1) < 0.02


def test_clamping_is_not_sampling() -> None:
    model, true, _ = case()
    runs = run(model, KNOWN, 300, particles=1, sampling=SamplingConfig())
    assert variation(shares(runs), true) > 0.3


def test_the_likeliest_of_several_candidates_is_not_a_sample() -> None:
    model, true, _ = case()
    runs = run(model, KNOWN, 16 * 60, particles=1, sampling=SamplingConfig())
    weights = np.array([one.log_evidence - one.nats.sum() for one in runs]).reshape(60, 16)
    best = [runs[16 * i + int(k)] for i, k in enumerate(weights.argmax(1))]
    assert variation(shares(best), true) > 0.25


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_hole_is_filled_and_nothing_else(data: st.DataObject) -> None:
    rows, columns = data.draw(st.sampled_from([(4, 3), (2, 5), (3, 3), (1, 6), (6, 1)]))
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=(rows, columns), colors=4), torch.float32)
    model.palette = Palette(GREYS)
    free = np.array(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    tokens = np.random.default_rng(0).integers(0, 4, rows * columns)
    guide = data.draw(st.sampled_from([None, Guide(model.palette)]))
    runs = run(
        model, np.where(free, FREE, tokens), 2, particles=data.draw(st.integers(1, 5)), sampling=SamplingConfig(),
        guide=guide,
    )  # fmt: skip
    for one in runs:
        assert np.array_equal(one.final[~free], tokens[~free])
        assert (one.final >= 0).all() and one.agreed.all() and np.isfinite(one.log_evidence)
        assert one.ancestors_left >= 1


@pytest.mark.parametrize("known_rows", [0, 1, 2])
def test_a_hole_with_nothing_known_below_is_drawn_as_any_picture(known_rows: int) -> None:
    model = case()[0]
    tokens = np.array([1, 2, 0, 3, 3, 1, 0, 2, 2])
    known = np.where(np.arange(9) < 3 * known_rows, tokens, FREE)
    sampling = SamplingConfig(temperature=0.9, top_k=3, seed=4)
    runs = run(model, known, 5, sampling=sampling, guide=Guide(model.tokenizer))
    table: Table[Row] = Table(RowDecoder(model, 5))
    rows = [Row(token_noise(4, 0, i, 9), sampling, 3 * known_rows) for i in range(5)]
    table.begin(rows, torch.from_numpy(known[None, : 3 * known_rows]), [0] * 5)
    drawn = torch.stack([found for _, found, _ in table], 1).numpy()
    assert np.array_equal(np.stack([one.final for one in runs])[:, 3 * known_rows :], drawn)
    assert all(one.log_evidence == 0 for one in runs)


def test_nats_are_those_of_the_drawn_tokens() -> None:
    model = case()[0]
    for one in run(model, KNOWN, 20, particles=8, sampling=SamplingConfig(), guide=Guide(model.tokenizer)):
        tokens = torch.from_numpy(one.final)[None]
        logs = model(tokens).log_softmax(-1).gather(-1, tokens[..., None])[0, :, 0].numpy()
        assert np.isclose(one.nats[one.chosen or 0], -logs[KNOWN == FREE].sum(), atol=1e-4)


def test_completions_do_not_depend_on_each_other() -> None:
    model = case()[0]
    three = run(model, KNOWN, 3, particles=4, sampling=SamplingConfig(seed=2, speed="exact"))
    many = run(model, KNOWN, 9, particles=4, sampling=SamplingConfig(seed=2, speed="exact"))
    assert all(np.array_equal(a.final, b.final) for a, b in zip(three, many, strict=False))
    assert len({one.final.tobytes() for one in many}) > 1


def test_systematic_resampling_keeps_expected_counts() -> None:
    weights = np.log(np.array([0.5, 0.25, 0.15, 0.1]))
    counts = np.mean([systematic(weights, 8, noise) for noise in np.linspace(0, 0.999, 1000)], 0)
    assert np.allclose(counts, [4, 2, 1.2, 0.8], atol=0.01)
    assert np.array_equal(systematic(np.array([0.0, -1e9, -1e9]), 3, 0.999), [3, 0, 0])
    assert effective_size(np.zeros(5)) == pytest.approx(5) and effective_size(weights) < 4


def test_a_guide_prefers_colours_near_the_known_ones() -> None:
    ratios = Guide(Palette(GREYS)).log_ratios(1, 1)
    assert ratios[1] > ratios[0] > ratios[2] > ratios[3]
    colours = np.array([[0.0, 0, 0], [0.2, 0.2, 0.2], [0.2, 0, -0.2]])
    brighter, other_hue = Guide(Palette(colours)).log_ratios(1, 0)[1:]
    assert brighter > other_hue


def test_a_guide_of_many_tokens_compares_each_with_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = np.random.default_rng(0).uniform(-0.5, 0.5, (600, 3))
    exact = Guide(Palette(colours))
    monkeypatch.setattr("nextpixel.drawing.guide.COMPARED", (599, 200))
    compared: list[int] = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: compared.append(len(b)) or cdist(a, b))
    sampled = Guide(Palette(colours))
    assert compared == [200, 200]
    for distance in range(1, REACH + 1):
        assert (sampled.log_ratios(distance, 7) - exact.log_ratios(distance, 7)).abs().max() < 0.7


def test_a_token_is_steered_by_the_first_known_one_to_its_right_and_below() -> None:
    known = np.full((REACH + 2, 3), FREE)
    known[-1, 0], known[1, 2], known[2, 2] = 1, 2, 3
    found = set(steered(known.reshape(-1), 3))
    right = {(3, 5, 2), (4, 5, 1), (6, 8, 2), (7, 8, 1)}
    below = {(2, 5, 1)} | {(3 * row, 3 * (REACH + 1), REACH + 1 - row) for row in range(1, REACH + 1)}
    assert found == right | below
