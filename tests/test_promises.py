"""What CONTRIBUTING promises of things that are added: a verb is one module and a line, a dataset is no code."""

import importlib.util
import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from models import dark_and_bright
from picture_files import shard
from PIL import Image

from nextpixel import cli
from nextpixel.data.labels import labels_of
from nextpixel.images.sources import load_images, open_source

VERB = '''
"""nextpixel census"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.config import OutputOptions, check_numbers


@dataclass(frozen=True)
class Census:
    """Count the pictures of a source."""

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, an array, a parquet file or a hub name."""
    at_least: int = 0
    """Smaller sources count as empty."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Census, "census", argv)
    check_numbers(args, at_least_zero="at_least")
    from nextpixel.images.sources import load_images, open_source

    count = len(open_source(args.images))
    count = count if count >= args.at_least else 0
    print_json({"pictures": count}) if args.output.json else show(f"{count} pictures")
'''


@pytest.fixture
def census(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more module in the folder of the verbs, and its line in VERBS."""
    (tmp_path / "verbs").mkdir()
    (tmp_path / "verbs" / "census.py").write_text(VERB.lstrip())
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path / "verbs")])
    monkeypatch.setitem(cli.VERBS, "census", "count the pictures of a source")
    monkeypatch.setitem(sys.modules, "nextpixel.cli.census", None)  # so that the module goes again
    del sys.modules["nextpixel.cli.census"]


@pytest.mark.usefixtures("census")
def test_a_verb_is_one_module_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "set.npy", np.zeros((5, 8, 8, 3), np.uint8))
    images = str(tmp_path / "set.npy")
    assert cli.main(["--help"]) == 0
    assert re.search(r"^  census +count the pictures of a source$", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["census", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(part in told for part in ("IMAGES", "--at-least INT", "Smaller sources count as empty. (default: 0)"))
    assert cli.main(["census", images]) == 0 and capsys.readouterr().out == "5 pictures\n"
    assert cli.main(["census", images, "--at-least", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pictures": 0}
    for words, message in {
        ("--at-least", "-1"): "--at-least: expected 0 or more, got -1",
        ("--at-least", "few"): "--at-least: expected a whole number, got 'few'; see nextpixel census --help",
        ("--at-leest", "1"): "unknown option --at-leest; did you mean --at-least?",
    }.items():
        assert cli.main(["census", images, *words]) == 2
        assert capsys.readouterr().err == f"nextpixel: {message}\n"
    assert cli.main(["census", str(tmp_path / "nowhere.npy")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.usefixtures("census")
def test_the_reference_describes_an_added_verb() -> None:
    path = Path(__file__).parents[1] / "docs" / "generate_cli.py"
    spec = importlib.util.spec_from_file_location("generate_cli", path)
    assert spec is not None and spec.loader is not None
    generate_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_cli)
    page = generate_cli.page()
    assert "| [`census`](#nextpixel-census) | count the pictures of a source |" in page
    assert "| `--at-least` | integer | `0` | Smaller sources count as empty. |" in page


# ---- a dataset

Split = tuple[np.ndarray, np.ndarray]  # images uint8 (N, S, S, 3), class names (N,)


def png(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def as_folder(path: Path, sets: dict[str, Split]) -> Path:
    for split, (images, names) in sets.items():
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            (path / split / name).mkdir(parents=True, exist_ok=True)
            (path / split / name / f"{i:03}.png").write_bytes(png(image))
    return path


def as_parquet(path: Path, sets: dict[str, Split]) -> Path:
    path.mkdir()
    for split, (images, names) in sets.items():
        pictures = [{"bytes": png(image), "path": None} for image in images]
        table = pyarrow.table({"photograph": pictures, "label": names.tolist()})
        pyarrow.parquet.write_table(table, path / f"{split}-00000-of-00001.parquet")
    return path


def as_shards(path: Path, sets: dict[str, Split]) -> Path:
    for split, (images, names) in sets.items():
        pairs = enumerate(zip(images, names, strict=True))
        members = [(f"{i:03}.{e}", data) for i, (x, n) in pairs for e, data in (("png", png(x)), ("cls", n.encode()))]
        shard(path / f"{split}-0000.tar", members)
    return path


def as_npz(path: Path, sets: dict[str, Split]) -> Path:
    arrays = {}
    for split, (images, names) in sets.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": names}
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


@pytest.mark.parametrize("write", [as_folder, as_parquet, as_shards, as_npz])
def test_a_dataset_is_no_code(
    write: Callable[[Path, dict[str, Split]], Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set of an unheard-of name goes through reading, training, a probe and scores as it is."""
    sets = {"train": dark_and_bright(40), "test": dark_and_bright(20)}
    data = write(tmp_path / f"zyx-{time.time_ns()}", sets)
    for split, (images, names) in sets.items():
        source = open_source(data, split)
        pixels = [image.tobytes() for image in load_images(source, 4)]
        read = zip(labels_of(source), pixels, strict=True)
        assert sorted(read) == sorted((name, image.tobytes()) for name, image in zip(names, images, strict=True))
    small = "--layers 1 --width 16 --heads 2 --side 4 --steps 1 --batch-images 2 --sample-images 0 --threads 1".split()
    palette = ["--palette", str(folder / "colours.npy")]
    np.save(palette[1], np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32))
    run = str(tmp_path / "run")
    assert cli.main(["pretrain", str(data), "--out", run, *small, *palette]) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert facts["train_images"] + facts["validation_images"] == 40, "the train split alone"
    capsys.readouterr()
    assert cli.main(["probe", str(data), "--model", str(folder), "--no-baselines", "--layer", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classes"] == ["bright", "dark"] and report["results"][0]["scores"][0]["images"] == 20
    assert cli.main(["score", str(data), "--split", "test", "--model", run, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 20
