"""Where captions come from, what a prepared folder keeps of them, and what training sees."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import picture, png, shard
from PIL import Image

from nextpixel.cli import main
from nextpixel.config import TAGS, Levels
from nextpixel.data.captions import NO_WORD, captions_of
from nextpixel.data.decoded import DROPPED, Batches, some_tags
from nextpixel.data.prepared import Job, merge, prepare
from nextpixel.errors import InputError
from nextpixel.images.sources import MapSource, Source, open_source, sprites_of


def captions(images: Any, name: Any) -> list[str]:
    return captions_of(open_source(images), name).tolist()


@pytest.fixture
def sprites(tmp_path: Path) -> Path:
    for i, name in enumerate(["potions/red_potion_01", "potions/2 big-RED__potion (3)", "swords/short/sword7.b"]):
        picture(tmp_path / "sprites" / f"{name}.png", 10 * i)
    return tmp_path / "sprites"


def test_captions_of_names_have_no_numbers_of_their_own(sprites: Path) -> None:
    assert captions(sprites, "names") == ["big RED potion", "red potion", "sword b"]
    named = [NO_WORD.sub(" ", name).split() for name in ("knight_32x32_1", "tile16x16", "8x8 2d hero12")]
    assert named == [["knight"], ["tile"], ["2d", "hero"]]


def test_captions_of_folders_are_the_folders_outermost_first_or_the_class(sprites: Path, tmp_path: Path) -> None:
    assert captions(sprites, "folders") == ["potions", "potions", "swords, short"]
    cells = [(f"{i}.png", png(i)) for i in range(3)] + [(f"{i}.cls", b"green_tea") for i in range(2)]
    assert captions(shard(tmp_path / "a.tar", sorted(cells)), "folders") == ["green tea", "green tea", ""]
    with pytest.raises(InputError, match="expected labelled images"):
        captions(picture(tmp_path / "alone.png"), "folders")


@pytest.mark.parametrize("names", [("file", "caption"), ("file_name", "text")])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_of_tables(sprites: Path, tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    rows = [("potions/red_potion_01.png", 'red, "hot"'), ("sword7.b.png", "sword"), ("2 big-RED__potion (3)", None)]
    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        path.write_text("\n".join(json.dumps(dict(zip(names, row))) for row in rows) + "\n\n")
    assert captions(sprites, path) == ["", 'red, "hot"', "sword"]


def sheets(folder: Path) -> Source:
    """The tiles of two sheets of 2 x 3, one of which has an empty tile, and of a single sprite."""
    folder.mkdir()
    for name, size in (("b", (4, 6)), ("a", (4, 6)), ("one", (2, 2))):
        pixels = np.random.default_rng(len(name)).integers(1, 256, (*size, 4), np.uint8)
        if name == "b":
            pixels[2:, :2] = 0
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return sprites_of(open_source(folder), (2, 2), "place", Levels(slice=(2, 2)))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_of_sheets_have_rows_for_their_tiles(tmp_path: Path, kind: str) -> None:
    source, path = sheets(tmp_path / "sheets"), tmp_path / f"t.{kind}"
    tiles = [("a.png", row, column, f"{row} {column}") for row in range(2) for column in range(3)]
    rows = [*tiles, ("b", 0, 1, "of its own"), ("b", None, None, "of the sheet"), ("one.png", None, None, "whole")]
    names = ("file", "row", "column", "caption")
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        path.write_text("\n".join(json.dumps(dict(zip(names, row))) for row in rows))
    found = dict(zip(source.names, captions_of(source, path)))
    assert found == {f"a.png#{row},{column}": f"{row} {column}" for row in range(2) for column in range(3)} | {
        "b.png#0,0": "of the sheet",
        "b.png#0,1": "of its own",
        "b.png#0,2": "of the sheet",
        "b.png#1,1": "of the sheet",
        "b.png#1,2": "of the sheet",
        "one.png": "whole",
    }


def test_rows_and_columns_may_be_what_pandas_makes_of_them(tmp_path: Path) -> None:
    source, path = sheets(tmp_path / "sheets"), tmp_path / "t.csv"
    path.write_text("file,row,column,caption\na.png,,,a thing\na.png,0.0,1.0,a potion\nb.png,,,b\none.png,,,green\n")
    assert captions_of(source, path).tolist()[:3] == ["a thing", "a potion", "a thing"]
    path.write_text("file,row,caption\na.png,7,a thing\nb.png,8,b\none.png,9,c\n")  # a column of another meaning
    assert captions_of(source, path).tolist()[:2] == ["a thing", "a thing"]
    for row in ("0,", "x,1", "0.5,1"):
        path.write_text(f"file,row,column,caption\na.png,{row},a potion\n")
        with pytest.raises(InputError, match=r"^captions: .*t\.csv: expected two whole numbers in the columns row and"):
            captions_of(source, path)


def test_a_tile_without_a_row_is_named(tmp_path: Path) -> None:
    source, path = sheets(tmp_path / "sheets"), tmp_path / "t.csv"
    path.write_text("file,row,column,caption\na.png,0,0,red\nb.png,,,blue\none.png,,,green\n")
    with pytest.raises(InputError, match=r"one row for each picture, got none or several for 5 of 12: .*a\.png#0,1"):
        captions_of(source, path)


def test_tiles_have_the_captions_of_their_files(tmp_path: Path) -> None:
    source = sheets(tmp_path / "sheets")
    (tmp_path / "sheets" / "a.txt").write_text("red")
    assert captions_of(source, "names").tolist() == ["a"] * 6 + ["b"] * 5 + ["one"]
    assert captions_of(source, "txt").tolist() == ["red"] * 6 + [""] * 6
    assert captions_of(source, [str(i) for i in range(12)])[11] == "11"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,caption\n", "expected one row for each picture, .* the column file has nothing"),
        ("t.csv", "file,label\na,b\n", r"expected the columns file and caption, got \['file', 'label'\]"),
        ("t.csv", "", r"expected the columns file and caption, got \(\)"),
        ("t.csv", "file,caption\nx.png,a\nx.png,b\n", "expected one caption for 'x.png', got 'a' and 'b'"),
        ("t.jsonl", '{"file": "x.png", "caption": 7}\n', "expected text in the columns file and caption, got 7"),
        (
            "t.jsonl",
            "[1]\n",
            "expected a JSONL file of file,caption, got something unreadable: a line that is not an object",
        ),
        ("t.jsonl", "{\n", "expected a JSONL file of file,caption, got something unreadable"),
        ("t.csv", "file,caption\nx.png, \n", "captions: expected captions in .*x.png by .*t.csv', got only empty ones"),
        (None, None, "captions: no such file: .*missing.csv"),
        ("t.csv", b"file,caption\nx.png,\xe9\n", "got something unreadable: another encoding than UTF-8"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, name: str | None, text: str | bytes | None, message: str) -> None:
    path = tmp_path / (name or "missing.csv")
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        captions(picture(tmp_path / "x.png"), path)


def test_captions_beside_the_pictures(sprites: Path) -> None:
    (sprites / "potions" / "red_potion_01.txt").write_text(" red, potion\n")
    (sprites / "swords" / "short" / "sword7.b.txt").write_bytes(b"sw\xf6rd")
    assert captions(sprites, "txt") == ["", "red, potion", "sw�rd"]
    with pytest.raises(
        InputError, match=r"captions: expected names, folders or a .* got 'caption', which no picture of"
    ):
        captions(sprites, "caption")


def test_captions_of_shards_are_members_of_their_samples(tmp_path: Path) -> None:
    first = [("a.png", png(1)), ("a.txt", b"red hair"), ("b.txt", b"glasses"), ("b.seg.txt", b"no"), ("b.png", png(2))]
    second = [("x/a.png", png(3)), ("x/a.json", b"{}"), ("y/a.txt", b"hat"), ("y/a.png", png(4))]
    for name, members in (("0.tar", first), ("1.tar", second)):
        shard(tmp_path / "shards" / name, members)
    source = open_source(tmp_path / "shards")
    assert list(source.names) == ["0.tar/a.png", "0.tar/b.png", "1.tar/x/a.png", "1.tar/y/a.png"]
    assert captions_of(source, "txt").tolist() == ["red hair", "glasses", "", "hat"]
    assert captions_of(source, "seg.txt").tolist() == ["", "no", "", ""]
    with pytest.raises(InputError, match="captions: expected names, folders"):
        captions_of(source, "caption")


def parquet(path: Path, column: Any) -> Path:
    import pyarrow
    from pyarrow import parquet

    made = pyarrow.table({"image": [png(9 * i) for i in range(len(column))], "caption": column})
    parquet.write_table(made, path)
    return path


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["red", None, "blue, big"], ["red", "", "blue, big"]),
        ([["red", "long hair"], [], None], ["red, long hair", "", ""]),
    ],
)
def test_captions_of_parquet_columns(tmp_path: Path, column: Any, expected: list[str]) -> None:
    assert captions(parquet(tmp_path / "x.parquet", column), "caption") == expected


def test_columns_that_are_missing_or_no_text_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [1, 2])
    with pytest.raises(
        InputError, match=r"captions: .*x.parquet: expected one of its columns, image, caption, got 'text'"
    ):
        captions(path, "text")
    with pytest.raises(InputError, match=r"captions: .*expected text in the column 'caption', got 1"):
        captions(path, "caption")


def test_captions_of_several_sources_and_of_sequences(sprites: Path, tmp_path: Path) -> None:
    both = [parquet(tmp_path / "x.parquet", ["a", "b"]), parquet(tmp_path / "y.parquet", ["c"])]
    assert captions([str(path) for path in both], "caption") == ["a", "b", "c"]
    classes = shard(tmp_path / "a.tar", [("0.png", png(1)), ("0.cls", b"green_tea")])
    assert captions([str(sprites), str(classes)], "folders") == ["potions", "potions", "swords, short", "green tea"]
    prepare(sprites, tmp_path / "prepared", side=8, captions="names")
    names = captions(sprites, "names")
    assert captions([str(tmp_path / "prepared"), str(sprites)], "names") == names * 2
    assert captions(sprites, ["a", "", "c"]) == ["a", "", "c"]
    assert captions(picture(tmp_path / "one.png"), ["a, b"]) == ["a, b"]
    for wrong in (["a"], ["a", "b", 3]):
        with pytest.raises(InputError, match=f"captions: expected 3 texts, one for each image, got {len(wrong)}"):
            captions(sprites, wrong)


# ---- prepared folders


@pytest.mark.parametrize("jobs", [1, 2])
def test_prepared_folders_keep_captions_of_readable_pictures(tmp_path: Path, jobs: int) -> None:
    members = [
        (f"{i:02}.{end}", data) for i in range(12) for end, data in (("png", png(i)), ("txt", f"tag {i}".encode()))
    ]
    members[2 * 5] = ("05.png", b"no picture")
    source = shard(tmp_path / "a.tar", members)
    for number in range(1, jobs + 1):
        job = None if jobs == 1 else Job(number, jobs)
        prepare(str(source), tmp_path / "out", side=4, captions="txt", job=job)
    if jobs > 1:
        merge(tmp_path / "out")
    found = MapSource(tmp_path / "out")
    assert captions_of(found, "txt").tolist() == [f"tag {i}" for i in range(12) if i != 5]
    with pytest.raises(InputError, match=r"captions: expected captions in .* by 'names', got only empty ones"):
        captions_of(found, "names")
    with pytest.raises(InputError, match="got 'caption'; it was prepared with `captions=txt`"):
        captions_of(found, "caption")
    prepare(str(source), tmp_path / "plain", side=4)
    with pytest.raises(InputError, match="got 'txt'; it was prepared without captions"):
        captions(tmp_path / "plain", "txt")
    assert MapSource(tmp_path / "plain").fingerprint() != found.fingerprint()


def test_a_single_empty_caption_is_kept(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "0.png"), picture(tmp_path / "in" / "1.png", 5)
    (tmp_path / "in" / "1.txt").write_text("red")
    prepare(tmp_path / "in", tmp_path / "out", side=4, captions="txt")
    assert captions(tmp_path / "out", "txt") == ["", "red"]


def test_damaged_captions_of_a_prepared_folder_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "red.png")
    prepare(tmp_path / "in", tmp_path / "out", side=4, captions="names")
    (tmp_path / "out" / "captions.bin").write_bytes(b"re")
    with pytest.raises(InputError, match=r"damaged files \(captions.bin has 2 bytes instead of 3\)"):
        open_source(tmp_path / "out")


def test_the_command_keeps_captions_and_names_them_in_its_hint(
    sprites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(sprites), str(tmp_path / "out"), "--side", "4", "--captions", "names"]) == 0
    assert "--captions names --out run" in capsys.readouterr().err
    assert captions(tmp_path / "out", "names") == ["big RED potion", "red potion", "sword b"]


# ---- what training sees

TAGGED = np.random.default_rng(0).integers(1, 50, (40, TAGS, 2)).astype(np.uint8)
TAGGED[:, 6:] = 0


def test_tags_are_left_out_and_shuffled_as_designed() -> None:
    numbers = np.arange(40)
    epochs = [some_tags(TAGGED, numbers, seed=1, epoch=epoch) for epoch in range(100)]
    counts = np.array([found.any(-1).sum(1) for found in epochs])
    assert np.mean(counts == 0) == pytest.approx(DROPPED + (1 - DROPPED) / 7, abs=0.02)
    for kept in range(1, 7):  # a probability drawn anew makes every number of tags equally likely
        assert np.mean(counts == kept) == pytest.approx((1 - DROPPED) / 7, abs=0.02)
    for found in epochs[:5]:
        for own, rows in zip(TAGGED, found):
            tags = [tuple(tag) for tag in rows[rows.any(-1)]]
            assert len(set(tags)) == len(tags) and set(tags) <= {tuple(tag) for tag in own[:6].tolist()}
            assert not rows[len(tags) :].any()
    whole = [found[i, :6] for found, count in zip(epochs, counts) for i in np.flatnonzero(count == 6)]
    assert len({tuple(map(tuple, tags.tolist())) for tags in whole}) > len(whole) * 0.9
    assert not some_tags(np.zeros((1, TAGS, 1), np.uint8), np.zeros(3, np.int64), seed=0).any()


def test_tags_depend_on_seed_epoch_and_number_alone() -> None:
    numbers = np.array([7, 3, 30])
    found = some_tags(TAGGED, numbers, seed=1, epoch=2)
    assert np.array_equal(found[1:2], some_tags(TAGGED, numbers[1:2], seed=1, epoch=2))
    assert np.array_equal(found, some_tags(TAGGED[:, :6], numbers, seed=1, epoch=2))
    assert not np.array_equal(found, some_tags(TAGGED, numbers, seed=1, epoch=3))
    assert not np.array_equal(found, some_tags(TAGGED, numbers, seed=2, epoch=2))
    squares = np.zeros((40, 4, 4, 3), np.uint8)
    settings: dict[str, Any] = {"size": (4, 4), "batch_images": 12, "augment": "flip", "seed": 1}
    whole = Batches(squares, np.arange(40), **settings)
    for step in (0, 3):  # the second ends one epoch and begins another
        parts = [Batches(squares, np.arange(40), **settings, part=(i, 3)).tags(step, TAGGED) for i in range(3)]
        assert np.array_equal(np.concatenate(parts), whole.tags(step, TAGGED))
        numbers = whole.numbers(step)
        epoch = np.arange(12 * step, 12 * step + 12) // 40
        by_hand = [some_tags(TAGGED, numbers[i : i + 1], seed=1, epoch=int(epoch[i])) for i in range(12)]
        assert np.array_equal(np.concatenate(by_hand), whole.tags(step, TAGGED))
