"""The wheel in an empty environment: first beside four libraries only, then with all it asks for.

Needs a package index, so `pytest -m install` runs it and the default run does not.
"""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.install, pytest.mark.timeout(1200), pytest.mark.xdist_group("install")]  # one environment

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nextpixel"
CONSTRAINTS = ROOT / "constraints.txt"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))

BARE_USE = """
import importlib.util
import numpy as np
import nextpixel

for absent in ("datasets", "tyro", "rich", "sklearn"):
    assert importlib.util.find_spec(absent) is None, absent
pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
model = nextpixel.pretrain(pictures, layers=1, width=32, heads=2, side=8, steps=2, out="run")
(picture,) = nextpixel.sample(model, n=1, seed=0)
assert picture.size == (8, 8), picture.size
nats = nextpixel.nll(model, pictures)
assert nats.shape == (40,) and np.isfinite(nats).all()
vectors = nextpixel.features(model, pictures)
assert vectors.shape == (40, 32) and np.isfinite(vectors).all()
"""


def package_files() -> list[Path]:
    return [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What the command printed; fails with its output. Our own environment is hidden from it."""
    unset = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    clean = {key: value for key, value in os.environ.items() if key not in unset} | environment
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel in dist/ where it is newer than the source; else a new one, built elsewhere."""
    name = f"nextpixel-{VERSION}-py3-none-any.whl"
    built = ROOT / "dist" / name
    if built.is_file() and built.stat().st_mtime > max(path.stat().st_mtime for path in package_files()):
        return built
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, ROOT, cwd=out)
    return out / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("installed")


@pytest.fixture(scope="module")
def bare(folder, wheel) -> Path:
    """The programs of an environment with the wheel and the four libraries that training needs."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    install(programs, TORCH, "numpy", "pillow", "safetensors")
    install(programs, "--no-deps", wheel)
    return programs


@pytest.fixture(scope="module")
def complete(bare, wheel) -> Path:
    """The same environment with everything that the wheel asks for."""
    install(bare, wheel)
    return bare


def install(programs: Path, *what: object) -> None:
    flags = ("--quiet", "--disable-pip-version-check", "--no-compile", "-c", CONSTRAINTS)
    run(programs / "python", "-m", "pip", "install", *flags, *what, cwd=programs)


def test_the_wheel_holds_the_package(wheel):
    wanted = {path.relative_to(SOURCE.parent).as_posix() for path in package_files()}
    stored = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - stored == set()
    assert {name.split("/")[0] for name in stored} == {
        "nextpixel",
        f"nextpixel-{VERSION}.dist-info",
    }
    assert "nextpixel/py.typed" in stored
    for kind in ("nextpixel/assets/pictures/", "nextpixel/recipes/"):
        assert any(name.startswith(kind) for name in stored), kind


def test_the_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    assert (tmp_path / f"nextpixel-{VERSION}.tar.gz").is_file()
    ours, theirs = (set(zipfile.ZipFile(path).namelist()) for path in (wheel, tmp_path / wheel.name))
    assert ours == theirs


def test_four_libraries_train_and_sample(bare, folder):
    work = folder / "bare"
    work.mkdir()
    run(bare / "python", "-W", "error", "-c", BARE_USE, cwd=work, XDG_CACHE_HOME=str(work / "cache"))
    assert (work / "run" / "run.json").is_file()


def test_the_console_script_completes_a_picture(complete, folder):
    work = folder / "complete"
    work.mkdir()
    where = "import nextpixel, pathlib; print(pathlib.Path(nextpixel.__file__).parent)"
    installed = Path(run(complete / "python", "-c", where, cwd=work).strip())
    assert installed.is_relative_to(folder)
    picture = next(path for path in sorted((installed / "assets/pictures").iterdir()) if path.suffix != ".md")
    options = ("--keep", "0.5", "-n", "1", "--seed", "0", "--out", "out.png")
    cache = str(work / "cache")
    run(
        complete / "nextpixel",
        "complete",
        picture,
        *options,
        cwd=work,
        XDG_CACHE_HOME=cache,
        HF_HUB_OFFLINE="1",
    )
    with Image.open(work / "out.png") as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) >= 32
