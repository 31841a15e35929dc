"""Pictures that are not square, from pretraining through every verb that reads or draws them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nextpixel
from nextpixel.checkpoints import load_backbone
from nextpixel.cli import main

SMALL = "--layers 1 --width 16 --heads 2 --batch-images 4 --steps 4 --sample-images 1 --device cpu --threads 1".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Wide pictures in two classes, and a run on them at 6 rows and 4 columns."""
    place = tmp_path_factory.mktemp("sizes")
    noise = np.random.default_rng(0).integers(0, 256, (16, 9, 14, 3), np.uint8)
    for number, pixels in enumerate(noise):
        path = place / "photos" / ("train" if number < 10 else "test") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTPIXEL_CACHE", str(place / "cache"))
        assert main(["pretrain", str(place / "photos"), "--side", "6x4", *SMALL, "--out", str(place / "run")]) == 0
    return place


@pytest.fixture
def run(home, monkeypatch, capsys):
    """Run a command in that folder; returns its stdout."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(home / "cache"))

    def call(words: str) -> str:
        assert main(words.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def size_of(path: Path | str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_model_and_the_run_have_the_size(home):
    model = nextpixel.load(home / "run")
    assert model.size == model.side == (6, 4) and model.config.tokens == 24
    facts = json.loads((home / "run" / "run.json").read_text())
    assert facts["config"]["side"] == facts["model"]["side"] == [6, 4]
    assert nextpixel.sample(model, n=1)[0].size == (4, 6)


def test_drawing(run):
    run("sample --model run -n 2 --out drawn.png")
    run("complete photos/train/a/0.png --model run -n 2 --out completed.png")
    assert size_of("drawn.png")[1] > size_of("drawn.png")[0] / 2 and size_of("completed.png")[0] > 0


def test_scoring(run):
    found = json.loads(run("evaluate photos --split test --model run --json"))
    assert 5 < found["nats_per_pixel"] < 8
    lines = run("score photos --split test --model run --heatmap maps").splitlines()
    assert len(lines) >= 6
    assert {size_of(path) for path in Path("maps").iterdir()} == {(64, 48)}  # two of 4 x 6, zoomed 8 times
    run("score photos --split test --against photos --model run")


def test_features_and_probes(run):
    run("features photos --model run --out features.npz")
    with np.load("features.npz") as found:
        assert found["features"].shape == (10, 16)
    assert "accuracy" in run("probe photos --model run --layer 1")


def test_training_on(run, home):
    run("distill photos --model run --steps 2 --batch-images 4 --out student")
    assert load_backbone("student").size == (6, 4)
    run("finetune photos --model run --epochs 1 --batch-images 4 --augment crop --out tuned")
    run("prepare photos prepared --side 6x4 --augment crop")
    assert main(["pretrain", "prepared", "--side", "6x4", "--augment", "crop", *SMALL, "--out", "again"]) == 0


@pytest.mark.parametrize("side", ["0", "6x0", "x4", "6x4x3", "6 4", "-2", "9999", "6X4", "six"])
def test_other_sides_are_refused(home, capsys, side):
    assert main(["pretrain", str(home / "photos"), f"--side={side}", "--out", str(home / "no")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("nextpixel: --side: expected at least 1 and at most 4096 pixels, or rows and columns")
    assert f"got {side}" in err and not (home / "no").exists()


def test_only_square_pictures_are_rotated(home, capsys):
    assert main(["pretrain", str(home / "photos"), "--side=6x4", "--augment=orient", "--out", str(home / "no")]) == 2
    assert capsys.readouterr().err.strip() == (
        "nextpixel: --augment: orient rotates by quarter turns, for square pictures only, got 6 x 4; use flip"
    )


def test_masked_models_have_no_orientations(home, capsys):
    given = "--side=4", "--augment=orient", "--objective=masked"
    assert main(["pretrain", str(home / "photos"), *given, "--out", str(home / "no")]) == 2
    assert capsys.readouterr().err.startswith("nextpixel: --augment: orient needs the start vector")


# ---- pixel art


@pytest.fixture(scope="module")
def sheet(home):
    """Sheets of 6 x 4 tiles in two classes, one tile of each empty, and a run on them."""
    colours = np.random.default_rng(1).integers(0, 256, (7, 4), np.uint8)
    colours[:, 3], colours[0] = 255, 0
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (home / "sheets" / name).mkdir(parents=True)
        pixels = colours[np.random.default_rng(len(name)).integers(0, 7, (12, 16))]
        pixels[:6, :4] = 0
        Image.fromarray(pixels).save(home / "sheets" / name / "sheet.png")
    words = f"--side 6x4 --slice 6x4 --fit place --validation-images 3 --out {home / 'art'}".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTPIXEL_CACHE", str(home / "cache"))
        assert main(["pretrain", str(home / "sheets"), "--split", "train", *words, *SMALL]) == 0
    return colours


def test_every_verb_takes_the_tiles_of_sheets(sheet, run):
    model = nextpixel.load("art")
    assert model.fit == "place" and model.levels.slice == (6, 4) and model.tokenizer.channels == 4
    drawn = np.asarray(nextpixel.sample(model, n=1)[0].convert("RGBA")).reshape(-1, 4)
    assert {tuple(pixel) for pixel in drawn} <= {tuple(colour) for colour in sheet}
    assert json.loads(run("evaluate sheets --split test --model art --json"))["images"] == 14
    lines = run("score sheets --split test --model art --heatmap tiles").splitlines()
    assert sum("sheet.png#1,3" in line for line in lines) == 2 and not any("sheet.png#0,0" in line for line in lines)
    assert {size_of(path) for path in Path("tiles").iterdir()} == {(64, 48)}
    run("features sheets --split test --model art --out tiles.npz")
    with np.load("tiles.npz") as found:
        assert found["features"].shape == (14, 16) and "a/sheet.png#1,3" in found["names"]
    assert "accuracy" in run("probe sheets --model art --layer 1")
    run("complete sheets/test/a/sheet.png --model art -n 1 --out tile.png")


def test_a_sheet_that_is_not_cut_or_cannot_be_is_named_with_the_option(sheet, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["score", "sheets/test/a/sheet.png", "--model", "art", "--slice", "5x4"]) == 2
    assert "its 12 x 16 pixels are not whole tiles of 5 x 4; change --slice" in capsys.readouterr().err
    words = ["pretrain", "sheets/test/a", "--fit", "place", "--side", "6x4", *SMALL, "--out", "none"]
    assert main(words) == 2 and not Path("none").exists()
    assert "its 12 x 16 pixels do not fit on 6 x 4; cut a sheet with --slice, as in" in capsys.readouterr().err
    assert main(["distill", "sheets", "--split", "train", "--model", "art", "--out", "none"]) == 2
    assert "expected a model of opaque pictures, got one of exact colours" in capsys.readouterr().err
