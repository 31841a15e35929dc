"""benchmarks/photos.py: the pictures held out of each class."""

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
