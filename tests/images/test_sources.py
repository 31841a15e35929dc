"""sources/: every meaning of `images`, their names, labels, splits and fingerprints."""

import io
import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextpixel.errors import InputError, WorkError
from nextpixel.images import UnreadableImage
from nextpixel.images.sources import JoinedSource, Source, load_images, open_source, tables
from nextpixel.images.sources.arrays import ArraySource
from nextpixel.images.sources.base import Numbered
from nextpixel.images.sources.files import FileSource
from nextpixel.images.sources.splits import choose_split
from nextpixel.images.sources.tables import HubSource, ParquetSource

DATA = Path(__file__).parents[2] / "data"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(4, 4, 3) if pixels is None else pixels).save(path)
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(source: Source) -> list[np.ndarray]:
    return [np.asarray(source.read(i)) for i in range(len(source))]


def same(source: Source, images: object) -> bool:
    read = pixels_of(source)
    return len(read) == len(images) and all((a == b).all() for a, b in zip(read, images, strict=True))


# ---- in memory


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("shape", "count"),
    [((5, 6, 3), 1), ((5, 6), 1), ((5, 6, 1), 1), ((7, 5, 6, 3), 7), ((7, 5, 6), 7), ((7, 5, 6, 1), 7)],
)
def test_arrays_and_tensors(shape, count, as_tensor):
    array = noise(*shape)
    source = open_source(torch.from_numpy(array) if as_tensor else array)
    assert same(source, np.broadcast_to(array.reshape(count, 5, 6, -1), (count, 5, 6, 3)))
    assert source.names[0] == "0"
    assert source.labels is None
    assert source.classes is None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_tensors_of_half_precision(kind):
    values = torch.tensor([[0, 0.5, 1], [0.25, 1, 0]])
    source = open_source(values.to(kind))
    assert same(source, np.stack([open_source(values.numpy()).read(0)]))


def test_names_of_arrays_are_zero_padded():
    assert list(open_source(noise(11, 2, 2)).names)[:11:5] == ["00", "05", "10"]


def test_the_fourth_channel_is_opacity():
    array = np.zeros((2, 2, 4), np.uint8)
    assert (load_images(array, 2) == 255).all()
    assert load_images(noise(3, 2, 2, 4), 2).shape == (3, 2, 2, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4, 3), complex), "real numbers, such as uint8 values 0..255, got complex128"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"channels last; got \(2, 3, 8, 8\)"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), "channels last"),
        (np.zeros(5, np.uint8), r"got \(5,\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no image"),
        (np.zeros((2, 0, 4, 3), np.uint8), "holds no image"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "channels first"),
        (torch.zeros(8, 8, 3, dtype=torch.complex64), "got complex64"),
        (7, "got int"),
        (None, "got NoneType"),
        ([], "list of images is empty"),
        ([np.zeros((2, 2), "U3")], "real numbers"),
    ],
)
def test_what_is_no_image_is_refused(array, message):
    with pytest.raises(InputError, match=message):
        open_source(array)


def test_a_picture():
    picture = Image.fromarray(noise(3, 4)).convert("1")
    source = open_source(picture)
    assert (len(source), list(source.names), source.read(0).mode) == (1, ["0"], "RGB")
    assert open_source(source) is source


def test_a_picture_torn_on_disk(tmp_path):
    path = write(tmp_path / "a.png", noise(40, 40, 3))
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as picture, pytest.raises(UnreadableImage, match="cannot read the image 0"):
        open_source(picture).read(0)


def test_a_list_may_mix_everything(tmp_path):
    one, two, three = noise(3, 4, 3), noise(5, 5), noise(2, 6, 6, 3)
    path = write(tmp_path / "c.png", noise(8, 2, 3))
    source = open_source([Image.fromarray(one), torch.from_numpy(two), three, path, str(path)])
    assert list(source.names) == ["0", "1", "2/0", "2/1", str(path), str(path)]
    grey = np.stack([two] * 3, -1)
    assert same(source, [one, grey, *three, noise(8, 2, 3), noise(8, 2, 3)])
    assert isinstance(source, JoinedSource)
    assert load_images([one, two, three, path], 4).shape == (5, 4, 4, 3)
    assert open_source((one, two)).fingerprint() != open_source((two, one)).fingerprint()


def test_a_list_of_files_keeps_its_order(tmp_path):
    paths = [write(tmp_path / f"{name}.png") for name in "cab"]
    assert list(open_source(paths).names) == [str(path) for path in paths]


# ---- files and folders


def test_a_file(tmp_path):
    path = write(tmp_path / "a.png", noise(3, 4, 3))
    for form in (path, str(path)):
        source = open_source(form)
        assert list(source.names) == ["a.png"]
        assert source.source_name == str(path)
        assert same(source, [noise(3, 4, 3)])


def test_a_file_without_extension_and_in_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path / "a.png").rename(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert open_source("a").read(0).size == (4, 4)


def test_a_flat_folder_sorts_and_leaves_out_what_is_hidden_or_no_image(tmp_path):
    for name in ("b.png", "a.JPG", "B.png", "10.webp", "9.bmp"):
        write(tmp_path / name)
    write(tmp_path / ".hidden.png")
    write(tmp_path / ".git" / "x.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    source = open_source(tmp_path)
    assert list(source.names) == ["10.webp", "9.bmp", "B.png", "a.JPG", "b.png"]
    assert source.labels is None
    assert {picture.shape for picture in pixels_of(source)} == {(4, 4, 3)}


def test_a_folder_for_each_class(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "emu/x.png"):
        write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = open_source(tmp_path)
    assert list(source.names) == ["cat/1.png", "cat/2.png", "dog/1.png", "emu/x.png"]
    assert source.classes == ["cat", "dog", "emu"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.labels.dtype == np.int64


@pytest.mark.parametrize("names", [["a/1.png", "2.png"], ["a/1.png", "b/c/2.png"], ["a/b/1.png", "c/d/2.png"]])
def test_nested_folders_have_no_labels(tmp_path, names):
    for name in names:
        write(tmp_path / name)
    source = open_source(tmp_path)
    assert list(source.names) == sorted(names)
    assert source.labels is None
    assert source.classes is None


def test_folders_of_splits(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png"):
        write(tmp_path / name)
    assert list(open_source(tmp_path).names) == ["cat/1.png", "dog/1.png"]  # train, where nothing is said
    held = open_source(tmp_path, "validation")
    assert list(held.names) == ["cat/2.png", "dog/2.png"]
    assert held.classes == ["cat", "dog"]
    assert (open_source(tmp_path).split, held.split) == ("train", "val")
    assert open_source([str(tmp_path), noise(4, 4)]).split == "train"
    assert open_source(tmp_path / "train").split is None
    with pytest.raises(InputError, match="no split 'test', only train, val"):
        open_source(tmp_path, "test")
    write(tmp_path / "extra" / "cat" / "3.png")
    assert len(open_source(tmp_path)) == len(open_source(tmp_path, "train")) == 2
    assert len(open_source(tmp_path, "extra")) == 1


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    write(tmp_path / "photos" / "cat" / "2.png")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "again").symlink_to(tmp_path / "photos")
    assert list(open_source(tmp_path / "photos").names) == ["cat/2.png", "dog/1.png"]


def test_folders_without_images_and_missing_paths(tmp_path, monkeypatch):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(InputError, match="empty holds no image"):
        open_source(tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "empty/typo", "cats/1.png", "/a/b", "a/b/c", "sets/x.npz", "", "a b/c"):
        with pytest.raises(InputError, match="no such file or folder"):
            open_source(name)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png is neither a file nor a folder"):
        open_source(tmp_path / "pipe.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_a_file_of_bytes_that_are_no_name(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1 on disk, not UTF-8
    write(tmp_path / name)
    source = open_source(tmp_path)
    assert source.read(0).size == (4, 4)
    assert len(source.fingerprint()) == 64


def test_unreadable_files_are_named(tmp_path):
    write(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"not a picture")
    source = open_source(tmp_path)
    with pytest.raises(UnreadableImage, match=r"cannot read the image a/bad\.png: its content is not a known image"):
        source.read(0)
    with pytest.raises(InputError, match=r"a/bad\.png.*repair it or leave it out"):
        load_images(tmp_path, 4)


def test_a_large_folder_is_listed_quickly(tmp_path):
    for folder in range(10):
        (tmp_path / f"{folder}").mkdir()
        for number in range(500):
            os.close(os.open(tmp_path / f"{folder}" / f"{number}.png", os.O_CREAT))
    start = time.process_time()
    source = open_source(tmp_path)
    source.fingerprint()
    assert len(source) == 5_000
    assert time.process_time() - start < 2  # a tenth of that on an idle core


# ---- numpy files


def test_npy_is_memory_mapped(tmp_path):
    array = noise(4, 5, 6, 3)
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy")
    assert isinstance(source, ArraySource)
    assert isinstance(source.array, np.memmap)
    assert same(source, array)


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int64])
def test_a_grey_picture_of_8_bits_is_no_table_of_tokens(tmp_path, kind):
    picture = np.arange(64 * 64).reshape(64, 64) % 256
    np.save(tmp_path / "x.npy", picture.astype(kind))
    assert len(open_source(tmp_path / "x.npy")) == 1
    np.save(tmp_path / "x.npy", (picture * 2).astype(kind))  # above 255, as OpenAI's tokens
    assert len(open_source(tmp_path / "x.npy")) == 64


def test_a_colour_picture_alone_in_npz_is_one(tmp_path):
    np.savez(tmp_path / "x.npz", noise(1, 30, 40, 3)[0])
    assert len(open_source(tmp_path / "x.npz")) == 1
    np.savez(tmp_path / "y.npz", images=noise(5, 4, 3, 1)[..., 0], labels=np.arange(5))
    assert len(open_source(tmp_path / "y.npz")) == 5


def test_npy_that_is_no_image_is_refused(tmp_path):
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 3), complex))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_text("")
    for name, message in {
        "float": r"float\.npy must hold real numbers",
        "objects": r"objects\.npy is not a \.npy",
        "text": r"text\.npy is not a \.npy",
        "empty": r"empty\.npy is not a \.npy",
    }.items():
        with pytest.raises(InputError, match=message):
            open_source(tmp_path / f"{name}.npy")


def test_npz_with_splits(tmp_path):
    train, test = noise(6, 5, 5, 1), noise(4, 5, 5, 1, seed=1)
    labels = np.array([[0], [1], [1], [0], [1], [1]], np.uint8)
    path = tmp_path / "x.npz"
    np.savez(path, train_images=train, train_labels=labels, test_images=test, class_names=["no", "yes"])
    source = open_source(path)
    assert same(source, train)
    assert source.classes == ["no", "yes"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert same(open_source(path, "testing"), test)
    assert (source.split, open_source(path, "testing").split) == ("train", "test")
    assert open_source(path, "test").labels is None
    assert open_source(path, "test").fingerprint() != source.fingerprint()
    with pytest.raises(InputError, match=r"x\.npz has no split 'val', only test, train"):
        open_source(path, "val")


@pytest.mark.parametrize(
    ("keys", "split", "labelled"),
    [
        (("images", "labels"), None, True),
        (("x_train", "y_train"), None, True),
        (("x_train", "y_train"), "train", True),
        (("val_images", "val_labels"), "validation", True),
        (("arr_0",), None, False),
    ],
)
def test_npz_keys(tmp_path, keys, split, labelled):
    np.savez_compressed(tmp_path / "x.npz", **dict(zip(keys, [noise(3, 4, 4), np.arange(3)], strict=False)))
    source = open_source(tmp_path / "x.npz", split)
    assert len(source) == 3
    assert (source.labels is not None) == labelled


def test_npz_that_is_wrong_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    images = noise(3, 4, 4)
    for arrays, message in [
        ({"a": images, "b": images}, r"x\.npz holds a, b; expected an array .images."),
        ({"images": images.astype(complex)}, r"images in .*x\.npz must hold real numbers"),
        ({"images": np.array([None])}, r"x\.npz is not a \.npz file of plain arrays"),
        ({"a_images": images, "b_images": images}, "several splits, none of them train: a, b; choose one"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=message):
            open_source(path)
    np.save(tmp_path / "array.npy", images)
    for content in (b"PK\3\4 torn", b"", (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is not a \.npz file"):
            open_source(path)
    np.savez(path, images=images)
    with pytest.raises(InputError, match=r"rename it to \.npz"):
        open_source(path.rename(tmp_path / "renamed.npy"))


def test_names_as_labels_become_numbers_and_several_labels_none(tmp_path):
    np.savez(tmp_path / "x.npz", images=noise(3, 4, 4), labels=np.array(["dog", "cat", "dog"]))
    source = open_source(tmp_path / "x.npz")
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([1, 0, 1], ["cat", "dog"])
    np.savez(tmp_path / "x.npz", images=noise(3, 4, 4), labels=np.zeros((3, 14), int))
    assert open_source(tmp_path / "x.npz").labels is None


# ---- parquet


def table(
    path: Path, cells: list[object], labels: list[int] | None = None, *, noted: bool = True, **options: object
) -> Path:
    """A parquet file in the Hugging Face layout; `noted`: with the features of `datasets` in its schema."""
    import pyarrow
    from pyarrow import parquet

    structs = all(isinstance(cell, dict) for cell in cells)
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}) if structs else pyarrow.binary()
    columns = {"image": pyarrow.array(cells, kind)}
    features: dict[str, object] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pyarrow.array(labels)
        features["label"] = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    made = pyarrow.table(columns)
    if noted:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path, **options)
    return path


def cells(images: np.ndarray) -> list[object]:
    return [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_many_tables_are_not_open_at_once(tmp_path):
    for number in range(40):
        table(tmp_path / f"{number:02d}.parquet", cells(noise(1, 4, 4, 3, seed=number)), [number])
    before = len(os.listdir("/proc/self/fd"))
    source = open_source(tmp_path)
    assert [int(label) for label in source.labels] == list(range(40))
    for number in range(40):
        assert (np.asarray(source.read(number)) == noise(1, 4, 4, 3, seed=number)[0]).all()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_table_that_is_gone_stops_the_work(tmp_path):
    table(tmp_path / "0.parquet", cells(noise(20, 4, 4, 3)))
    table(tmp_path / "1.parquet", cells(noise(1, 4, 4, 3)))
    source = open_source(tmp_path)
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(WorkError, match=r"1\.parquet can no longer be opened"):
        load_images(source, 4)


def test_a_parquet_file(tmp_path):
    images = noise(7, 4, 5, 3)
    path = table(tmp_path / "x.parquet", cells(images), [0, 1, 1, 0, 0, 1, 1], row_group_size=3)
    source = open_source(path)
    assert isinstance(source, ParquetSource)
    assert same(source, images)
    assert list(source.names)[::6] == ["x.parquet/0", "x.parquet/6"]
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1, 0, 0, 1, 1]
    with pytest.raises(InputError, match="no splits"):
        open_source(path, "train")


def test_parquet_of_raw_bytes_without_notes(tmp_path):
    images = noise(3, 4, 5, 3)
    path = table(tmp_path / "x.parquet", [png(image) for image in images], [5, 6, 5], noted=False)
    source = open_source(path)
    assert same(source, images)
    assert source.classes is None
    assert source.labels is not None
    assert source.labels.tolist() == [5, 6, 5]


def test_parquet_of_paths_reads_beside_the_table(tmp_path):
    write(tmp_path / "pictures" / "a.png", noise(2, 3, 3))
    rows = [{"bytes": None, "path": "pictures/a.png"}, {"bytes": None, "path": None}, {"bytes": b"x", "path": ""}]
    source = open_source(table(tmp_path / "x.parquet", rows))
    assert (np.asarray(source.read(0)) == noise(2, 3, 3)).all()
    with pytest.raises(UnreadableImage, match=r"x\.parquet/1: the table has neither"):
        source.read(1)
    with pytest.raises(UnreadableImage, match="not a known image format"):
        source.read(2)


def test_parquet_is_read_batch_by_batch_in_any_order(tmp_path, monkeypatch):
    """Small batches: in order, backwards, at random, from threads and from another process all agree."""
    monkeypatch.setattr(tables, "BATCH_ROWS", (2, 2))
    images = noise(60, 3, 3, 3)
    path = table(tmp_path / "x.parquet", cells(images), row_group_size=17)
    source = open_source(path)
    orders = [range(60), range(59, -1, -1), np.random.default_rng(0).permutation(60).tolist()]
    for order in orders:
        assert all((np.asarray(source.read(i)) == images[i]).all() for i in order)
        assert isinstance(source, ParquetSource)
        assert len(source.kept) <= tables.BATCHES_KEPT
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: np.asarray(source.read(i)), range(60)))
    assert (np.stack(read) == images).all()
    assert (np.asarray(pickle.loads(pickle.dumps(source)).read(59)) == images[59]).all()


def test_reading_parquet_in_order_reads_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", (4, 4))
    source = open_source(table(tmp_path / "x.parquet", cells(noise(40, 3, 3, 3)), row_group_size=20))
    assert isinstance(source, ParquetSource)
    (whole,) = source.tables
    opened = []
    batch_size = 1

    class Counting:
        metadata = whole.metadata

        def open(self) -> object:
            return self

        def iter_batches(self, **options: object) -> object:
            opened.append(options["row_groups"])
            return whole.open().iter_batches(**{**options, "batch_size": batch_size})

    source.tables = [Counting()]
    assert len(pixels_of(source)) == 40
    assert opened == [[0], [1]]
    batch_size = 3  # a reader that cuts otherwise than asked must not shift the pictures
    with pytest.raises(UnreadableImage, match="3 rows came instead of 1"):
        source.read(0)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train.parquet"], ["test.parquet"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["test-00000-of-00001.parquet"]),
        (["data/train-00000-of-00001.parquet"], ["data/test-00000-of-00001.parquet"]),
        (["plain/train/0000.parquet", "plain/train/0001.parquet"], ["plain/test/0000.parquet"]),
        (["train/0.parquet"], ["test/0.parquet"]),
    ],
)
def test_a_folder_of_parquet_splits(tmp_path, train, test):
    images = noise(len(train) + 1, 2, 4, 4, 3)
    for name, batch in zip(train + test, images, strict=True):
        table(tmp_path / name, cells(batch), [0, 1])
    assert same(open_source(tmp_path), images[:-1].reshape(-1, 4, 4, 3))
    assert same(open_source(tmp_path, "train"), images[:-1].reshape(-1, 4, 4, 3))
    assert open_source(tmp_path).split is not None
    assert same(open_source(tmp_path, "test"), images[-1])
    labels = open_source(tmp_path, "train").labels
    assert labels is not None
    assert labels.tolist() == [0, 1] * len(train)
    with pytest.raises(InputError, match=r"no split.*'validation'"):
        open_source(tmp_path, "validation")


def test_a_folder_of_parquet_without_splits_is_read_whole(tmp_path):
    for number in range(3):
        table(tmp_path / f"part-{number}.parquet", cells(noise(2, 4, 4, 3)))
    source = open_source(tmp_path)
    assert list(source.names)[::5] == ["part-0.parquet/0", "part-2.parquet/1"]
    assert len(open_source(tmp_path, "part-1")) == 2
    write(tmp_path / "thumbnail.png")
    with pytest.raises(InputError, match=r"images and \.parquet files"):
        open_source(tmp_path)


def test_parquet_files_that_are_wrong_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(InputError, match=r"train\.parquet is not a readable parquet file"):
        open_source(path)
    parquet.write_table(pyarrow.table({"text": ["a"], "n": [1]}), path)
    with pytest.raises(InputError, match=r"no column of images.*got text, n"):
        open_source(path)
    table(path, [], [])
    with pytest.raises(InputError, match="holds no image"):
        open_source(path)
    table(tmp_path / "two" / "a.parquet", cells(noise(2, 4, 4, 3)), [0, 1])
    table(tmp_path / "two" / "b.parquet", cells(noise(2, 4, 4, 3)))
    with pytest.raises(InputError, match=r"b\.parquet lacks the column 'label'"):
        open_source(tmp_path / "two")


def test_damaged_pages_are_unreadable_images(tmp_path):
    path = table(tmp_path / "x.parquet", cells(noise(50, 16, 16, 3)), compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:80] = bytes(76)  # the header of the first page
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"x\.parquet/49"):
        open_source(path).read(49)


@pytest.mark.data
def test_a_real_labelled_set_is_read():
    """CIFAR-10, as benchmarks/fetch_datasets.py writes it."""
    if not (DATA / "cifar10").is_dir():
        pytest.skip("data/cifar10 is absent: python benchmarks/fetch_datasets.py cifar10")
    test = open_source(DATA / "cifar10", "test")
    assert len(test) == 10_000 and np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[test.labels[0]] == "cat" and test.read(0).size == (32, 32)


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    """`datasets` answering without a network: two splits in the layout of CIFAR-10."""
    import datasets

    images = noise(5, 8, 8, 3)
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    asked = []

    def load_dataset(name: str, config: str | None = None) -> datasets.DatasetDict:
        asked.append((name, config))
        if name != "owner/cifar":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist\non the Hub")
        rows = {"img": cells(images), "label": [0, 1, 0, 1, 1]}
        full = datasets.Dataset.from_dict(rows, features=kinds)
        return datasets.DatasetDict({"train": full, "test": full.select([4])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return images, asked


def test_a_set_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, asked = hub
    source = open_source("owner/cifar")
    assert isinstance(source, HubSource)
    assert same(source, images)
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 1]
    assert source.split == "train"
    assert list(source.names)[::4] == ["train/0", "train/4"]
    assert same(open_source("owner/cifar", "test"), images[4:])
    assert open_source("owner/cifar:plain", "test").fingerprint() != source.fingerprint()
    assert asked[-1] == ("owner/cifar", "plain")
    with pytest.raises(InputError, match="owner/cifar has no split 'validation', only test, train"):
        open_source("owner/cifar", "validation")


def test_a_set_that_is_not_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"no such file or folder: owner/typo; as a set on the hub it does not load: .* exist on"
    ):
        open_source("owner/typo")
    (tmp_path / "owner").mkdir()
    with pytest.raises(InputError, match="no such file or folder: owner/cifar; expected a path"):
        open_source("owner/cifar")
    write(tmp_path / "owner" / "cifar" / "1.png")
    assert isinstance(open_source("owner/cifar"), FileSource)  # what lies here comes first


@pytest.mark.parametrize("name", ["pyarrow", "datasets"])
def test_missing_libraries_are_named(name, tmp_path, monkeypatch):
    path = table(tmp_path / "x.parquet", cells(noise(1, 4, 4, 3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"type: pip install {name}"):
        open_source(path if name == "pyarrow" else "owner/set")


def test_folders_need_neither_torch_nor_datasets(tmp_path):
    write(tmp_path / "a.png")
    code = "import sys; from nextpixel.images.sources import load_images; load_images(sys.argv[1], 4)\n"
    code += "print([m for m in ('torch', 'datasets', 'pyarrow', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- splits, names, fingerprints


def test_choice_of_a_split():
    assert choose_split(["a"], None, "x") == "a"
    assert choose_split(["test", "training"], None, "x") == "training"
    assert choose_split(["test", "validation"], "val", "x") == "validation"
    assert choose_split(["val", "validation"], "validation", "x") == "validation"
    assert choose_split(["Test", "Train"], "test", "x") == "Test"
    with pytest.raises(InputError, match="no splits, but split 'test' was asked for"):
        open_source(noise(4, 4), "test")


@given(st.lists(st.integers(0, 120), min_size=1, max_size=5))
def test_numbered_names_are_unique_and_sorted_within_a_block(counts):
    names = Numbered([(f"{block}/", count) for block, count in enumerate(counts)])
    listed = list(names)
    assert len(names) == len(listed) == len(set(listed)) == sum(counts)
    assert listed == sorted(listed) == names[:]
    places = [(block, place) for block, count in enumerate(counts) for place in range(count)]
    assert [names.locate(i) for i in range(len(names))] == places
    if listed:
        assert names[-1] == listed[-1]
    with pytest.raises(IndexError):
        names[len(listed)]


def test_fingerprints_of_folders(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / "x" / name)
    first = open_source(tmp_path / "x").fingerprint()
    assert len(first) == 64
    assert open_source(str(tmp_path / "x") + "/").fingerprint() == first  # stable
    (tmp_path / "x").rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert open_source(folder).fingerprint() == first  # relative names alone count
    seen = {first}

    def changed() -> bool:
        now = open_source(folder).fingerprint()
        fresh = now not in seen
        seen.add(now)
        return fresh

    (folder / "notes.txt").write_text("x")
    assert not changed()
    stat = os.stat(folder / "a.png")
    os.utime(folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert changed()
    with (folder / "a.png").open("ab") as file:
        file.write(b"x")
    os.utime(folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed()
    (folder / "b.png").rename(folder / "c.png")
    assert changed()
    write(folder / "d.png")
    assert changed()


def test_equal_names_sizes_and_times_with_other_content_differ(tmp_path):
    for name, seed in (("x", 1), ("y", 2)):
        os.utime(write(tmp_path / name / "0.bmp", noise(4, 4, 3, seed=seed)), ns=(0, 0))
    assert open_source(tmp_path / "x").fingerprint() != open_source(tmp_path / "y").fingerprint()


def test_fingerprints_of_arrays_and_pictures_follow_their_content():
    one, other = noise(2, 4, 4, 3), noise(2, 4, 4, 3, seed=1)
    assert open_source(one).fingerprint() == open_source(torch.from_numpy(one)).fingerprint()
    found = [open_source(x).fingerprint() for x in (one, other, one.reshape(2, 2, 8, 3), one[..., 0], one[:1])]
    found += [open_source(Image.fromarray(x[0])).fingerprint() for x in (one, other)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_fingerprints_of_tables_follow_the_file(tmp_path, kind):
    path = tmp_path / f"x.{kind}"

    def make(images: np.ndarray) -> str:
        if kind == "parquet":
            table(path, cells(images))
        elif kind == "npy":
            np.save(path, images)
        else:
            np.savez(path, images=images)
        return open_source(path).fingerprint()

    first = make(noise(3, 4, 4, 3))
    assert open_source(path).fingerprint() == first
    assert make(noise(4, 4, 4, 3)) != first
