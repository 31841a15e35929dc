from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel import probing as probing_module
from nextpixel.config import Pooling
from nextpixel.data import DecodedSet
from nextpixel.labels import class_numbers, folds_of, labels_of_readable
from nextpixel.metrics import score_of
from nextpixel.probing import LinearProbe
from test_model import lively


def blobs(count: int, seed: int, layers: int = 3, useful: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, layers, 6) of which one layer tells three classes apart and the others nothing."""
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


def test_two_classes_give_an_auc_and_calibrated_chances() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 4000)
    features = (rng.normal(size=(4000, 1, 2)) + labels[:, None, None] * [1.0, 0.0]).astype(np.float32)
    probe = LinearProbe(None).fit_features(features[:2000], labels[:2000])
    scored = probe.evaluate_features(features[2000:, 0], labels[2000:])
    assert scored.auc == pytest.approx(0.760, abs=0.02)  # Phi(1 / sqrt 2): two normals one standard deviation apart
    chances = probe.proba_of(features[2000:, 0])[:, 1]
    assert chances.mean() == pytest.approx(labels[2000:].mean(), abs=0.03)


@pytest.mark.parametrize("count", [60, 3000])
def test_what_is_held_out_has_every_class_on_both_sides(count: int) -> None:
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
    assert (probe.layers_, probe.sweep_, probe.trials_) == ([2], {}, [])
    assert probe.linear_.weight.shape == (4, 6)


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
    with pytest.raises(InputError, match=r"both: .* names of others"):
        labels_of_readable(labels, source, left)
    one = DecodedSet(np.zeros((2, 4, 4, 3), np.uint8), ["a", "a"], None, None, ["b"], "")
    assert labels_of_readable(labels, source, one).tolist() == [0, 2]


def test_one_kind_of_test_image_has_no_area_under_a_curve() -> None:
    chances = np.array([[0.3, 0.7], [0.6, 0.4]], np.float32)
    assert score_of(chances, np.array([1, 1]), 2).auc is None
    assert score_of(chances, np.array([1, 0]), 2).auc == 1


def test_test_images_never_touch_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is fitted while choosing comes from the training images, and leaves out what is held out."""
    features, labels = blobs(100, 3)
    seen, fit = [], probing_module.fit_linears
    monkeypatch.setattr(probing_module, "fit_linears", lambda x, y, c: (seen.append(x), fit(x, y, c))[1])
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


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark and bright noise."""
    rng = np.random.default_rng(count)
    labels = np.array(["dark", "bright"])[rng.integers(0, 2, count)]
    low = np.where(labels == "dark", 0, 128)[:, None, None, None]
    return (rng.integers(0, 128, (count, 4, 4, 3)) + low).astype(np.uint8), labels


@pytest.mark.parametrize(("layer", "pooling"), [("best", "mean"), (1, "mean"), ([0, 2], "mean"), ("best", "mean-std")])
def test_a_probe_of_a_model_is_fitted_saved_and_loaded(
    model: ImageGPT, tmp_path: Path, layer: object, pooling: Pooling
) -> None:
    images, labels = pictures(80)
    probe = LinearProbe(model, layer=layer, pooling=pooling)
    assert probe.fit(images, labels) is probe
    test, truth = pictures(50)
    assert probe.score(test, truth) > 0.9
    assert probe.predict(test).tolist() == np.array(["bright", "dark"])[probe.predict_proba(test).argmax(1)].tolist()
    probe.save(tmp_path / "probe", model_name="somewhere")
    again = LinearProbe.load(tmp_path / "probe", model)
    assert again.pooling == pooling
    assert np.array_equal(again.predict_proba(test), probe.predict_proba(test))
    other = lively(ImageGPTConfig(layers=2, width=8, heads=2, side=4, colors=8), torch.float32)
    other.palette = model.palette
    with pytest.raises(InputError, match="another model"):
        LinearProbe.load(tmp_path / "probe", other)


def test_labels_that_do_not_fit_are_refused(model: ImageGPT) -> None:
    images, labels = pictures(10)
    with pytest.raises(InputError, match="expected 10"):
        LinearProbe(model, 1).fit(images, labels[:9])
    with pytest.raises(InputError, match="two classes"):
        LinearProbe(model, 1).fit(images, ["a"] * 10)
    with pytest.raises(InputError, match="labelled images"):
        LinearProbe(model, 1).fit(images)
    probe = LinearProbe(model, 1).fit(images, labels)
    with pytest.raises(InputError, match="'green'"):
        probe.score(images, ["green"] * 10)


def test_fewer_images_than_features_are_solved_in_their_span_with_the_same_result() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    features, labels = rng.normal(size=(30, 200)).astype(np.float32), np.arange(30) % 3
    ours = probing_module.fit_linear(features, labels, 0.01)
    scaled = (features - features.mean(0)) / features.std(0)
    direct = LogisticRegression(C=0.01, max_iter=1000, tol=1e-6).fit(scaled, labels)
    test = rng.normal(size=(50, 200)).astype(np.float32)
    expected = direct.predict_proba((test - features.mean(0)) / features.std(0))
    probe = LinearProbe(None, 0)
    probe.linear_ = ours
    assert np.allclose(probe.proba_of(test), expected, atol=2e-3)
