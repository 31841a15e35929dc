"""Over two hundred SIGKILLs at random moments, spread over every verb that writes.

After each kill, what stands under its final name is whole. Repeating the command, or resuming its run, then gives what
an undisturbed run gives, byte for byte where the verb promises that, and leaves no half-written file behind.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import flags, photos, pictures, settings, state

import nextpixel
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.files import ANY_PART
from nextpixel.images.sources import open_source

pytestmark = [pytest.mark.trial, pytest.mark.timeout(1800)]

KILLS_PER_VERB = 15
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["torch", "sklearn.linear_model", "nextpixel.training.pretraining", "nextpixel.cli", __name__]
)


@dataclass
class Verb:
    """How a verb is begun and continued, and what it leaves under `out`."""

    command: Callable[[Path], list[str]]
    found: Callable[[Path], Any]
    resume: Callable[[Path], list[str]] | None = None
    whole: Callable[[Path], object] = lambda out: None  # raises if something under a final name is half-written


def run(arguments: list[str], stderr: str) -> None:
    with open(stderr, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        os._exit(main(arguments))


def start(arguments: list[str], folder: Path) -> Any:
    process = PROCESSES.Process(target=run, args=(arguments, str(folder / "stderr")), daemon=True)
    process.start()
    return process


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures, a model, a run and a probe, all tiny."""
    folder = tmp_path_factory.mktemp("material")
    photos(folder, 40)
    kinds = np.arange(60) % 2
    for number, (picture, kind) in enumerate(zip(pictures(60, seed=1), kinds)):
        picture = picture // 2 + np.uint8(100) * np.uint8(kind)
        place = folder / "labelled" / ("train" if number < 40 else "test") / f"kind{kind}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.repeat(40, 0).repeat(40, 1)).save(place / f"{number}.png")
    for seed in (0, 1):
        config = settings(folder, steps=8, seed=seed, checkpoint_every_steps=4)
        nextpixel.pretrain(folder / "photos.npy", out=folder / f"run{seed}", **config)
    nextpixel.save(nextpixel.load(folder / "run0"), folder / "model")
    assert (
        main(
            ["probe", f"{folder}/labelled", "--model", f"{folder}/model", "--no-baselines", "--out", f"{folder}/probe"]
        )
        == 0
    )
    return folder


def model_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def probe_of(out: Path) -> nextpixel.LinearProbe:
    return nextpixel.LinearProbe.load(out, nextpixel.load(json.loads((out / "probe.json").read_text())["model"]))


def trained(out: Path) -> Any:
    steps = Run(out).steps()
    return steps, {name: tensor.numpy().tobytes() for name, tensor in state(out, steps[-1]).items()}


def readable_run(out: Path) -> None:
    if (out / "run.json").exists():
        json.loads((out / "run.json").read_text())
        for folder in out.glob("step_*"):
            nextpixel.load_backbone(folder)


def arrays(path: Path) -> dict[str, bytes]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name].tobytes() for name in found}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def picture(path: Path) -> bytes:
    with Image.open(path) as found:
        return np.asarray(found).tobytes()


def verbs(material: Path) -> dict[str, Verb]:
    labelled, model, photo = f"{material}/labelled", ["--model", f"{material}/model"], f"{material}/photos.npy"
    run_flags = flags(settings(material, steps=150, checkpoint_every_steps=20, evaluate_every_steps=50))
    on_cpu = "--device cpu --dtype fp32 --threads 1".split()

    def resumable(verb: str, *arguments: str, found: Callable[[Path], Any] = trained) -> Verb:
        return Verb(
            lambda out: [verb, *arguments, "--out", str(out)],
            found,
            lambda out: [verb, "--resume", str(out)],
            readable_run,
        )

    def one_file(suffix: str, read: Callable[[Path], Any], *command: str, flag: str = "--out") -> Verb:
        def whole(out: Path) -> None:
            if out.exists():
                read(out)

        return Verb(lambda out: [*command, flag, str(out)], read, None, whole)

    def study(out: Path) -> list[str]:
        few = "--train-images 40 --test-images 20 --threads 1".split()
        return ["study", f"{material}/run0", f"{material}/run1", "--data", labelled, "--out", str(out), *few]

    tuned = "--epochs 12 --batch-images 8 --checkpoint-every-steps 5".split()
    student = "--steps 60 --batch-images 8 --blocks 1 --checkpoint-every-steps 10 --evaluate-every-steps 30".split()
    return {
        "pretrain": resumable("pretrain", photo, *run_flags),
        "finetune": resumable(
            "finetune", f"{labelled}/train", *model, *tuned, *on_cpu, "--compile", "off",
            found=lambda out: model_files(Run(out).folder(Run(out).steps()[-1])),
        ),
        "distill": resumable(
            "distill", f"{labelled}/train", *model, *student, *on_cpu,
            found=lambda out: model_files(Run(out).folder(Run(out).steps()[-1])),
        ),
        "prepare": Verb(
            lambda out: ["prepare", f"{labelled}/train", str(out), "--side", "16", "--workers", "1"],
            lambda out: (out / "squares.u8").read_bytes(),
            None,
            lambda out: out.exists() and open_source(out),
        ),
        "features": one_file(".npz", arrays, "features", f"{labelled}/train", *model, *on_cpu),
        "complete": one_file(".png", picture, "complete", f"{labelled}/test", *model, "-n", "4", "--speed", "exact"),
        "sample": one_file(".png", picture, "sample", *model, "-n", "64", "--speed", "exact"),
        "score": one_file(
            ".csv", rows, "score", f"{labelled}/test", *model, *on_cpu
        ),
        "report": one_file(".html", Path.read_bytes, "score", f"{labelled}/test", *model, *on_cpu, flag="--report"),
        "probe": Verb(
            lambda out: ["probe", labelled, *model, "--no-baselines", *on_cpu, "--out", str(out)],
            lambda out: probe_of(out).predict(f"{labelled}/test").tolist(),
            None,
            lambda out: out.exists() and probe_of(out),
        ),
        "predict": one_file(
            ".csv", rows, "predict", f"{material}/probe", f"{labelled}/test"
        ),
        "palette": one_file(".npy", lambda path: np.load(path).tobytes(), "palette", labelled, "--colors", "16"),
        "study": Verb(study, lambda out: sorted(path.name for path in out.iterdir() if path.is_file()), study),
        "info": one_file(".html", Path.read_bytes, "info", f"{material}/run0", flag="--html"),

    }  # fmt: skip


SUFFIX = {"features": "f.npz", "complete": "c.png", "sample": "s.png", "score": "s.csv", "report": "r.html"}
SUFFIX |= {"predict": "p.csv", "palette": "p.npy", "info": "i.html"}


def leftovers(folder: Path) -> list[Path]:
    """Files and folders that never took their names."""
    return sorted(path for path in folder.rglob("*") if ANY_PART.fullmatch(path.name))


def age(part: Path) -> None:
    """Make a leftover look as if its process had died days ago: then the next command of its folder removes it."""
    for path in (part, *part.rglob("*")):
        os.utime(path, (0, 0))


@pytest.mark.parametrize("name", list(verbs(Path())))
def test_killed_and_repeated(name, material, tmp_path, monkeypatch, record_property):
    verb, moments = verbs(material)[name], random.Random(name)
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(tmp_path / "cache"))

    def place(folder: str) -> Path:
        (tmp_path / folder).mkdir()
        return tmp_path / folder / SUFFIX.get(name, "out")

    def next_command(out: Path) -> list[str]:
        return verb.resume(out) if verb.resume and (out / "run.json").exists() else verb.command(out)

    def run_to_its_end(out: Path) -> float:
        begun = time.monotonic()
        process = start(next_command(out), tmp_path)
        process.join()
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
        return time.monotonic() - begun

    run_to_its_end(place("warm"))
    seconds = run_to_its_end(undisturbed := place("undisturbed"))
    expected = verb.found(undisturbed)

    trial = hit = 0
    while hit < KILLS_PER_VERB:
        trial += 1
        assert trial <= 8 * KILLS_PER_VERB, f"only {hit} kills hit a living process"
        out = place(f"trial{trial}")
        for _ in range(2):
            process = start(next_command(out), tmp_path)
            process.join(moments.uniform(0, seconds))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()
            hit += process.exitcode == -signal.SIGKILL
            verb.whole(out)
            if process.exitcode == 0 or (out.exists() and not verb.resume):
                break  # it is finished, or was killed after its last rename
        if not out.exists() or verb.resume:
            for part in leftovers(out.parent):
                age(part)
            run_to_its_end(out)
            assert leftovers(out.parent) == []
        assert verb.found(out) == expected
    record_property("kills", hit)
