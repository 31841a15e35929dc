"""The residual network: its shape, what it learns, that choosing never sees test labels, and its rows in a table."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from models import lively
from torch.utils.flop_counter import FlopCounterMode

import nextpixel
from nextpixel import ImageGPTConfig, InputError, Palette, fit_convnet
from nextpixel.checkpoints.onnx import export_onnx
from nextpixel.cli import main
from nextpixel.config import ResNetConfig
from nextpixel.network import cost as plan
from nextpixel.network.resnet import ResNet
from nextpixel.training import convnet
from nextpixel.training.convnet import Trial, best_trial, evaluate_convnet, predict_convnet

TINY = ResNetConfig(blocks=1, side=8)


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy squares with stripes along or across: no single pixel tells which."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    phase = rng.integers(0, 2, count)
    wave = 80 * ((np.arange(8)[None] + phase[:, None]) % 2)  # (N, 8)
    along = np.broadcast_to(wave[:, None, :, None], (count, 8, 8, 3))
    squares = np.where(labels[:, None, None, None] == 1, along, along.transpose(0, 2, 1, 3))
    return (squares + rng.integers(0, 90, squares.shape)).astype(np.uint8), np.array(["across", "along"])[labels]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convnet, "IMAGE_PASSES_AT_LEAST", 640)


def test_resnet_20_has_the_published_number_of_parameters() -> None:
    model = ResNet(ResNetConfig(classes=10))
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters == 269_722  # "0.27M", He et al. 2016
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == 20
    odd = ResNetConfig(blocks=2, factor=2, side=12, classes=3, targets=5)
    assert sum(p.numel() for p in ResNet(odd).parameters()) == odd.parameters


@pytest.mark.parametrize("config", [ResNetConfig(), ResNetConfig(blocks=1, factor=2, side=9)])
def test_flops_are_what_torch_counts(config: ResNetConfig) -> None:
    model = ResNet(config).eval()
    with FlopCounterMode(display=False) as counted:
        model.features(torch.zeros(1, config.side, config.side, 3, dtype=torch.uint8))
    assert plan.feature_flops_per_image(config) == counted.get_total_flops()


def test_flops_of_a_models_features_end_at_their_layer() -> None:
    config = ImageGPTConfig(layers=4, width=128, heads=4)
    one, two = (plan.feature_flops_per_image(config, layer) for layer in (1, 2))
    head = 2 * config.tokens * config.colors * config.width
    assert two == 2 * one and 3 * (2 * two + head) == plan.flops_per_image(config)


def test_the_network_scales_its_input_itself() -> None:
    model = ResNet(TINY).eval()
    squares, _ = stripes(40, 0)
    model.set_scale(squares)
    assert torch.allclose(model.mean, torch.from_numpy(squares.reshape(-1, 3).mean(0)).float(), atol=0.01)
    dark = ResNet(TINY).eval()
    dark.set_scale(squares // 2)
    one, other = (m.features(torch.from_numpy(s)) for m, s in ((model, squares // 2 * 2), (dark, squares // 2)))
    assert torch.allclose(one, other, rtol=0.1, atol=0.02)


def test_the_scale_of_many_pixels_is_exact() -> None:
    """In float32 the sums of 10,000 pictures of 64 x 64 pixels stop growing."""
    squares = np.broadcast_to(np.uint8([[[100, 0, 255], [200, 0, 255]]] * 64).repeat(32, 1), (10_000, 64, 64, 3))
    model = ResNet(TINY)
    model.set_scale(squares)
    assert model.mean.tolist() == [150.0, 0.0, 255.0] and model.std.tolist() == [50.0, 1.0, 1.0]


def test_what_single_pixels_do_not_tell_is_learnt_and_the_seed_decides() -> None:
    squares, labels = stripes(200, 0)
    model = fit_convnet(squares, labels, config=TINY, epochs=10, dtype="fp32")
    test, truth = stripes(200, 1)
    assert model.facts["classes"] == ["across", "along"]
    chances = predict_convnet(model, test)
    assert (np.array(model.facts["classes"])[chances.argmax(1)] == truth).mean() > 0.95
    assert np.allclose(chances.sum(1), 1, atol=1e-5)
    noise = torch.random.get_rng_state()
    again = fit_convnet(squares, labels, config=TINY, epochs=10, dtype="fp32")
    assert torch.equal(noise, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    other = fit_convnet(squares, labels, config=TINY, epochs=10, dtype="fp32", seed=1)
    assert not torch.equal(other.stem.weight, model.stem.weight)


def test_only_weights_decay() -> None:
    [optimizer] = nextpixel.training.optim.sgd(ResNet(replace(TINY, classes=2)), 5e-4)
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == 5e-4 and all(p.ndim > 1 for p in decayed["params"])
    assert others["weight_decay"] == 0 and all(p.ndim == 1 for p in others["params"])
    assert decayed["momentum"] == 0.9 and decayed["nesterov"]


def test_a_known_network_starts_from_its_own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    squares, labels = stripes(200, 0)
    student = fit_convnet(squares, labels, config=TINY, epochs=10, dtype="fp32")
    monkeypatch.setattr(convnet, "INIT_RATE", 0.0)  # so that nothing but its running statistics moves
    few, names = stripes(20, 2)
    tuned = fit_convnet(few, names, init=student, epochs=1, trial=Trial(0.1, 0.0), dtype="fp32")
    assert torch.equal(tuned.stem.weight, student.stem.weight)
    assert (predict_convnet(tuned, few).argmax(1) == (names == "along")).mean() > 0.9  # the head knows already
    with pytest.raises(InputError, match="side 16"):
        fit_convnet(few.repeat(2, 1).repeat(2, 2), names, init=student)


def test_test_labels_never_touch_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    train, (test, truth) = stripes(30, 0), stripes(20, 1)
    seen, fit = [], convnet.fit_convnet

    def noted(squares: np.ndarray, *args: object, **kwargs: object) -> ResNet:
        seen.append(squares)
        return fit(squares, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(convnet, "fit_convnet", noted)
    monkeypatch.setattr(convnet, "ResNetConfig", lambda: TINY)
    how = {"labels_per_class": [10], "repeats": 2, "trials": 2}
    [result] = evaluate_convnet("r", train, (test, truth), **how)
    assert [len(squares) for squares in seen] == [16, 16, 20] * 2  # two trials without a fifth, then all
    assert {square.tobytes() for squares in seen for square in squares} <= {s.tobytes() for s in train[0]}
    [swapped] = evaluate_convnet("r", train, (test, truth[::-1]), **how)
    assert swapped.trials == result.trials and swapped.chosen == result.chosen
    assert result.image_passes == [3 * 640] * 2 and len(result.trials[0]) == 2
    best = max(result.trials[0], key=lambda trial: trial["held_out_accuracy"])
    assert result.chosen[0].learning_rate == best["learning_rate"]
    [alone] = evaluate_convnet("r", train, (test, truth), labels_per_class=[10], repeats=1, trials=1)
    assert alone.trials[0][0]["held_out_accuracy"] is None and alone.image_passes == [640]


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.5] * 5, 0),
        ([0.1, 0.2, 0.2, 0.2, 0.1], 1),  # the weaker penalty
        ([0.1, 0.1, 0.2, 0.1, 0.2], 4),
        ([0.1, 0.1, 0.2, 0.2, 0.1], 2),  # the rate nearest to the published one
        ([0.1, 0.1, 0.2, 0.3, 0.1], 3),
    ],
)
def test_of_equal_trials_the_weaker_penalty_and_the_middle_rate_win(accuracies: list[float], best: int) -> None:
    assert best_trial(accuracies) == best


def test_what_does_not_fit_is_refused() -> None:
    squares, labels = stripes(10, 0)
    with pytest.raises(InputError, match="expected 10, one for each image, got 9"):
        fit_convnet(squares, labels[:9])
    for few, got in ((["cat"], "only 'cat'"), ([3], "only 3"), ([], "no images")):
        with pytest.raises(InputError, match=f"expected at least two classes, got {got}$"):
            fit_convnet(np.zeros((len(few), 8, 8, 3), np.uint8), few)
    with pytest.raises(InputError, match="at least two classes"):
        fit_convnet(squares, ["a"] * 10)
    with pytest.raises(InputError, match="expected uint8 of shape"):
        fit_convnet(squares.astype(np.float32), labels)
    for settings, message in (
        ({"labels": [*labels[:9], None]}, "labels: expected one for each image, got -1 or nothing"),
        ({"labels": [-1] * 5 + [0] * 5}, "labels: expected one for each image, got -1 or nothing"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"epochs": 2.5}, "epochs: expected a whole number, at least 1, got 2.5"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"dtype": "float16"}, "dtype: expected fp32 or bf16, got 'float16'"),
        ({"device": "abacus"}, "device: abacus is not available here"),
    ):
        with pytest.raises(InputError, match=message):
            fit_convnet(squares, **{"labels": labels} | settings)
    with pytest.raises(InputError, match="blocks: expected a whole number from 1 to 1,000, got 0"):
        ResNetConfig(blocks=0)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny Image GPT, a tiny student and a labelled set."""
    model = lively(ImageGPTConfig(layers=2, width=16, heads=2, side=8, colors=8), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    nextpixel.save(model, tmp_path / "model")
    nextpixel.save(ResNet(TINY, seed=1), tmp_path / "student")
    nextpixel.save(ResNet(replace(TINY, side=16)), tmp_path / "larger")
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"{split}_images"], labels = stripes(count, count)
        arrays[f"{split}_labels"] = (labels == "along").astype(np.int64)
    np.savez(tmp_path / "set.npz", class_names=np.array(["across", "along"]), **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_peers_are_reported_beside_the_probe(desk: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["probe", "set.npz", "--model", "model", "--no-baselines", "--against", "resnet20,student"]
    command += ["--labels-per-class", "4", "--repeats", "2", "--trials", "2", "--epochs", "1"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.partition("   ")[0].strip() for line in lines[1:6]]
    assert titles == [
        "this model", "this model, 2 trials", "student, probe", "resnet20, from scratch", "student, fine-tuned",
    ]  # fmt: skip
    assert ["trained in" in line for line in lines[1:6]] == [False, False, False, True, True]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(row["trials"][0]) for row in report["results"]] == [3 * 5 * 3, 2, 2]  # layers, penalties and poolings
    assert [len(row["trials"]) for row in report["peers"]] == [2, 2]
    assert all(len(tried) == 2 for row in report["peers"] for tried in row["trials"])
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in report["peers"])
    step = 32  # images; each of two trials and the final fit takes one step
    assert [row["image_passes"] for row in report["peers"]] == [[3 * step] * 2] * 2


def test_a_student_takes_the_models_place(desk: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["probe", "set.npz", "--model", "student", "--out", "probe"]) == 0
    assert main(["predict", "probe", "set.npz", "--split", "test"]) == 0
    assert main(["features", "set.npz", "--split", "test", "--model", "student", "--out", "f.npz"]) == 0
    assert main(["info", "student"]) == 0
    student = nextpixel.load_backbone("student")
    expected = nextpixel.features(student, "set.npz", split="test")
    with np.load("f.npz") as arrays, np.load("set.npz") as images:
        assert np.allclose(arrays["features"], expected, atol=1e-6) and expected.shape == (20, 64)
        with torch.inference_mode():
            direct = student.features(torch.from_numpy(images["test_images"]))
    assert np.allclose(expected, direct.numpy(), atol=1e-6)
    capsys.readouterr()
    for verb in (["features", "set.npz", "--out", "g.npz"], ["probe", "set.npz"], ["predict", "probe", "set.npz"]):
        assert main([*verb, "--fit", "place", *(["--model", "student"] if verb[0] != "predict" else [])]) == 2
        assert "--fit: expected crop, imagenet or squash, got place" in capsys.readouterr().err
    assert main(["sample", "--model", "student"]) == 2
    assert "expected an Image GPT, got student, a convolutional student" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--against", "resnet20", "--trials", "0"], "--trials: expected 1 to 5, got 0"),
        (["--against", "resnet20", "--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--against", "resnet50"], "--against: expected resnet20 or a student"),
        (["--against", "resnet20,"], "--against: expected resnet20 or a student"),
        (["--against", "model"], "got an Image GPT: model"),
        (["--against", "larger"], "expected a student of side 8, as the model, got 16"),
    ],
)
def test_unknown_peers_are_refused(
    desk: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    assert main(["probe", "set.npz", "--model", "model", "--no-baselines", *arguments]) == 2
    output = capsys.readouterr()
    assert sentence in output.err and not output.out and output.err.count("\n") == 1


def test_a_network_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    squares, labels = stripes(100, 0)
    model = fit_convnet(squares, labels, config=TINY, epochs=2, dtype="fp32")
    model.fit = "squash"
    nextpixel.save(model, tmp_path / "saved")
    again = nextpixel.load_backbone(tmp_path / "saved")
    assert isinstance(again, ResNet) and again.config == model.config and again.fit == "squash"
    assert again.facts == model.facts
    assert np.array_equal(predict_convnet(again, squares), predict_convnet(model, squares))
    with pytest.raises(InputError, match="cannot be saved for transformers"):
        nextpixel.save(model, tmp_path / "other", for_transformers=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": {"blocks": 500, "side": 8}}, "expected a tensor"),
        ({"shape": {"wings": 2}}, "expected the shape of a ResNet"),
        ({"fit": "stretch"}, "fit: expected one of"),
        ({"fit": "place"}, "fit: expected one of crop, imagenet, squash, got 'place'"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, change: dict, sentence: str) -> None:
    nextpixel.save(ResNet(TINY), tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        nextpixel.load_backbone(tmp_path / "saved")


@pytest.mark.parametrize("classes", [0, 2])
def test_onnxruntime_gives_what_torch_gives(tmp_path: Path, classes: int, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    squares, labels = stripes(64, 0)
    model = fit_convnet(squares, labels, config=TINY, epochs=2, dtype="fp32") if classes else ResNet(TINY).eval()
    nextpixel.save(model, tmp_path / "student")
    assert main(["convert", str(tmp_path / "student"), "--to", str(tmp_path / "s.onnx")]) == 0
    session = runtime.InferenceSession(str(tmp_path / "s.onnx"))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for count in (1, 5):  # any batch
        found = session.run(None, {"squares": squares[:count]})
        with torch.inference_mode():
            features = model.features(torch.from_numpy(squares[:count]))
            expected = [features] if model.head is None else [features, model.head(features)]
        assert len(found) == len(expected)
        for theirs, ours in zip(found, expected, strict=True):
            assert np.allclose(theirs, ours.numpy(), atol=1e-4)


def test_an_export_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    exported = []

    def export(network: torch.nn.Module, *_: object, **__: object) -> SimpleNamespace:
        exported.append(network.model)
        return SimpleNamespace(model_proto=SimpleNamespace(SerializeToString=lambda: b""))

    monkeypatch.setattr(torch.onnx, "export", export)
    model = ResNet(ResNetConfig(1, side=8)).train()
    export_onnx(model, tmp_path / "s.onnx")
    assert model.training and exported[0] is not model and not exported[0].training


def test_onnx_bad_input(desk: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, sentence in (
        (["student"], "expected either OUT, a new folder, or --to"),
        (["student", "out", "--to", "s.onnx"], "expected either OUT, a new folder, or --to"),
        (["student", "--to", "s.pt"], "--to: expected a file name that ends in .onnx"),
        (["model", "--to", "s.onnx"], "--to: expected a student of nextpixel distill"),
    ):
        assert main(["convert", *arguments]) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert main(["convert", "student", "--to", "s.onnx"]) == 2
    assert 'pip install "nextpixel[onnx]"' in capsys.readouterr().err
