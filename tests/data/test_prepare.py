"""Prepared folders: the same for any number of jobs and workers, whole or not there, and used where they lie."""

import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import assert_same, figures, photos, pictures, settings

import nextpixel
from nextpixel import InputError, WorkError
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import to_size
from nextpixel.data import decoded as data
from nextpixel.data import prepared
from nextpixel.data.decoded import Batches, decode
from nextpixel.data.prepared import Job, merge, missing_jobs, prepare
from nextpixel.images import save_png
from nextpixel.images.sources import MapSource, load_images, open_source, train_and_test
from nextpixel.images.sources.files import FileSource

SIDE = 8
COUNT = 23


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 pictures, so that 23 make six."""
    monkeypatch.setattr(prepared, "CHUNK_IMAGES", 4)
    for module in (data, prepared):
        monkeypatch.setattr(module, "READ_TOGETHER", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 pictures of 12 x 10 in two classes; one cannot be read."""
    return write_photos(tmp_path / "photos")


def write_photos(place: Path) -> Path:
    for number, picture in enumerate(noise(COUNT)):
        path = place / ("cats" if number % 2 else "dogs") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(picture, path)
    (place / "cats" / "07.png").write_bytes(b"no picture")
    return place


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def assert_equal(found: MapSource, expected: data.DecodedSet) -> None:
    assert np.array_equal(found.images, expected.images)
    assert list(found.names) == list(expected.names)
    assert np.array_equal(found.labels, expected.labels) and found.classes == expected.classes
    assert found.unreadable == expected.unreadable


# ---- what a prepared folder holds


def test_it_holds_what_decoding_gives(folder, tmp_path):
    found = prepare(folder, tmp_path / "out", side=SIDE)
    assert_equal(found, decode(folder, SIDE))
    assert len(found) == COUNT - 1 and found.classes == ["cats", "dogs"] and "07.png" in found.unreadable[0]
    assert isinstance(found.images, np.memmap)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_refused_folder_can_be_mended_and_prepared(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, picture in enumerate(noise(3)):
        save_png(picture, photos / f"{number}.png")
    (photos / "bad.png").write_bytes(b"no picture")
    assert main(["prepare", str(photos), str(tmp_path / "out"), "--side", "8"]) == 2
    assert "1 of 4 pictures cannot be read" in capsys.readouterr().err
    (photos / "bad.png").unlink()
    assert main(["prepare", str(photos), str(tmp_path / "out"), "--side", "8"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


@pytest.mark.parametrize("name", ["", ".", "/", "link", "loop", "n" * 300])
def test_places_that_cannot_be_prepared_folders_are_refused_before_any_work(
    folder, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    assert main(["prepare", str(folder), name, "--side", "8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_a_job_of_another_number_of_jobs_is_refused(folder, tmp_path):
    prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 2))
    with pytest.raises(
        InputError, match=r"^job: expected a share of 2 jobs, as .*out\.parts was started with, got 1/3"
    ):
        prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 3))


@pytest.mark.parametrize("jobs", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("workers", [1, 3])
def test_it_is_the_same_for_any_number_of_jobs_and_workers(folder, tmp_path, jobs, workers):
    prepare(folder, tmp_path / "one", side=SIDE)
    for number in reversed(range(1, jobs + 1)):
        assert prepare(folder, tmp_path / "out", side=SIDE, job=Job(number, jobs), workers=workers) is None
        assert not (tmp_path / "out").exists()
    merge(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(("side", "stored"), [("24x16", (24, 16)), ((4, 6), (8, 12))])
def test_images_need_not_be_square(folder, tmp_path, side, stored):
    out = tmp_path / "out"
    found = prepare(folder, out, side=side, store_side=stored)
    assert_equal(found, decode(folder, stored))
    meta = json.loads((out / "meta.json").read_text())
    assert meta["side"] == list(stored) and found.images.shape[1:] == (*stored, 3)
    assert np.array_equal(decode(out, stored).images, found.images)
    serves = to_size(side)
    assert data.resized(found, serves, "crop").images[:3].shape == (3, *serves, 3)
    with pytest.raises(InputError, match=r"got side [0-9x]+ and `fit=crop`; .* NEW `side=16x24` `fit=crop`$"):
        decode(out, (16, 24))


def test_stored_images_have_the_proportions_of_the_model(folder, tmp_path):
    for stored, got in ((48, "48"), ((36, 24), "36x24"), ((72, 48), "72x48"), ((12, 8), "12x8")):
        told = f"store_side: expected the side 24x16, or twice it for random crops, got {got}"
        with pytest.raises(InputError, match=told):
            prepare(folder, tmp_path / "out", side=(24, 16), store_side=stored)


def test_real_chunks_are_of_whole_readings(monkeypatch):
    monkeypatch.undo()
    for side in (1, 32, 64, 100, 224, 1000):
        chunk = prepared.chunk_images((side, side))
        assert chunk % data.READ_TOGETHER == 0 and chunk <= 4096
        assert chunk * side * side * 3 <= 64 * 2**20 or chunk == data.READ_TOGETHER


def shards(place: Path, count: int = COUNT) -> Path:
    """Three WebDataset shards; each sample has a picture, a class and a mask beside it."""
    place.mkdir()
    for shard in range(3):
        with tarfile.open(place / f"set-{shard:02d}.tar", "w") as file:
            for number in range(shard, count, 3):
                path = place / "x.png"
                save_png(noise(COUNT)[number], path)
                picture = path.read_bytes()
                path.unlink()
                for ending, text in (("mask.png", b"x"), ("cls", b"%d\n" % (number % 2)), ("png", picture)):
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(text)
                    file.addfile(member, io.BytesIO(text))
    return place


def table(path: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    cells = []
    for picture in noise(COUNT):
        save_png(picture, path.with_suffix(".png"))
        cells.append({"bytes": path.with_suffix(".png").read_bytes(), "path": None})
    path.with_suffix(".png").unlink()
    rows = {"image": cells, "label": [number % 2 for number in range(COUNT)]}
    parquet.write_table(pyarrow.table(rows), path, row_group_size=5)
    return path


def test_shards_keep_their_order_and_classes(tmp_path):
    found = prepare(shards(tmp_path / "shards"), tmp_path / "out", side=SIDE)
    order = [number for shard in range(3) for number in range(shard, COUNT, 3)]
    assert list(found.names) == [f"set-{number % 3:02d}.tar/{number:04d}.png" for number in order]
    assert found.labels.tolist() == [number % 2 for number in order]
    for square, number in zip(found.images, order, strict=True):
        assert np.array_equal(square, open_source(noise(COUNT)[number]).image(0, (SIDE, SIDE), "crop"))


def test_patterns_name_shards(tmp_path):
    place = shards(tmp_path / "shards")
    whole = open_source(place)
    for pattern in ("set-{00..02}.tar", "*.tar", "set-0[012].tar", "{set-00,set-01,set-02}.tar"):
        assert list(open_source(f"{place}/{pattern}").names) == list(whole.names)
    assert len(open_source(place / "set-01.tar")) == 8
    assert len(open_source(f"{place}/set-0{{0,2}}.tar")) == 8 + 7
    with pytest.raises(InputError, match=r"no such file: .*set-03.tar; expected all"):
        open_source(f"{place}/set-{{00..03}}.tar")
    with pytest.raises(InputError, match="no file has such a name"):
        open_source(f"{place}/none-*.tar")


def test_shards_that_are_cut_or_compressed_are_named(tmp_path):
    place = shards(tmp_path / "shards")
    (place / "set-01.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(InputError, match=r"set-01.tar: expected a plain .tar file.*unpack"):
        open_source(place)
    (place / "photo.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds images and \.tar files; expected one kind"):
        open_source(place)


def test_arrays_and_tables(tmp_path):
    np.save(tmp_path / "set.npy", noise(COUNT))
    np.savez(tmp_path / "set.npz", images=noise(COUNT), labels=np.arange(COUNT) % 2)
    for name in ("set.npy", "set.npz"):
        assert_equal(prepare(tmp_path / name, tmp_path / f"{name}-out", side=SIDE), decode(tmp_path / name, SIDE))
    path = table(tmp_path / "set.parquet")
    assert_equal(prepare(path, tmp_path / "table-out", side=SIDE, job=None), decode(path, SIDE))
    for number in (2, 1):
        prepare(path, tmp_path / "by-jobs", side=SIDE, job=Job(number, 2))
    merge(tmp_path / "by-jobs")
    assert contents(tmp_path / "by-jobs") == contents(tmp_path / "table-out")


# ---- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets` streaming a local table as the split of a set on the hub; counts how often it is begun."""
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    local = datasets.Dataset.from_parquet(str(table(tmp_path / "hub.parquet")), features=kinds, cache_dir=tmp_path)
    skipped: list[int] = []
    told = {"count": COUNT}

    class Rows:
        def __init__(self, rows):
            self.rows, self.features = rows, kinds
            splits = {"train": SimpleNamespace(num_examples=told["count"])} if told["count"] else None
            self.info = SimpleNamespace(splits=splits, download_checksums=None, version="1.0.0")

        def select_columns(self, names):
            return Rows(self.rows.select_columns(names))

        def cast_column(self, *cast):
            return Rows(self.rows.cast_column(*cast))

        def skip(self, count):
            skipped.append(count)
            for number, row in enumerate(self.rows.skip(count), count):
                if number == told.get("stops_at"):
                    raise ConnectionError("reset by\npeer")
                yield row

    def load_dataset(name, config=None, streaming=False):
        return {"train": Rows(local.to_iterable_dataset())} if streaming else {"train": local}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("nextpixel.images.sources.tables.READ_TOGETHER", 2)
    monkeypatch.chdir(tmp_path)
    return skipped, told


def test_a_set_on_the_hub_is_streamed_once(hub, tmp_path):
    skipped, _ = hub
    found = prepare("owner/set", "out", side=SIDE)
    expected = decode(tmp_path / "hub.parquet", SIDE)
    assert np.array_equal(found.images, expected.images)
    assert found.classes == ["dog", "cat"] and np.array_equal(found.labels, expected.labels)
    assert found.names[0] == "train/00" and skipped == [0]


def test_jobs_stream_their_own_share(hub):
    skipped, _ = hub
    prepare("owner/set", "one", side=SIDE)
    for number in (3, 1, 2):
        prepare("owner/set", "out", side=SIDE, job=Job(number, 3))
    merge("out")
    assert contents(Path("out")) == contents(Path("one"))
    assert skipped == [0, 0, 16, 0, 8]  # whoever comes first looks at the first pictures


def test_captions_of_a_streamed_set_are_refused_but_for_tables(hub, tmp_path):
    with pytest.raises(
        InputError, match=r"captions: owner/set: expected a .csv .* streamed set has no texts .*got 'text'"
    ):
        prepare("owner/set", "out", side=SIDE, captions="text")
    assert not Path("out").exists() and not Path("out.parts").exists()
    (tmp_path / "t.csv").write_text("\n".join(["file,caption", *(f"train/{i:02},red" for i in range(COUNT))]))
    assert prepare("owner/set", "out", side=SIDE, captions="t.csv").texts("t.csv") == ["red"] * COUNT


def test_a_set_of_unknown_size_is_downloaded(hub):
    skipped, told = hub
    told["count"] = 0
    assert len(prepare("owner/set", "out", side=SIDE)) == COUNT and skipped == []


def test_a_stream_that_ends_early_is_an_error(hub):
    told = hub[1]
    told["count"] = COUNT + 5
    with pytest.raises(WorkError, match=f"expected {COUNT + 5} pictures.*ended after {COUNT}"):
        prepare("owner/set", "out", side=SIDE)


def test_a_hub_that_stops_answering_keeps_what_was_read(hub, monkeypatch):
    skipped, told = hub
    prepare("owner/set", "one", side=SIDE)
    told["stops_at"] = 9
    with pytest.raises(WorkError, match=r"owner/set: the hub stopped answering \(reset by peer\)"):
        prepare("owner/set", "out", side=SIDE)
    del told["stops_at"]
    prepare("owner/set", "out", side=SIDE)
    assert skipped == [0, 0, 8] and contents(Path("out")) == contents(Path("one"))


# ---- interrupted, repeated, missing, full


def fail_at(monkeypatch, name: str, error: BaseException) -> None:
    original = FileSource.image

    def image(self, index, *args):
        if name in self.names[index]:
            raise error
        return original(self, index, *args)

    monkeypatch.setattr(FileSource, "image", image)


def test_what_was_interrupted_goes_on(folder, tmp_path, monkeypatch):
    prepare(folder, tmp_path / "one", side=SIDE)
    with monkeypatch.context() as patch:
        fail_at(patch, "dogs/10", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, tmp_path / "out", side=SIDE)
    kept = sorted(path.name for path in (tmp_path / "out.parts").iterdir())
    assert kept == [f"{number:06d}.npz" for number in range(4)] + ["plan.json"] and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"out is not finished: its parts lie in .*out.parts"):
        open_source(tmp_path / "out")
    with monkeypatch.context() as patch:
        fail_at(patch, "cats/0", AssertionError("decoded again"))
        prepare(folder, tmp_path / "out", side=SIDE)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_missing_jobs_are_named_and_repeated_ones_do_no_harm(folder, tmp_path):
    for number in (2, 2, 5):
        prepare(folder, tmp_path / "out", side=SIDE, job=Job(number, 6))
    assert missing_jobs(tmp_path / "out") == [1, 3, 4, 6]
    with pytest.raises(InputError, match="4 of them are not finished: 1/6, 3/6, 4/6, 6/6; run those"):
        merge(tmp_path / "out")
    for number in (1, 3, 4, 6):
        prepare(folder, tmp_path / "out", side=SIDE, job=Job(number, 6))
    assert len(merge(tmp_path / "out")) == len(merge(tmp_path / "out")) == COUNT - 1
    with pytest.raises(InputError, match="exists already"):
        prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 6))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"side": 4}, "another `side`: expected 8, got 4"),
        ({"fit": "squash"}, "another `fit`: expected crop, got squash"),
        ({"store_side": 16}, "another `store_side`: expected 8, got 16"),
    ],
)
def test_parts_of_other_settings_are_refused(folder, tmp_path, changes, told):
    prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 2))
    with pytest.raises(InputError, match=told):
        prepare(folder, tmp_path / "out", **{"side": SIDE} | changes)
    (folder / "cats" / "01.png").touch()
    with pytest.raises(InputError, match="some were added, removed or changed"):
        prepare(folder, tmp_path / "out", side=SIDE)


@pytest.mark.parametrize("captions", ["t.csv", "txt"])
def test_parts_of_other_captions_are_refused(tmp_path, monkeypatch, captions):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_png(noise(1)[0], tmp_path / "set" / f"{name}.png")
    table, text = Path("t.csv"), Path("set/b.txt")
    for colour in ("red", "blue"):
        table.write_text(f"file,caption\na.png,red\nb.png,{colour}\n"), text.write_text(colour)
        if colour == "red":
            prepare("set", "out", side=SIDE, captions=captions, job=Job(1, 2))
    with pytest.raises(InputError, match=r"with other captions: some were changed; repeat"):
        prepare("set", "out", side=SIDE, captions=captions, job=Job(2, 2))
    table.write_text("file,caption\na.png,red\nb.png,red\n"), text.write_text("red")
    prepare("set", "out", side=SIDE, captions=captions, job=Job(2, 2))
    assert merge("out").texts(captions)[1] == "red"


def test_prepared_splits_are_those_of_their_folder(folder, tmp_path):
    for split, side in (("train", 4), ("val", SIDE), ("test", 4)):
        prepare(folder, tmp_path / "set" / split, side=side)
    for asked, split in ((None, "train"), ("validation", "val"), ("test", "test")):
        source = open_source(tmp_path / "set", asked)
        assert isinstance(source, MapSource) and source.split == split
        assert_equal(source, MapSource(tmp_path / "set" / split))
    assert [source.split for source in train_and_test(tmp_path / "set")] == ["train", "test"]
    with pytest.raises(InputError, match="no split 'dev', only test, train"):
        (tmp_path / "set" / "val").rename(tmp_path / "alone")
        open_source(tmp_path / "set", "dev")
    prepare(folder, tmp_path / "one" / "mine", side=4)
    assert_equal(open_source(tmp_path / "one"), MapSource(tmp_path / "one" / "mine"))
    assert open_source(tmp_path / "one").split is None
    with pytest.raises(InputError, match="one: expected a train and a test split, got mine"):
        train_and_test(tmp_path / "one")


@pytest.mark.parametrize("place", ["os.fsync", "nextpixel.images.sources.maps.os.fsync", "numpy.savez"])
def test_a_full_disk_keeps_what_was_done(folder, tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(WorkError, match=r"out.*cannot be written \(No space left on device\).*Free some space"):
            prepare(folder, tmp_path / "out", side=SIDE)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("**/.*"))
    assert len(prepare(folder, tmp_path / "out", side=SIDE)) == COUNT - 1


def test_a_full_disk_while_merging_keeps_the_parts(folder, tmp_path, monkeypatch):
    for number in (1, 2):
        prepare(folder, tmp_path / "out", side=SIDE, job=Job(number, 2))
    before = contents(tmp_path / "out.parts")
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "write_set", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(WorkError, match="No space left"):
            merge(tmp_path / "out")
    assert contents(tmp_path / "out.parts") == before and not (tmp_path / "out").exists()
    assert len(merge(tmp_path / "out")) == COUNT - 1


@pytest.mark.parametrize("size", [0, 1, 300, -1])
def test_a_short_chunk_is_made_again(folder, tmp_path, size):
    prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 1))
    chunk = tmp_path / "out.parts" / "000002.npz"
    whole = chunk.read_bytes()
    os.truncate(chunk, size % len(whole))
    with pytest.raises(InputError, match=r"1 of them are not finished: 1/1"):
        merge(tmp_path / "out")
    prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 1))
    assert chunk.read_bytes() == whole


def test_a_damaged_chunk_is_named(folder, tmp_path):
    prepare(folder, tmp_path / "out", side=SIDE, job=Job(1, 1))
    chunk = tmp_path / "out.parts" / "000002.npz"
    chunk.write_bytes(chunk.read_bytes().replace(b"squares", b"squarex"))
    with pytest.raises(WorkError, match=r"000002.npz: .*remove that file and run its job again"):
        merge(tmp_path / "out")


def test_many_unreadable_pictures_are_bad_input(folder, tmp_path):
    for number in (1, 3):
        (folder / "cats" / f"{number:02d}.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"3 of {COUNT} pictures cannot be read, expected at most one in ten"):
        prepare(folder, tmp_path / "out", side=SIDE)


def test_a_damaged_folder_is_named(folder, tmp_path):
    for name in ("squares.u8", "names.bin", "labels.npy", "meta.json"):
        out = tmp_path / name
        prepare(folder, out, side=SIDE)
        os.truncate(out / name, 50)
        with pytest.raises(InputError, match=f"{out}: expected decoded images, got damaged files .*prepare it again"):
            open_source(out)


def test_an_empty_folder_may_be_filled_and_names_need_not_be_text(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        save_png(noise(3)[number], tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.fsencode(tmp_path / "photos") + b"/\xff%d.png" % number)
    (tmp_path / "out").mkdir()
    found = prepare(tmp_path / "photos", tmp_path / "out", side=SIDE)
    assert list(found.names) == list(open_source(tmp_path / "photos").names)


# ---- a source like any other


def test_it_is_used_where_it_lies(folder, tmp_path, cache):
    out = tmp_path / "out"
    prepare(folder, out, side=SIDE)
    found = decode(out, SIDE)
    assert Path(found.images.filename) == out / "squares.u8"
    assert not (cache / "decoded").exists()
    assert np.array_equal(found.images, decode(folder, SIDE).images)
    assert np.array_equal(load_images(str(out), SIDE), found.images)
    assert np.array_equal(open_source([str(out)]).image(3, (SIDE, SIDE), "crop"), found.images[3])


def test_it_serves_a_smaller_side_only_where_it_was_made_for_it(folder, tmp_path):
    out = tmp_path / "out"
    found = prepare(folder, out, side=4, store_side=SIDE)
    small = data.resized(found, (4, 4), "crop")
    assert small.images.shape == (COUNT - 1, 4, 4, 3)
    assert np.array_equal(small.images[[2, 0]], decode(out, 4).images[[2, 0]])
    assert np.array_equal(small.images[1:3], decode(out, 4).images[1:3])
    again = r"nextpixel prepare .*photos NEW `side=2` `fit=crop`"
    with pytest.raises(InputError, match=f"expected images of side 2 made with `fit=crop`, got side 8.*{again}"):
        decode(out, 2)
    with pytest.raises(InputError, match="`fit=squash`"):
        load_images(str(out), 4, fit="squash")


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_training_on_it_is_training_on_the_source(tmp_path, augment, cache):
    source = photos(tmp_path)
    if augment == "crop":  # so that twice the side is there
        np.save(source, pictures(20, 8))
    options = settings(tmp_path, augment=augment)
    prepare(source, tmp_path / "set", side=4, store_side=8 if augment == "crop" else 4)
    nextpixel.pretrain(str(tmp_path / "set"), out=tmp_path / "a", **options)
    assert list((cache / "decoded").iterdir()) == []
    nextpixel.pretrain(str(source), out=tmp_path / "b", **options)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_training_on_it_goes_on_after_an_interruption(tmp_path):
    prepare(photos(tmp_path), tmp_path / "set", side=4)
    nextpixel.pretrain(str(tmp_path / "set"), out=tmp_path / "whole", **settings(tmp_path))
    nextpixel.pretrain(str(tmp_path / "set"), out=tmp_path / "cut", **settings(tmp_path))
    for step in (10, 12):
        place = Run(tmp_path / "cut").folder(step)
        if place.exists():
            place.rename(tmp_path / f"gone-{step}")
    nextpixel.pretrain(resume=tmp_path / "cut")
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"side": 8}, r"expected images of side 8 .* got side 4 .*photos.npy NEW `side=8` `fit=crop`$"),
        ({"fit": "squash"}, r"`fit=squash`, got side 4 and `fit=crop`.*`side=4` `fit=squash`$"),
        ({"augment": "crop"}, r"expected images of side 8 .* got side 4 .*`side=4` `fit=crop` `store_side=8`$"),
    ],
)
def test_the_wrong_images_are_refused_with_the_command_that_makes_the_right_ones(tmp_path, changes, told):
    prepare(photos(tmp_path), tmp_path / "set", side=4)
    with pytest.raises(InputError, match=told):
        nextpixel.pretrain(str(tmp_path / "set"), out=tmp_path / "run", **settings(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_the_log_tells_how_long_batches_were_waited_for(tmp_path, monkeypatch, capsys):
    import time

    nextpixel.pretrain(str(photos(tmp_path)), out=tmp_path / "fast", **settings(tmp_path))
    shares = [entry["waiting"] for entry in Run(tmp_path / "fast").read_log() if "loss" in entry]
    assert len(shares) == 12 and all(0 <= share <= 1 for share in shares)
    original = Batches.__call__
    monkeypatch.setattr(Batches, "__call__", lambda self, step: (time.sleep(0.2), original(self, step))[1])
    capsys.readouterr()
    nextpixel.pretrain(str(tmp_path / "photos.npy"), out=tmp_path / "slow", **settings(tmp_path, steps=6))
    slow = [entry["waiting"] for entry in Run(tmp_path / "slow").read_log() if "loss" in entry]
    assert np.mean(slow) > 0.4 and np.mean(slow) > np.mean(shares)
    assert "Waited for data" in capsys.readouterr().err


# ---- the command


def test_the_command_by_jobs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "photos", "out", "--side", "8", "--augment", "crop", "--job", "1/2"]) == 0
    out, err = capsys.readouterr()
    assert out == "out: job 1/2 is done\n" and "Jobs left: 2/2" in err
    assert "nextpixel prepare --merge out" in err
    assert main(["prepare", "--merge", "out"]) == 2
    assert "1 of them are not finished: 2/2" in capsys.readouterr().err
    main(["prepare", "photos", "out/", "--side", "8", "--augment", "crop", "--job", "2/2", "--json"])
    assert json.loads(capsys.readouterr().out) == {"out": "out/", "job": "2/2", "missing": []}
    assert main(["prepare", "--merge", "out/"]) == 0
    out, err = capsys.readouterr()
    assert out == f"out: {COUNT - 1} images at 16 x 16 with labels\n"
    assert "left out: cannot read the image cats/07.png" in err
    assert "nextpixel pretrain out --side 8 --augment crop --out run" in err


def test_an_interrupted_command_says_how_to_go_on(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fail_at(monkeypatch, "dogs/10", KeyboardInterrupt())
    assert main(["prepare", "photos", "out", "--side", "8"]) == 130
    assert "out.parts; resume with: nextpixel prepare photos out --side 8" in capsys.readouterr().err


# ---- size

MEMORY = """
    import os, sys
    import numpy as np
    from nextpixel.data.decoded import Batches, split_indices
    from nextpixel.data.decoded import decode

    def private():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    before = private()
    found = decode(sys.argv[1], 64)
    train, held = split_indices(len(found), 0.1, 0)
    batches = Batches(found.images, train, size=(64, 64), batch_images=128, augment="flip", seed=0)
    epoch = len(train) // 128
    for step in [*range(200), *range(epoch - 100, epoch + 100)]:
        batches(step)
    print(len(found), private() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_set_is_not_held_in_memory(tmp_path, monkeypatch):
    """100,000 pictures at 64 pixels, 1.2 GB: what the process holds grows by less than 100 bytes a picture."""
    monkeypatch.setattr(prepared, "CHUNK_IMAGES", 4_096)
    for module in (data, prepared):
        monkeypatch.setattr(module, "READ_TOGETHER", 256)
    block = np.random.default_rng(0).integers(0, 256, (1000, 64, 64, 3), np.uint8)
    images = np.lib.format.open_memmap(tmp_path / "set.npy", "w+", np.uint8, (100_000, 64, 64, 3))
    for start in range(0, 100_000, 1000):
        images[start : start + 1000] = block
    images.flush()
    del images
    prepare(tmp_path / "set.npy", tmp_path / "set", side=64)
    (tmp_path / "set.npy").unlink()
    code = textwrap.dedent(MEMORY)
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], capture_output=True, text=True, check=True)
    count, megabytes = map(float, told.stdout.split())
    (tmp_path / "set" / "squares.u8").unlink()
    print(f"{megabytes:.1f} MiB for {count:,.0f} pictures")
    assert count == 100_000
    assert megabytes * 2**20 < 100 * count + 20 * 2**20  # 20 MiB for batches on their way


def test_pictures_that_are_all_too_large_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for name in "abc":
        save_png(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8), tmp_path / "large" / f"{name}.png")
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "large", tmp_path / "out", side=4, fit="place")
    assert "one in ten: a.png, b.png, c.png: its 9 x 9 pixels do not fit on 4 x 4; " in str(error.value)
    assert not (tmp_path / "out.parts").exists()
    assert len(prepare(tmp_path / "large", tmp_path / "out", side=9, fit="place") or ()) == 3
