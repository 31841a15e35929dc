"""benchmarks/packed_pictures.py: pictures that travel as tokens."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from nextpixel.tokens import reconstruct
from nextpixel.tokens.palette import Palette

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_packed_pictures_come_back_in_the_palette_s_colours(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    script = BENCHMARKS / "packed_pictures.py"
    pack = [sys.executable, script, tmp_path / "pictures.npy", "--side", "8", "--out", tmp_path / "packed.npz"]
    subprocess.run(pack, check=True)
    unpack = (
        "import sys, pathlib, numpy, packed_pictures as p; numpy.save(sys.argv[2], p.unpack(pathlib.Path(sys.argv[1])))"
    )
    files = [tmp_path / "packed.npz", tmp_path / "unpacked.npy"]
    subprocess.run([sys.executable, "-c", unpack, *files], check=True, cwd=BENCHMARKS)
    unpacked = np.load(files[1])
    assert np.array_equal(unpacked, reconstruct(Palette.openai(), pictures))
    refused = subprocess.run([*pack[:2], tmp_path / "missing.npy", *pack[3:]], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("packed_pictures: ")
