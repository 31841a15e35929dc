import copy

import numpy as np
import pytest
import torch
from models import lively

from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette, complete, sample, stream
from nextpixel.config import SamplingConfig
from nextpixel.drawing import sampling as sampling_module
from nextpixel.drawing.loop import choose, token_noise
from nextpixel.drawing.sampling import draw

CONFIG = ImageGPTConfig(layers=2, width=32, heads=4, side=6, colors=12)


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    model = lively(CONFIG)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    return model


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3), np.uint8)


def test_the_kept_rows_keep_their_tokens_exactly(model: ImageGPT, pictures: np.ndarray) -> None:
    for keep, rows in [(0.0, 0), (0.5, 3), (0.8, 5)]:
        drawing = draw(model, pictures, keep=keep, n=2)
        assert drawing.kept.all(1).sum() == rows
        tokens = model.palette.encode(drawing.images)[:, : rows * 6]
        assert torch.equal(tokens, model.palette.encode(pictures)[:, : rows * 6].repeat_interleave(2, 0))


def test_an_image_is_the_same_alone_and_in_a_batch(model: ImageGPT, pictures: np.ndarray) -> None:
    together = draw(model, pictures, n=3, sampling=SamplingConfig(seed=7)).images
    alone = draw(model, pictures[:1], n=1, sampling=SamplingConfig(seed=7)).images
    more = draw(model, pictures[:1], n=5, sampling=SamplingConfig(seed=7)).images
    assert np.array_equal(together[0], alone[0])
    assert np.array_equal(together[:3], more[:3])


def test_batches_cut_by_memory_change_no_pixel(
    model: ImageGPT, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(model, pictures, n=3)
    monkeypatch.setattr(sampling_module, "MAX_ROWS", 2)
    cut = draw(model, pictures, n=3)
    assert np.array_equal(whole.images, cut.images)
    assert np.allclose(whole.nats, cut.nats)


@pytest.mark.parametrize(("dtype", "tie"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_rounding_changes_a_pixel_only_at_a_near_tie(
    model: ImageGPT, pictures: np.ndarray, dtype: torch.dtype, tie: float
) -> None:
    """Given the pixels before it, each is one that exact numbers would draw with noise at most `tie` away."""
    tokens = model.palette.encode(draw(copy.deepcopy(model).to(dtype), pictures, n=8).images)
    noise = torch.stack([torch.from_numpy(token_noise(0, row // 8, row % 8, 36)) for row in range(24)])
    probabilities = model(tokens).softmax(-1)
    above, own = (x.gather(-1, tokens[..., None])[..., 0] for x in (probabilities.cumsum(-1), probabilities))
    drawn = slice(18, None)  # the pixels behind the prompt
    assert (above - own - tie <= noise)[:, drawn].all() and (noise <= above + tie)[:, drawn].all()
    if dtype == torch.bfloat16:
        assert not np.array_equal(draw(model, pictures, n=8).images, model.palette.decode(tokens)), "rounding counts"


def test_seed_picture_and_completion_each_change_the_draw(model: ImageGPT, pictures: np.ndarray) -> None:
    same = np.stack([pictures[0]] * 2)
    drawn = draw(model, same, n=2).images
    other = draw(model, same, n=2, sampling=SamplingConfig(seed=1)).images
    assert len({image.tobytes() for image in [*drawn, *other]}) == 8


def test_nats_are_the_mean_surprise_of_the_drawn_pixels(model: ImageGPT, pictures: np.ndarray) -> None:
    drawing = draw(model, pictures, n=2, sampling=SamplingConfig(temperature=0.7, top_k=5))
    tokens = model.palette.encode(drawing.images)
    logs = model(tokens).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert np.allclose(drawing.nats, -logs[:, 18:].mean(1), atol=1e-6)


def test_rows_are_streamed_as_they_are_drawn(model: ImageGPT, pictures: np.ndarray) -> None:
    expected = draw(model, pictures, keep=0.5, n=2).images
    rows = list(stream(model, pictures, keep=0.5, n=2))
    assert [row.y for row in rows] == [3, 4, 5]
    for row in rows:
        assert np.array_equal(row.pixels, expected[row.candidates.start : row.candidates.stop, row.y])


def test_public_functions_return_one_flat_list_of_pictures(model: ImageGPT, pictures: np.ndarray) -> None:
    assert [p.size for p in complete(model, pictures, n=2)] == [(6, 6)] * 6
    assert [p.size for p in sample(model, n=3, seed=4)] == [(6, 6)] * 3


def test_drawn_frequencies_are_the_model_s_probabilities() -> None:
    """Chi-square over all 27 three-pixel beginnings of 20,000 draws; 99.99% quantile of 26 degrees is 63.2."""
    small = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=2, colors=3))
    small.palette = Palette(np.array([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]]))
    draws = [draw(small, None, n=10_000, sampling=SamplingConfig(seed=s)).images for s in (0, 1)]
    tokens = small.palette.encode(np.concatenate(draws))
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    logs = small(torch.cat([every, every[:, :1]], 1)).log_softmax(-1)[:, :3].gather(-1, every[..., None])
    expected = logs[..., 0].sum(1).exp().numpy() * 20_000
    seen = np.bincount((tokens[:, :3] * torch.tensor([9, 3, 1])).sum(1), minlength=27)
    assert ((seen - expected) ** 2 / expected).sum() < 63.2


def test_choosing_by_inversion_of_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log().repeat(5, 1)
    noise = torch.tensor([0.0, 0.499, 0.501, 0.699, 0.9999])
    assert choose(logits, noise, SamplingConfig()).tolist() == [0, 0, 1, 1, 2]


def test_narrowing_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().repeat(1000, 1)
    noise = torch.linspace(0, 0.9999, 1000)

    def reached(**settings: float) -> list[int]:
        return choose(logits, noise, SamplingConfig(**settings)).unique().tolist()

    assert reached() == [0, 1, 2, 3]
    assert reached(top_k=2) == [1, 3]
    assert reached(top_p=0.3) == [1]
    assert reached(top_p=0.69) == [1, 3]
    assert reached(top_p=0.71) == [1, 2, 3]
    assert reached(temperature=0) == [1]
    sharp = choose(logits, noise, SamplingConfig(temperature=0.5))
    assert (sharp == 1).float().mean() == pytest.approx(0.16 / 0.30, abs=0.01)


def test_of_equally_likely_colours_the_first_k_stay() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]]).repeat(1000, 1)
    noise = torch.linspace(0, 0.9999, 1000)
    assert choose(logits, noise, SamplingConfig(top_k=3)).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("wide", [torch.float64, torch.float32], ids=["cpu and cuda", "mps"])
def test_a_colour_without_probability_is_never_drawn(wide: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextpixel.drawing.loop.wide_type", lambda _: wide)
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).repeat(2, 1)
    noise = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for given in (noise, noise.to(wide)):  # as fp32 the second one is 1
        assert choose(logits, given, SamplingConfig()).tolist() == [1, 1]


@pytest.mark.parametrize("keep", [1.0, -0.1, 0.99, float("nan")])
def test_a_fraction_that_leaves_nothing_to_draw_is_refused(model: ImageGPT, pictures: np.ndarray, keep: float) -> None:
    with pytest.raises(InputError, match="keep: "):
        draw(model, pictures, keep=keep)


def test_the_smallest_temperature_takes_the_likeliest_colour() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [-9.0, -8.0, -7.0]])
    assert choose(logits, torch.tensor([0.2, 0.9]).double(), SamplingConfig(temperature=1e-320)).tolist() == [1, 2]
