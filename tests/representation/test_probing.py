import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import dark_and_bright, left_and_right, lively

from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.config import Pooling
from nextpixel.data.decoded import DecodedSet
from nextpixel.data.labels import class_numbers, folds_of, labels_of_readable
from nextpixel.network.pooling import pool
from nextpixel.representation import logistic as logistic_module
from nextpixel.representation.baselines import baseline_features
from nextpixel.representation.extraction import POOLINGS, features_of, mirrored, pooled
from nextpixel.representation.few_labels import _neighbour_accuracy
from nextpixel.representation.logistic import best_trial, fit_linear
from nextpixel.representation.probing import LinearProbe
from nextpixel.stats import likeliest, middle_best, score_of
from nextpixel.study.points import LayerScore, best_layer


def blobs(count: int, seed: int, layers: int = 3, useful: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, layers, 6): one layer separates three classes, the others are noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    features = rng.normal(size=(count, layers, 6)).astype(np.float32)
    features[np.arange(count), useful, labels] += 5
    return features * [1, 100, 0.01, 1, 1, 1] + 3, labels  # standardising must undo this


def test_the_useful_layer_is_found_and_separable_classes_are_told_apart() -> None:
    features, labels = blobs(300, 0)
    probe = LinearProbe(None).fit_features(features.astype(np.float32), labels)
    assert probe.layers_ == [1]
    assert probe.sweep_[1] > 0.95 > 0.6 > max(probe.sweep_[0], probe.sweep_[2])
    test, truth = blobs(500, 1)
    scored = probe.evaluate_features(test[:, 1].astype(np.float32), truth)
    assert scored.accuracy > 0.95
    assert scored.confusion.sum() == 500 and scored.top_5 is None and scored.auc is None


def test_two_classes_give_an_auc_and_calibrated_probabilities() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 4000)
    features = (rng.normal(size=(4000, 1, 2)) + labels[:, None, None] * [1.0, 0.0]).astype(np.float32)
    probe = LinearProbe(None).fit_features(features[:2000], labels[:2000])
    scored = probe.evaluate_features(features[2000:, 0], labels[2000:])
    assert scored.auc == pytest.approx(0.760, abs=0.02)  # Phi(1 / sqrt 2): two normals one standard deviation apart
    chances = probe.proba_of(features[2000:, 0])[:, 1]
    assert chances.mean() == pytest.approx(labels[2000:].mean(), abs=0.03)


@pytest.mark.parametrize("count", [60, 3000])
def test_held_out_images_have_every_class_on_both_sides(count: int) -> None:
    labels = np.arange(count) % 3
    folds = folds_of(labels, seed=0)
    assert len(folds) == (5 if count < 2000 else 1)
    for held in folds:
        assert set(labels[held]) == set(labels[~held]) == {0, 1, 2}
    if count < 2000:
        assert np.sum(folds, axis=0).tolist() == [1] * count
    assert folds_of(np.arange(5), seed=0) == []


@pytest.mark.parametrize("count", [60, 3000])
def test_a_class_of_one_image_is_never_held_out_and_the_others_still_choose(count: int) -> None:
    labels = np.append(np.arange(count) % 3, 3)
    folds = folds_of(labels, seed=0)
    assert folds and all(set(labels[~held]) == {0, 1, 2, 3} and set(labels[held]) == {0, 1, 2} for held in folds)
    features, names = blobs(90, 0)
    features, names = np.append(features, features[:1] + 40, 0), np.append(names, 3)
    assert LinearProbe(None).fit_features(features.astype(np.float32), names).layers_ == [1]


def test_where_nothing_can_be_held_out_the_middle_layer_is_taken() -> None:
    features = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    probe = LinearProbe(None).fit_features(features, np.arange(4), layers=[0, 1, 2, 3, 4])
    assert (probe.layers_, probe.sweep_, probe.trials_, probe.temperature_) == ([2], {}, [], None)
    assert probe.linear_.weight.shape == (4, 6)


def two_classes(count: int, layers: int, distance: float, seed: int, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, layers, D) of two classes, which lie that far apart along 8 of D axes, in every layer alike."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    apart = distance * labels[:, None, None] * (np.arange(width) < 8)
    return (rng.normal(size=(count, layers, width)) + apart).astype(np.float32), labels


@pytest.mark.parametrize(("layers", "middle"), [([0, 1, 2, 3, 4], 2), ([0, 1, 2, 3], 2), ([7], 7), ([2, 5, 9], 5)])
def test_ties_go_to_the_middle_layer_and_the_weaker_penalty(layers: list[int], middle: int) -> None:
    features, labels = two_classes(24, 1, 20, seed=0)
    features = features.repeat(len(layers), 1)
    probe = LinearProbe(None).fit_features(features, labels, layers=layers)
    assert set(probe.sweep_.values()) == {1.0}
    assert {trial["held_out_accuracy"] for trial in probe.trials_ if trial["layers"] == [middle]} == {1.0}
    assert (probe.layers_, probe.strength_) == ([middle], max(logistic_module.STRENGTHS))
    backwards = LinearProbe(None, strengths=logistic_module.STRENGTHS[::-1]).fit_features(
        features, labels, layers=layers
    )
    assert (backwards.layers_, backwards.strength_) == (probe.layers_, probe.strength_)


def test_ties_go_to_the_simpler_pooling() -> None:
    features, labels = two_classes(24, 1, 20, seed=0)
    same = slice(0, features.shape[2])
    probe = LinearProbe(None).fit_features(features, labels, columns={"mean": same, "mean-std": same, "grid": same})
    assert probe.pooling_ == "mean" and len({trial["held_out_log_loss"] for trial in probe.trials_}) == 5


def test_equal_accuracies_are_told_apart_by_the_log_loss() -> None:
    (near, labels), (far, _) = (two_classes(24, 1, distance, seed=0) for distance in (6, 20))
    probe = LinearProbe(None).fit_features(np.concatenate([far, near, near], 1), labels)
    assert set(probe.sweep_.values()) == {1.0} and probe.layers_ == [0]


def test_the_middle_is_taken_among_ties_only() -> None:
    assert middle_best([0.5, 0.9, 0.2, 0.9, 0.9]) == 1  # 1 and 3 are as near to 2
    assert middle_best([0.9, 0.2, 0.2, 0.2, 0.8]) == 0
    layers = [LayerScore(layer, held_out, 0.0) for layer, held_out in enumerate([0.7, 0.9, 0.9, 0.9, 0.9, 0.9])]
    assert best_layer(layers).layer == 3


def test_a_few_well_separated_pictures_are_classified_with_confidence() -> None:
    features, labels = two_classes(24, 3, 6, seed=0)
    probe = LinearProbe(None).fit_features(features, labels)
    for images, truth in ((features, labels), two_classes(200, 3, 6, seed=1)):
        own = probe.proba_of(images[:, 1])[np.arange(len(truth)), truth]
        assert own.min() > 0.5 and np.median(own) > 0.9 and own.max() < 1


@pytest.mark.parametrize(
    ("count", "distance", "width"), [(24, 3, 512), (60, 0.25, 200), (400, 0.5, 64), (2400, 0.5, 20), (100, 1, 300)]
)
def test_probabilities_are_calibrated(count: int, distance: float, width: int) -> None:
    """Few images with many features, where the classifier is overconfident; and many images of overlapping classes."""
    probe = LinearProbe(None, layer=0).fit_features(*two_classes(count, 1, distance, 0, width), layers=[0])
    features, labels = two_classes(4000, 1, distance, 1, width)
    chances = probe.proba_of(features[:, 0])
    error = 2 * np.sqrt(0.25 / min(count, 240))  # of an accuracy on what is held out: of many images a tenth
    assert chances.max(1).mean() == pytest.approx((chances.argmax(1) == labels).mean(), abs=error)
    assert chances.mean(0) == pytest.approx([0.5, 0.5], abs=error)


def test_predictions_are_scored_as_they_are_and_calibration_costs_no_accuracy() -> None:
    for count, distance, width in ((60, 0.25, 200), (400, 0.5, 64), (100, 1, 300)):
        train, labels = two_classes(count, 1, distance, 0, width)
        probe = LinearProbe(None, layer=0).fit_features(train, labels, layers=[0])
        features, truth = two_classes(4000, 1, distance, 1, width)
        score = probe.evaluate_features(features[:, 0], truth)
        assert score.accuracy == (likeliest(probe.proba_of(features[:, 0])) == truth).mean()
        plain = fit_linear(train[:, 0], labels, probe.strength_).logits(features[:, 0]).argmax(1)
        assert score.accuracy >= (plain == truth).mean() - 2 * np.sqrt(0.5 / 4000)


def test_three_classes_are_calibrated_too() -> None:
    features, labels = blobs(45, 0)
    probe = LinearProbe(None).fit_features(features.astype(np.float32), labels)
    test, truth = blobs(3000, 1)
    chances = probe.proba_of(test[:, 1].astype(np.float32))
    assert chances.max(1).mean() == pytest.approx((chances.argmax(1) == truth).mean(), abs=0.04)


def test_a_number_and_its_digits_are_one_class_whatever_their_order() -> None:
    classes = np.arange(12)
    numbers = class_numbers(["10", "2", "0"], classes)
    assert numbers.tolist() == [10, 2, 0]
    assert class_numbers(classes, classes.astype(str)).tolist() == classes.tolist()
    with pytest.raises(InputError, match="'12'"):
        class_numbers([12], classes)


def test_pictures_of_one_name_are_not_given_each_other_s_labels() -> None:
    source = SimpleNamespace(names=["a", "b", "a"], source_name="both")
    labels = np.array([0, 1, 2])
    left = DecodedSet(np.zeros((2, 4, 4, 3), np.uint8), ["b", "a"], None, None, ["a"], "")
    with pytest.raises(InputError, match=r"both: .* share their names with others"):
        labels_of_readable(labels, source, left)
    one = DecodedSet(np.zeros((2, 4, 4, 3), np.uint8), ["a", "a"], None, None, ["b"], "")
    assert labels_of_readable(labels, source, one).tolist() == [0, 2]


def test_test_images_of_one_class_have_no_auc() -> None:
    chances = np.array([[0.3, 0.7], [0.6, 0.4]], np.float32)
    assert score_of(chances, np.array([1, 1]), 2).auc is None
    assert score_of(chances, np.array([1, 0]), 2).auc == 1


def test_test_images_never_influence_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is fitted for the choice of settings uses training images that are not held out."""
    features, labels = blobs(100, 3)
    seen, fit = [], logistic_module.fit_linears
    monkeypatch.setattr(logistic_module, "fit_linears", lambda x, y, c: (seen.append(x), fit(x, y, c))[1])
    probe = LinearProbe(None).fit_features(features.astype(np.float32), labels)
    rows = {row.tobytes() for layer in range(3) for row in features[:, layer].astype(np.float32)}
    assert all(row.tobytes() in rows for x in seen for row in x)
    assert all(75 < len(x) < 85 for x in seen[:-1]) and len(seen[-1]) == 100
    before = len(seen)
    probe.evaluate_features(blobs(50, 4)[0][:, 1].astype(np.float32), blobs(50, 4)[1])
    assert len(seen) == before


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    model = lively(ImageGPTConfig(layers=2, width=16, heads=2, side=4, colors=8), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    return model


@pytest.mark.parametrize(
    ("layer", "pooling"), [("best", "mean"), (1, "mean"), ([0, 2], "mean-std"), (0, "grid"), ([1, 2], "best")]
)
def test_a_probe_of_a_model_is_fitted_saved_and_loaded(
    model: ImageGPT, tmp_path: Path, layer: object, pooling: Pooling
) -> None:
    images, labels = dark_and_bright(80)
    probe = LinearProbe(model, layer=layer, pooling=pooling)
    assert probe.fit(images, labels) is probe
    test, truth = dark_and_bright(50)
    assert probe.score(test, truth) > 0.9
    assert probe.predict(test).tolist() == np.array(["bright", "dark"])[probe.predict_proba(test).argmax(1)].tolist()
    probe.save(tmp_path / "probe", model_name="somewhere")
    again = LinearProbe.load(tmp_path / "probe", model)
    assert (
        again.pooling == again.pooling_ == probe.pooling_
        and pooling in ("best", probe.pooling_)
        and again.temperature_ == probe.temperature_ is not None
    )
    assert np.array_equal(again.predict_proba(test), probe.predict_proba(test))
    facts = json.loads((tmp_path / "probe" / "probe.json").read_text())
    del facts["temperature"]  # as probes were saved that nobody calibrated
    if probe.pooling_ == "mean":
        del facts["pooling"]  # and before there were others
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts))
    older = LinearProbe.load(tmp_path / "probe", model)
    assert older.temperature_ is None and np.array_equal(older.predict_proba(test), probe.predict_proba(test))
    other = lively(ImageGPTConfig(layers=2, width=8, heads=2, side=4, colors=8), torch.float32)
    other.palette = model.palette
    with pytest.raises(InputError, match="another model"):
        LinearProbe.load(tmp_path / "probe", other)


def test_mirrored_features_are_those_of_both_images_and_belong_to_the_saved_probe(
    model: ImageGPT, tmp_path: Path
) -> None:
    images, labels = dark_and_bright(80)
    images[:, :, 0] = 255 - images[:, :, 0]  # not symmetric
    flipped = mirrored(images)
    assert np.array_equal(flipped[3, :, 0], images[3, :, -1]) and not np.array_equal(flipped, images)
    both = [features_of(model, view, [0, 2], poolings=POOLINGS) for view in (images, flipped)]
    found = features_of(model, images, [0, 2], poolings=POOLINGS, mirror=True)
    assert found == pytest.approx((both[0] + both[1]) / 2, abs=1e-6)
    probe = LinearProbe(model, mirror=True).fit(images, labels)
    probabilities = probe.predict_proba(images)
    assert probe.predict_proba(flipped) == pytest.approx(probabilities, abs=1e-5)
    assert np.abs(LinearProbe(model).fit(images, labels).predict_proba(flipped) - probabilities).max() > 1e-3
    probe.save(tmp_path / "probe", model_name="somewhere")
    assert np.array_equal(LinearProbe.load(tmp_path / "probe", model).predict_proba(images), probabilities)
    facts = json.loads((tmp_path / "probe" / "probe.json").read_text())
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts | {"mirror": 1}))
    with pytest.raises(InputError, match="the value 1 of mirror"):
        LinearProbe.load(tmp_path / "probe", model)
    del facts["mirror"]  # as probes were saved before there was a choice
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts))
    assert not LinearProbe.load(tmp_path / "probe", model).mirror


def test_votes_of_a_masked_model_are_of_both_images_too() -> None:
    config = ImageGPTConfig(layers=2, width=16, heads=2, side=4, colors=8, objective="masked")
    masked = lively(config, torch.float32)
    masked.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    images, labels = dark_and_bright(40)
    probe = LinearProbe(masked, 1, pooling="mean", mirror=True).fit(images, labels)
    seed = int(np.random.SeedSequence([probe.seed, 0x3A5C]).generate_state(1)[0])
    views = [pooled(masked, view, [1], mask_seed=seed)[:, 0] for view in (images, mirrored(images))]
    by_hand = probe.proba_of((views[0] + views[1]) / 2)
    assert probe.predict_proba(images, masks=1) == pytest.approx(by_hand, abs=1e-5)
    assert np.abs(probe.proba_of(views[0]) - by_hand).max() > 1e-4


def pooled_states(count: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, dict[Pooling, slice]]:
    """Features (N, 1, D) by all poolings of states (N, 64, 3) of two classes, labels, and the columns of each pooling.

    The classes differ in what is there ("colour"), in how much it varies ("texture"), in its half ("half") or in its
    quarter of a half ("quarter"); means are equal in all but the first.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    states = np.zeros((count, 8, 8, 3), np.float32)
    for state, label in zip(states, labels, strict=True):
        if kind == "colour":
            state[rng.integers(8), rng.integers(8), label] = 64
        elif kind == "texture":
            state[:, ::2, 0], state[:, 1::2, 0] = 1 + label, -1 - label
        else:
            width = 4 if kind == "half" else 2
            state[rng.integers(8), rng.integers(width) + width * label, 0] = 64
    parts = [pool(torch.from_numpy(states).flatten(1, 2), 8, 8, pooling).numpy() for pooling in POOLINGS]
    ends = np.cumsum([part.shape[1] for part in parts])
    columns = {pooling: slice(end - part.shape[1], end) for pooling, end, part in zip(POOLINGS, ends, parts)}
    return np.concatenate(parts, 1)[:, None], labels, columns


@pytest.mark.parametrize(
    ("kind", "simplest"), [("colour", "mean"), ("texture", "mean-std"), ("half", "grid"), ("quarter", "grid")]
)
def test_a_pooling_that_separates_the_classes_is_chosen(kind: str, simplest: Pooling) -> None:
    features, labels, columns = pooled_states(80, kind, 0)
    probe = LinearProbe(None).fit_features(features, labels, columns=columns)
    best = {name: best_trial([t for t in probe.trials_ if t["pooling"] == name]) for name in POOLINGS}
    assert probe.pooling_ == min(best, key=lambda name: best[name]["held_out_log_loss"])
    blind = [best[name]["held_out_accuracy"] for name in POOLINGS[: POOLINGS.index(simplest)]]
    assert probe.sweep_[0] > 0.95 > 0.7 > max(blind, default=0)
    test, truth, _ = pooled_states(200, kind, 1)
    chosen = probe.chosen_features(test, [0], columns)
    assert chosen.shape[1] == probe.linear_.mean.size and probe.evaluate_features(chosen, truth).accuracy > 0.97


def test_a_grid_finds_what_the_mean_of_a_model_cannot() -> None:
    """Layer 0 of a model with rotary positions is the norm of each token's vector, which knows no place."""
    config = ImageGPTConfig(layers=1, width=16, heads=2, side=8, colors=8, positions="rotary")
    model = lively(config, torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    (images, labels), (test, truth) = left_and_right(60, 8, 0), left_and_right(60, 8, 1)
    assert LinearProbe(model, 0, pooling="mean").fit(images, labels).score(test, truth) == pytest.approx(0.5, abs=0.1)
    probe = LinearProbe(model, 0).fit(images, labels)
    assert probe.pooling_ == "grid" and probe.score(test, truth) > 0.95


def test_bad_poolings_are_refused(model: ImageGPT, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pooling: expected best or one of mean, mean-std, grid, got 'max'"):
        LinearProbe(model, 1, pooling="max")
    LinearProbe(model, 1).fit(*dark_and_bright(20)).save(tmp_path / "probe", model_name="somewhere")
    facts = json.loads((tmp_path / "probe" / "probe.json").read_text())
    for wrong in ("best", ["mean"], None):
        (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts | {"pooling": wrong}))
        with pytest.raises(InputError, match="pooling"):
            LinearProbe.load(tmp_path / "probe", model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"palette": None}, "another model"),
        ({"fit": "sqaush"}, "expected a saved probe, got a problem with fit: expected one of crop"),
        ({"seed": "x"}, "expected a saved probe, got a problem with seed: expected a whole number, 0 or more, got 'x'"),
        ({"seed": -1}, "expected a saved probe, got a problem with seed: expected 0 or more, got -1"),
        ({"classes": ["dark"]}, "expected a saved probe, got a problem with 1 classes for arrays of"),
        ({"classes": ["a", "b", "c"]}, "expected a saved probe, got a problem with 3 classes for arrays of"),
        ({"classes": "ab"}, "expected a saved probe, got a problem with 1 classes"),
    ],
)
def test_a_damaged_probe_is_refused(model: ImageGPT, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    LinearProbe(model, 1).fit(*dark_and_bright(20)).save(tmp_path / "probe", model_name="somewhere")
    facts = json.loads((tmp_path / "probe" / "probe.json").read_text())
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts | changes))
    with pytest.raises(InputError, match=message):
        LinearProbe.load(tmp_path / "probe", model)


@pytest.mark.parametrize("name", ["mean", "scale", "weight", "bias"])
def test_a_probe_with_arrays_of_other_shapes_is_refused(model: ImageGPT, tmp_path: Path, name: str) -> None:
    probe = LinearProbe(model, 1).fit(*dark_and_bright(20))
    for wrong in (getattr(probe.linear_, name)[:-1], np.float32(1)):
        probe.linear_ = replace(probe.linear_, **{name: wrong})
        probe.save(tmp_path / f"probe-{np.ndim(wrong)}", model_name="somewhere")
        with pytest.raises(InputError, match="expected a saved probe, got a problem with"):
            LinearProbe.load(tmp_path / f"probe-{np.ndim(wrong)}", model)


@pytest.mark.parametrize("missing", ["palette", "model", "layers", "seed", "strength", "classes", "sweep"])
def test_a_probe_that_lacks_a_fact_is_refused(model: ImageGPT, tmp_path: Path, missing: str) -> None:
    LinearProbe(model, 1).fit(*dark_and_bright(20)).save(tmp_path / "probe", model_name="somewhere")
    facts = json.loads((tmp_path / "probe" / "probe.json").read_text())
    del facts[missing]
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=f"probe: expected a saved probe, got a problem with '{missing}'"):
        LinearProbe.load(tmp_path / "probe", model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features, labels = blobs(30, 0)
    features[3, 1, 2] = value
    with pytest.raises(InputError, match="expected finite features"):
        LinearProbe(None).fit_features(features.astype(np.float32), labels)


def test_labels_that_do_not_fit_are_refused(model: ImageGPT) -> None:
    images, labels = dark_and_bright(10)
    with pytest.raises(InputError, match="expected 10"):
        LinearProbe(model, 1).fit(images, labels[:9])
    with pytest.raises(InputError, match="two classes"):
        LinearProbe(model, 1).fit(images, ["a"] * 10)
    with pytest.raises(InputError, match="labelled images"):
        LinearProbe(model, 1).fit(images)
    probe = LinearProbe(model, 1).fit(images, labels)
    with pytest.raises(InputError, match="'green'"):
        probe.score(images, ["green"] * 10)


@pytest.mark.parametrize("strength", [1e-4, 0.01, 0.1])
@pytest.mark.parametrize(("count", "width", "classes"), [(30, 200, 3), (60, 300, 2), (200, 20, 2), (300, 50, 7)])
def test_probabilities_are_those_of_scikit_learn(count: int, width: int, classes: int, strength: float) -> None:
    """More and fewer images than features, of unequal scales, one of them constant; two classes and more."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    labels = np.arange(count) % classes
    features = (rng.normal(3, rng.uniform(0.1, 9, width), (count, width))).astype(np.float32)
    features[:, 0] += labels
    features[:, 1] = 1
    scale = np.where(np.arange(width) == 1, 1, features.std(0))
    scaled = (features - features.mean(0)) / scale
    direct = LogisticRegression(C=strength, max_iter=1000, tol=1e-7).fit(scaled.astype(np.float64), labels)
    test = rng.normal(size=(50, width))
    probe = LinearProbe(None, 0)
    probe.linear_ = fit_linear(features, labels, strength)
    found = probe.proba_of((test * scale + features.mean(0)).astype(np.float32))
    assert np.allclose(found, direct.predict_proba(test), atol=2e-3)


@pytest.mark.parametrize(("side", "names"), [(6, 2), (7, 3)])
def test_pictures_too_small_for_patches_have_the_other_baselines(side: int, names: int) -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=side, colors=16), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    squares = np.random.default_rng(1).integers(0, 256, (30, side, side, 3), dtype=np.uint8)
    found = baseline_features(model, squares[:20], squares[20:], [0])
    assert len(found) == names and ("k-means patches" in [one.name for one in found]) == (side > 6)


def test_baselines_are_mirrored_like_the_model() -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=8, colors=16), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    squares = np.random.default_rng(1).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    views = squares, mirrored(squares)
    plain = [baseline_features(model, view[:20], view[20:], [0], unlabelled=squares) for view in views]
    found = baseline_features(model, squares[:20], squares[20:], [0], unlabelled=squares, mirror=True)
    for both, one, other in zip(found, *plain, strict=True):
        assert both.name == one.name
        assert both.train == pytest.approx((one.train + other.train) / 2, rel=1e-4, abs=1e-4)
        assert both.test == pytest.approx((one.test + other.test) / 2, rel=1e-4, abs=1e-4)


def test_features_that_are_constant_in_training_do_not_decide_who_is_nearest() -> None:
    rng = np.random.default_rng(0)
    names = np.repeat(["a", "b"], 20)
    train = np.concatenate([rng.normal(size=(40, 4)) + 3 * (names == "a")[:, None], np.zeros((40, 50))], 1)
    test = train + np.concatenate([np.zeros((40, 4)), np.tile(np.eye(2)[rng.integers(0, 2, 40)], 25)], 1) / 100
    found = [
        _neighbour_accuracy(train.astype(np.float32), names, rows.astype(np.float32), names) for rows in (train, test)
    ]
    assert found[0] == found[1] > 0.9


def test_features_of_one_layer_need_no_axis_and_a_given_layer_is_taken() -> None:
    features, labels = blobs(300, 0)
    features = features.astype(np.float32)
    assert np.array_equal(
        LinearProbe(None).fit_features(features[:, 1], labels).linear_.weight,
        LinearProbe(None).fit_features(features[:, 1:2], labels).linear_.weight,
    )
    for one in (1, np.int64(1), np.array([1])):
        assert LinearProbe(None, one).fit_features(features, labels).layers_ == [1]
    assert LinearProbe(None, [2, 0]).fit_features(features, labels, layers=[0, 1, 2]).layers_ == [2, 0]
    with pytest.raises(
        InputError, match=r"layer: expected layers among \[0, 1, 2\], whose features are given, got \[5\]"
    ):
        LinearProbe(None, 5).fit_features(features, labels)
    with pytest.raises(InputError, match="labels: expected at least two classes, got no images"):
        LinearProbe(None).fit_features(features[:0], labels[:0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strengths": []}, "strengths: expected at least one, got none"),
        ({"strengths": [0]}, "strengths: expected a finite number above 0, got 0"),
        ({"strengths": [1, "x"]}, "strengths: expected a number, a finite number above 0, got 'x'"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_settings_of_a_probe_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearProbe(None, **settings)


def test_no_layer_is_the_middle_one(model: ImageGPT) -> None:
    assert LinearProbe(model, None).fit(*dark_and_bright(20)).layers_ == [1]


def test_a_probe_that_is_not_fitted_says_so(model: ImageGPT) -> None:
    with pytest.raises(InputError, match="not fitted yet"):
        LinearProbe(model).predict(dark_and_bright(2)[0])


def test_a_saved_probe_belongs_to_the_weights_and_fit_it_was_fitted_with(model: ImageGPT, tmp_path: Path) -> None:
    images, labels = dark_and_bright(20)
    model.fit = "squash"
    LinearProbe(model, 1).fit(images, labels).save(tmp_path / "probe", model_name="somewhere")
    model.fit = "crop"
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, [0, 1, 10, 11]] = 255
    loaded = LinearProbe.load(tmp_path / "probe", model)
    squashed = LinearProbe(model, 1)
    squashed.fit_of_images = "squash"
    assert np.array_equal(loaded._squares(wide, None), squashed._squares(wide, None))
    assert not np.array_equal(loaded._squares(wide, None), LinearProbe(model)._squares(wide, None))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert LinearProbe.load(tmp_path / "probe", copy.deepcopy(model).to(dtype)).layers_ == [1]
    model.set_classes(["a", "b"])  # whose head is no part of the features
    assert LinearProbe.load(tmp_path / "probe", model).layers_ == [1]
    model.set_classes(())
    other = ImageGPT(model.config, seed=9)
    other.tokenizer = model.tokenizer
    with pytest.raises(InputError, match="fitted with other weights than those that 'somewhere' has now"):
        LinearProbe.load(tmp_path / "probe", other)


def test_a_class_head_has_a_repr_and_can_be_saved(model: ImageGPT, tmp_path: Path) -> None:
    model.set_classes(["a", "b"])
    probe = LinearProbe.of(model)
    assert repr(probe) == f"LinearProbe(2 classes, layers [{model.config.layers}])" and probe.trials_ == []
    probe.save(tmp_path / "probe", model_name="somewhere")
    assert LinearProbe.load(tmp_path / "probe", model).strength_ is None
    model.set_classes(())
