"""Distillation: what the student learns, whitening, mirror images, resumption, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively
from tiny_runs import on_call

import nextpixel
from nextpixel import ImageGPTConfig, InputError, Palette
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.data.decoded import Batches
from nextpixel.network.resnet import ResNet
from nextpixel.representation import extraction
from nextpixel.training import optim
from nextpixel.training.distillation import distance, distill, whitening
from nextpixel.training.parallel import load_trainer_state

SETTINGS: dict[str, Any] = {
    "blocks": 1, "steps": 8, "batch_images": 8, "learning_rate": 0.05, "validation_fraction": 0.2,
    "evaluate_every_steps": 4, "checkpoint_every_steps": 3, "log_every_steps": 1,
}  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny teacher, and pictures of two colours, half of each, at random slopes."""
    model = lively(ImageGPTConfig(layers=2, width=16, heads=2, side=8, colors=8), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    nextpixel.save(model, tmp_path / "model")
    rng = np.random.default_rng(1)
    colors = rng.integers(0, 256, (30, 2, 3))
    slope = (np.arange(8)[:, None] * rng.normal(size=(30, 1, 1)) + np.arange(8) * rng.normal(size=(30, 1, 1))) > 1
    np.save(
        tmp_path / "photos.npy",
        np.where(slope[..., None], colors[:, None, None, 0], colors[:, None, None, 1]).astype(np.uint8),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_whitening_undoes_scale_and_correlation() -> None:
    rng = np.random.default_rng(0)
    mixed = (rng.normal(size=(5000, 4)) @ rng.normal(size=(4, 4)) * [1, 10, 0.1, 1] + 3).astype(np.float32)
    mean, matrix = whitening(mixed, 1e-6)
    white = (mixed - mean) @ matrix
    assert np.allclose(np.cov(white, rowvar=False), np.eye(4), atol=0.05)
    _, shrunk = whitening(mixed, 0.1)
    variances = ((mixed - mean) @ shrunk).var(0)
    assert (np.diff(variances) < 0).all() and variances[-1] < 0.1  # what hardly varies stays small, largest first
    constant = np.concatenate([mixed, np.ones((5000, 1), np.float32)], 1)
    assert np.isfinite(whitening(constant, 0.1)[1]).all()


def test_distances_by_hand() -> None:
    ours, theirs = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert distance(ours, theirs, "cosine").tolist() == pytest.approx([0, 1])
    assert distance(ours, theirs, "squared").tolist() == pytest.approx([12.5, 2.5])


def test_batches_tell_which_images_they_hold_and_which_are_mirrored() -> None:
    squares = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    batches = Batches(squares, np.array([1, 2, 4, 6]), size=(8, 8), batch_images=3, augment="flip", seed=0)
    flipped = 0
    for step in range(6):
        mirrored = batches.mirrored(step)
        flipped += mirrored.sum()
        for square, number, mirror in zip(batches(step), batches.numbers(step), mirrored, strict=True):
            assert np.array_equal(square, squares[number, :, ::-1] if mirror else squares[number])
    assert 0 < flipped < 18
    plain = Batches(squares, np.arange(7), size=(8, 8), batch_images=3, augment="none", seed=0)
    assert not plain.mirrored(0).any()


@pytest.mark.parametrize("loss", ["cosine", "squared"])
def test_the_student_comes_to_predict_its_teacher(desk: Path, loss: str) -> None:
    student = distill("photos.npy", out="run", model="model", loss=loss, layer="1,2", **SETTINGS | {"steps": 60})
    log = [entry["loss"] for entry in Run("run").read_log() if "loss" in entry]
    assert np.mean(log[-5:]) < 0.6 * np.mean(log[:5])
    assert student.config.targets == 32 and student.facts["layers"] == [1, 2]
    seen = np.load("run/teacher.npy")
    teacher, squares = nextpixel.load("model"), np.load("photos.npy")
    assert np.allclose(seen[:, 0], nextpixel.features(teacher, squares, [1, 2]), atol=1e-5)
    assert np.allclose(seen[:, 1], nextpixel.features(teacher, squares[:, :, ::-1], [1, 2]), atol=1e-5)
    assert not Path("run/teacher.parts").exists()
    again = nextpixel.load_backbone("run")
    assert isinstance(again, ResNet)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters(), strict=True))
    assert torch.equal(again.get_buffer("teacher_whiten"), student.get_buffer("teacher_whiten"))
    assert torch.equal(again.norm.running_var, student.norm.running_var)


def test_pictures_that_must_not_be_mirrored_are_not(desk: Path) -> None:
    distill("photos.npy", out="run", model="model", layer="1", augment="pad", **SETTINGS)
    seen = np.load("run/teacher.npy")
    assert seen.shape[1] == 1
    assert np.allclose(seen[:, 0], nextpixel.features(nextpixel.load("model"), np.load("photos.npy"), 1), atol=1e-5)


def everything(run: str) -> dict[str, torch.Tensor]:
    """Weights, running statistics and momenta of a run's last checkpoint."""
    folder = Run(run).folder(Run(run).steps()[-1])
    student = nextpixel.load_backbone(folder)
    optimizers = optim.sgd(student, 5e-4)
    load_trainer_state(folder / "trainer", student, optimizers)
    momenta = {name: optimizers[0].state[p]["momentum_buffer"] for name, p in student.named_parameters()}
    return student.state_dict() | {f"momentum {name}": value for name, value in momenta.items()}


def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["distill", "photos.npy", "--model", "model", "--threads", "1"]
    command += [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*command, "--out", "whole"]) == 0

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # while the teacher looks at the mirror images
        on_call(patch, "nextpixel.representation.extraction.features_of", 2, stop)
        assert main([*command, "--out", "stopped"]) == 130
    assert "resume with: nextpixel distill --resume stopped" in capsys.readouterr().err
    looked = []
    with monkeypatch.context() as patch:  # in the middle of step 5, after the checkpoint of step 4
        original = extraction.features_of
        patch.setattr(extraction, "features_of", lambda *a, **k: (looked.append(1), original(*a, **k))[1])
        on_call(patch, "nextpixel.training.distillation.distance", 6, stop)
        assert main(["distill", "--resume", "stopped"]) == 130
    assert len(looked) == 1  # the first part was kept
    with Run("stopped").locked():
        assert main(["distill", "--resume", "stopped"]) == 2
    assert "stopped: expected a run that no other process is training" in capsys.readouterr().err
    assert main(["distill", "--resume", "stopped"]) == 0
    ours, theirs = everything("stopped"), everything("whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    losses = [
        [(e["step"], e.get("loss"), e.get("validation_distance")) for e in Run(run).read_log()]
        for run in ("stopped", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("photos.npy", "expected images and --out"),
        ("--out run", "expected images and --out"),
        ("photos.npy --out model", "--out: model exists already"),
        ("nope --out run", "nope"),
        ("two.npy --out run --augment none", "expected at least two images to train on without mirroring them, got 1"),
        ("photos.npy --out run --fit place", "--fit: expected crop, imagenet or squash, got place"),
        ("photos.npy --out run --layer 9", "--layer: expected whole numbers from 0 to 2"),
        ("photos.npy --out run --layer best", "--layer: expected middle, a number, or comma-separated numbers"),
        ("photos.npy --out run --loss angle", "--loss: expected one of cosine, squared"),
        ("photos.npy --out run --shrinkage 0", "--shrinkage: expected a number above 0"),
        ("photos.npy --out run --steps 0", "--steps: expected at least 1, got 0"),
        ("photos.npy --out run --learning-rate 0", "--learning-rate"),
        ("photos.npy --out run --validation-fraction 1", "--validation-fraction"),
        ("--resume model", "--resume: expected a run folder"),
        ("--resume model --steps 3", "--resume: cannot be combined with --steps, only with --data;"),
        ("photos.npy --resume model", "--resume: cannot be combined with photos.npy"),
    ],
)
def test_bad_input_is_one_sentence(desk: Path, capsys: pytest.CaptureFixture, command: str, sentence: str) -> None:
    np.save("two.npy", np.load("photos.npy")[:2])
    words = command.split()
    assert main(["distill", *words, *([] if "--resume" in words else ["--model", "model"])]) == 2
    output = capsys.readouterr()
    assert sentence in output.err and not output.out and output.err.count("\n") == 1
    assert not Path("run").exists()


def test_runs_of_another_kind_and_unknown_settings_are_refused(desk: Path) -> None:
    with pytest.raises(TypeError, match="unknown argument 'wings'"):
        distill("photos.npy", out="run", wings=2)
    with pytest.raises(InputError, match="expected only `data` with it"):
        distill(resume="run", steps=3)
    for kind, sentence in (
        ("pretrain", "was started by nextpixel pretrain, not distill; continue it with: nextpixel pretrain `resume="),
        ("distill", "run.json: expected a distillation run, got a problem with 'decisions'"),
    ):
        Path(kind).mkdir()
        Path(kind, "run.json").write_text(json.dumps({"kind": kind, "config": {"steps": 3}}))
        with pytest.raises(InputError, match=sentence):
            distill(resume=kind)


def test_the_best_student_on_held_out_images_is_kept_and_other_verbs_leave_it_alone(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    student = distill(["photos.npy", "photos.npy"], out="run", model="model", **SETTINGS | {"steps": 12})
    run = Run("run")
    told = {e["step"]: e["validation_distance"] for e in run.read_log() if "validation_distance" in e}
    best = min(told, key=lambda step: told[step])
    assert len(told) == 3 and run.best() == {"step": best, "distance": told[best]}
    kept = nextpixel.load_backbone(run.folder(best))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), student.parameters(), strict=True))
    facts = run.facts()
    assert facts["kind"] == "distill" and facts["model"]["targets"] == 16
    assert facts["data"]["path"] == [str(desk / "photos.npy")] * 2
    for verb in ("pretrain", "finetune"):
        assert main([verb, "--resume", "run"]) == 2
        assert "started by nextpixel distill" in capsys.readouterr().err
    np.savez("labelled.npz", images=np.load("photos.npy"), labels=np.arange(30) % 2)
    assert main(["finetune", "labelled.npz", "--model", "run", "--out", "clf"]) == 2
    assert "nextpixel probe LABELLED --against run" in capsys.readouterr().err
    assert main(["info", "run"]) == 0
    assert "kind: distill" in capsys.readouterr().out
