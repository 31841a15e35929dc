"""Fine-tuning: the joint loss, what is trained and what is not, resumption, and the classifier that comes out."""

import csv
import json
import math
import os
import shlex
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively
from tiny_runs import COLORS, SIDE, flags, leftovers, on_call, photos, settings, state
from torch.nn import functional as F
from transformers import AutoConfig, ImageGPTForImageClassification

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, LinearProbe, Palette
from nextpixel.checkpoints import Run
from nextpixel.checkpoints.card import model_card
from nextpixel.cli import main
from nextpixel.config import FinetuneConfig, Pooling
from nextpixel.data.decoded import Batches, masks
from nextpixel.data.labels import choose_labels, held_out
from nextpixel.images import save_png
from nextpixel.network.losses import cross_entropy, masked_cross_entropy
from nextpixel.network.pooling import pool
from nextpixel.representation.extraction import POOLINGS, features_of, pooled_columns
from nextpixel.stats import majority
from nextpixel.training.finetuning import fit_best_head, fit_last_head, start_run
from nextpixel.training.loop import Interrupted

CONFIG = ImageGPTConfig(layers=2, width=16, heads=2, side=SIDE, colors=len(COLORS))
TINY = {
    "epochs": 3, "batch_images": 8, "micro_batch_images": 4, "learning_rate": 0.01, "log_every_steps": 1,
    "checkpoint_every_steps": 5, "device": "cpu", "dtype": "fp32", "compile": "off", "threads": 1,
}  # fmt: skip


def model(objective: str = "autoregressive") -> ImageGPT:
    made = lively(ImageGPTConfig(**{**vars(CONFIG), "objective": objective}), torch.float32)
    made.palette = Palette(COLORS / 127.5 - 1)
    return made.requires_grad_(True)


def labelled(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with noise, of a class that shows: the upper half is of one of two colours."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 2)
    images = COLORS[rng.integers(0, 8, (count, SIDE, SIDE))]
    images[:, : SIDE // 2] = COLORS[labels + 2][:, None, None]
    return images, np.array(["day", "night"])[labels]


def last_checkpoint(run: Path) -> dict[str, Any]:
    return {name: value for name, value in state(run).items() if "_trunk" not in name}


def accuracies(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["validation_accuracy"]) for e in Run(run).read_log() if "validation_accuracy" in e]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in Run(run).read_log() if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any interruption."""
    folder = tmp_path_factory.mktemp("whole")
    images, labels = labelled(40)
    test = labelled(20, seed=1)
    nextpixel.finetune(model(), images, labels, out=folder / "run", test=test[0], test_labels=test[1], **TINY)
    return folder / "run"


# ---- the model


def test_a_class_head_reads_the_mean_of_the_last_norm_and_is_counted() -> None:
    made = model()
    tokens = torch.arange(32).view(2, 16) % 8
    made.set_classes(["a", "b", "c"])
    assert made.config.parameters == sum(p.numel() for p in made.parameters())
    assert not made.classify(tokens).any()  # zero at first
    torch.nn.init.normal_(made.class_head.weight)
    [(_, last)] = list(made.hidden(tokens, [2]))
    expected = last.mean(1) @ made.class_head.weight.T
    assert torch.allclose(made.classify(tokens), expected, atol=1e-6)
    logits, classes = made.forward_both(tokens)
    assert torch.equal(logits, made(tokens)) and torch.equal(classes, made.classify(tokens))
    made.set_classes([])
    assert made.config == CONFIG and "class_head.weight" not in dict(made.named_parameters())
    with pytest.raises(ValueError, match="no class head"):
        made.classify(tokens)


@pytest.mark.parametrize("classes", [["one"], ["a", "a"], [1, 2]])
def test_classes_are_different_names(classes: list) -> None:
    with pytest.raises(InputError, match="at least two different"):
        ImageGPTConfig(classes=tuple(classes))


@pytest.mark.parametrize(
    ("layer", "pooling", "width"), [(1, "mean", 16), (2, "mean", 16), (1, "mean-std", 32), (2, "grid", 512)]
)
def test_a_class_head_reads_any_layer_and_pooling(layer: int, pooling: Pooling, width: int, tmp_path: Path) -> None:
    made = model()
    tokens = torch.randint(0, 8, (3, 16), generator=torch.Generator().manual_seed(0))
    made.set_classes(["a", "b", "c"], layer, pooling)
    assert made.class_head.weight.shape == (3, width) and made.class_head.bias.shape == (3,)
    assert made.config.parameters == sum(p.numel() for p in made.parameters())
    assert not made.classify(tokens).any()
    with torch.no_grad():
        for parameter in made.class_head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    pooled = pool(dict(made.hidden(tokens, [layer]))[layer], 4, 4, pooling)
    expected = pooled @ made.class_head.weight.T + made.class_head.bias
    assert torch.allclose(made.classify(tokens), expected, atol=1e-5)
    logits, classes = made.forward_both(tokens)
    assert torch.equal(logits, made(tokens)) and torch.equal(classes, made.classify(tokens))
    probe = LinearProbe.of(made)
    images = made.palette.decode(tokens)
    assert probe.layers_ == [layer] and probe.pooling_ == pooling
    assert probe.predict_proba(images) == pytest.approx(expected.softmax(1).detach().numpy(), abs=1e-5)
    nextpixel.save(made, tmp_path / "saved")
    again = nextpixel.load(tmp_path / "saved")
    assert again.config == made.config and torch.equal(again.classify(tokens), made.classify(tokens))
    with pytest.raises(InputError, match=f"whose class head reads layer {layer} .* fine-tune with `head=last`"):
        nextpixel.save(made, tmp_path / "theirs", for_transformers=True)
    assert "Its classes: a, b, c. " in model_card(made, "ann/abc") and "transformers" not in model_card(made, "ann/abc")
    assert made.config.is_classic
    made.set_classes([])
    assert made.config == CONFIG


@pytest.mark.parametrize("pooling", ["mean-std", "grid"])
def test_a_picture_of_one_colour_has_gradients_through_its_deviations(pooling: Pooling) -> None:
    made = model()
    made.set_classes(["a", "b"], 1, pooling)
    torch.nn.init.ones_(made.class_head.weight)
    with torch.no_grad():
        made.position_embedding.zero_()
        made.token_embedding.zero_()
        made.start.zero_()
    made.classify(torch.zeros(1, 16, dtype=torch.int64)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_layer": 3}, "at most layers 2, got 3"),
        ({"class_layer": 0}, "class_layer"),
        ({"class_pooling": "mean-std"}, "expected mean without class_layer"),
        ({"class_layer": 1, "class_pooling": "max"}, "class_pooling: expected one of mean, mean-std, grid, got 'max'"),
        ({"class_layer": 1, "classes": ()}, "expected None without classes, got 1"),
    ],
)
def test_bad_class_heads_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageGPTConfig(**{**vars(CONFIG), "classes": ("a", "b")} | changes)


def test_the_paper_s_head_starts_as_the_probe_of_the_last_layer() -> None:
    images, names = labelled(60)
    made = model()
    made.set_classes(["day", "dusk", "night"])
    fit_last_head(made, images, np.where(names == "night", 2, 0), 0, "fp32")
    weight = made.class_head.weight.detach().numpy()
    assert not weight[1].any() and weight[0].any()  # no image of dusk
    others, _ = labelled(50, seed=1)
    features = nextpixel.features(made, others, layer=2)
    probe = LinearProbe(made, 2, pooling="mean").fit(images, names)
    found, expected = features @ weight[[0, 2]].T, probe.linear_.logits(features)
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_the_head_starts_as_the_best_probe() -> None:
    images, names = labelled(60)
    made = model()
    made.set_classes(["day", "dusk", "night"])
    fit_best_head(made, images, np.where(names == "night", 2, 0), 0, "fp32")
    layers = [1, 2]
    features = features_of(made, images, layers, poolings=POOLINGS)
    columns = pooled_columns(made, POOLINGS)
    probe = LinearProbe(made).fit_features(features, names, layers=layers, columns=columns)
    assert (made.config.class_layer, made.config.class_pooling) == (probe.layers_[0], probe.pooling_)
    others, _ = labelled(50, seed=1)
    logits = probe.linear_.logits(probe.features(others))
    found = made.classify(made.palette.encode(others)).detach().numpy()
    assert found[:, [0, 2]] == pytest.approx(logits, abs=1e-3) and not found[:, 1].any()  # no image of dusk


@pytest.mark.parametrize(
    ("names", "counts"),
    [(["a", "b"] * 20, {0: 5, 1: 5}), (["many"] * 40 + ["one"], {0: 9, 1: 1})],  # what is alone stays
)
def test_large_sets_fit_the_head_to_a_part(
    names: list[str], counts: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("nextpixel.training.finetuning.HEAD_IMAGES", 10)
    monkeypatch.setattr(
        "nextpixel.training.finetuning.fit_best_head", lambda _, squares, labels, *rest: seen.append(labels)
    )
    images, _ = labelled(len(names))
    nextpixel.finetune(model(), images, names, out=tmp_path / "run", **TINY | {"epochs": 1})
    assert [dict(Counter(part.tolist())) for part in seen] == [counts]


def test_other_models_are_refused_by_transformers_for_their_own_reason(tmp_path: Path) -> None:
    masked = model("masked")
    masked.set_classes(["a", "b"], 1)
    with pytest.raises(InputError, match=r"masked objective .* causal mask"):
        nextpixel.save(masked, tmp_path / "theirs", for_transformers=True)


def test_a_probe_that_training_does_not_better_is_kept(tmp_path: Path) -> None:
    images, labels = labelled(40)
    how = TINY | {"learning_rate": 1.0, "clip_norm": 0.0, "epochs": 2}
    kept = nextpixel.finetune(model(), images, labels, out=tmp_path / "run", **how)
    found = accuracies(tmp_path / "run")
    assert [step for step, _ in found] == [0, 5, 10] and found[0][1] >= max(accuracy for _, accuracy in found[1:])
    assert Run(tmp_path / "run").best()["step"] == 0
    trunk = dict(kept.named_parameters())
    assert all(torch.equal(trunk[name], parameter) for name, parameter in model().named_parameters())


def test_a_head_reads_the_same_with_recomputed_activations() -> None:
    made = model()
    made.set_classes(["a", "b"], 1, "mean-std")
    torch.nn.init.ones_(made.class_head.weight)
    tokens = torch.randint(0, 8, (2, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for made.checkpoint_activations in (False, True):
        made.zero_grad()
        logits, classes = made.forward_both(tokens)
        (logits.square().mean() + classes.square().mean()).backward()
        found.append([p.grad.clone() for p in made.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("width", "rate"), [(16, 0.003), (256, 0.003), (1024, 0.00075)])
def test_wide_networks_have_a_lower_rate(width: int, rate: float, tmp_path: Path) -> None:
    images, labels = labelled(16)
    wide = ImageGPT(ImageGPTConfig(layers=1, width=width, heads=2, side=SIDE, colors=8))
    wide.palette = Palette(COLORS / 127.5 - 1)
    config = FinetuneConfig(**{name: value for name, value in TINY.items() if name != "learning_rate"})
    run = start_run(wide, images, tmp_path / "run", config, labels)
    assert run.facts()["decisions"]["learning_rate"] == pytest.approx(rate)


# ---- the loss


@pytest.mark.parametrize("head", ["best", "last"])
@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
def test_the_first_losses_are_those_by_hand(objective: str, head: str, tmp_path: Path) -> None:
    """Of the probe's head plus the generative loss; then one step of Adam, and the same again."""
    images, labels = labelled(40)
    begun = model(objective)
    run = tmp_path / "run"
    how = {"epochs": 1, "augment": "none", "warmup_steps": 0, "head": head, "clip_norm": 0.0}
    nextpixel.finetune(begun, images, labels, out=run, **TINY | how)
    arrays = Run(run).arrays()
    batches = Batches(images, arrays["train"], size=(SIDE, SIDE), batch_images=8, augment="none", seed=0)
    mine = model(objective)
    mine.set_classes(["day", "night"])
    fit = fit_best_head if head == "best" else fit_last_head
    fit(mine, images[arrays["train"]], (labels == "night")[arrays["train"]].astype(int), 0, "fp32")
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.01, betas=(0.9, 0.95))
    steps = Run(run).facts()["decisions"]["steps"]
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        tokens = begun.palette.encode(batches(step))
        truth = torch.from_numpy((labels == "night")[batches.numbers(step)].astype(int))
        hidden = torch.from_numpy(batches.masks(step, 16)) if objective == "masked" else None
        pixels = mine(tokens, hidden)
        generative = (
            cross_entropy(pixels, tokens) if hidden is None else masked_cross_entropy(pixels, tokens, hidden).mean()
        )
        classes = F.cross_entropy(mine.classify(tokens, hidden), truth)
        if step == 0:
            assert classes.item() < math.log(2)
        loss = generative + classes
        assert losses(run)[step] == pytest.approx(loss.item(), abs=2e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses(run)[0] != losses(run)[1]


def test_a_frozen_trunk_stays_as_it_is_and_the_loss_is_that_of_classes(tmp_path: Path) -> None:
    images, labels = labelled(40)
    begun = model()
    trained = nextpixel.finetune(begun, images, labels, out=tmp_path / "run", **TINY | {"freeze_trunk": True})
    tensors = dict(trained.named_parameters())
    assert tensors.pop("class_head.weight").abs().max() > 0 and tensors.pop("class_head.bias").abs().max() > 0
    assert all(torch.equal(tensors[name], parameter) for name, parameter in begun.named_parameters())
    assert losses(tmp_path / "run")[0] < math.log(2)
    assert len(tensors) == len(list(begun.named_parameters()))


def test_the_model_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    images, labels = labelled(40)
    begun, before = model(), model()
    nextpixel.finetune(begun, images, labels, out=tmp_path / "run", **TINY | {"epochs": 1})
    assert begun.config == CONFIG
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), before.parameters(), strict=True))


# ---- resumption


@pytest.mark.parametrize(
    ("place", "call", "number"),
    [
        ("nextpixel.training.steps.Batches", 1, signal.SIGINT),  # before the first step
        ("nextpixel.data.decoded.Batches.__call__", 4, signal.SIGINT),
        ("nextpixel.training.steps.cross_entropy", 1, signal.SIGTERM),
        ("nextpixel.training.steps.cross_entropy", 13, signal.SIGINT),  # between micro-batches
        ("nextpixel.training.loop.save_trainer_state", 4, signal.SIGINT),
        ("nextpixel.training.finetuning.LinearProbe.evaluate_squares", 2, signal.SIGTERM),  # while validating
        ("nextpixel.training.finetuning.LinearProbe.evaluate_squares", 4, signal.SIGINT),  # while testing
    ],
)
def test_a_run_resumed_is_the_run_uninterrupted(whole, place, call, number, tmp_path, monkeypatch):
    images, labels = labelled(40)
    test = labelled(20, seed=1)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        on_call(patch, place, call, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            nextpixel.finetune(model(), images, labels, out=run, test=test[0], test_labels=test[1], **TINY)
    assert not Run(run).test_score()
    nextpixel.finetune(resume=run)
    ours, theirs = state(run), state(whole)
    assert ours.keys() == theirs.keys()
    assert any("class_head.weight exp_avg" in name for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert losses(run) == losses(whole) and accuracies(run) == accuracies(whole)
    assert Run(run).best() == Run(whole).best() and Run(run).test_score() == Run(whole).test_score()
    assert leftovers(run) == []


def test_a_frozen_run_resumes_exactly(tmp_path, monkeypatch):
    images, labels = labelled(40)
    frozen = TINY | {"freeze_trunk": True}
    nextpixel.finetune(model(), images, labels, out=tmp_path / "whole", **frozen)
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.data.decoded.Batches.__call__", 7, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            nextpixel.finetune(model(), images, labels, out=tmp_path / "run", **frozen)
    resumed, left_alone = nextpixel.finetune(resume=tmp_path / "run"), nextpixel.load(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), left_alone.parameters(), strict=True))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_of_one_kind_is_not_resumed_as_another(whole, tmp_path):
    with pytest.raises(
        InputError, match=r"started by nextpixel finetune, not pretrain; continue it with: .* finetune `resume="
    ):
        nextpixel.pretrain(resume=whole)
    nextpixel.pretrain(photos(tmp_path), out=tmp_path / "pre", **settings(tmp_path, steps=1))
    with pytest.raises(
        InputError, match=r"started by nextpixel pretrain, not finetune; continue it with: .* pretrain `resume="
    ):
        nextpixel.finetune(resume=tmp_path / "pre")
    with pytest.raises(InputError, match="expected only `data` or `test` with it"):
        nextpixel.finetune(resume=whole, epochs=3)


def test_a_run_without_test_images_takes_none_when_it_is_resumed(tmp_path):
    images, labels = labelled(16)
    start_run(model(), images, tmp_path / "run", FinetuneConfig(**TINY), labels)
    with pytest.raises(
        InputError, match=r"test: expected none, .* started without test images; use nextpixel evaluate"
    ):
        nextpixel.finetune(resume=tmp_path / "run", test=images)
    assert Run(tmp_path / "run").steps() == [0]


def test_a_run_begun_before_kinds_were_recorded_is_one_of_pretraining(tmp_path):
    nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **settings(tmp_path, steps=1))
    facts = Run(tmp_path / "run").facts()
    del facts["kind"], facts["decisions"]["steps"], facts["decisions"]["test_key"], facts["model"]["classes"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    assert nextpixel.pretrain(resume=tmp_path / "run").config.side == SIDE
    assert main(["info", str(tmp_path / "run")]) == 0


def test_one_process_at_a_time_goes_on_with_a_run(whole):
    with Run(whole).locked(), pytest.raises(InputError, match="expected a run that no other process is training"):
        nextpixel.finetune(resume=whole)


# ---- choosing


def test_it_learns_and_the_best_is_the_highest_on_validation(tmp_path):
    images, labels = labelled(120)
    run = tmp_path / "run"
    found = nextpixel.finetune(model(), images, labels, out=run, **TINY | {"epochs": 12, "learning_rate": 0.02})
    best = Run(run).best()
    assert best["accuracy"] == max(accuracy for _, accuracy in accuracies(run)) >= 0.8
    assert best["step"] == next(step for step, accuracy in accuracies(run) if accuracy == best["accuracy"])
    assert found.config.classes == ("day", "night") and found.facts["finetuned_from"] == "a model in memory"
    fresh = labelled(100, seed=5)
    assert LinearProbe.of(found).evaluate(*fresh).accuracy > 0.8
    assert len(nextpixel.sample(found, n=2)) == 2 and np.isfinite(nextpixel.nll(found, images[:3])).all()


def test_it_stops_after_evaluations_that_were_no_better_and_stays_stopped(tmp_path, monkeypatch):
    images, labels = labelled(40)
    original = LinearProbe.evaluate_squares
    rising = iter([0.5, 0.75, 0.25, 0.75, 0.5])

    def told(*args: Any, **kwargs: Any) -> Any:
        score = original(*args, **kwargs)
        object.__setattr__(score, "accuracy", next(rising))
        return score

    monkeypatch.setattr(LinearProbe, "evaluate_squares", told)
    nextpixel.finetune(model(), images, labels, out=tmp_path / "run", **TINY | {"epochs": 50, "patience": 2})
    assert [accuracy for _, accuracy in accuracies(tmp_path / "run")] == [0.5, 0.75, 0.25, 0.75]
    assert Run(tmp_path / "run").best() == {"step": 5, "accuracy": 0.75}
    before = Run(tmp_path / "run").steps()
    nextpixel.finetune(resume=tmp_path / "run")
    assert Run(tmp_path / "run").steps() == before and next(rising) == 0.5


def test_test_labels_choose_nothing(whole, tmp_path):
    images, labels = labelled(40)
    test = labelled(20, seed=1)
    swapped = np.where(test[1] == "day", "night", "day")
    nextpixel.finetune(model(), images, labels, out=tmp_path / "a", test=test[0], test_labels=swapped, **TINY)
    nextpixel.finetune(model(), images, labels, out=tmp_path / "b", **TINY)
    for run in (tmp_path / "a", tmp_path / "b"):
        assert losses(run) == losses(whole) and Run(run).best() == Run(whole).best()
        assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(run).items())
    assert Run(tmp_path / "a").test_score()["accuracy"] == pytest.approx(1 - Run(whole).test_score()["accuracy"])
    assert Run(tmp_path / "b").test_score() == {}


def test_what_is_held_out_is_stratified_and_few_labels_are_those_of_the_probe(tmp_path):
    labels = np.repeat([0, 1, 2], [50, 20, 1])
    held = held_out(labels, 0.1, seed=0)
    assert [int(held[labels == number].sum()) for number in range(3)] == [5, 2, 0]
    assert not np.array_equal(held, held_out(labels, 0.1, seed=1))
    images, names = labelled(60)
    nextpixel.finetune(model(), images, names, out=tmp_path / "run", **TINY | {"labels_per_class": 7, "epochs": 1})
    arrays = Run(tmp_path / "run").arrays()
    used = np.sort(np.concatenate([arrays["train"], arrays["validation"]]))
    assert np.array_equal(used, choose_labels(names, 7, seed=0, repeat=0))
    assert sorted(names[arrays["validation"]]) == ["day", "night"]


# ---- on disk


def test_a_classifier_is_saved_and_loaded_as_one_and_transformers_refuses_it(whole, tmp_path):
    found = nextpixel.load(whole)
    nextpixel.save(found, tmp_path / "copy")
    again = nextpixel.load(tmp_path / "copy")
    assert again.config == found.config and again.config.classes == ("day", "night")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="nextpixel"):
        AutoConfig.from_pretrained(tmp_path / "copy")
    # what is pretrained on or fine-tuned from it begins with a trunk alone
    more = nextpixel.pretrain(photos(tmp_path), out=tmp_path / "more", init=str(whole), steps=1, **{
        k: v for k, v in settings(tmp_path).items() if k in ("sample_images", "device", "dtype", "compile", "threads")
    })  # fmt: skip
    assert more.config == CONFIG


def test_transformers_gives_the_same_class_logits(tmp_path, capsys):
    found = model()
    found.set_classes(["cat", "dog", "eel"])
    with torch.no_grad():
        found.class_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    nextpixel.save(found, tmp_path / "native")
    assert main(["convert", str(tmp_path / "native"), str(tmp_path / "theirs"), "--for-transformers"]) == 0
    theirs, report = ImageGPTForImageClassification.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    tokens = torch.randint(0, 8, (3, 16), generator=torch.Generator().manual_seed(2))
    shifted = torch.cat([torch.full((3, 1), 8), tokens[:, :-1]], dim=1)
    with torch.no_grad():
        ours = found.classify(tokens)
        assert torch.allclose(theirs.eval()(input_ids=shifted).logits, ours, atol=1e-5)
        assert not torch.allclose(theirs(input_ids=tokens).logits, ours, atol=1e-2)  # as its own processor feeds it
    capsys.readouterr()
    assert main(["info", str(tmp_path / "theirs")]) == 2
    assert "only classifies; load the model it was exported from" in capsys.readouterr().err
    card = model_card(found, "ann/eels")
    assert "cat, dog, eel" in card and "other logits" in card and "pipeline_tag: image-classification" in card
    masked = model("masked")
    masked.set_classes(["a", "b"])
    with pytest.raises(InputError, match="cannot be saved for transformers"):
        nextpixel.save(masked, tmp_path / "no", for_transformers=True)


# ---- masks


def test_the_majority_wins_and_ties_fall_at_random_by_the_seed() -> None:
    votes = np.array([[0, 1, 2, 0], [0, 1, 1, 2], [1, 2, 1, 1]])
    assert majority(votes[:, :3], 3, seed=0).tolist() == [0, 1, 1]
    tied = np.stack([np.zeros(2000, int), np.ones(2000, int)])
    assert majority(tied, 3, seed=1).mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(majority(tied, 3, seed=1), majority(tied, 3, seed=1))
    assert not np.array_equal(majority(tied, 3, seed=1), majority(tied, 3, seed=2))


def test_a_masked_model_votes_over_masks(tmp_path):
    images, labels = labelled(60)
    found = nextpixel.finetune(model("masked"), images, labels, out=tmp_path / "run", **TINY)
    assert found.config.objective == "masked" and found.config.classes
    probe = LinearProbe.of(found)
    chances, chosen = probe.predictions(images, masks=5)
    tokens = found.palette.encode(images)
    each = []
    for seed in np.random.SeedSequence([0, 0x3A5C]).generate_state(5):
        hidden = torch.from_numpy(masks(np.arange(60), 16, seed=int(seed)))
        with torch.no_grad():
            each.append(found.classify(tokens, hidden).softmax(1).numpy())
    assert np.allclose(chances, np.mean(each, 0), atol=1e-5)
    assert np.array_equal(chosen, np.stack(each).argmax(2).sum(0) >= 3)  # of five votes
    assert not np.allclose(chances, probe.predict_proba(images), atol=1e-4)
    fitted = LinearProbe(model("masked"), layer=1).fit(images, labels)
    assert fitted.predict(images, masks=3).shape == (60,)
    with pytest.raises(InputError, match="masks: expected none for a model of the autoregressive"):
        LinearProbe(model(), layer=1).fit(images, labels).predict(images, masks=5)


# ---- as it is typed


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, and labelled pictures in folders: train and test."""
    nextpixel.save(model(), tmp_path / "model")
    for split, count, seed in (("train", 40, 0), ("test", 20, 1)):
        for i, (image, label) in enumerate(zip(*labelled(count, seed), strict=True)):
            path = tmp_path / split / label / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(image, path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TYPED = ["finetune", "train", "--test", "test", "--model", "model", "--out", "clf", *flags(TINY)]


def test_the_command_stops_goes_on_predicts_and_evaluates(desk, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 13, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main(TYPED) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "resume with: nextpixel finetune --resume clf" in last
    assert main(shlex.split(last.partition("resume with: nextpixel ")[2])) == 0
    out, err = capsys.readouterr()
    assert "best validation accuracy" in out and "test accuracy" in out and "AUC" in out
    accuracy = Run("clf").test_score()["accuracy"]
    (desk / "test" / "day" / "broken.png").write_text("not a picture")
    assert main(shlex.split(err.splitlines()[-1].partition(": nextpixel ")[2].replace("new/", "test"))) == 0
    assert "left out: " in (said := capsys.readouterr()).err and "broken.png" in said.err
    rows = list(csv.DictReader((desk / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 20 and set(rows[0]) == {"file", "class", "day", "night"}
    right = np.mean([row["class"] == row["file"].split("/")[0] for row in rows])
    assert right == pytest.approx(accuracy)
    assert all(float(row[row["class"]]) >= 0.5 for row in rows)
    assert main(["evaluate", "test", "--model", "clf", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classification"]["accuracy"] == pytest.approx(accuracy) and report["nats_per_pixel"] > 0
    assert main(["evaluate", "test", "--model", "clf"]) == 0
    assert f"accuracy {accuracy:.1%} of 20 images, AUC" in capsys.readouterr().out
    (desk / "test" / "day").rename(desk / "test" / "noon")
    assert main(["evaluate", "test", "--model", "clf"]) == 0, "nats need no classes"
    assert "no accuracy: labels: expected the classes" in (said := capsys.readouterr()).err and "nats" in said.out
    assert main(["evaluate", "test", "--model", "clf", "--accuracy"]) == 2
    (desk / "test" / "noon").rename(desk / "test" / "day")
    capsys.readouterr()
    assert main(["info", "clf"]) == 0
    assert "kind: finetune" in (said := capsys.readouterr()).out and "classes: ('day', 'night')" in said.out
    assert main(["complete", "test/day", "--model", "clf", "-n", "1", "--out", "half.png"]) == 0


def test_a_masked_classifier_votes_on_the_command_line(desk, capsys):
    nextpixel.save(model("masked"), "masked")
    few = flags(TINY | {"epochs": 1})
    assert main(["finetune", "train", "--model", "masked", "--out", "clf", *few]) == 0
    assert main(["predict", "clf", "test", "--masks", "5", "--json"]) == 0
    *_, last = capsys.readouterr().out.partition("step ")[2].partition("\n")
    voted = json.loads(last)["predictions"]
    probe = LinearProbe.of(nextpixel.load("clf"))
    assert [row["class"] for row in voted] == probe.predict("test", masks=5).tolist()
    assert main(["evaluate", "test", "--model", "clf", "--masks", "5", "--json"]) == 0
    right = np.mean([row["class"] == row["file"].split("/")[0] for row in voted])
    assert json.loads(capsys.readouterr().out)["classification"]["accuracy"] == pytest.approx(right)


def test_labels_stay_with_their_pictures_where_some_cannot_be_read(desk, capsys):
    for place in ("train/day/broken.png", "test/day/broken.png"):
        Path(place).write_text("not a picture")
    assert main(TYPED) == 0
    assert "2 pictures cannot be read and are left out" in capsys.readouterr().err
    assert Run("clf").facts()["data"]["unreadable"] == 2 and Run("clf").test_score()["images"] == 20
    kinds = [path.parent.name for path in sorted(Path("train").rglob("*.png")) if path.name != "broken.png"]
    assert (np.array(["day", "night"])[Run("clf").arrays()["labels"]] == kinds).all()


def test_labels_may_come_from_a_csv_file_and_a_set_may_have_both_splits(desk, capsys):
    lines = ["file,label", *(f"{p.relative_to('train')},{p.stem[-1]}" for p in Path("train").rglob("*.png"))]
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    few = flags(TINY | {"epochs": 1})
    assert main(["finetune", "train", "--labels", "labels.csv", "--model", "model", "--out", "ten", *few]) == 0
    assert nextpixel.load("ten").config.classes == tuple("0123456789")
    Path("labels.csv").unlink()  # the run knows them
    assert main(["finetune", "--resume", "ten"]) == 0
    Path("both").mkdir()
    for split in ("train", "test"):
        Path(split).rename(Path("both") / split)
    assert main(["finetune", "both", "--test", "both", "--model", "model", "--out", "clf", *few]) == 0
    said = capsys.readouterr()
    assert "both: train split; not used: test\n" in said.err and "both/test: test split\n" in said.err
    assert Run("clf").test_score()["images"] == 20


BAD = {
    "finetune": ["expected images and --out", "as in: nextpixel finetune"],
    "finetune train": ["--out", "as in: nextpixel finetune"],
    "finetune train --resume clf": ["--resume", "cannot be combined with train", "--model"],
    "finetune --resume clf --epochs 3": ["--resume", "cannot be combined with --epochs"],
    "finetune --resume nowhere": ["--resume", "run.json", "'nowhere'"],
    "finetune train --out clf --epochs 0": ["--epochs", "at least 1", "got 0"],
    "finetune train --out clf --patience 0": ["--patience", "at least 1"],
    "finetune train --out clf --labels-per-class 0": ["--labels-per-class", "at least 1"],
    "finetune train --out clf --labels-per-class 500": ["--labels-per-class", "expected at most 20", "class day"],
    "finetune train --out clf --labels-per-class 1": ["two images of some class", "hold one out", "--labels-per"],
    "finetune train --out clf --validation-fraction 1": ["--validation-fraction", "between 0 and 1"],
    "finetune train --out clf --learning-rate 0": ["--learning-rate", "above 0"],
    "finetune train --out model/config.json/clf": ["--out", "expected a folder, got the file", "model/config.json"],
    "finetune train --out model": ["--out", "model exists already"],
    "finetune train/day --out clf": ["train/day", "expected labelled images", "CSV"],
    "finetune train --out clf --labels no.csv": ["--labels: no such file: no.csv"],
    "finetune train --out clf --test-labels no.csv": ["--test-labels: requires --test"],
    "finetune train --out clf --test strange": ["strange", "classes of the training images", "'dusk' as well"],
    "finetune train --out clf --test train": ["train", "test images other than the training images", "--test"],
    "evaluate train --masks -1 --model model": ["--masks", "0 or more", "-1"],
    "evaluate train --samples 20 --accuracy --model model": ["--accuracy", "cannot be combined with --samples"],
    "finetune lone --out clf": ["lone", "at least two classes", "'day'"],
    "finetune train --out clf --model nope": ["--model", "'nope'"],
    "predict model train": ["has no classes", "nextpixel probe", "nextpixel finetune"],
    "predict nope train": ["'nope'", "expected"],
    "predict model train --model model": ["--model", "not the folder of a probe", "probe.json"],
    "predict model train --masks -1": ["--masks", "0 or more", "-1"],
    "evaluate train --accuracy --model model": ["has no classes", "nextpixel finetune"],
    "evaluate train --masks 5 --model model": ["has no classes"],
    "convert model out --palette x.npy": ["--palette", "cannot be combined with a model folder"],
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(desk, typed, capsys):
    for folder in ("strange/dusk", "strange/day", "lone/day"):
        Path(folder).mkdir(parents=True)
        save_png(labelled(1)[0][0], Path(folder) / "a.png")
    before = sorted(path for path in desk.rglob("*"))
    brought = ["--model", "model", *flags(TINY)] if typed.startswith("finetune train --out clf") else []
    words = shlex.split(typed)
    brought = [] if "--model" in words else brought[:2]
    assert main([*words, *brought]) == 2
    out, err = capsys.readouterr()
    *_, sentence = err.splitlines()
    assert not out and sentence.startswith("nextpixel: ")
    for part in BAD[typed]:
        assert part in sentence
    assert sorted(path for path in desk.rglob("*")) == before
