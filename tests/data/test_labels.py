"""labels.py: what counts as a label, how tables of labels match pictures, and what is told about their names."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import picture, png, shard
from PIL import Image
from tiny_runs import photos, settings

import nextpixel
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import Levels
from nextpixel.data.labels import class_numbers, given_labels, has_label, labels_from_csv, labels_of, seen_before
from nextpixel.data.prepared import prepare
from nextpixel.errors import InputError
from nextpixel.images import save_png
from nextpixel.images.sources import load_images, open_source, sprites_of
from nextpixel.representation.probing import LinearProbe
from nextpixel.stats import score_of


def table(path: Path, labels: Any, names: list[str] | None = None, colours: list[int] | None = None) -> Path:
    """Parquet with that label column, and class names in its features."""
    import pyarrow
    from pyarrow import parquet

    labels = pyarrow.array(labels)
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = [{"bytes": png(colour), "path": None} for colour in colours or range(0, len(labels) * 7, 7)]
    made = pyarrow.table({"image": pyarrow.array(cells, kind), "label": labels})
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names:
        features["label"] = {"_type": "ClassLabel", "names": names}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
    )
    return path


# ---- what is a label


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, 1, -1], ["cat", "dog"], ["cat", "dog", ""]),
        ([0, None, 1], ["cat", "dog"], ["cat", "", "dog"]),
        ([2, None, 10], None, [2, -1, 10]),
        ([1.0, None, 3.0], None, [1, -1, 3]),
        ([1.0, float("nan"), 3.0], None, [1, -1, 3]),
        (["dog", None, "cat"], None, ["dog", "", "cat"]),
        (["dog", "", "cat"], None, ["dog", "", "cat"]),
        ([True, False, None], None, [1, 0, -1]),
    ],
)
def test_minus_one_null_and_nan_are_no_label(tmp_path, labels, names, expected):
    found = labels_of(open_source(table(tmp_path / "x.parquet", labels, names)))
    assert found.tolist() == expected
    assert has_label(found).tolist() == [value not in ("", -1) for value in expected]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1], [0]], "values of type list"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "values of type dict"),
        ([0.5, 1.5, 2.0], "float64 numbers"),
        ([b"a", b"b", b"c"], "values of type bytes"),
        ([-5, 1, 2], "the number -5"),
        ([None, None, None], r"all 3 labels are -1 or empty"),
        ([-1, -1, -1], r"all 3 labels are -1 or empty"),
        ([datetime.date(2020, 1, 1)] * 3, "values of type date"),
    ],
)
def test_label_columns_of_any_type_matter_to_nobody_who_needs_none(tmp_path, labels, message):
    source = open_source(table(tmp_path / "x.parquet", labels))
    assert len(load_images(source, 8)) == 3
    assert len(prepare(source, tmp_path / "prepared", side=8)) == 3
    with pytest.raises(InputError, match=message):
        labels_of(source)


def test_arrays_and_shards_without_a_label_each(tmp_path):
    squares = np.zeros((3, 8, 8, 3), np.uint8)
    for labels, message in [
        (np.zeros((3, 14), int), r"several values for each picture, \(3, 14\)"),
        (np.array([0.5, 1, 2]), "float64 numbers"),
        (np.arange(4), "4 labels for 3 images"),
        (np.array([1 + 2j] * 3), "complex128 numbers"),
        (np.array([{}, "a", 1], object), "values of type object"),
    ]:
        np.savez(tmp_path / "x.npz", images=squares, labels=labels)
        source = open_source(tmp_path / "x.npz")
        assert len(load_images(source, 8)) == 3
        with pytest.raises(InputError, match=message):
            labels_of(source)
    members = [("0.png", png()), ("0.cls", b"7"), ("1.png", png()), ("1.cls", b"-1"), ("2.png", png())]
    assert labels_of(open_source(shard(tmp_path / "x.tar", members))).tolist() == [7, -1, -1]
    members[1] = ("0.cls", b"cat")
    assert labels_of(open_source(shard(tmp_path / "x.tar", members))).tolist() == ["cat", "-1", ""]


def test_a_number_without_a_name_is_a_sentence(tmp_path):
    source = open_source(table(tmp_path / "x.parquet", [0, 9, 9], ["cat", "dog"]))
    with pytest.raises(InputError, match=r"expected labels 0 to 1, .* got 9 for x\.parquet/1 \(2 in all\)"):
        labels_of(source)
    assert len(load_images(source, 8)) == 3


def test_numbers_are_matched_across_files_and_lists_by_name(tmp_path):
    one = table(tmp_path / "set" / "a.parquet", [0, 1, -1], ["cat", "dog"])
    two = table(tmp_path / "set" / "b.parquet", [0, 1, 2], ["dog", "emu", "cat"])
    expected = ["cat", "dog", "", "dog", "emu", "cat"]
    assert labels_of(open_source(tmp_path / "set")).tolist() == expected
    assert labels_of(open_source([str(one), str(two)])).tolist() == expected
    table(two, [0, 5, 2], ["dog", "emu", "cat"])
    with pytest.raises(InputError, match=r"expected labels 0 to 2, which have names, got 3 for b.parquet"):
        labels_of(open_source(tmp_path / "set"))


def test_labels_given_in_python_may_have_gaps():
    squares = np.zeros((3, 4, 4, 3), np.uint8)
    source = open_source(squares)
    for given, expected in [
        ([0, -1, 1], [0, -1, 1]),
        (["a", None, "b"], ["a", "", "b"]),
        ([1.0, np.nan, 2], [1, -1, 2]),
    ]:
        assert given_labels(source, given).tolist() == expected
    with pytest.raises(InputError, match="expected 3, one for each image"):
        given_labels(source, [0, 1])
    with pytest.raises(InputError, match="lists of different lengths"):
        given_labels(source, [[0], [1, 2], [0]])


def test_a_probe_and_its_accuracy_are_of_labelled_pictures_alone(model):
    squares = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    squares[::2] //= 8
    labels = np.array([0, 1] * 6)
    gaps = np.where(np.arange(12) < 8, labels, -1)
    probe = LinearProbe(model, 1).fit(squares, gaps)
    assert probe.classes_.tolist() == [0, 1]
    assert (probe.linear_.weight == LinearProbe(model, 1).fit(squares[:8], labels[:8]).linear_.weight).all()
    assert probe.evaluate(squares, gaps).images == 8


# ---- tables of labels


def write(path: Path, rows: list[tuple[str, str]], encoding: str = "utf-8") -> Path:
    path.write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in rows), encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["cat/1.png", "dog/1.png"], ["cat/1.png", "dog/1.png"]),
        (["cat/1.png", "dog/1.png"], ["data/cat/1.png", "data/dog/1.png"]),
        (["cat/1.png", "dog/1.png"], ["/home/me/cat/1.png", "/home/me/dog/1.png"]),
        (["cat/1.png", "dog/1.png"], ["cat\\1.png", ".\\dog\\1.png"]),
        (["set/cat/1.png", "set/dog/1.png"], ["cat/1.png", "dog/1.png"]),
        (["a/1.png", "b/2.png"], ["1.png", "2.png"]),
        (["a/1.png", "b/2.png"], ["1", "2"]),
        (["a/1.png", "b/2.png"], ["1.jpg", "2.jpg"]),
        (["cat/1.png", "dog/1.png"], ["cat/1", "dog/1"]),
        (["scan.001.png", "scan.002.png"], ["scan.001", "scan.002"]),
        (["1.png", "cat/1.png"], ["1.png", "cat/1.png"]),
        ([unicodedata.normalize("NFD", "é.png"), "b.png"], [unicodedata.normalize("NFC", "é.png"), "b.png"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_of_a_table_are_matched_by_path_name_and_stem(tmp_path, names, files, encoding):
    rows = [*zip(files, ("x", "y"), strict=True), ("other.png", "z")]
    path = write(tmp_path / "labels.csv", rows[::-1], encoding)
    assert labels_from_csv(path, names).tolist() == ["x", "y"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_separated_by_commas_semicolons_or_tabs(tmp_path, delimiter):
    path = tmp_path / "labels.csv"
    rows = [["file", "label", "note"], ["a,b;c.png", "x", ""], ["d.png", "y", "1,5"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    assert labels_from_csv(path, ["a,b;c.png", "d.png"]).tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["cat/1.png", "dog/1.png"], ["1.png"]),  # one row for two pictures
        (["dog/1.png", "dog/2.png", "cat/1.png", "cat/2.png"], ["cat/1.png", "cat/2.png", "dog/2.png"]),  # another's
        (["new/1.png", "1.png", "2.png"], ["1.png", "2.png"]),
        (["2.jpg", "2.png"], ["2.png"]),
        (["1.png"], ["cat/1.png", "dog/1.png"]),  # two rows for one picture
        (["1.png", "1.jpg"], ["1"]),
        (["a/1.png"], ["a/2.png"]),
        (["a/1.png"], []),
    ],
)
def test_what_a_table_does_not_tell_is_an_error_that_shows_both_sides(tmp_path, names, files):
    path = write(tmp_path / "labels.csv", [(name, name) for name in files])
    held = re.escape(repr(files[0])) if files else "nothing"
    with pytest.raises(InputError, match=f"looked for {names[0]!r}, the column file has {held}"):
        labels_from_csv(path, names)


def test_pictures_of_one_path_share_its_row(tmp_path):
    path = write(tmp_path / "labels.csv", [("a/1.png", "x"), ("b/1.png", "y")])
    assert labels_from_csv(path, ["a/1.png", "b/1.png", "a/1.png"]).tolist() == ["x", "y", "x"]


@pytest.mark.parametrize("rows", ["tiles", "files", "both"])
def test_tables_and_arrays_name_tiles_or_their_files(tmp_path, rows):
    (tmp_path / "set").mkdir()
    for name, width in (("a", 8), ("b", 12)):
        image = np.random.default_rng(width).integers(1, 256, (4, width, 4), np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / f"{name}.png")
    source = sprites_of(open_source(tmp_path / "set"), (4, 4), "place", Levels(slice=(4, 4)))
    given = {
        "tiles": [("a.png#0,0", "p"), ("a.png#0,1", "q"), *((f"b.png#0,{i}", "r") for i in range(3))],
        "files": [("a.png", "q"), ("b.png", "r")],
        "both": [("a.png", "q"), ("b.png", "r"), ("b.png#0,1", "p")],
    }[rows]
    expected = {"tiles": list("pqrrr"), "files": list("qqrrr"), "both": list("qqrpr")}[rows]
    assert (
        given_labels(source, write(tmp_path / "labels.csv", [(f'"{name}"', label) for name, label in given])).tolist()
        == expected
    )
    if rows != "both":
        assert given_labels(source, [label for _, label in given]).tolist() == expected
    with pytest.raises(InputError, match=r"labels: expected 5, one for each image, got \(4,\)"):
        given_labels(source, list("pqrs"))


def test_rows_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "labels.csv", [("1.png", "cat"), ("./1.png", "cat"), ("2.png", "cat"), ("2.png", "dog")])
    with pytest.raises(InputError, match=r"expected one label for '2\.png', got 'cat' and 'dog'; keep one row"):
        labels_from_csv(path, ["1.png", "2.png"])


def test_empty_cells_and_minus_one_are_no_label(tmp_path, capsys):
    for name in "12345":
        picture(tmp_path / "set" / f"{name}.png")
    rows = [("1.png", ""), ("2.png", "-1"), ("3.png", "nan"), ("4.png", "cat"), ("5.png", "-1.0")]
    path = write(tmp_path / "labels.csv", rows)
    assert given_labels(open_source(tmp_path / "set"), path).tolist() == ["", "", "nan", "cat", ""]
    assert "labels.csv: 1 labels are 'nan', taken as a class of that name" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [("Cat", "cat "), ("é", "e\u0301"), ("two words", "two  words"), ("ﬁsh", "fish")])
def test_names_that_look_alike_are_told(capsys, pair):
    source = open_source(np.zeros((4, 4, 4, 3), np.uint8))
    labels = given_labels(source, [*pair, "dog", "Dogs"])
    assert labels.tolist() == [*pair, "dog", "Dogs"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "differ in case, spaces or Unicode form alone" in line and all(ascii(name) in line for name in pair)
    assert "dog" not in line
    with pytest.raises(InputError, match=r"as well, which looks like "):
        class_numbers([pair[0]], np.array([pair[1], "dog"]))


# ---- classes of any name

NAMES = [
    "=1+1", "@SUM(A1)", "+1", "'+x", "+x", "-x", "a,b", 'say "hi"', "two\nlines", "tab\there", "../up", "/etc/passwd",
    "C:\\x", "file", "class", "label", "\x1b[31mred", "\u202eright", "x" * 5000, "é", "猫", "$x^2$", "<b>bold</b>",
    "'quoted", " ", "%s{0}",
]  # fmt: skip


def test_classes_of_any_name_spoil_no_output(tmp_path, monkeypatch, capsys, model):

    monkeypatch.chdir(tmp_path)
    nextpixel.save(model, "model")
    count = len(NAMES)
    for shift, split in enumerate(("train", "test")):
        colours = [(7 * number + shift) % 256 for number in range(count)] * 4
        table(Path("set") / f"{split}.parquet", [*range(count)] * 4, NAMES, colours)
    assert main(["probe", "set", "--model", "model", "--no-baselines", "--layer", "1", "--out", "probe"]) == 0
    capsys.readouterr()
    assert main(["predict", "probe", "set", "--split", "test", "--out", "p.csv", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert {row["class"] for row in rows} <= set(NAMES) and all(row["file"].startswith("test") for row in rows)
    with open("p.csv", newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header[:2] == ["file", "class"] and len(header) == len(set(header)) == 2 + count
    assert len(lines) == len(rows) and {len(line) for line in lines} == {len(header)}
    formulas = {cell for line in [header, *lines] for cell in line if cell[:1] in set("=+-@\t\r")}
    assert formulas <= {"+1"}  # a number
    few = ["--epochs", "1", "--batch-images", "8"]
    assert main(["finetune", "set", "--test", "set", "--model", "model", "--out", "clf", *few]) == 0
    assert nextpixel.load("clf").config.classes == tuple(sorted(NAMES))
    assert main(["evaluate", "set", "--model", "clf", "--accuracy"]) == 0


# ---- test images that are training images


@pytest.mark.parametrize("verb", ["probe", "finetune"])
def test_training_images_among_the_test_images_are_told_and_left_out(tmp_path, monkeypatch, capsys, model, verb):
    monkeypatch.chdir(tmp_path)
    nextpixel.save(model, "model")
    random = np.random.default_rng(0)
    train = random.integers(0, 256, (24, 4, 4, 3), np.uint8)
    test = random.integers(0, 256, (10, 4, 4, 3), np.uint8)
    test[:3] = train[5:8]
    labels = np.arange(24) % 2
    np.savez("train.npz", images=train, labels=labels)
    np.savez("test.npz", images=test, labels=labels[:10])
    few = {"probe": ["--no-baselines", "--layer", "1"], "finetune": ["--epochs", "1", "--out", "run"]}[verb]
    assert main([verb, "train.npz", "--test", "test.npz", "--model", "model", "--json", *few]) == 0
    out, err = capsys.readouterr()
    assert "test.npz: 3 of 10 test images are training images, pixel by pixel at side 4" in err
    told = json.loads(out)
    score = told["test"] if verb == "finetune" else told["results"][0]["scores"][0]
    assert score["training_images"] == 3 and score["images"] == 10
    assert (score["accuracy_without_them"] * 7) % 1 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("form", ["copied with other times", "another format"])
@pytest.mark.parametrize("verb", ["probe", "finetune"])
def test_a_test_set_of_training_images_is_refused_by_what_it_shows(tmp_path, monkeypatch, capsys, model, verb, form):
    monkeypatch.chdir(tmp_path)
    nextpixel.save(model, "model")
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
    for i, image in enumerate(images):
        save_png(image, tmp_path / "set" / "ab"[i % 2] / f"{i:02d}.png")
    if form == "another format":
        np.savez("copy.npz", images=images[::-1], labels=np.arange(12)[::-1] % 2, class_names=np.array(["a", "b"]))
    else:
        shutil.copytree("set", "copy.npz")
        for path in tmp_path.glob("copy.npz/*/*"):
            os.utime(path, (1_000_000, 1_000_000))
    few = {"probe": ["--no-baselines", "--layer", "1"], "finetune": ["--epochs", "1", "--out", "run"]}[verb]
    assert main([verb, "set", "--test", "copy.npz", "--model", "model", *few]) == 2
    assert "copy.npz: expected test images other than the training images, got only these" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("known_by", ["its run", "a checkpoint", "train", "split"])
def test_evaluate_tells_training_images_and_gives_figures_without_them(tmp_path, monkeypatch, capsys, known_by):
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    np.savez("own.npz", images=images[:10])
    np.savez("set.npz", train_images=images[:10], test_images=images[7:])
    run = nextpixel.pretrain("own.npz", out="disk", **settings(tmp_path) | {"steps": 2})
    nextpixel.save(run, "model")
    options = {
        "its run": ["--model", "disk"],
        "a checkpoint": ["--model", str(Run("disk").best_checkpoint())],
        "train": ["--model", "model", "--train", "own.npz"],
        "split": ["--model", "model"],
    }[known_by]
    assert main(["evaluate", "set.npz", "--split", "test", "--json", *options]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    nats = nextpixel.nll(nextpixel.load("disk"), images[7:])
    assert told["training_images"] == 3 and told["images"] == 13
    assert told["nats_per_pixel"] == pytest.approx(nats.mean(), rel=1e-5)
    assert told["nats_per_pixel_without_them"] == pytest.approx(nats[3:].mean(), rel=1e-5)
    assert "3 of 13 test images are training images, pixel by pixel at side 4; figures are given with and" in err
    assert main(["evaluate", "own.npz", "--model", "model", "--train", "own.npz", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "10 of 10 test images are training images, pixel by pixel at side 4\n" in err
    assert json.loads(out)["nats_per_pixel_without_them"] is None


def test_evaluate_cannot_look_for_training_images_that_were_in_memory(tmp_path, monkeypatch, capsys):
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    nextpixel.pretrain(images, out="run", **settings(tmp_path) | {"steps": 1})
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(tmp_path / "empty"))
    capsys.readouterr()
    assert main(["evaluate", "photos.npy", "--model", "run"]) == 0
    told = "could not look for training images of run among these: its training images were passed in memory\n"
    assert told in capsys.readouterr().err


def test_pretrain_tells_validation_images_that_are_training_images(tmp_path, capsys):
    photos(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    np.save(tmp_path / "held.npy", images[8:14])
    options = settings(tmp_path) | {"steps": 1, "validation": str(tmp_path / "held.npy")}
    nextpixel.pretrain(images[:10], out=tmp_path / "run", **options)
    assert "held.npy: 2 of 6 validation images are training images, pixel by pixel" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "pretrain"])
def test_images_prepared_at_the_models_size_cannot_be_compared_with_those_of_random_crops(
    tmp_path, monkeypatch, capsys, verb
):
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save("large.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8))
    prepare("large.npy", "small", side=4)
    options = settings(tmp_path) | {"steps": 1, "augment": "crop"}
    if verb == "pretrain":
        options["validation"] = "small"
    nextpixel.pretrain("large.npy", out="run", **options)
    if verb == "evaluate":
        assert main(["evaluate", "small", "--model", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "could not look for " in err and "small: expected images of side 8 made with " in err
    if verb == "evaluate":
        assert json.loads(out)["images"] == 12 and json.loads(out)["training_images"] is None
    else:
        assert Run("run").facts()["data"]["validation_images"] == 12


def test_figures_without_training_images_are_those_of_the_others():
    chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], np.float32)
    seen = np.array([True, False, False, True])
    score = score_of(chances, np.array([0, 1, 1, 1]), 2, seen=seen)
    assert (score.accuracy, score.training_images, score.accuracy_without_them) == (0.75, 2, 0.5)
    assert score.auc_without_them is None  # one class is left
    other = score_of(chances, np.array([0, 1, 1, 0]), 2, seen=np.array([True, False, False, False]))
    assert (other.auc, other.auc_without_them, other.accuracy_without_them) == (0.75, 0.5, 1 / 3)
    assert score_of(chances, np.array([0, 1, 1, 1]), 2, seen=~seen & seen).accuracy_without_them is None
    train, test = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)
    test[1, 3, 3, 2] = 1
    assert seen_before(train, test, "x").tolist() == [True, False, True]
