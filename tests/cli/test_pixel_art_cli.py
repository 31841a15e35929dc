"""Models of exact colours on the command line: what an artist gets out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively
from PIL import Image

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig
from nextpixel.cli import main

CLEAR, GLASS, RED, BLUE = (0, 0, 0, 0), (200, 10, 0, 90), (200, 0, 0, 255), (0, 0, 250, 255)
PALETTE = np.array([CLEAR, GLASS, RED, BLUE], np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures of 4 x 3 pixels in four colours."""
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=(4, 3), colors=4), torch.float32)
    model.tokenizer = ExactPalette(PALETTE)
    nextpixel.save(model, made := tmp_path_factory.mktemp("art") / "model")
    return made


@pytest.fixture
def model(folder: Path) -> ImageGPT:
    return nextpixel.load(folder)


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_json(line: str, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main([*line.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def rgba(path: Path | str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"))


def test_sample_writes_indexed_pngs_a_sheet_and_an_animation(
    folder: Path, model: ImageGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(f"sample --model {folder} -n 5 --seed 3 --each all --sheet s.png --gif d.gif", capsys)
    expected = nextpixel.sample(model, n=5, seed=3)
    assert [picture.mode for picture in expected] == ["P"] * 5
    assert len(found["each"]) == 5 and (found["sheet"], found["gif"]) == ("s.png", "d.gif")
    index, sheet = json.loads(Path(found["sheet_index"]).read_text()), rgba("s.png")
    colours = {tuple(colour) for colour in PALETTE}
    for path, picture in zip(found["each"], expected, strict=True):
        with Image.open(path) as read:
            assert read.mode == "P" and read.size == (3, 4)
            assert read.getpalette()[:12] == PALETTE[:, :3].ravel().tolist()
        assert np.array_equal(rgba(path), np.asarray(picture.convert("RGBA")))
        assert {tuple(colour) for colour in rgba(path).reshape(-1, 4)} <= colours
        place = index["frames"][Path(path).name]["frame"]
        assert np.array_equal(sheet[place["y"] :, place["x"] :][: place["h"], : place["w"]], rgba(path))
    with Image.open("d.gif") as animation:
        assert animation.n_frames == 4


def test_the_preview_shows_transparency_and_files_do_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--model", str(folder), "-n", "4", "--show", "--sheet", "s.png"]) == 0
    shown = capsys.readouterr().out
    assert "140;140;140" in shown or "115;115;115" in shown
    assert {tuple(colour) for colour in rgba("s.png").reshape(-1, 4)} <= {tuple(colour) for colour in PALETTE}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sheet s.gif", "--sheet: expected a file name that ends in .png"),
        ("--sheet samples.png", "--sheet: expected another file than that of --out"),
        ("--gif d.png", "--gif: expected a file name that ends in .gif"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(
    options: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--model", str(folder), *options.split()]) == 2
    assert message in capsys.readouterr().err and list(Path().iterdir()) == []


def test_a_sheet_replaces_its_own_positions_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["sample", "--model", str(folder), "-n", "2", "--sheet", "package.png"]
    Path("package.json").write_text("{}")
    assert main(sample) == 2 and [path.name for path in Path().iterdir()] == ["package.json"]
    assert "--sheet: package.json exists already" in capsys.readouterr().err
    Path("package.png").write_bytes(b"")
    assert main(sample) == 2 and Path("package.json").read_text() == "{}"
    Path("package.json").unlink()
    assert main(sample) == 0 and main(sample) == 0 and "package.json" in capsys.readouterr().out
