"""benchmarks/photos.py: the pictures held out of each class."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "photos.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_the_last_ten_of_each_class_are_held_out_and_bad_sources_refused(tmp_path: Path) -> None:
    labels = [0] * 12 + [1] * 30
    pq.write_table(pa.table({"image": list(range(42)), "label": labels}), tmp_path / "all.parquet")
    assert run(tmp_path / "all.parquet", "--out", tmp_path / "found").returncode == 0
    train, test = (pq.read_table(tmp_path / "found" / f"{name}.parquet") for name in ("train", "test"))
    assert test["image"].to_pylist() == [*range(2, 12), *range(32, 42)]
    assert train["image"].to_pylist() == [0, 1, *range(12, 32)]
    for bad in (tmp_path / "missing.parquet", SCRIPT):
        refused = run(bad, "--out", tmp_path / "none")
        assert refused.returncode == 2 and refused.stderr.startswith("photos: ") and "Traceback" not in refused.stderr
    assert not (tmp_path / "none").exists()


def test_captions_are_the_first_name_of_a_class_and_its_last_word(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["n1", "n2"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": list(range(24)), "label": [0, 1] * 12})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "all.parquet")
    names = tmp_path / "words.txt"
    names.write_text("n0\tfish\nn1\tPersian cat, longhair\nn2\tlemon\n")
    assert run(tmp_path / "all.parquet", "--names", names, "--out", tmp_path / "found").returncode == 0
    assert (
        pq.read_table(tmp_path / "found" / "train.parquet")["caption"].to_pylist() == ["Persian cat, cat", "lemon"] * 2
    )
    names.write_text("n1\tcat\n")
    for bad in (names, tmp_path / "missing.txt"):
        refused = run(tmp_path / "all.parquet", "--names", bad, "--out", tmp_path / "none")
        assert refused.returncode == 2 and refused.stderr.startswith("photos: ") and "Traceback" not in refused.stderr
    assert not (tmp_path / "none").exists()
