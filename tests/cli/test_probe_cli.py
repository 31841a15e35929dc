"""probe and predict, as they are typed."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from models import dark_and_bright, left_and_right, lively

import nextpixel
from nextpixel import ImageGPTConfig, Palette
from nextpixel.cli import main
from nextpixel.cli.common import load_classifier
from nextpixel.config import PictureOptions
from nextpixel.images import from_array, save_png
from nextpixel.images.sources import load_images
from nextpixel.representation import baselines, extraction, few_labels
from nextpixel.representation.few_labels import FeatureSet, compare
from nextpixel.representation.probing import LinearProbe


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, and labelled images as .npz with train and test."""
    model = lively(ImageGPTConfig(layers=2, width=16, heads=2, side=8, colors=8), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    nextpixel.save(model, tmp_path / "model")
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        images, labels = dark_and_bright(count)
        arrays[f"{split}_images"] = images.repeat(2, 1).repeat(2, 2)
        arrays[f"{split}_labels"] = (labels == "dark").astype(np.int64)
    np.savez(tmp_path / "set.npz", class_names=np.array(["bright", "dark"]), **arrays)
    monkeypatch.setattr(baselines, "PATCHES", 2_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_probe_stands_beside_its_baselines_and_predicts(desk: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["probe", "set.npz", "--model", "model", "--out", "probe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "60 training and 30 test images; most common class" in lines[0]
    assert [line[:18].strip() for line in lines[1:5]] == [
        "this model", "raw pixels", "k-means patches", "untrained model",
    ]  # fmt: skip
    assert all("AUC" in line and "nearest neighbours" in line for line in lines[1:5])
    assert lines[-4].startswith("by class: bright:") and "by layer, " in lines[-1]
    assert re.match(r"held-out log loss by pooling: mean:\S+ mean-std:\S+ grid:", lines[-2])
    chosen = (
        r"chosen: layer \d, [a-z0-9-]+ pooling, strength [\d.e-]+ \(C\); probabilities calibrated on held-out images"
    )
    assert re.match(chosen, lines[-3])
    assert main(["predict", "probe", "set.npz", "--split", "test", "--out", "found.csv"]) == 0
    rows = list(csv.DictReader((desk / "found.csv").read_text().splitlines()))
    assert len(rows) == 30 and set(rows[0]) == {"file", "class", "bright", "dark"}
    with np.load(desk / "set.npz") as arrays:
        truth = np.array(["bright", "dark"])[arrays["test_labels"]]
    assert np.mean([row["class"] for row in rows] == truth) > 0.9


@pytest.mark.parametrize("layer", ["best", "2,1"])
def test_an_untrained_model_has_the_layers_of_the_model_to_choose_among(
    desk: Path, capsys: pytest.CaptureFixture, layer: str
) -> None:
    assert main(["probe", "set.npz", "--model", "model", "--json", "--layer", layer, "--seed", "3"]) == 0
    results = {result["method"]: result for result in json.loads(capsys.readouterr().out)["results"]}
    model = nextpixel.load("model")
    random = nextpixel.ImageGPT(model.config, seed=3).eval()
    random.palette = model.palette
    for name, network in {"this model": model, "untrained model": random}.items():
        probe = nextpixel.LinearProbe(network, "best" if layer == "best" else [2, 1], seed=3)
        probe.fit("set.npz", split="train")
        [trials], [layers], [score] = (results[name][key] for key in ("trials", "layers", "scores"))
        tried = {tuple(trial["layers"]) for trial in trials}
        assert layers == probe.layers_ and score["accuracy"] == probe.score("set.npz", split="test")
        assert tried == ({(0,), (1,), (2,)} if layer == "best" else {(2, 1)})


def test_few_labels_are_drawn_again_and_again(desk: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["probe", "set.npz", "--model", "model", "--labels-per-class", "2,5", "--repeats", "2", "--json"]
    reports = []
    for _ in range(2):
        assert main([*command, "--no-baselines", "--layer", "1,2"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1]  # the seed decides
    assert [(r["labels_per_class"], len(r["scores"])) for r in reports[0]["results"]] == [(2, 2), (5, 2)]


def test_only_the_images_that_are_drawn_are_looked_at(
    desk: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["probe", "set.npz", "--model", "model", "--labels-per-class", "2,3", "--repeats", "2", "--json"]
    command += ["--pooling", "mean"]
    assert main(["features", "set.npz", "--split", "train", "--model", "model", "--layer", "0,1,2"]) == 0
    with np.load("features.npz", allow_pickle=False) as arrays:
        everything = arrays["features"].reshape(60, 3, 16)
    looked = []
    features_of = few_labels.features_of

    def spy(model, squares, layers, **how):
        looked.append(len(squares))
        return features_of(model, squares, layers, **how)

    monkeypatch.setattr(few_labels, "features_of", spy)
    capsys.readouterr()
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert looked[0] <= 2 * 2 * (2 + 3) < 60 and looked[1] == 30
    with np.load("set.npz") as arrays:
        labels = arrays["class_names"][arrays["train_labels"]]
        test = nextpixel.features(nextpixel.load("model"), arrays["test_images"], [0, 1, 2]).reshape(30, 3, 16)
        test_labels = arrays["class_names"][arrays["test_labels"]]
    [few, _] = compare(
        [FeatureSet("all", everything, test, [0, 1, 2])], labels, test_labels, labels_per_class=[2, 3], repeats=2
    )
    [ours] = [r for r in report["results"] if r["method"] == "this model" and r["labels_per_class"] == 2]
    assert [score["accuracy"] for score in ours["scores"]] == [s.accuracy for s in few.scores] and ours[
        "layers"
    ] == few.layers


def test_concatenated_layers_stand_beside_the_best_one(desk: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["probe", "set.npz", "--model", "model", "--no-baselines", "--labels-per-class", "5", "--repeats", "2"]
    assert main([*command, "--concatenate", "0,2", "--json"]) == 0
    best, joined = json.loads(capsys.readouterr().out)["results"]
    assert joined["method"] == "this model, layers 0,2" and joined["layers"] == [[0, 2], [0, 2]]
    assert best["method"] == "this model" and all(len(layers) == 1 for layers in best["layers"])
    assert main([*command, "--layer", "0,2", "--json"]) == 0
    [alone] = json.loads(capsys.readouterr().out)["results"]
    assert alone["scores"] == joined["scores"] and alone["layers"] == joined["layers"]
    assert main([*command, "--concatenate", "0,2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.search(r"AUC \d\.\d{3} \+- \d\.\d{3}", line) for line in lines[1:3])


def test_pooling_goes_from_the_probe_to_its_predictions(desk: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["probe", "set.npz", "--model", "model", "--pooling", "mean-std", "--layer", "1", "--json"]
    assert main([*command, "--out", "probe"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pooling"] == "mean-std"
    model = nextpixel.load("model")
    by_hand = LinearProbe(model, 1, pooling="mean-std").fit("set.npz", split="train")
    assert by_hand.evaluate("set.npz", split="test").accuracy == found["results"][0]["scores"][0]["accuracy"]
    assert main(["predict", "probe", "set.npz", "--split", "test", "--out", "found.csv"]) == 0
    told = [line.split(",")[1] for line in Path("found.csv").read_text().splitlines()[1:]]
    assert told == by_hand.predict("set.npz", split="test").tolist()
    assert main(["features", "set.npz", "--model", "model", "--pooling", "mean-std", "--split", "test"]) == 0
    with np.load("features.npz", allow_pickle=False) as arrays:
        assert arrays["features"].shape == (30, 32) and str(arrays["extractor"]).endswith("layer 1 mean-std")
    assert main([*command[:4], "--pooling", "max"]) == 2


def test_mirroring_goes_from_the_probe_to_its_predictions(desk: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["probe", "set.npz", "--model", "model", "--mirror", "--json", "--out", "probe"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mirror"] is True
    by_hand = LinearProbe(nextpixel.load("model"), mirror=True).fit("set.npz", split="train")
    assert by_hand.evaluate("set.npz", split="test").accuracy == found["results"][0]["scores"][0]["accuracy"]
    assert main(["predict", "probe", "set.npz", "--split", "test", "--json"]) == 0
    told = [row["class"] for row in json.loads(capsys.readouterr().out)["predictions"]]
    assert told == by_hand.predict("set.npz", split="test").tolist()


def test_an_unknown_pooling_is_one_clear_sentence(desk: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["probe", "set.npz", "--model", "model", "--pooling", "grid-4"]) == 2
    said = capsys.readouterr().err
    assert "--pooling: expected one of best, mean, mean-std, grid, got 'grid-4'" in said and said.count("expected") == 1


def test_the_probe_chooses_the_pooling_and_its_predictions_use_it(desk: Path, capsys: pytest.CaptureFixture) -> None:
    """Classes that differ only in where a bright block is."""
    arrays = {}
    for split, count, seed in (("train", 40, 0), ("test", 20, 1)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = left_and_right(count, 8, seed)
    np.savez("sides.npz", **arrays)
    command = ["probe", "sides.npz", "--model", "model", "--no-baselines", "--json"]
    assert main([*command, "--out", "probe"]) == 0
    found = json.loads(capsys.readouterr().out)
    losses = found["held_out_log_loss_by_pooling"]
    assert list(losses) == ["mean", "mean-std", "grid"]
    assert found["pooling"] == min(losses, key=lambda name: losses[name]) != "mean"
    assert found["results"][0]["poolings"] == [found["pooling"]]
    assert json.loads(Path("probe/probe.json").read_text())["pooling"] == found["pooling"]
    assert main(["predict", "probe", "sides.npz", "--split", "test", "--out", "found.csv"]) == 0
    named = [line.split(",")[1] for line in Path("found.csv").read_text().splitlines()[1:]]
    assert np.mean(named == arrays["test_labels"]) == found["results"][0]["scores"][0]["accuracy"] > 0.9
    capsys.readouterr()
    assert main([*command, "--labels-per-class", "4", "--repeats", "2"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert len(few["results"][0]["poolings"]) == 2 and few["pooling"] == "best"


@pytest.mark.parametrize("trained_on", ["names", "numbers"])
@pytest.mark.parametrize("tested_on", ["names", "numbers"])
def test_a_class_and_its_digits_are_the_same(
    desk: Path, capsys: pytest.CaptureFixture, trained_on: str, tested_on: str
) -> None:
    with np.load("set.npz") as arrays:
        for split in ("train", "test"):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            np.savez(f"names-{split}.npz", images=images, labels=labels.astype(str))
            np.savez(f"numbers-{split}.npz", images=images, labels=labels)
    command = ["probe", f"{trained_on}-train.npz", "--test", f"{tested_on}-test.npz", "--model", "model", "--json"]
    assert main([*command, "--no-baselines", "--layer", "1", "--pooling", "mean"]) == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["scores"][0]["accuracy"] > 0.9 and result["nearest_neighbours"][0] > 0.9


def test_a_model_that_does_not_beat_the_baselines_is_told_so(desk: Path, capsys: pytest.CaptureFixture) -> None:
    broken = nextpixel.load("model")
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.zero_()
    nextpixel.save(broken, "broken")
    for labels, told in (([], "all labels"), (["--labels-per-class", "5", "--repeats", "1"], "5 labels a class")):
        assert main(["probe", "set.npz", "--model", "broken", *labels]) == 0
        assert f"\n{told}: this model does not beat raw pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--layer", "9"], "--layer: expected whole numbers from 0 to 2"),
        (["--concatenate", "0,9"], "--concatenate: expected whole numbers from 0 to 2"),
        (["--concatenate", "0,1", "--layer", "1"], "--concatenate: requires --layer best"),
        (["--layer", "middle"], "--layer: expected comma-separated whole numbers"),
        (["--labels-per-class", "0"], "--labels-per-class: expected comma-separated whole numbers from 1"),
        (["--labels-per-class", "500"], "expected at most"),
        (["--repeats", "0"], "--repeats"),
        (["--figure", "curve.jpg"], "--figure: expected a file name that ends in .png"),
        (["--figure", "curve.png", "--layer", "1"], "there is no curve to draw"),
        (["--test", "model/config.json"], "config.json"),
    ],
)
def test_bad_input_is_one_sentence(
    desk: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    assert main(["probe", "set.npz", "--model", "model", "--no-baselines", *arguments]) == 2
    output = capsys.readouterr()
    assert sentence in output.err and not output.out
    assert output.err.count("nextpixel: ") == 1 and output.err.splitlines()[-1].startswith("nextpixel: ")


def test_images_without_labels_and_a_probe_that_is_none_are_refused(desk: Path, capsys: pytest.CaptureFixture) -> None:
    np.save("plain.npy", np.zeros((3, 8, 8, 3), np.uint8))
    assert main(["probe", "plain.npy", "--test", "plain.npy", "--model", "model"]) == 2
    assert main(["predict", "model", "plain.npy"]) == 2
    assert main(["predict", "nowhere", "plain.npy"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "labelled images" in first and "has no classes; fit a probe" in second
    assert "PROBE: expected the folder of a probe, or a fine-tuned model or run, got 'nowhere'" in third


def test_unreadable_pictures_are_left_out_with_their_labels(desk: Path, capsys: pytest.CaptureFixture) -> None:
    for split, count in (("train", 30), ("test", 20)):
        images, labels = dark_and_bright(count)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = desk / "set" / split / label / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            from_array(image).save(path)
            if i == 1:
                path.write_text("not a picture")
    assert main(["probe", "set", "--model", "model", "--no-baselines"]) == 0
    out, err = capsys.readouterr()
    assert "29 training and 19 test images" in out and err.count("left out: ") == 2 and "01.png" in err
    accuracy = float(out.splitlines()[1].split()[4].rstrip("%"))
    assert accuracy > 90, "labels stay with their pictures"
    assert main(["probe", "set/train", "--test", "set", "--model", "model", "--no-baselines"]) == 0
    assert "set/test: test split\n" in capsys.readouterr().err, "never the training images"


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_features_go_into_a_file_with_their_names(desk: Path, kind: str) -> None:
    command = ["features", "set.npz", "--split", "train", "--layer", "1,2", "--model", "model", "--out", f"f.{kind}"]
    assert main(command) == 0
    expected = nextpixel.features(nextpixel.load("model"), "set.npz", [1, 2], split="train")
    if kind == "npz":
        with np.load("f.npz", allow_pickle=False) as arrays:
            values, names = arrays["features"], arrays["names"].tolist()
    else:
        table = pyarrow.parquet.read_table("f.parquet")
        values, names = np.array(table["features"].to_pylist(), np.float32), table["file"].to_pylist()
    assert np.allclose(values, expected, atol=1e-6) and names[:2] == ["00", "01"]
    assert not [path for path in desk.iterdir() if path.name.startswith(".")]
    assert main(command) == 2  # the file exists


def test_a_stopped_extraction_goes_on_where_it_was(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK_IMAGES", 10)
    command = ["features", "set.npz", "--split", "train", "--model", "model", "--out", "f.npz"]
    pooled, calls = extraction.pooled, []

    def stopped(*args: Any, **kwargs: Any) -> np.ndarray:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return pooled(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "pooled", stopped)
        assert main(command) == 130
    assert not (desk / "f.npz").exists()
    again = []
    monkeypatch.setattr(extraction, "pooled", lambda *a, **k: (again.append(1), pooled(*a, **k))[1])
    assert main(command) == 0
    assert len(again) == 2  # of six chunks, four were there
    with np.load("f.npz") as arrays:
        monkeypatch.undo()
        expected = nextpixel.features(nextpixel.load(desk / "model"), desk / "set.npz", split="train")
        assert np.allclose(arrays["features"], expected, atol=1e-6)


def test_the_training_images_are_no_test_and_a_set_without_splits_needs_one(
    desk: Path, capsys: pytest.CaptureFixture
) -> None:
    images, labels = dark_and_bright(12)
    np.savez("whole.npz", images=images, labels=(labels == "dark").astype(np.int64))
    for typed, said in (
        (["whole.npz", "--test", "whole.npz"], "test images other than the training images"),
        (["whole.npz"], "whole.npz: expected a train and a test split, got none; name test images with --test"),
    ):
        assert main(["probe", *typed, "--model", "model", "--no-baselines"]) == 2
        assert said in capsys.readouterr().err


def test_the_report_holds_layers_classes_and_the_most_common_training_class(
    desk: Path, capsys: pytest.CaptureFixture
) -> None:
    images, labels = dark_and_bright(24)
    dark = np.flatnonzero(labels == "dark")
    rows = np.concatenate([dark, np.flatnonzero(labels == "bright")[:3]])
    numbers = (labels == "dark").astype(np.int64)
    np.savez(
        "uneven.npz", train_images=images[rows], train_labels=numbers[rows], class_names=np.array(["bright", "dark"]),
        test_images=images[labels == "bright"][:6], test_labels=np.zeros(6, np.int64),
    )  # fmt: skip
    command = ["probe", "uneven.npz", "--model", "model", "--no-baselines", "--layer", "1,2", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is no JSON
    assert report["most_common_class"] == 0, "dark is the most common in training; no test image is"
    assert report["results"][0]["layers"] == [[1, 2]] and report["classes"] == ["bright", "dark"]
    assert report["results"][0]["scores"][0]["auc"] is None
    assert (
        main(["probe", "set.npz", "--model", "model", "--no-baselines", "--labels-per-class", "1", "--repeats", "1"])
        == 0
    )
    [_, ours] = capsys.readouterr().out.splitlines()
    assert "+-" not in ours, "one draw of labels tells nothing of others"


def test_24_pictures_that_are_easily_told_apart_get_high_probabilities(
    desk: Path, capsys: pytest.CaptureFixture
) -> None:
    def few(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        noise = np.random.default_rng(seed).integers(0, 40, (count, 8, 8, 3))
        return (noise + 200 * labels[:, None, None, None]).astype(np.uint8), labels

    images, labels = few(24, 0)
    new, truth = few(16, 1)
    names = np.array(["dark", "bright"])
    np.savez("few.npz", train_images=images, train_labels=labels, test_images=new, test_labels=truth, class_names=names)
    assert main(["probe", "few.npz", "--model", "model", "--no-baselines", "--out", "probe", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["held_out_accuracy_by_layer"].values()) == {1.0}
    assert (report["layers"], report["strength"]) == ([1], 1.0) and report["temperature"] > 0
    assert main(["predict", "probe", "few.npz", "--split", "test", "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)["predictions"]
    assert [row["class"] for row in rows] == names[truth].tolist()
    assert min(row[row["class"]] for row in rows) > 0.8 and "not calibrated" not in err
    np.savez("one.npz", images=images[:2], labels=labels[:2], class_names=names)
    command = ["probe", "one.npz", "--test", "few.npz", "--model", "model", "--no-baselines", "--out", "one"]
    assert main([*command, "--figure", "curve.png"]) == 0
    out, err = capsys.readouterr()
    assert "probabilities not calibrated, as no class has a second image to hold out" in out
    assert "no figure: no class has a second image to hold out, by which to compare layers" in err
    assert "curve.png" not in err and not Path("curve.png").exists()
    assert main(["predict", "one", "few.npz", "--split", "test"]) == 0
    assert "not calibrated" in capsys.readouterr().err


def test_a_saved_probe_finds_its_model_from_anywhere_and_sees_pictures_as_it_was_fitted(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["probe", "set.npz", "--model", "model", "--fit", "squash", "--no-baselines", "--out", "probe"]) == 0
    (desk / "elsewhere").mkdir()
    monkeypatch.chdir(desk / "elsewhere")
    probe = load_classifier("../probe", PictureOptions())
    assert probe.model is not None and probe.model.fit == "squash"
    again = load_classifier("../probe", PictureOptions(fit="crop")).model
    assert again is not None and again.fit == "crop"


def test_labels_may_come_from_a_csv_file(desk: Path, capsys: pytest.CaptureFixture) -> None:
    with np.load("set.npz") as arrays:
        for split in ("train", "test"):
            (desk / split).mkdir()
            lines = ["file,label"]
            for i, (image, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
                save_png(image, desk / split / f"{i}.png")
                lines.append(f"{i}.png,{'dark' if label else 'bright'}")
            mark = "utf-8-sig" if split == "train" else "utf-8"  # as Excel writes it
            (desk / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding=mark)
    command = ["probe", "train", "--test", "test", "--labels", "train.csv", "--test-labels", "test.csv"]
    assert main([*command, "--model", "model", "--no-baselines", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"][0]["scores"][0]["accuracy"] > 0.9
    (desk / "test.csv").write_text("file,label\n0.png,dark\n")
    assert main([*command, "--model", "model"]) == 2
    assert "for 29 of 30: looked for '1.png', the column file has '0.png'; add rows" in capsys.readouterr().err
    (desk / "test.csv").write_text("picture,label\n0.png,dark\n")
    assert main([*command, "--model", "model"]) == 2
    assert "expected the columns file and label" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--labels-per-class", "2,5", "--repeats", "2"]], ids=["layers", "labels"])
def test_the_curve_is_drawn(desk: Path, arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    command = ["probe", "set.npz", "--model", "model", "--no-baselines", "--figure", "curve.png"]
    assert main([*command, *arguments]) == 0
    assert "Figure: curve.png" in capsys.readouterr().err
    assert load_images("curve.png", 64).std() > 5  # something is drawn on it
    assert [path.name for path in desk.iterdir() if path.name.startswith(".")] == []
