"""What watches a run: trackers, spikes of the loss, the probe, and the page."""

import json
import math
import os
import re
import shutil
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_finetuning import TINY, labelled
from test_finetuning import model as gpt
from tiny_runs import SIDE, assert_same, flags, on_call, photos, settings

import nextpixel
from nextpixel import InputError, WorkError
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.data.labels import folds_of
from nextpixel.reports.curves import Line, chart
from nextpixel.reports.run_page import page
from nextpixel.representation.ridge import PENALTIES, fit_ridge, ridge_accuracy, ridge_images
from nextpixel.stats import outlier_limit
from nextpixel.training import steps, tracking
from nextpixel.training.log import Spikes
from nextpixel.training.loop import Interrupted


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photos(tmp_path)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps with a probe, beside what it was made of."""
    folder = tmp_path_factory.mktemp("probed")
    probe_data(folder)
    nextpixel.pretrain(photos(folder), out=folder / "run", **with_probe(folder))
    return folder / "run"


def probe_data(folder: Path) -> Path:
    squares, names = labelled(60, seed=3)
    np.savez(folder / "labelled.npz", images=squares, labels=names)
    return folder / "labelled.npz"


def with_probe(folder: Path, **changes: Any) -> dict[str, Any]:
    return settings(folder, steps=24, probe_data=str(folder / "labelled.npz"), probe_images=40) | changes


# ---- trackers


class FakeWandb:
    """Stands for the package: keeps what it is given."""

    def __init__(self) -> None:
        self.runs: list[SimpleNamespace] = []
        self.Settings = lambda **settings: settings

    def init(self, **given: Any) -> Any:
        run = SimpleNamespace(given=given, lines=[], ended=None, metrics=[])
        run.log = lambda figures: run.lines.append(figures)
        run.define_metric = lambda *names, **how: run.metrics.append((names, how))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


def test_wandb_gets_every_line_of_the_log_and_a_resumed_run_is_the_same_one(images, tmp_path, wandb, monkeypatch):
    config = settings(tmp_path, tracker="wandb")
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 17, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            nextpixel.pretrain(images, out=tmp_path / "run", **config)
    nextpixel.pretrain(resume=tmp_path / "run")
    first, second = wandb.runs
    assert first.lines + second.lines == Run(tmp_path / "run").read_log()
    assert (first.ended, second.ended) == (1, 0)
    assert first.given["id"] == second.given["id"] and first.given["resume"] == "allow"
    assert first.given["name"] == "run" and first.given["dir"] == str(tmp_path / "run")
    assert first.given["config"]["config"]["width"] == 16 and first.metrics == [(("*",), {"step_metric": "step"})]
    moved = images.rename(images.with_stem("moved"))
    nextpixel.pretrain(moved, resume=tmp_path / "run")
    nextpixel.pretrain(moved, out=tmp_path / "other", **config | {"seed": 1, "steps": 1})
    ended, other = wandb.runs[2:]
    assert ended.given["id"] == first.given["id"] != other.given["id"]


def test_runs_that_differ_in_one_decision_are_two(tmp_path, wandb):
    facts = {"config": {"seed": 0}, "started": "2026-11-30T10:00:00"}
    for teacher in ("a", "b", "a"):
        with tracking._wandb(tmp_path, facts | {"decisions": {"teacher": teacher, "train_key": len(wandb.runs)}}):
            pass
    first, other, again = (run.given["id"] for run in wandb.runs)
    assert first == again != other


def test_finetune_is_tracked_too(tmp_path, wandb):
    squares, names = labelled(24)
    nextpixel.finetune(gpt(), squares, names, out=tmp_path / "run", **TINY | {"epochs": 1, "tracker": "wandb"})
    assert wandb.runs[0].lines == Run(tmp_path / "run").read_log() != []


def test_a_tracker_that_is_not_installed_is_one_sentence_before_anything_is_written(
    images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["pretrain", str(images), "--out", str(tmp_path / "run"), "--tracker", "wandb"]
    assert main([*command, *flags(settings(tmp_path))]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "pip install wandb, or omit the tracker" in err
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_costs_no_training(images, tmp_path, wandb, capsys, monkeypatch):
    def full(figures: Any) -> None:
        raise OSError("no space\nleft")

    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **given: (run := start(**given), setattr(run, "log", full))[0])
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, tracker="wandb"))
    assert Run(tmp_path / "run").steps()[-1] == 12
    assert capsys.readouterr().err.count("logging to wandb stopped: no space left") == 1

    def refused(**given: Any) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(WorkError, match=r"api_key not configured.*WANDB_MODE=offline"):
        nextpixel.pretrain(images, out=tmp_path / "other", **settings(tmp_path, tracker="wandb"))
    monkeypatch.undo()


# ---- spikes


def test_the_limit_is_not_moved_by_what_stands_out():
    values = np.random.default_rng(0).normal(2.0, 0.1, 1001)
    median, limit = outlier_limit(values)
    assert median == pytest.approx(2.0, abs=0.02) and limit == pytest.approx(2.6, abs=0.06)
    values[:100] = 50.0
    assert outlier_limit(values)[1] == pytest.approx(limit, abs=0.12)


def test_a_spike_is_found_once_and_a_falling_or_noisy_loss_has_none():
    rng = np.random.default_rng(0)
    falling = 6.0 * np.exp(-np.arange(3_000) / 400) + 2.0 + rng.normal(0, 0.05, 3_000)
    spikes = Spikes([])
    assert [step for step, loss in enumerate(falling) if spikes.found(loss)] == []
    assert [step for step in range(40) if Spikes([{"highest_loss": 2.0}] * 40).found(2.03)] == [], "hardly higher"
    bumpy = falling.copy()
    bumpy[2_000:2_006] += [1.0, 0.9, 0.05, 0.7, 0.6, 0.5]
    bumpy[2_500] += 2.0
    spikes = Spikes([])
    found = {step: told for step, loss in enumerate(bumpy) if (told := spikes.found(loss))}
    assert list(found) == [2_000, 2_500]
    assert found[2_000]["spike"] == bumpy[2_000] and found[2_000]["usual_loss"] == pytest.approx(2.04, abs=0.05)


def test_a_resumed_run_remembers_what_is_usual_and_what_was_told():
    log = [{"step": i, "highest_loss": 2.0 + 0.01 * (i % 5)} for i in range(60)]
    for cut in (60, 61, 63):
        lines = [*log, *({"step": i, "highest_loss": 9.0} for i in range(60, 63))]
        resumed = Spikes(lines[:cut])
        assert bool(resumed.found(9.0)) == (cut == 60)


def test_a_spike_is_said_logged_and_on_the_page(images, tmp_path, capsys, monkeypatch):
    original, calls = steps.cross_entropy, iter(range(1, 10_000))

    def spoilt(*given: Any) -> torch.Tensor:
        loss = original(*given)
        return loss + 20.0 if next(calls) in (2 * 45, 2 * 46) else loss  # the second half of steps 45 and 46

    monkeypatch.setattr(steps, "cross_entropy", spoilt)
    config = settings(tmp_path, steps=60, evaluate_every_steps=60, log_every_steps=2)
    nextpixel.pretrain(images, out=tmp_path / "run", **config)
    log = Run(tmp_path / "run").read_log()
    [spike] = [entry for entry in log if "spike" in entry]
    assert spike["step"] == 46 and spike["spike"] > spike["usual_loss"] + 2
    line = next(entry for entry in log if entry["step"] == 46 and "loss" in entry)
    assert line["highest_loss"] == spike["spike"] >= line["loss"]
    said = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert said == [f"step 45 to 46: loss spike, {spike['spike']:.3f} where {spike['usual_loss']:.3f} is usual"]
    text = page(Run(tmp_path / "run"))
    assert re.findall('id="(spike.*?)"', text) == ["spike-46"] and "<b>1</b><span>loss spike</span>" in text


# ---- the probe


def test_ridge_solves_its_normal_equations_with_the_penalty_that_held_out_images_choose():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6))
    labels = rng.integers(0, 3, 200)
    features = (centres[labels] + 0.9 * rng.normal(size=(200, 6))) * 5 + 7
    features = np.concatenate([features, np.full((200, 1), 2)], axis=1)  # one that never changes
    probe = fit_ridge(features, labels)
    scores = {}
    for penalty in PENALTIES:
        scores[penalty] = sum(
            (solved(features, labels, ~held, penalty)[held] == labels[held]).sum() for held in folds_of(labels, 0)
        )
    chosen = min(penalty for penalty in PENALTIES if scores[penalty] == max(scores.values()))
    every = np.ones(len(labels), bool)
    assert np.array_equal(probe.predict(features), solved(features, labels, every, chosen))
    assert probe.score(features, labels) > 0.8 and len(set(scores.values())) > 1
    alone = fit_ridge(features[[0, 1, 2, 3]], np.arange(4))  # nothing can be held out
    assert alone.score(features[[0, 1, 2, 3]], np.arange(4)) == 1


def solved(features, labels, rows, penalty):
    """The classes that ridge regression of one-hot labels on these rows gives all rows."""
    scale = features[rows].std(0)
    points = (features - features[rows].mean(0)) / np.where(scale < 1e-6, 1, scale)
    targets = np.eye(3)[labels[rows]]
    known = points[rows]
    normal = known.T @ known + rows.sum() * penalty * np.eye(known.shape[1])
    return (points @ np.linalg.solve(normal, known.T @ (targets - targets.mean(0))) + targets.mean(0)).argmax(1)


def test_probe_images_are_balanced_readable_and_never_score_what_they_are_fitted_to(tmp_path):
    squares, names = labelled(60)
    names[:8] = "dusk"
    np.savez(tmp_path / "labelled.npz", images=squares, labels=names)
    arrays = ridge_images(tmp_path / "labelled.npz", (SIDE, SIDE), "crop", 40, 0)
    counts = np.bincount(arrays["probe_labels"])
    assert arrays["probe_squares"].shape == (40, SIDE, SIDE, 3) and sorted(counts) == [8, 16, 16]
    assert 0 < arrays["probe_scored"].sum() <= 10
    again = ridge_images(tmp_path / "labelled.npz", (SIDE, SIDE), "crop", 40, 0)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    other = ridge_images(tmp_path / "labelled.npz", (SIDE, SIDE), "crop", 40, 1)
    assert not np.array_equal(arrays["probe_squares"], other["probe_squares"])
    with pytest.raises(InputError, match="expected labelled images"):
        ridge_images(squares, (SIDE, SIDE), "crop", 40, 0)
    with pytest.raises(InputError, match="raise `probe_images`"):
        ridge_images(tmp_path / "labelled.npz", (SIDE, SIDE), "crop", 2, 0)


def test_the_probe_learns_what_the_features_show(tmp_path):
    arrays = ridge_images(probe_data(tmp_path), (SIDE, SIDE), "crop", 60, 0)
    before = torch.get_rng_state()
    accuracy = ridge_accuracy(gpt(), arrays)
    assert accuracy == ridge_accuracy(gpt(), arrays) > 0.8
    assert torch.equal(before, torch.get_rng_state())
    shuffled = arrays | {"probe_labels": np.random.default_rng(0).permutation(arrays["probe_labels"])}
    assert ridge_accuracy(gpt(), shuffled) < 0.8


def test_a_run_with_a_probe_is_the_run_without_bit_for_bit(probed, tmp_path):
    nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **settings(tmp_path, steps=24))
    assert_same(tmp_path / "run", probed)
    found = [(e["step"], e["probe_accuracy"]) for e in Run(probed).read_log() if "probe_accuracy" in e]
    assert [step for step, _ in found] == [6, 12, 18, 24] and all(0 <= value <= 1 for _, value in found)


def test_a_probed_run_resumes_exactly_without_its_labelled_images(probed, tmp_path, monkeypatch):
    probe_data(tmp_path)
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 17, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **with_probe(tmp_path))
    (tmp_path / "labelled.npz").unlink()
    nextpixel.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", probed)
    ours, theirs = ([e.get("probe_accuracy") for e in Run(run).read_log()] for run in (tmp_path / "run", probed))
    assert ours == theirs


def test_the_probe_may_look_less_often_and_looks_at_the_end(tmp_path):
    probe_data(tmp_path)
    config = with_probe(tmp_path, steps=22, probe_every_evaluations=2)
    nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **config)
    assert [e["step"] for e in Run(tmp_path / "run").read_log() if "probe_accuracy" in e] == [12, 22]


def test_a_branch_is_probed_like_its_run(tmp_path):
    probe_data(tmp_path)
    config = with_probe(tmp_path, schedule="linear", checkpoint_every_steps=6)
    nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **config)
    nextpixel.pretrain(branch=tmp_path / "run", out=tmp_path / "branch", steps=18)
    assert "probe_accuracy" in Run(tmp_path / "branch").read_log()[-1]


# ---- the page


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_of_a_run_shows_all_of_it_and_needs_nothing_else(probed):
    text = page(Run(probed))
    tags = Tags(text)
    assert tags.open == []
    pictures = tags.of("img")
    assert len(pictures) == 4 and all(str(p["src"]).startswith("data:image/png;base64,") for p in pictures)
    assert not re.search(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:|//)""", text)
    titles = [title.strip() for title in re.findall(r"<h3>([\w ]+)", text)]
    assert titles[:4] == ["Loss", "Probe accuracy", "Learning rate", "Throughput"]
    log, best = Run(probed).read_log(), Run(probed).best()
    assert f"Best validation {best['nats']:.4f} nats per pixel, at step {best['step']}." in text
    assert f"{log[-1]['probe_accuracy']:.1%}" in text and "24 of 24 steps" in text
    assert all(f"step {step:,}" in text for step in Run(probed).steps())
    first, last = log[0]["loss"], [entry["loss"] for entry in log if "loss" in entry][-1]
    assert f'aria-label="Loss: training from {first:.3f} at step 1 to {last:.3f} at step 24"' in text
    assert text.count("<svg ") == len(titles) == len(set(re.findall(r'clipPath id="(\w+)"', text)))
    assert page(Run(probed)) == text, "without dates and random ids"
    assert "probe images" in text and "pretrain" in text
    sizes = sum(path.stat().st_size for step in Run(probed).steps() for path in Run(probed).folder(step).rglob("*"))
    assert sizes > 0 and re.search(r"checkpoints, [\d.,]+ [kM]B in total", text)


def test_info_writes_the_page_at_once_and_says_where(probed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["info", str(probed), "--html", "run.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == "run.html"
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]
    assert main(["info", str(probed)]) == 0
    assert "--html run.html" in capsys.readouterr().err


def test_the_page_of_a_finetuned_run_and_of_one_that_has_hardly_begun(tmp_path):
    squares, names = labelled(24)
    test = labelled(12, seed=9)
    nextpixel.finetune(
        gpt(), squares, names, out=tmp_path / "run", test=test[0], test_labels=test[1], **TINY | {"epochs": 2}
    )
    text = page(Run(tmp_path / "run"))
    assert "Validation accuracy" in text and "On 12 test images, evaluated once: accuracy" in text
    assert Tags(text).of("img") == [] and "Samples over time" not in text
    begun = Run(shutil.copytree(tmp_path / "run", tmp_path / "<begun>"))
    for step in begun.steps():
        shutil.rmtree(begun.folder(step))
    for name in ("log.jsonl", "best.json", "test.json"):
        (begun.path / name).unlink()
    text = page(begun)
    assert "Nothing was logged yet." in text and "No checkpoint yet." in text and "No evaluation yet." in text
    assert "<h1>&lt;begun&gt;</h1>" in text
    (begun.path / "log.jsonl").write_text('{"step": 3, "loss": NaN}\n{"loss": 1}\n[]\n{"step": 4, "loss": 2.0}\n{"st')
    assert "training loss at the end" in page(begun)


def test_a_run_that_cannot_be_read_is_one_sentence(probed, tmp_path):
    broken = Path(shutil.copytree(probed, tmp_path / "broken"))
    facts = json.loads((broken / "run.json").read_text())
    del facts["model"]["width"]
    (broken / "run.json").write_text(json.dumps(facts | {"config": {}}))
    with pytest.raises(InputError, match=r"run\.json: expected a pretraining run, got a problem with 'batch_images'"):
        page(Run(broken))


def test_long_curves_are_thinned_and_their_beginning_does_not_flatten_the_rest(probed, tmp_path):
    long = Path(shutil.copytree(probed, tmp_path / "long"))
    lines = [
        {"step": step, "loss": 2 + 8 * math.exp(-step / 300), "rate": 0.1, "images_per_second": 50.0}
        for step in range(10, 30_000, 10)
    ]
    (long / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(Run(long))
    assert len(text) < 200_000 and "above the chart" in text


def test_error_bars_do_not_flatten_the_curve() -> None:
    """Few held-out images: the bar is longer than all that is drawn, and is cut off."""

    def ticks(error: float) -> list[str]:
        lines = [Line("training", [(1, 2.0), (2, 1.9)]), Line("validation", [(2, 2.1)], "held", [(2, error)])]
        return re.findall(r"<text [^>]*>(.*?)</text>", chart("Loss", "nats per pixel", lines, "{:.3f}".format, 2))

    values = [float(label) for label in ticks(1.5) if "." in label]
    assert ticks(1.5) == ticks(0.0) and 1.85 < min(values) < max(values) < 2.15
