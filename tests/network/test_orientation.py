"""Eight ways for a picture to lie: the network is told which, and can go on from any side."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import COLORS, photos, settings

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.data.decoded import Batches
from nextpixel.drawing.sampling import draw
from nextpixel.images import orient, undo_orient

CONFIG = ImageGPTConfig(layers=2, width=16, heads=2, side=4, colors=8, orientations=8)


@pytest.fixture
def model() -> ImageGPT:
    model = ImageGPT(CONFIG, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    model.palette = Palette(COLORS / 127.5 - 1)
    return model.requires_grad_(False)


@pytest.fixture
def squares() -> np.ndarray:
    return COLORS[np.random.default_rng(3).integers(0, 8, (3, 4, 4))]


def test_all_orientations_differ_and_turn_back(squares: np.ndarray) -> None:
    turned = [orient(squares, orientation) for orientation in range(8)]
    assert len({one.tobytes() for one in turned}) == 8
    assert all(np.array_equal(undo_orient(one, orientation), squares) for orientation, one in enumerate(turned))
    assert np.array_equal(turned[1][:, 0], squares[:, :, -1])  # the right side is at the top
    assert np.array_equal(turned[2][:, 0], squares[:, -1, ::-1])  # the bottom
    assert np.array_equal(turned[3][:, 0], squares[:, ::-1, 0])  # the left side


def test_each_row_of_the_start_table_acts_and_one_number_stands_for_all(model: ImageGPT) -> None:
    tokens = torch.zeros(8, 16, dtype=torch.int64)
    logits = model(tokens, orientation=torch.arange(8))
    assert len({row.numpy().tobytes() for row in logits}) == 8
    assert torch.allclose(logits[5], model(tokens[:1], orientation=5)[0], atol=1e-6)
    assert torch.allclose(logits[0], model(tokens[:1])[0], atol=1e-6)
    cache = model.new_cache(1)
    parts = [model.extend(tokens[:1, :4], cache, model.prefix(5)), model.extend(tokens[:1, 4:15], cache)]
    assert torch.allclose(torch.cat(parts, 1)[0], logits[5], atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters


@pytest.mark.parametrize("side", ["top", "right", "bottom", "left"])
def test_the_kept_side_keeps_its_tokens_and_is_read_turned(model: ImageGPT, squares: np.ndarray, side: str) -> None:
    drawing = draw(model, squares, keep=0.5, n=2, keep_side=side)
    rows, columns = {"top": (slice(2), slice(4)), "bottom": (slice(2, 4), slice(4)),
                     "left": (slice(4), slice(2)), "right": (slice(4), slice(2, 4))}[side]  # fmt: skip
    expected = np.zeros((4, 4), bool)
    expected[rows, columns] = True
    assert np.array_equal(drawing.kept, expected)
    assert np.array_equal(drawing.images[:, drawing.kept], np.repeat(squares, 2, 0)[:, drawing.kept])
    orientation = {"top": 0, "right": 1, "bottom": 2, "left": 3}[side]
    tokens = model.palette.encode(orient(drawing.images, orientation))
    logits = model(tokens, orientation=orientation)
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")[:, 8:].mean(1)
    assert np.allclose(drawing.nats, nats.numpy(), atol=1e-4)  # exactly this model's, given how the picture lies


def test_a_model_that_only_saw_upright_pictures_says_so(squares: np.ndarray) -> None:
    model = ImageGPT(ImageGPTConfig(layers=1, width=8, heads=1, side=4, colors=8))
    model.palette = Palette(COLORS / 127.5 - 1)
    with pytest.raises(InputError, match=r"keep_side: left .* `augment=orient`"):
        draw(model, squares, keep_side="left")
    with pytest.raises(InputError, match="keep_side: expected one of top, right, bottom, left"):
        draw(model, squares, keep_side="middle")


def test_batches_turn_each_image_as_they_say(squares: np.ndarray) -> None:
    many = np.tile(squares, (20, 1, 1, 1))
    batches = Batches(many, np.arange(60), size=(4, 4), batch_images=30, augment="orient", seed=4)
    for step in range(3):
        shown, numbers, lie = batches(step), batches.numbers(step), batches.orientations(step)
        assert len(set(lie.tolist())) > 4
        for one, number, orientation in zip(shown, numbers, lie, strict=True):
            assert np.array_equal(one, orient(many[number][None], int(orientation))[0])
    assert not Batches(many, np.arange(60), size=(4, 4), batch_images=30, augment="flip", seed=4).orientations(0).any()


def test_a_trained_model_knows_how_a_picture_lies(tmp_path: Path) -> None:
    """Rows of one colour each, turned: the first pixel of a row tells the rest only where rows lie flat."""
    photos(tmp_path, 200)
    tiny = settings(tmp_path, augment="orient", steps=150, batch_images=16, micro_batch_images=16, sample_images=0,
                    evaluate_every_steps=150, checkpoint_every_steps=150, learning_rate=0.02)  # fmt: skip
    model = nextpixel.pretrain(tmp_path / "photos.npy", out=tmp_path / "run", cache=str(tmp_path / "cache"), **tiny)
    assert model.config.orientations == 8 and not model.config.is_classic
    tokens = model.palette.encode(np.load(tmp_path / "photos.npy")[:64])
    with torch.inference_mode():
        losses = [
            float(torch.nn.functional.cross_entropy(model(tokens, orientation=lie).transpose(1, 2), tokens))
            for lie in (0, 1)
        ]
    assert losses[0] < losses[1] - 0.05  # flat rows are expected upright, and not on their side


def test_orientations_that_make_no_network_are_refused() -> None:
    with pytest.raises(InputError, match="orientations: expected 1, or 8"):
        ImageGPTConfig(orientations=3)
    with pytest.raises(InputError, match="masked"):
        ImageGPTConfig(orientations=8, objective="masked")
