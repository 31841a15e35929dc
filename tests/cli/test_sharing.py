"""Work that is shared by jobs or torchrun's processes gives the output of one process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively, with_words

import nextpixel
from nextpixel import ImageGPTConfig, Palette
from nextpixel.cli import comparing, complete, features, main, sample, sharing
from nextpixel.evaluation import oddness
from nextpixel.images import save_png
from nextpixel.representation import extraction, scoring

CHUNK = 16
COMMANDS = {
    "score": ("score one.npy --against two.npy --model model --out", "csv"),
    "predict": ("predict probe one.npy --out", "csv"),
    "sample": ("sample -n 7 --seed 3 --model model --temperature 0.9 --out", "png"),
    "complete": ("complete one.npy -n 2 --keep 0.3 --seed 5 --model model --out", "png"),
    "evaluate": ("evaluate one.npy --model model --out", "json"),
    "evaluate-classes": ("evaluate many --model classes --captions many.jsonl --train two.npy --out", "json"),
    "evaluate-masked": ("evaluate one.npy --model masked --seed 7 --out", "json"),
    "evaluate-samples": ("evaluate one.npy --samples 20 --seed 2 --model model --out", "json"),
    "features": ("features one.npy --model model --layer 0,1 --out", "npz"),
}


@pytest.fixture(autouse=True)
def desk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a model and two sets of pictures, of which few are a part."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, count in (("one", 40), ("two", 50)):
        np.save(f"{name}.npy", rng.integers(0, 256, (count, 6, 6, 3), np.uint8))
    for module in (oddness, extraction, scoring):
        monkeypatch.setattr(module, "CHUNK_IMAGES", CHUNK)
    monkeypatch.setattr(sample, "PICTURES_PER_TASK", 3)
    monkeypatch.setattr(comparing, "PICTURES_PER_TASK", 7)
    monkeypatch.setattr(complete, "PICTURES_PER_TASK", 7)


def save_probe() -> None:
    for i in range(16):
        low = 128 * (i % 2)
        pixels = np.random.default_rng(i).integers(low, low + 127, (6, 6, 3)).astype(np.uint8)
        save_png(pixels, f"labelled/{'train' if i < 10 else 'test'}/{'ab'[i % 2]}/{i}.png")
    assert run("probe labelled --model model --no-baselines --layer 1 --pooling mean --out probe") == 0


def save_evaluated() -> None:
    """A model with words and classes, its labelled images with captions, and a masked model."""
    model = with_words(ImageGPTConfig(1, 16, 2, 4, 12, classes=("a", "b")), torch.float32)
    assert model.class_head is not None
    model.class_head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    nextpixel.save(model, "classes")
    model = lively(ImageGPTConfig(1, 16, 2, 4, 12, objective="masked"), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    nextpixel.save(model, "masked")
    pictures, lines = np.load("one.npy"), []
    for i, pixels in enumerate(pictures[:40]):
        save_png(pixels, f"many/{'ab'[i % 3 == 0]}/{i}.png")
        lines.append(json.dumps({"file": f"{'ab'[i % 3 == 0]}/{i}.png", "caption": "red, hat" if i % 2 else "long"}))
    Path("many.jsonl").write_text("\n".join(lines))
    np.save("two.npy", np.concatenate([np.load("two.npy"), pictures[5:9]]))  # training images among the others


def run(command: str) -> int:
    return main(shlex.split(command))


def content(path: Path) -> object:
    if path.suffix == ".json":
        return json.loads(path.read_text()) | {"images_per_second": None}
    if path.suffix != ".npz":
        return path.read_bytes()
    with np.load(path) as saved:
        return {name: saved[name].tolist() for name in saved.files}


@pytest.mark.parametrize("verb", COMMANDS)
def test_jobs_and_a_merge_write_what_one_process_writes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, kind = COMMANDS[verb]
    if verb == "predict":
        save_probe()
    if verb.startswith("evaluate-"):
        save_evaluated()
    assert run(f"{command} alone-{verb}.{kind}") == 0
    shared = f"{command} shared-{verb}.{kind}"
    parts = Path(f".shared-{verb}.{kind}.parts")
    assert run(f"{shared} --job 1/2") == 0 and run(f"{shared} --merge") == 2
    said = capsys.readouterr().err
    assert "parts are missing in" in said and ": 2" in said and "job i/n makes part i" in said
    assert not Path(f"shared-{verb}.{kind}").exists()
    assert run(f"{shared} --job 2/2 --json") == 0
    printed = capsys.readouterr()
    assert "job 2/2 is done; no parts are missing. Once all jobs have finished, run" in printed.err
    assert json.loads(printed.out) == {"out": f"shared-{verb}.{kind}", "job": "2/2", "missing_parts": 0}
    kept = {path: path.stat().st_mtime_ns for path in parts.rglob("*.npz")}
    damaged = sorted(kept)[1]
    damaged.write_bytes(damaged.read_bytes()[:50])  # as of a job that was killed by a full disk
    assert run(f"{shared} --merge") == 2 and ": 2;" in capsys.readouterr().err
    assert run(f"{shared} --job 2/2") == 0 and run(f"{shared} --job 1/2") == 0
    changed = {path for path in parts.rglob("*.npz") if path.stat().st_mtime_ns != kept.get(path)}
    assert changed == {damaged}  # finished parts are not computed again
    assert run(f"{shared} --merge") == 0 and not parts.exists()
    assert content(Path(f"shared-{verb}.{kind}")) == content(Path(f"alone-{verb}.{kind}"))


def test_parts_of_other_settings_are_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample -n 4 --model model --seed 1 --job 1/1 --out other.png") == 0
    assert run("sample -n 4 --model model --seed 2 --merge --out other.png") == 2
    assert "2 of 2 parts are missing" in capsys.readouterr().err


def test_parts_of_another_version_are_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("sample", "features"):
        command, kind = COMMANDS[verb]
        assert run(f"{command} out.{kind} --job 1/1") == 0
    for module in (sharing, features):
        monkeypatch.setattr(module, "__version__", "0.0.1")
    for verb in ("sample", "features"):
        command, kind = COMMANDS[verb]
        assert run(f"{command} out.{kind} --merge") == 2
        assert "3 of 3 parts are missing" in capsys.readouterr().err


def test_jobs_compile_where_one_process_would(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(extraction, "_worth_compiling", lambda model, layers, images: asked.append(images) or False)
    for job in ("--job 1/3", "--job 2/3", ""):  # of 16 pictures, 16, and the rest
        assert run(f"{COMMANDS['features'][0]} out.npz {job}") == 0
    assert set(asked) == {40}


REFUSED = {
    "score one.npy --model model --job 1/2": "--out: expected one with --job",
    "score one.npy --model model --job 3/2 --out a.csv": "one of how many jobs, as in 3/16, got '3/2'",
    "score one.npy --model model --job 0/2 --out a.csv": "--job: expected which one",
    "score one.npy --model model --job two --out a.csv": "--job: expected which one",
    "predict probe one.npy --job 1/2 --merge --out a.csv": "--merge: cannot be combined with --job",
    "predict probe one.npy --job 1/2 --masks 2 --out a.csv": "--job: cannot be combined with --masks",
    "evaluate one.npy --masks 2 --model model --job 1/2 --out a.json": "--job: cannot be combined with --masks",
    "evaluate one.npy --pictures two.npy --job 1/2 --out a.json": "--job: cannot be combined with --pictures",
    "evaluate one.npy --model model --merge": "--out: expected one with --merge",
    "complete one.npy --box 0,0,2,2 --model model --merge": "--merge: cannot be combined with --box",
    "sample --tile --model model --merge": "--merge: cannot be combined with --tile",
    "sample --no-copies --model model --job 1/2": "--job: cannot be combined with --no-copies",
}


@pytest.mark.parametrize(("command", "message"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_shared_is_refused(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["complete one.npy --box 0,0,2,2", "sample --tile"])
def test_what_torchrun_cannot_share_is_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(f"{command} --model model --out a.png") == 2
    option = "--tile" if "--tile" in command else "--box"
    said = capsys.readouterr().err
    assert f"{option} cannot be used under torchrun; start one process" in said and "--job" not in said


@pytest.mark.torchrun
@pytest.mark.timeout(600)
def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    save_probe()
    np.save("one.npy", np.random.default_rng(0).integers(0, 256, (600, 6, 6, 3), np.uint8))  # two parts
    save_evaluated()
    commands = [shlex.split(f"{command} {tmp_path}/{verb}.{kind}") for verb, (command, kind) in COMMANDS.items()]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    many = Path(__file__).parents[1] / "helpers" / "many_processes.py"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(many)]
    subprocess.run([*start, str(tmp_path)], check=True)
    for verb, (command, kind) in COMMANDS.items():
        assert run(f"{command} {tmp_path}/alone-{verb}.{kind}") == 0
        assert content(tmp_path / f"{verb}.{kind}") == content(tmp_path / f"alone-{verb}.{kind}")


def test_evaluate_of_parts_has_all_figures() -> None:
    save_evaluated()
    command, _ = COMMANDS["evaluate-classes"]
    for end in ("--job 1/2", "--job 2/2", "--merge"):
        assert run(f"{command} all.json {end}") == 0
    found = json.loads(Path("all.json").read_text())
    assert found["images"] == 40 and found["training_images"] == found["classification"]["training_images"] == 4
    assert len({found[name] for name in found if name.startswith("nats_per_pixel")}) == 3
    assert 0 < found["classification"]["accuracy"] < 1 and found["images_per_second"] > 0
