"""Pictures that repeat without a seam, and how the seam is measured."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively, with_words
from torch import Tensor

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig
from nextpixel.cli import main
from nextpixel.config import SamplingConfig
from nextpixel.drawing.sampling import draw
from nextpixel.drawing.tiles import draw_tiles
from nextpixel.evaluation.seams import measure_seam

H, W = 8, 6
EXACT = SamplingConfig(speed="exact", seed=2)
COLOURS = [(10 * i, 0, 0, 255) for i in range(4)]


def small(kind: type[ImageGPT] = ImageGPT) -> ImageGPT:
    config = ImageGPTConfig(layers=1, width=16, heads=2, side=(H, W), colors=4)
    model = lively(config, torch.float32) if kind is ImageGPT else kind(config)
    model.tokenizer, model.fit = ExactPalette(COLOURS), "place"
    return model


class Smooth(ImageGPT):
    """Gives a token that is that of its left neighbour 0.9, and others 0.1 / 3; the first is uniform."""

    def forward(self, tokens: Tensor, *_: Tensor, **__: Tensor) -> Tensor:
        logits = torch.full((*tokens.shape, 4), 0.1 / 3).scatter(-1, tokens[..., None], 0.9).log()
        return torch.cat([torch.zeros(len(tokens), 1, 4), logits[:, :-1]], 1)


def test_the_seam_of_pictures_that_repeat_is_none() -> None:
    model = small(Smooth)
    rows = np.broadcast_to(np.arange(H)[:, None] % 4, (H, W))  # each row of one colour: equal across the border
    repeats = model.tokenizer.decode(torch.tensor(rows.reshape(1, -1)), W)
    found = measure_seam(model, repeats)
    assert found.across == pytest.approx(found.inside)
    assert str(found) == f"seam: {found.across:.3f} nats per pixel across the border, {found.inside:.3f} inside"


def test_the_seam_by_hand() -> None:
    model = small(Smooth)
    columns = np.broadcast_to(np.repeat([0, 1], W // 2), (H, W))
    halves = model.tokenizer.decode(torch.tensor(columns.reshape(1, -1)), W)
    found = measure_seam(model, np.roll(halves, 1, 2))
    same, other = -np.log(0.9), -np.log(0.1 / 3)
    rolled = np.roll(np.roll(columns, 1, 1), (H // 2, W // 2), (0, 1)).reshape(-1)
    expected = []
    for grid in (rolled, np.roll(columns, 1, 1).reshape(-1)):
        nats = np.array([np.log(4)] + [same if a == b else other for a, b in pairwise(grid)]).reshape(H, W)
        cross = np.zeros((H, W), bool)
        cross[H // 2], cross[:, W // 2] = True, True
        expected.append(nats[cross].mean())
    assert (found.across, found.inside) == pytest.approx(tuple(expected))


def test_borders_are_redrawn_and_the_rest_is_kept() -> None:
    model = small()
    plain, tiles = draw(model, None, n=3, sampling=EXACT), draw_tiles(model, 3, EXACT)
    changed = (plain.images != tiles.images).any((0, 3))
    border = np.zeros((H, W), bool)
    border[[0, -1]], border[:, [0, -1]] = True, True
    assert changed.any() and not changed[~border].any()
    again = draw_tiles(model, 3, EXACT)
    assert np.array_equal(tiles.images, again.images)
    assert not np.array_equal(draw_tiles(model, 1, EXACT, first=3).images[0], tiles.images[0])


def test_tiles_in_python_and_of_several_captions() -> None:
    model = small()
    shown = [np.asarray(one.convert("RGBA")) for one in nextpixel.sample(model, 2, tile=True, seed=2, speed="exact")]
    assert np.array_equal(np.stack(shown), draw_tiles(model, 2, EXACT).images)
    model = with_words(ImageGPTConfig(layers=1, width=16, heads=2, side=(H, W), colors=4), torch.float32)
    assert draw_tiles(model, 2, EXACT, ["red hair", "hat"]).images.shape == (4, H, W, 3)


def test_the_command_prints_the_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nextpixel.save(small(), "model")
    assert main("sample --tile --model model -n 4 --speed exact --seed 2 --out t.png".split()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "t.png" and out[1].startswith("seam: ") and out[1].endswith(" inside")
    assert main("sample --tile --model model -n 4 --speed exact --seed 2 --json".split()) == 0
    found = json.loads(capsys.readouterr().out)
    images = draw_tiles(small(), 4, EXACT).images
    assert found["seam"]["across"] == pytest.approx(measure_seam(small(), images).across, rel=1e-5)
    assert found["nats_per_pixel"] == pytest.approx(nextpixel.nll(small(), list(images)).tolist(), rel=1e-5)
    assert main("sample --model model -n 2 --json".split()) == 0
    assert "seam" not in json.loads(capsys.readouterr().out)
