"""What is taken of a folder, a shard or a table, what is left out, and that it is told."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import picture, png, shard
from PIL import Image

import nextpixel
from nextpixel.data.decoded import decode
from nextpixel.data.prepared import prepare
from nextpixel.errors import InputError
from nextpixel.images import UnreadableImage, pixels
from nextpixel.images.sources import load_images, open_source
from nextpixel.images.sources.splits import NoSplit, canonical_split


def table(path: Path, count: int = 2, cells: list[Any] | None = None, kind: Any = None) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = cells or [{"bytes": png(), "path": None}] * count
    parquet.write_table(pyarrow.table({"image": pyarrow.array(cells, kind)}), path)
    return path


# ---- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train", "train"), ("TRAINING", "train"), ("training_set", "train"), ("train2017", "train"),
        ("trainset", "train"), ("TrainImages", "train"), ("trainval", "train"), ("Val", "validation"),
        ("validation-set", "validation"), ("dev", "validation"), ("val2017", "validation"), ("eval", "test"),
        ("TEST", "test"), ("test_set", "test"), ("testing", "test"), ("holdout", "test"), ("held-out", "test"),
        ("unlabelled", "unlabeled"), ("coco_train2017", "train"), ("cats", "cats"), ("trains", "trains"),
        ("contest", "contest"), ("evaluate", "evaluate"), ("train_test", "train_test"), ("Latest", "latest"),
        ("2017", "2017"), ("", ""), ("訓練", "訓練"),
    ],
)  # fmt: skip
def test_the_spellings_of_splits(name, split):
    assert canonical_split(name) == split


@pytest.mark.parametrize(
    ("train", "test", "strays"),
    [
        ("train", "test", ["annotations/a.json"]),
        ("train", "test", ["unlabeled/1.png", "README.md", "cover.png"]),
        ("training_set", "test_set", []),
        ("Train", "EVAL", ["cover.jpg"]),
        ("train2017", "val2017", ["annotations/a.json", "extra/cat/1.png"]),
        ("pets_train", "pets_holdout", []),
        ("images/train", "images/val", ["labels/train/1.txt"]),
        ("data/v1/training", "data/v1/testing", ["data/readme.txt"]),
    ],
)
def test_splits_are_found_beside_strays_and_the_rest_is_told(tmp_path, capsys, train, test, strays):
    for split, colour in ((train, 10), (test, 20)):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "1.png", colour)
    for name in strays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name) if name.endswith(("png", "jpg")) else (tmp_path / name).write_text("x")
    source = open_source(tmp_path)
    assert list(source.names) == ["cat/1.png", "dog/1.png"]
    assert source.labels.tolist() == [0, 1] and source.classes == ["cat", "dog"]
    assert source.split == Path(train).name
    assert load_images(source, 8).max() == 10
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " split; " in line]
    assert f"{tmp_path}: {Path(train).name} split; not used: " in line and Path(test).name in line
    other = open_source(tmp_path, canonical_split(Path(test).name))
    assert load_images(other, 8).max() == 20 and " split; " not in capsys.readouterr().err


@pytest.mark.parametrize("around", ["train", "seg_train", "images/v2"])
def test_folders_around_all_classes_do_not_count(tmp_path, around):
    for name in ("cat", "dog"):
        picture(tmp_path / "train" / around / name / "1.png")
        picture(tmp_path / "test" / around / name / "2.png")
    for split, number in (("train", 1), ("test", 2)):
        source = open_source(tmp_path, split)
        assert list(source.names) == [f"{around}/cat/{number}.png", f"{around}/dog/{number}.png"]
        assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 1]


def test_links_that_lead_to_themselves_are_counted(tmp_path):
    for number in range(20):
        picture(tmp_path / f"{number}.png")
    (tmp_path / "x.png").symlink_to("x.png")
    (tmp_path / "y").symlink_to("z")
    (tmp_path / "z").symlink_to("y")
    source = open_source(tmp_path)
    assert len(source) == 20
    reasons = [f"cannot read the image {name}: broken link, pipe or device" for name in ("x.png", "y", "z")]
    assert list(source.unreadable) == reasons


def test_a_link_that_cannot_be_followed_is_counted(tmp_path):
    for number in range(20):
        picture(tmp_path / f"{number}.png")
    (tmp_path / "x.png").symlink_to("n" * 300)  # too long a name; root could follow one to a forbidden place
    source = open_source(tmp_path)
    assert len(source) == 20 and "x.png: broken link" in source.unreadable[0]


def test_a_split_below_each_class(tmp_path):
    for name in ("cat/train/1.png", "cat/test/2.png", "dog/train/1.png", "dog/train/3.png", "dog/test/2.png"):
        picture(tmp_path / name)
    source = open_source(tmp_path)
    assert list(source.names) == ["cat/train/1.png", "dog/train/1.png", "dog/train/3.png"]
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 1, 1]
    assert len(open_source(tmp_path, "test")) == 2


def test_train_alone_is_what_is_in_it(tmp_path, capsys):
    for name in ("cat", "dog"):
        picture(tmp_path / "train" / name / "1.png")
    source = open_source(tmp_path)
    assert list(source.names) == ["cat/1.png", "dog/1.png"] and source.classes == ["cat", "dog"]
    assert source.split is None and " split" not in capsys.readouterr().err
    with pytest.raises(InputError, match="no split 'test', only train"):
        open_source(tmp_path, "test")


@pytest.mark.parametrize("folders", [("train_station", "test_tube"), ("trains", "vans"), ("bus", "train"), ("a", "b")])
def test_classes_are_not_taken_for_splits(tmp_path, folders):
    for name in folders:
        picture(tmp_path / name / "1.png")
    source = open_source(tmp_path)
    assert source.classes == sorted(folders) and source.split is None


@pytest.mark.parametrize("test", ["flat/1.png", "1.png", "bird/1.png"])
def test_what_looks_like_a_split_is_not_joined_in_silence(tmp_path, capsys, test):
    for name in ("cat/1.png", "dog/1.png", f"test/{test}"):
        picture(tmp_path / name)
    assert len(open_source(tmp_path)) == 3
    assert f"{tmp_path}: uses all folders, also test, which looks like a split" in capsys.readouterr().err
    assert list(open_source(tmp_path, "test").names) == [test]


@pytest.mark.parametrize(
    ("others", "left_out"),
    [
        (["test/cat/3.png", "test/dog/3.png"], "test"),
        (["Val/dog/3.png"], "Val"),
        (["test_set/cat/3.png", "val2017/cat/3.png", "val2017/dog/3.png"], "test_set, val2017"),
        (["holdout/bird/3.png", "holdout/cat/3.png"], "holdout"),
        (["unlabeled/cat/3.png"], "unlabeled"),
    ],
)
@pytest.mark.parametrize("around", ["", "animals/"])
def test_classes_beside_a_split_that_repeats_them_are_train(tmp_path, capsys, others, left_out, around):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", *others):
        picture(tmp_path / around / name)
    for split in (None, "train"):
        train = open_source(tmp_path, split)
        assert [name.removeprefix(around) for name in train.names] == ["cat/1.png", "cat/2.png", "dog/1.png"]
        assert train.split == "train" and train.classes == ["cat", "dog"] and train.labels.tolist() == [0, 0, 1]
    assert capsys.readouterr().err == f"{tmp_path}: train split; not used: {left_out}\n"
    for part in left_out.split(", "):
        held = open_source(tmp_path, part)
        assert [f"{part}/{name}" for name in held.names] == [name for name in others if name.startswith(part)]
        assert held.classes == sorted({name.split("/")[1] for name in others if name.startswith(part)})


def test_one_class_beside_its_test_is_train(tmp_path):
    for name in ("cover.png", "cat/1.png", "test/cat/2.png"):
        picture(tmp_path / name)
    assert list(open_source(tmp_path).names) == ["cat/1.png", "cover.png"]
    assert list(open_source(tmp_path, "test").names) == ["cat/2.png"]


def test_train_beside_classes_of_the_same_names_is_taken_with_them(tmp_path, capsys):
    for name in ("cat/1.png", "dog/1.png", "train/cat/2.png"):
        picture(tmp_path / name)
    assert len(open_source(tmp_path)) == 3
    assert "also train, which looks like a split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train-00000-of-00001-0a1b2c3d4e5f6a7b.parquet"], ["test-00000-of-00001-7b6a5f4e3d2c1b0a.parquet"]),
        (
            ["data/train-00000-of-00002-ff.parquet", "data/train-00001-of-00002-aa.parquet"],
            ["data/test-0-of-1.parquet"],
        ),
        (["training.parquet"], ["eval.parquet"]),
        (["set/TRAIN/0.parquet", "set/TRAIN/1.parquet"], ["set/Val/0.parquet"]),
        (["cifar10-train.parquet"], ["cifar10-test.parquet"]),
        (["imagenet-train-000000.tar", "imagenet-train-000001.tar"], ["imagenet-val-000000.tar"]),
        (["train_0.tar", "train_1.tar"], ["holdout_0.tar"]),
        (["shards/train/0.tar"], ["shards/test/0.tar"]),
    ],
)
def test_tables_and_shards_of_splits(tmp_path, capsys, train, test):
    for number, name in enumerate(train + test):
        path = tmp_path / name
        shard(path, [(f"{number}.png", png())]) if name.endswith("tar") else table(path, 1)
    source = open_source(tmp_path)
    assert len(source) == len(train) and source.split
    assert " split; not used: " in capsys.readouterr().err
    split = canonical_split(Path(test[0]).parent.name if test[0].count("/") > 0 else Path(test[0]).stem)
    assert len(open_source(tmp_path, "validation" if split == "validation" else "test")) == len(test)


def test_arrays_of_splits_are_told(tmp_path, capsys):
    squares = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "set.npz", x_train=squares, x_test=squares)
    assert open_source(tmp_path / "set.npz").split == "train"
    assert capsys.readouterr().err == f"{tmp_path / 'set.npz'}: train split; not used: test\n"
    np.savez(tmp_path / "one.npz", images=squares)
    with pytest.raises(NoSplit):
        open_source(tmp_path / "one.npz", "test")


# ---- what is skipped


@pytest.fixture
def bare(monkeypatch):
    """No library for further formats is installed."""
    for module in ("pillow_heif", "pillow_jxl", "pydicom"):
        monkeypatch.setitem(sys.modules, module, None)
    pixels.all_formats.cache_clear()
    yield
    pixels.all_formats.cache_clear()


KINDS = {
    "a.HEIC": "HEIC (to read it: pip install pillow-heif)",
    "a.jxl": "JPEG XL (to read it: pip install pillow-jxl-plugin)",
    "a.dcm": "DICOM (to read it: pip install pydicom)",
    "a.MOV": "video",
    "a.CR2": "camera raw file",
    "a.svg": "vector drawing",
}


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_kinds_that_cannot_be_read_are_counted_and_listed(bare, tmp_path, capsys, name):
    for number in range(9):
        picture(tmp_path / "cat" / f"{number}.png")
    picture(tmp_path / "dog" / "1.png")
    (tmp_path / "cat" / name).write_bytes(b"whatever")
    source = open_source(tmp_path)
    assert len(source) == 10 and len(source.unreadable) == 1 and f"cat/{name}" in source.unreadable[0]
    assert capsys.readouterr().err == f"{tmp_path}: skipped 1 x {KINDS[name]}\n"
    for _ in range(2):  # decoded, and from the cache
        (line,) = decode(tmp_path, 8).unreadable
        assert f"cat/{name}" in line and KINDS[name] in line
    assert prepare(tmp_path, f"{tmp_path}-prepared", side=8).unreadable == [line]
    (tmp_path / "dog" / name).write_bytes(b"whatever")
    for read in (decode, load_images):
        with pytest.raises(InputError, match="2 of 12 pictures cannot be read, expected at most one in ten"):
            read(tmp_path, 8)


def test_folders_of_servers_and_systems_are_no_pictures(tmp_path, capsys):
    for name in ("cat", "dog"):
        picture(tmp_path / name / "1.png")
        for stray in (
            "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
            ".thumbnails/1.png",
            "__MACOSX/1.png",
            ".AppleDouble/1.png",
        ):
            picture(tmp_path / name / stray)
        for stray in ("Thumbs.db", ".DS_Store", "._1.png", "notes.txt", "labels.csv", "png"):
            (tmp_path / name / stray).write_bytes(b"x")
    source = open_source(tmp_path)
    assert list(source.names) == ["cat/1.png", "dog/1.png"] and source.classes == ["cat", "dog"]
    assert "skipped 14 x hidden or system entry, 6 x other file (.csv, .txt)" in capsys.readouterr().err
    assert "cat/@eaDir: hidden or system entry" in source.skipped and len(source.skipped) == 20
    assert len(decode(tmp_path, 8).unreadable) == 0


def test_the_list_of_a_run_names_everything_that_was_left_out(bare, tmp_path):
    for number in range(24):
        picture(tmp_path / "set" / f"{number}.png", number)
    (tmp_path / "set" / "a.heic").write_bytes(b"x")
    (tmp_path / "set" / "Thumbs.db").write_bytes(b"x")
    small = {"layers": 1, "width": 8, "heads": 1, "side": 4, "steps": 1, "batch_images": 4, "sample_images": 0}
    nextpixel.pretrain(tmp_path / "set", out=tmp_path / "run", **small)
    lines = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 2 and "a.heic" in lines[0] and lines[1] == "Thumbs.db: hidden or system entry"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["unreadable"] == 1


def test_only_what_cannot_be_read_is_an_error_that_says_what_there_is(bare, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no image: .*; it holds 3 x HEIC \(to read it: pip install"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="HEIC needs pillow-heif; type: pip install pillow-heif"):
        load_images(tmp_path / "0.heic", 8)


@pytest.mark.parametrize(("module", "name"), [("pillow_heif", "a.heic"), ("pillow_jxl", "a.jxl")])
def test_further_formats_are_read_where_their_library_is_installed(tmp_path, module, name):
    pytest.importorskip(module)
    pixels.all_formats()
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[..., 0] = np.arange(32) * 8
    Image.fromarray(ramp).save(tmp_path / name, quality=95)
    source = open_source(tmp_path)
    assert list(source.names) == [name] and not source.unreadable
    assert np.abs(load_images(tmp_path, 32)[0].astype(int) - ramp).mean() < 4


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip", "x.tgz"])
def test_compressed_archives_are_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(InputError, match=r"compressed archive.*unpack it"):
        open_source(tmp_path / name)
    with pytest.raises(InputError, match=r"it holds 1 x other file \(\.(gz|zip|tgz)\)"):
        open_source(tmp_path)


# ---- shards


def test_a_shard_cut_anywhere_is_refused(tmp_path):
    members = [(f"{n}.{end}", data) for n in range(3) for end, data in (("png", png()), ("cls", b"1"))]
    whole = shard(tmp_path / "whole.tar", members).read_bytes()
    assert len(open_source(tmp_path / "whole.tar")) == 3
    with tarfile.open(tmp_path / "whole.tar") as file:
        end = max(member.offset_data + (member.size + 511) // 512 * 512 for member in file)
    cut = tmp_path / "cut.tar"
    for size in range(end + 1024):
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.tar: expected"):
            open_source(cut)
    cut.write_bytes(whole[: end + 1024])  # all but the padding behind the end mark
    assert len(open_source(cut)) == 3


def test_shards_with_a_damaged_header_or_joined_are_refused(tmp_path):
    one = shard(tmp_path / "one.tar", [("1.png", png()), ("2.png", png())])
    data = bytearray(one.read_bytes())
    (tmp_path / "two.tar").write_bytes(data + data)
    with pytest.raises(InputError, match="several files in one"):
        open_source(tmp_path / "two.tar")
    with tarfile.open(one) as file:
        place = file.getmembers()[1].offset
    data[place + 150] ^= 255  # in its checksum
    one.write_bytes(data)
    with pytest.raises(InputError, match="truncated or damaged"):
        open_source(one)


def test_samples_without_a_picture_are_counted(bare, tmp_path, capsys):
    members = [(f"{n}.{end}", png() if end == "png" else b"{}") for n in range(19) for end in ("png", "json")]
    path = shard(tmp_path / "x.tar", [*members, ("19.heic", b"x"), ("19.json", b"{}"), ("20.json", b"{}")])
    source = open_source(path)
    assert len(source) == 19 and len(source.unreadable) == len(source.skipped) == 1
    assert "x.tar/19.heic" in source.unreadable[0] and source.skipped[0].startswith("x.tar/20.json: sample without")
    err = capsys.readouterr().err
    assert "skipped 1 x HEIC (to read it: pip install pillow-heif), 1 x sample without a picture" in err


def test_further_pictures_of_a_sample_are_counted(tmp_path, capsys):
    members = [("1.mask.png", png()), ("1.png", png()), ("2.0.red.png", png()), ("2.0.blue.png", png())]
    source = open_source(shard(tmp_path / "x.tar", members))
    assert list(source.names) == ["x.tar/1.png", "x.tar/2.0.red.png"] and source.unreadable == source.skipped == []
    assert "skipped 2 x further picture of a sample" in capsys.readouterr().err


# ---- paths in tables


@pytest.mark.parametrize("column", ["structs", "strings", "structs of strings"])
@pytest.mark.parametrize("kind", ["absolute", "above", "link", "sideways"])
def test_paths_in_tables_do_not_lead_out_of_their_folder(tmp_path, kind, column):
    import pyarrow

    secret = picture(tmp_path / "private" / "1.png", 200)
    picture(tmp_path / "set" / "in" / "1.png", 50)
    picture(tmp_path / "set-2" / "1.png", 200)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "private")
    path = {
        "absolute": str(secret), "above": "../private/1.png", "link": "linked/1.png", "sideways": "../set-2/1.png"
    }[kind]  # fmt: skip
    paths = ["in/1.png", str(tmp_path / "set" / "in" / "1.png"), path]
    cells, cell_kind = {
        "structs": ([{"bytes": None, "path": one} for one in paths], None),
        "strings": (paths, pyarrow.string()),
        "structs of strings": ([{"bytes": one} for one in paths], pyarrow.struct({"bytes": pyarrow.string()})),
    }[column]
    source = open_source(table(tmp_path / "set" / "x.parquet", cells=cells, kind=cell_kind))
    assert source.read(0).getpixel((0, 0)) == source.read(1).getpixel((0, 0)) == (50, 50, 50)
    with pytest.raises(UnreadableImage, match=r"its path leads out of .*, where the table lies"):
        source.read(2)
    with pytest.raises(InputError, match="1 of 3 pictures cannot be read"):
        decode(source, 8)


@pytest.mark.parametrize("cell", [7, [1, 2], 1.5, {"bytes": 7}, {"path": 7}, {"bytes": [1]}, None, ""], ids=repr)
def test_cells_of_other_types_are_unreadable(tmp_path, cell):
    import pyarrow

    source = open_source(table(tmp_path / "x.parquet", cells=[cell], kind=pyarrow.array([cell]).type))
    with pytest.raises(UnreadableImage, match="the table has neither its bytes nor its path"):
        source.read(0)


def test_paths_in_hub_sets_do_not_lead_out_of_the_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = [picture(tmp_path / "cache" / "1.png", 50), picture(tmp_path / "private.png", 200)]
    rows = {"image": [{"bytes": None, "path": str(path)} for path in cells]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": made}))
    source = open_source("owner/set")
    assert source.read(0).getpixel((0, 0)) == (50, 50, 50)
    with pytest.raises(UnreadableImage, match="its path leads out of the cache"):
        source.read(1)
