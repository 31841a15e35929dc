"""Captions on the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import with_words
from PIL import Image

import nextpixel
from nextpixel import ImageGPTConfig
from nextpixel.cli import main
from nextpixel.cli.hints import to_complete, to_draw
from nextpixel.evaluation import comparison


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has words, and a picture."""
    home = tmp_path_factory.mktemp("captions")
    nextpixel.save(with_words(ImageGPTConfig(1, 16, 2, 4, 12), torch.float32), home / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)).save(home / "cat.png")
    (home / "table.csv").write_text("file,caption\ndog.png,red hair\n")
    return home


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_pictures_are_drawn_and_completed_from_captions(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(place / "model"), "--json"]
    found = json.loads(printed(capsys, "sample", "long red hair, glasses", "-n", "3", "--guidance", "1.5", *model))
    assert (found["caption"], found["guidance"], len(found["nats_per_pixel"])) == ("long red hair, glasses", 1.5, 3)
    assert json.loads(printed(capsys, "sample", "-n", "1", *model))["caption"] is None
    cat = str(place / "cat.png")
    told = json.loads(printed(capsys, "complete", cat, "--caption", "happy, hat", "--allow-colors", "3,4", *model))
    plain = json.loads(printed(capsys, "complete", cat, *model))
    assert told["caption"] == "happy, hat" and told["pictures"] != plain["pictures"]


def test_hints_suit_the_model(place: Path) -> None:
    model = nextpixel.load(str(place / "model"))
    assert to_draw(model, "run").endswith("nextpixel sample red --model run")
    assert to_complete(model, "run").endswith("nextpixel complete photo.jpg --model run")


def test_the_likeliest_words_are_shown_however_unlikely(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = np.linspace(0.01, 0.045, 8)[None]
    monkeypatch.setattr("nextpixel.evaluation.naming.word_probabilities", lambda *_, **__: found)
    shown = printed(capsys, "predict", str(place / "model"), str(place / "cat.png"), "--words")
    *_, third, second, first = nextpixel.load(str(place / "model")).words.table
    assert shown == f"cat.png  {first} 0.04, {second} 0.04, {third} 0.03\n"


def test_info_lists_the_words(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "info", str(place / "model"), "--words", "--json"))
    assert list(found["words"].items())[:2] == [("red", 0.5), ("hair", 0.5)] and len(found["words"]) == 8
    assert "  glasses: 0.5\n" in printed(capsys, "info", str(place / "model"), "--words")
    assert "words" not in json.loads(printed(capsys, "info", str(place / "model"), "--json"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample zebra --model {model}", "CAPTION: expected words that the model knows, got 'zebra'; it knows 8"),
        ("complete {cat} --caption glasse --model {model}", "--caption: expected words .*'glasse' .near: glasses"),
        ("sample {many} --model {model}", "CAPTION: expected at most 16 tags, .* got 17 tags"),
        ("sample red", "CAPTION: expected none, as the model was trained without captions"),
        ("complete {cat} --caption red", "--caption: expected none, as the model was trained without captions"),
        ("sample --guidance 2", "--guidance: expected 1, as the model was trained without captions, got 2"),
        ("sample --guidance 2 --model {model}", "--guidance: expected 1, without CAPTION, got 2"),
        ("complete {cat} --guidance 2 --model {model}", "--guidance: expected 1, without --caption, got 2"),
        ("sample , --guidance 2 --model {model}", "--guidance: expected 1, without CAPTION, got 2"),
        ("vary {cat} --caption . --guidance 2 --model {model}", "--guidance: expected 1, without --caption, got 2"),
        ("predict {model} {cat} --among zebra,red", "--among: expected words that the model knows, got 'zebra'"),
        ("evaluate {cat} --captions {table} --model {model}", "--captions: .*table.csv: expected one row for each"),
        ("complete {model}", ".*model: expected images, got the folder of a model; give it as --model"),
        ("sample red --guidance -1 --model {model}", "--guidance: expected a number of 0 or more, got -1"),
        ("sample --allow-colors #12345 --model {model}", "--allow-colors: expected #rrggbb"),
        ("sample --forbid-colors #123456 --model {model}", "--forbid-colors: expected colours of the model"),
        ("evaluate {cat} --captions names", "--captions: expected none, as the model was trained without captions"),
        ("predict embedded {cat} --words", "--words: expected a model that was trained with captions"),
        ("predict embedded {cat} --among red,blue", "--among: expected a model that was trained with captions"),
        ("predict nowhere {cat} --words", "PROBE: expected a checkpoint folder, .* got 'nowhere'"),
        ("predict a/b/c {cat} --among red,hat", "PROBE: expected a checkpoint folder, .* got 'a/b/c'"),
        ("predict embedded {cat} --words --model {model}", "--model: cannot be combined with --words or --among"),
        ("predict embedded {cat} --words --among red,hat", "--words: cannot be combined with --among"),
        ("info --words", "--words: expected a model that was trained with captions"),
    ],
)
def test_bad_captions_end_in_one_sentence(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    known = {"model": str(place / "model"), "cat": str(place / "cat.png"), "many": ",".join(["red"] * 17)}
    known["table"] = str(place / "table.csv")
    assert main([part.format(**known) for part in command.split()]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert not out and not list(tmp_path.iterdir())
    assert re.match(f"nextpixel: {message}", line), line


def test_samples_are_drawn_from_the_captions_of_the_images(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real").mkdir()
    for i in range(40):
        image = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(image).save(f"real/{'red hair' if i % 2 else 'hat zebra'}_{i:02}.png")
    drawn: list[np.ndarray] = []
    compared = "nextpixel.evaluation.comparison.compare_by"
    compare_by = comparison.compare_by
    monkeypatch.setattr(compared, lambda *args, **more: drawn.append(args[2]) or compare_by(*args, **more))
    options = ["evaluate", "real", "--captions", "names", "--samples", "24", "--references", "20"]
    options += ["--guidance", "1.5", "--model", str(place / "model"), "--json"]
    told = json.loads(printed(capsys, *options))
    assert (told["captions"], told["guidance"], told["samples"], told["references"]) == ("names", 1.5, 24, 20)
    chosen = comparison.choose_real(40, 24, 20, 0).reference
    order = sorted(path.name for path in Path("real").iterdir())
    captions = ["red hair" if order[chosen[i % 20]].startswith("red") else "hat" for i in range(24)]
    assert len(set(captions)) == 2
    model = nextpixel.load(str(place / "model"))
    whole = nextpixel.sample(model, caption=captions, guidance=1.5)
    assert np.array_equal(drawn[0], np.stack([np.asarray(image) for image in whole]))
    shutil.copy("real/red hair_01.png", "real/zebra_41.png")
    assert main([*options[:-1], "--seed", "2", "--references", "41"]) == 2
    assert "--captions: some captions have no word that the model knows" in capsys.readouterr().err
