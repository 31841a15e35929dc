"""benchmarks/fetch_datasets.py, without its downloads."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fetch_datasets.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fetch_datasets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_datasets"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fetch_datasets"]


def small_set(splits=("train", "test"), shape=(6, 5, 3)):
    random = np.random.default_rng(0)
    arrays = {"class_names": np.array(["cat", "dog"])}
    for n, split in enumerate(splits, start=3):
        arrays[f"{split}_images"] = random.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n) % 2
    return arrays


def read(path):
    """Pixels, labels and class names as stored, read without the library that wrote them."""
    table = pyarrow.parquet.read_table(path)
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return np.stack(images), table["label"].to_numpy(), table.schema.metadata[b"huggingface"].decode()


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5), (6, 5, 1)])
def test_pixels_and_labels_survive(script, tmp_path, capsys, shape):
    arrays = small_set(("train", "val", "test"), shape)
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    assert script.main(["pneumoniamnist", "--from", str(tmp_path), "--out", str(tmp_path / "data")]) == 0
    assert "train.parquet: 3 images, 2 classes" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        images, labels, schema = read(tmp_path / f"data/pneumoniamnist/{split}.parquet")
        assert np.array_equal(images, arrays[f"{split}_images"].reshape(images.shape))
        assert np.array_equal(labels, arrays[f"{split}_labels"])
        assert '"names": ["cat", "dog"]' in schema
    assert not list(tmp_path.rglob("*.part"))


def test_the_published_file_of_x_rays_is_read_as_it_is(script, tmp_path):
    arrays = small_set(("train", "val", "test"), (6, 5))
    del arrays["class_names"]
    columns = {name: array[:, None] for name, array in arrays.items() if name.endswith("labels")}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays | columns)
    assert script.main(["pneumoniamnist", "--from", str(tmp_path), "--out", str(tmp_path)]) == 0
    _, labels, schema = read(tmp_path / "pneumoniamnist" / "val.parquet")
    assert np.array_equal(labels, arrays["val_labels"]) and '"names": ["normal", "pneumonia"]' in schema


def test_the_hub_library_reads_images(script, tmp_path):
    datasets = pytest.importorskip("datasets")
    arrays = small_set()
    np.savez(tmp_path / "rsscn7.npz", **arrays)
    assert script.main(["rsscn7", "--from", str(tmp_path), "--out", str(tmp_path)]) == 0
    stored = datasets.Dataset.from_parquet(str(tmp_path / "rsscn7/test.parquet"), cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(np.stack([np.asarray(image) for image in stored["image"]]), arrays["test_images"])
    assert stored.features["label"].int2str(1) == "dog"


def test_a_set_already_there_is_left_alone(script, tmp_path, capsys):
    for split in ("train", "test"):
        path = tmp_path / "cifar10" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept")
    assert script.main(["cifar10", "--out", str(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out
    assert path.read_text() == "kept"


def test_an_interrupted_write_leaves_nothing(script, tmp_path):
    target = tmp_path / "set" / "train.parquet"
    with pytest.raises(KeyboardInterrupt), script.atomic(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []


def refused(script, capsys, *argv):
    assert script.main(["rsscn7", *map(str, argv)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_missing_sources_are_named(script, tmp_path, capsys):
    assert "--from FOLDER" in refused(script, capsys, "--out", tmp_path)
    assert str(tmp_path / "rsscn7.npz") in refused(script, capsys, "--from", tmp_path, "--out", tmp_path)


def test_a_file_that_is_no_npz_is_refused(script, tmp_path, capsys):
    (tmp_path / "rsscn7.npz").write_text("not a zip")
    assert "numpy cannot read" in refused(script, capsys, "--from", tmp_path, "--out", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_labels": None}, "missing: test_labels"),
        ({"train_images": np.zeros((3, 6, 5, 3), np.float32)}, "got float32"),
        ({"train_images": np.zeros((3, 6, 5, 4), np.uint8)}, "(3, 6, 5, 4)"),
        ({"train_labels": np.arange(2)}, "expected 3 integer labels"),
        ({"train_labels": np.arange(3)}, "labels in 0..1, got 0..2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(script, tmp_path, capsys, change, said):
    arrays = {key: value for key, value in (small_set() | change).items() if value is not None}
    np.savez(tmp_path / "rsscn7.npz", **arrays)
    assert said in refused(script, capsys, "--from", tmp_path, "--out", tmp_path)
    assert not (tmp_path / "rsscn7").exists()


def test_unknown_names_are_refused(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["imagenet"])
    assert stop.value.code == 2
    assert "cifar10" in capsys.readouterr().err


def test_a_missing_tool_and_a_failed_download_are_told_apart(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main(["cifar10", "--out", str(tmp_path)]) == 2
    assert "npm was not found" in capsys.readouterr().err
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 7\n")
    npm.chmod(0o755)
    assert script.main(["cifar10", "--out", str(tmp_path)]) == 1
    assert "ended with 7: no network" in capsys.readouterr().err
