"""Loss against probe accuracy: what is measured, what is kept, and the statistics on data with a known answer."""

import contextlib
import csv
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_runs import COLORS, leftovers, photos, pictures, settings

import nextpixel
from nextpixel import ImageGPT
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import ImageGPTConfig, StudyConfig, read_recipe
from nextpixel.data.prepared import prepare
from nextpixel.errors import InputError
from nextpixel.evaluation.likelihood import image_nats
from nextpixel.images.sources import load_images
from nextpixel.representation.probing import LinearProbe
from nextpixel.stats import (
    bootstrap_interval,
    difference_at_equal_x,
    partial_correlation,
    pearson,
    spearman,
    subtract_group_means,
)
from nextpixel.study import LayerScore, Point, measure_runs, measuring, statistics
from nextpixel.study.inputs import read_images, read_runs
from nextpixel.study.points import Study
from nextpixel.study.report import study_summary

CONFIG = StudyConfig(train_images=80, test_images=40)


def short(home: Path, **changes: Any) -> dict[str, Any]:
    """Four steps, of which three checkpoints are kept: each takes dozens of logistic regressions to measure."""
    return settings(home, steps=4, checkpoint_every_steps=4, evaluate_every_steps=4, **changes)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs of different width, and labelled images: whether the first row's colour is more red than not."""
    home = tmp_path_factory.mktemp("desk")
    images = photos(home)
    nextpixel.pretrain(images, out=home / "small", **short(home))
    nextpixel.pretrain(images, out=home / "large", **short(home, width=32))
    arrays: dict[str, np.ndarray] = {"class_names": np.array(["dull", "red"])}
    for number, (split, count) in enumerate((("train", 100), ("test", 50))):
        arrays[f"{split}_images"] = pictures(count, seed=2 * number + 2)  # none is in two sets
        reds = arrays[f"{split}_images"][:, 0, 0, 0]
        arrays[f"{split}_labels"] = (reds > np.median(COLORS[:, 0])).astype(np.int64)
    np.savez(home / "set.npz", **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield home


def command(out: Path, *more: str) -> list[str]:
    options = ["--data", "set.npz", "--out", str(out), "--train-images", "80", "--test-images", "40"]
    return ["study", "small", "large", *options, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def whole(desk: Path) -> tuple[Path, str]:
    """The folder of a finished study, and what its command printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command(desk / "whole")) == 0
    return desk / "whole", printed.getvalue()


def test_every_kept_checkpoint_is_measured_and_written(whole: tuple[Path, str]) -> None:
    out, printed = whole
    assert printed == (out / "summary.md").read_text()
    assert "nearly certain to be negative" in printed and "to rely on" in printed
    values = json.loads((out / "study.json").read_text())
    kept = [(name, step) for name in ("small", "large") for step in Run(name).steps()]
    assert len(kept) == 6 and [(p["run"], p["step"]) for p in values["points"]] == kept
    assert values["controls"].keys() == {"most common class", "raw pixels", "untrained 1x16", "untrained 1x32"}
    for point in values["points"]:
        assert [score["layer"] for score in point["layers"]] == [0, 1]
        assert point["images"] == 4 * point["step"] and point["flops"] > 0
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [float(row["nats"]) for row in rows] == [point["nats"] for point in values["points"]]
    for figure in ("loss_accuracy.png", "layer_depth.png"):
        assert load_images(str(out / figure), 64).std() > 5  # something is drawn on it
    assert leftovers(out) == []


def test_a_point_is_what_score_and_probe_say_of_that_checkpoint(desk: Path, tmp_path: Path) -> None:
    config = StudyConfig(train_images=1000, test_images=1000)  # all of them
    found = measure_runs(["small", "large"], "set.npz", tmp_path / "study", config)
    assert (found.train_images, found.test_images) == (100, 50)
    point = found.points[-1]
    model = nextpixel.load(Run("large").folder(point.step))
    nats = image_nats(model, load_images("set.npz", 4, split="test"))
    assert point.nats == pytest.approx(nats.mean(), abs=1e-6)
    probe = LinearProbe(model, pooling="mean").fit("set.npz", split="train")
    assert {score.layer: score.held_out for score in point.layers} == probe.sweep_
    best = LinearProbe(model, max(point.layers, key=lambda score: score.held_out).layer, pooling="mean")
    assert point.accuracy == pytest.approx(best.fit("set.npz", split="train").score("set.npz", split="test"))


def test_int8_rounds_the_features_and_leaves_the_losses(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        measuring, "image_nats", lambda model, images, *, dtype, seed: seen.append(dtype) or np.ones(50)
    )
    monkeypatch.setattr(
        measuring, "pooled", lambda model, images, layers, dtype: seen.append(dtype) or np.zeros((len(images), 2, 16))
    )
    config = StudyConfig(train_images=100, test_images=50, dtype="int8")
    images = read_images("set.npz", (4, 4), "crop", config, read_runs(["small", "large"]))
    measuring._measure(Run("small").folder(4), "cpu", images, images.seen, config)
    assert seen == ["bf16", "int8", "int8"]


def test_a_stopped_study_goes_on_and_measures_nothing_twice(
    whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, original, calls = tmp_path / "study", measuring.load, []

    def load(checkpoint: Path, **options: Any) -> ImageGPT:
        if len(calls) == 4:
            calls.append(Path("stop"))
            raise KeyboardInterrupt
        calls.append(checkpoint)
        return original(checkpoint, **options)

    monkeypatch.setattr(measuring, "load", load)
    assert main(command(out)) == 130
    assert "repeat the command to resume" in capsys.readouterr().err
    assert main(command(out)) == 0
    total = len(Run("small").steps()) + len(Run("large").steps())
    measured = [path for path in calls if path != Path("stop")]
    assert len(measured) == len(set(measured)) == total
    before = (out / "study.json").read_bytes()
    assert main(command(out)) == 0
    assert len(calls) == total + 1 and (out / "study.json").read_bytes() == before
    assert (whole[0] / "study.json").read_bytes() == before


def test_a_folder_begun_with_other_settings_is_refused(
    whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load("set.npz") as arrays:
        np.savez("other.npz", **{name: arrays[name] for name in arrays.files if name != "class_names"})
    out, _ = whole
    before = (out / "study.json").read_bytes()
    for more, told in {
        ("--seed", "5"): "was made with seed 0, got 5",
        ("--train-images", "70"): "was made with train images 80, got 70",
        ("--dtype", "bf16"): "was made with dtype fp32, got bf16",
        ("--data", "other.npz"): "was made with images ",
    }.items():
        assert main(command(out, *more)) == 2
        err = capsys.readouterr().err
        assert f"--out: {out} {told}" in err and err.count("\n") == 1
    assert (out / "study.json").read_bytes() == before


def change(run: Path, **parts: dict[str, Any]) -> None:
    facts = json.loads((run / "run.json").read_text())
    for part, values in parts.items():
        facts[part] |= values
    (run / "run.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("part", "values", "told"),
    [
        ("tokenizer", {"sha256": "cafe"}, "expected the palette of small"),
        ("model", {"side": 8}, "expected the side of small, 4, got 8"),
        ("model", {"objective": "masked"}, "expected the objective of small, autoregressive, got masked"),
        ("decisions", {"fit": "squash"}, "expected the fit of small, crop, got squash"),
        ("config", {"init": "embedded"}, "started from random weights"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    desk: Path, tmp_path: Path, part: str, values: dict[str, Any], told: str
) -> None:
    other = tmp_path / "other"
    nextpixel.pretrain("photos.npy", out=other, **(short(desk) | {"steps": 1}))
    change(other, **{part: values})
    with pytest.raises(InputError, match=told):
        measure_runs(["small", other], "set.npz", tmp_path / "study", CONFIG)
    assert not (tmp_path / "study").exists()


def test_images_without_labels_and_runs_given_twice_are_refused(desk: Path, tmp_path: Path) -> None:
    for runs, data, told in (
        (["small", "large"], "photos.npy", "photos.npy: expected a train and a test split, got none"),
        (["small", "large", "small/"], "set.npz", "expected each run once, got small/ again"),
    ):
        with pytest.raises(InputError, match=told):
            measure_runs(runs, data, tmp_path / "study", CONFIG)
    with np.load("set.npz") as arrays:
        np.savez("bare.npz", **{name: arrays[name] for name in arrays.files if name.endswith("images")})
    with pytest.raises(InputError, match="expected labelled images"):
        measure_runs(["small", "large"], "bare.npz", tmp_path / "study", CONFIG)


def test_a_class_that_the_chosen_training_images_lack_is_named_before_anything_is_measured(
    desk: Path, tmp_path: Path
) -> None:
    with np.load("set.npz") as arrays:
        changed = dict(arrays)
    del changed["class_names"]
    changed["test_labels"][0] = 2
    np.savez("rare.npz", **changed)
    with pytest.raises(InputError, match="expected the classes of the training images, got '2' as well"):
        measure_runs(["small", "large"], "rare.npz", tmp_path / "study", CONFIG)
    assert not (tmp_path / "study").exists()


def test_a_run_trained_on_the_test_images_is_refused(desk: Path, tmp_path: Path) -> None:
    nextpixel.pretrain("set.npz", split="test", out=tmp_path / "cheat", **(short(desk) | {"steps": 1}))
    with pytest.raises(InputError, match="trained on the test images"):
        measure_runs(["small", tmp_path / "cheat"], "set.npz", tmp_path / "study", CONFIG)


def test_test_images_that_were_trained_on_are_told_and_figures_given_without_them(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load("set.npz") as arrays:
        mixed = {name: arrays[name] for name in arrays.files}
    random = np.random.default_rng(0)
    for split, count in (("train", 100), ("test", 50)):
        mixed[f"{split}_images"] = random.integers(0, 256, (count, 4, 4, 3), np.uint8)
    mixed["test_images"][:2] = mixed["train_images"][:2]  # of the probes
    np.save(tmp_path / "own.npy", mixed["test_images"][2:12])  # of one run
    np.savez(tmp_path / "mixed.npz", **mixed)
    nextpixel.pretrain(tmp_path / "own.npy", out=tmp_path / "own", **(short(desk) | {"steps": 1}))
    runs, config = ["small", tmp_path / "own"], StudyConfig(train_images=1000, test_images=1000)
    found = measure_runs(runs, str(tmp_path / "mixed.npz"), tmp_path / "study", config)
    err = capsys.readouterr().err
    assert "mixed.npz: 2 of 50 test images are" in err and "own: 10 of 50 test images are" in err
    for point, first in ((found.points[0], 2), (found.points[-1], 12)):
        model = nextpixel.load(Run(point.run).folder(point.step))
        nats = image_nats(model, mixed["test_images"])
        assert point.nats_without_them == pytest.approx(nats[first:].mean(), abs=1e-6)
        assert (point.best.accuracy_without_them * (50 - first)) % 1 == pytest.approx(0, abs=1e-9)
    mixed["test_images"] = mixed["train_images"][:50]
    np.savez(tmp_path / "same.npz", **mixed)
    with pytest.raises(InputError, match="expected test images other than the training images"):
        measure_runs(runs, str(tmp_path / "same.npz"), tmp_path / "b", config)


def test_a_measurement_is_made_again_once_more_training_images_are_known(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = asdict(LayerScore(0, 0.5, 0.5))

    def measure(folder: Path, device: str, images: Any, seen: np.ndarray, config: StudyConfig) -> dict[str, Any]:
        return {"nats": 1.0, "nats_error": 0.0, "nats_without_them": float(seen.sum()), "layers": [layer]}

    def seen_by_the_runs(images: np.ndarray | None) -> set[float | None]:
        known = None if images is None else SimpleNamespace(images=images)
        monkeypatch.setattr("nextpixel.study.inputs.training_set", lambda run: known)
        found = measure_runs(["small", "large"], "set.npz", tmp_path / "study", CONFIG)
        return {point.nats_without_them for point in found.points}

    monkeypatch.setattr(measuring, "_measure", measure)
    monkeypatch.setattr(measuring, "_controls", lambda *_: {})
    with np.load("set.npz") as arrays:
        test = arrays["test_images"]
    assert [seen_by_the_runs(images) for images in (None, test, None)] == [{0}, {CONFIG.test_images}, {0}]


def test_prepared_splits_of_the_runs_size_cannot_be_compared_with_images_for_random_crops(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        prepare("set.npz", tmp_path / "set" / split, side=4, split=split)
    large = SimpleNamespace(images=np.zeros((3, 8, 8, 3), np.uint8))
    monkeypatch.setattr("nextpixel.study.inputs.training_set", lambda run: large)
    found = read_images(str(tmp_path / "set"), (4, 4), "crop", CONFIG, read_runs(["small", "large"]))
    assert (len(found.train), len(found.test)) == (80, 40) and set(found.test_labels) == {"dull", "red"}
    assert all(seen is found.seen for seen in found.seen_by.values())
    told = "could not check the test images against the training images of large: .*expected images of side 8"
    assert re.search(told, capsys.readouterr().err)


def test_test_labels_have_no_say_in_what_is_chosen(whole: tuple[Path, str], tmp_path: Path) -> None:
    with np.load("set.npz") as arrays:
        turned = {name: arrays[name] for name in arrays.files} | {"test_labels": 1 - arrays["test_labels"]}
    np.savez(tmp_path / "turned.npz", **turned)
    true = measure_runs(["small", "large"], "set.npz", whole[0], CONFIG)
    false = measure_runs(["small", "large"], str(tmp_path / "turned.npz"), tmp_path / "b", CONFIG)
    for one, other in zip(true.points, false.points, strict=True):
        assert one.nats == other.nats and one.best.layer == other.best.layer
        assert [score.held_out for score in one.layers] == [score.held_out for score in other.layers]
        assert one.accuracy + other.accuracy == pytest.approx(1)  # the same predictions, judged the other way round


# ---- arithmetic


def test_a_partial_correlation_that_was_planted_is_found() -> None:
    rng = np.random.default_rng(0)
    given, x, noise = rng.normal(size=(3, 20_000))
    planted = 0.6
    y = planted * x + math.sqrt(1 - planted**2) * noise
    assert partial_correlation(x + 5 * given, y - 5 * given, given) == pytest.approx(planted, abs=0.02)
    assert pearson(x + 5 * given, y - 5 * given) < -0.9  # what hides it
    assert partial_correlation(x + 5 * given, noise + 5 * given, given) == pytest.approx(0, abs=0.02)
    assert partial_correlation(x, y, np.ones(20_000)) == pytest.approx(pearson(x, y))


def test_correlations_by_hand() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert spearman(x, y) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert pearson(x, -2 * x) == pytest.approx(-1)
    assert math.isnan(pearson(x, np.ones(4))) and math.isnan(spearman(x[:2], y[:2]))
    assert subtract_group_means(y, np.array(["a", "b", "a", "b"])).tolist() == [-0.5, -0.5, 0.5, 0.5]


def test_the_interval_over_runs_is_wider_than_over_checkpoints() -> None:
    rng = np.random.default_rng(1)
    groups = [rng.normal(size=2) + 0.05 * rng.normal(size=(10, 2)) for _ in range(12)]  # all variance is between runs

    def statistic(rows: np.ndarray) -> float:
        return pearson(rows[:, 0], rows[:, 1])

    low, high = bootstrap_interval(statistic, groups, repeats=500)
    naive_low, naive_high = bootstrap_interval(statistic, list(np.concatenate(groups)[:, None]), repeats=500)
    assert high - low > 1.5 * (naive_high - naive_low)
    assert (low, high) == bootstrap_interval(statistic, groups, repeats=500)  # the seed decides
    assert math.isnan(bootstrap_interval(statistic, groups[:1])[0])


def test_the_interval_of_a_mean_is_student_s_but_for_its_small_sample() -> None:
    values = np.random.default_rng(2).normal(size=200)
    low, high = bootstrap_interval(lambda rows: float(rows.mean()), list(values[:, None, None]))
    half = 1.96 * values.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_curves_are_compared_where_both_are_known() -> None:
    def line(start: float, stop: float, height: float) -> np.ndarray:
        x = np.linspace(start, stop, 4)
        return np.stack([x, height - 0.1 * x], 1)

    small = [line(4, 3, 0.8), line(4.2, 2.9, 0.82)]
    large = [line(3.8, 2, 0.9), line(3.6, 2.1, 0.92)]
    found = difference_at_equal_x(small, large)
    assert found is not None
    assert (found.x_from, found.x_to, found.mean) == pytest.approx((3, 3.6, 0.1))
    half = 4.302653 * math.sqrt(0.01**2 + 0.01**2)  # t of 2 degrees of freedom; each side's standard error is 0.01
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    alone = difference_at_equal_x(small[:1], large)
    assert alone is not None and math.isnan(alone.low)
    assert difference_at_equal_x([line(9, 8, 1)], large) is None


def test_a_shape_is_called_by_what_sets_it_apart() -> None:
    small, large = ImageGPTConfig(layers=2, width=32, heads=2), ImageGPTConfig(layers=4, width=64, heads=4)
    assert measuring.shape_names([small, large, small]) == ["2x32", "4x64", "2x32"]
    split = [small, replace(small, heads=4), large]
    assert measuring.shape_names(split) == ["2x32 heads=2", "2x32 heads=4", "4x64"]
    capped = replace(small, logit_cap=15.0)
    assert measuring.shape_names([small, capped]) == ["2x32 logit_cap=0.0", "2x32 logit_cap=15.0"]


def point(run: int, step: int, nats: float, accuracy: float, shape: str = "1x8") -> Point:
    return Point(f"run{run}", shape, len(shape), run, step, step, 1e6 * step, nats, 0.0, [LayerScore(0, 0, accuracy)])


def test_time_alone_gives_a_correlation_within_runs_and_none_between() -> None:
    """Loss and accuracy both follow the step; what differs between runs is unrelated noise."""
    rng = np.random.default_rng(3)
    points = []
    for run in range(40):
        loss, gain = rng.normal(scale=0.1, size=2)
        points += [point(run, 2**k, 6 - 0.5 * k + loss, 0.1 + 0.03 * k + 0.1 * gain) for k in range(6)]
    found = statistics(points)
    assert (found.runs, found.checkpoints, found.within_runs) == (40, 240, pytest.approx(-1))
    assert found.pearson.value < -0.9
    for between in (found.same_step, found.final_pearson, found.final_spearman, found.given_compute):
        assert abs(between.value) < 0.4 and between.low < 0 < between.high


def test_a_relation_between_runs_is_found() -> None:
    rng = np.random.default_rng(4)
    points = []
    for run in range(12):
        better = rng.normal(scale=0.2)
        points += [point(run, 2**k, 6 - 0.5 * k - better, 0.1 + 0.03 * k + 0.1 * better) for k in range(6)]
    found = statistics(points)
    for between in (found.same_step, found.final_pearson, found.final_spearman, found.given_compute):
        assert between.value == pytest.approx(-1) and between.high < -0.99


def test_the_gain_of_size_at_equal_loss_is_found() -> None:
    points = [
        point(run, 2**k, 6 - 0.5 * k - 0.3 * (run > 1), 0.1 + 0.06 * k + 0.056 * (run > 1) + 1e-3 * run, shape)
        for run, shape in enumerate(["1x8", "1x8", "2x16", "2x16"])
        for k in range(6)
    ]
    [gap] = statistics(points).equal_loss
    assert (gap.smaller, gap.larger, gap.runs) == ("1x8", "2x16", 4) and gap.difference is not None
    assert gap.difference.mean == pytest.approx(0.022)  # 0.036 of 0.058 is what the lower loss itself brings


def test_the_largest_shape_is_predicted_from_the_others() -> None:
    shapes = ["1x8", "2x16", "3x32 wide", "3x32 wide"]
    points = [
        point(run, 2**k, 6 - 0.5 * k - 0.2 * run, 0.1 + 0.04 * k + 0.016 * run + 0.03 * (run > 1), shape)
        for run, shape in enumerate(shapes)
        for k in range(6)
    ]
    found = statistics(points).largest
    assert found is not None and found.shape == "3x32 wide"
    assert found.predicted.value == pytest.approx(0.3 + 0.016 * 2.5)
    assert found.measured == pytest.approx(0.33 + 0.016 * 2.5)
    text = study_summary(Study(StudyConfig(), 9, 9, "", points, {"raw pixels": 0.3}), statistics(points))
    assert "The largest shape, 3x32 wide, from a straight line" in text and "measured 37.0%" in text
    assert math.isnan(found.predicted.low)  # one run of each smaller shape says nothing of its spread
    assert statistics([p for p in points if p.shape != "1x8"]).largest is None


def test_the_interval_of_the_prediction_is_over_the_seeds_of_each_shape() -> None:
    finals = [(2.5, 0.30, "1x8"), (2.502, 0.31, "1x8"), (2.2, 0.40, "2x16"), (2.203, 0.39, "2x16"), (2.0, 0.45, "3x32")]
    points = [point(run, 1, nats, accuracy, shape) for run, (nats, accuracy, shape) in enumerate(finals)]
    found = statistics(points).largest
    assert found is not None and found.predicted.value == pytest.approx(0.456, abs=1e-3)
    assert 0.43 < found.predicted.low < found.predicted.value < found.predicted.high < 0.48


def test_only_a_study_of_several_shapes_is_warned_of_their_compute() -> None:
    noise = np.random.default_rng(0).normal(scale=0.05, size=(4, 3))
    points = [
        point(run, 2**k, 6 - 0.5 * k + noise[run, k], 0.1 + 0.06 * k, ("1x8", "2x16")[run % 2])
        for run in range(4)
        for k in range(3)
    ]
    several = statistics(points)
    assert len(several.equal_loss) == 1
    for found in (several, replace(several, equal_loss=[])):
        text = study_summary(Study(StudyConfig(), 9, 9, "", points, {"raw pixels": 0.3}), found)
        assert "4 runs are few: intervals over so few tend to be too narrow." in text
        assert ("Shapes also differ in compute" in text) == ("all runs have one shape" not in text)
        assert ("Shapes also differ in compute" in text) == (found is several)


# ---- make study

ROOT = Path(__file__).parents[2]


def test_the_recipes_of_make_study_differ_in_shape_and_rate_alone() -> None:
    recipes = {path.stem: read_recipe(str(path)) for path in (ROOT / "benchmarks" / "study").glob("*.toml")}
    assert len(recipes) == 5
    for name, recipe in recipes.items():
        assert name == f"{recipe.layers}x{recipe.width}"
    assert len({replace(recipe, layers=1, width=8, heads=1, learning_rate=1.0) for recipe in recipes.values()}) == 1
    makefile = (ROOT / "Makefile").read_text()
    assert f"step_{next(iter(recipes.values())).steps:07d}/config.json" in makefile
    assert f"STUDY_SHAPES := {' '.join(sorted(recipes))}\n" in makefile


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_study_says_how_to_fetch_the_images() -> None:
    command = ["make", "study-data", "STUDY_DATA=nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "nowhere is not there" in done.stderr
    assert "fetch_datasets.py cifar10" in done.stderr and "STUDY_DATA=" in done.stderr
