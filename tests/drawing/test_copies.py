"""Copies of training pictures among drawn ones, counted and redrawn."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively
from PIL import Image

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig, InputError, WorkError
from nextpixel.cli import main
from nextpixel.config import SamplingConfig
from nextpixel.drawing.copies import draw_without_copies, find_copies
from nextpixel.drawing.sampling import Drawing, draw
from nextpixel.tokens.training_pictures import TrainingPictures
from nextpixel.training import pretraining

EXACT = SamplingConfig(speed="exact", seed=3)
PALETTE = [(0, 0, 0, 0), (200, 0, 0, 255), (0, 0, 250, 255), (0, 90, 0, 255)]


def keep(model: ImageGPT, images: np.ndarray, held_out: np.ndarray | None = None) -> None:
    tokens = model.tokenizer.encode(images).numpy()
    others = tokens[:1] if held_out is None else model.tokenizer.encode(held_out).numpy()
    model.training_pictures = TrainingPictures.of(tokens, others, model.config.columns, 0, 4)


@pytest.fixture
def model() -> ImageGPT:
    """Of 4 x 4 pixels, which are all different in any two drawn pictures."""
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=4), torch.float32)
    model.tokenizer = ExactPalette(PALETTE)
    return model


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several, the last digits of nats depend on the number of rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_by(model: ImageGPT, n: int, first: int) -> Drawing:
    return draw(model, None, n=n, sampling=EXACT, first=first)


def test_completions_are_numbered_on(model: ImageGPT, one_thread: None) -> None:
    whole, later = draw_by(model, 6, 0), draw_by(model, 4, 2)
    assert np.array_equal(whole.images[2:], later.images) and np.array_equal(whole.nats[2:], later.nats)
    assert len(np.unique(whole.images.reshape(6, -1), axis=0)) == 6


def test_shares_are_counted(model: ImageGPT) -> None:
    drawn = draw_by(model, 4, 0).images
    near = drawn[1:2].copy()
    near[0, 3, 1:] = 200 - near[0, 3, 1:]  # three pixels, of colours that become others
    changed = int((model.tokenizer.encode(near) != model.tokenizer.encode(drawn[1:2])).sum())
    assert 1 <= changed <= 3
    keep(model, np.concatenate([drawn[:1], near]), held_out=drawn[1:3])
    copies = find_copies(model, drawn)
    assert (
        copies is not None and copies.distances[:2].tolist() == [0, changed] and copies.nearest[:2].tolist() == [0, 1]
    )
    figures = copies.figures()
    assert figures["drawn_exact"] == 0.25 and figures["drawn_within_3"] == (copies.distances <= 3).mean() >= 0.5
    assert figures["held_out_exact"] == 0 and figures["held_out_within_3"] >= 0.5
    assert str(copies).startswith("copies of training pictures: 25% (within 3 pixels: ")


def test_copies_are_replaced_by_the_next_pictures(model: ImageGPT) -> None:
    all_drawn = draw_by(model, 20, 0)
    keep(model, all_drawn.images[[0, 2]])
    copies = find_copies(model, all_drawn.images)
    assert copies is not None
    own = np.flatnonzero(copies.distances > 3)
    drawing, others = draw_without_copies(model, 4, lambda n, first: draw_by(model, n, first))
    assert np.array_equal(drawing.images, all_drawn.images[own[:4]]) and others == own[3] - 3 >= 2
    assert np.allclose(drawing.nats, all_drawn.nats[own[:4]], atol=1e-5)


def test_where_all_are_copies_or_none_are_kept(model: ImageGPT) -> None:
    with pytest.raises(InputError, match="no_copies: expected a model that keeps its training pictures"):
        draw_without_copies(model, 2, lambda n, first: draw_by(model, n, first))
    keep(model, draw_by(model, 20, 0).images)
    with pytest.raises(WorkError, match="all 20 drawn pictures were copies"):
        draw_without_copies(model, 2, lambda n, first: draw_by(model, n, first))


def test_training_pictures_are_encoded_in_parts_by_the_first_process(
    model: ImageGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    palette = model.tokenizer
    tokens = np.random.default_rng(0).integers(0, len(palette), (1_030, model.config.tokens))
    pictures, sizes, encode = palette.decode(tokens), [], palette.encode
    monkeypatch.setattr(palette, "encode", lambda part: sizes.append(len(part)) or encode(part))
    numbers = np.arange(1_029, -1, -1)
    kept = pretraining._kept_pictures(model, pictures, numbers, pictures)
    assert kept is not None and sizes == [1_024, 6, 200]
    assert np.array_equal(kept.tokens, TrainingPictures.of(tokens[numbers], tokens, model.config.columns, 0, 4).tokens)
    monkeypatch.setattr(pretraining, "is_first", lambda: False)
    assert pretraining._kept_pictures(model, pictures, numbers, pictures) is None
    monkeypatch.setattr(pretraining, "is_first", lambda: True)
    assert pretraining._kept_pictures(model, pictures, np.zeros(50_001, np.int64), pictures) is None
    assert len(sizes) == 3


def test_they_travel_with_the_weights_and_sample_counts_them(
    model: ImageGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keep(model, draw_by(model, 10, 0).images)
    nextpixel.save(model, "model")
    nextpixel.save(nextpixel.load("model"), "again")
    line = "sample --model again --seed 3 --speed exact -n"
    assert main([*line.split(), "20"]) == 0
    out = capsys.readouterr().out
    assert "copies of training pictures: " in out
    assert "; 100% (within 3 pixels: 100%) of the held-out real pictures" in out
    assert main([*line.split(), "4"]) == 0
    assert "copies" not in capsys.readouterr().out
    assert main([*line.split(), "2", "--no-copies", "--each", "all"]) == 0
    assert "copies were drawn and left out" in capsys.readouterr().err
    images = np.stack([np.asarray(Image.open(path).convert("RGBA")) for path in sorted(Path("all").iterdir())])
    copies = find_copies(model, images)
    assert copies is not None and len(images) == 2 and copies.distances.min() > 3
    assert main(["sample", "--no-copies"]) == 2
    assert "--no-copies: expected a model that keeps its training pictures" in capsys.readouterr().err
