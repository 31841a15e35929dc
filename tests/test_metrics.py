import math

import numpy as np
import pytest

from nextpixel.stats import likeliest, per_class_accuracy, score_of, top_k_accuracy, wilson_interval


def test_top_k_counts_ties_against_the_label() -> None:
    scores = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    labels = np.array([0, 0, 0])
    assert [top_k_accuracy(scores, labels, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_of_equally_likely_classes_none_is_preferred() -> None:
    chances = np.full((3000, 3), 1 / 3, np.float32)
    assert np.bincount(likeliest(chances)) == pytest.approx([1000] * 3, abs=100)
    two = np.tile(np.array([0.4, 0.2, 0.4], np.float32), (3000, 1))
    assert np.bincount(likeliest(two, seed=1), minlength=3) == pytest.approx([1500, 0, 1500], abs=100)
    assert np.array_equal(likeliest(two[:100]), likeliest(two)[:100])  # the same whatever follows
    labels = np.arange(3000) % 3
    score = score_of(chances, labels, 3)
    assert score.accuracy == score.confusion.trace() / 3000 == pytest.approx(1 / 3, abs=0.03)
    assert likeliest(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]


def test_confusion_has_true_classes_in_its_rows() -> None:
    probabilities = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    counts = score_of(probabilities, np.array([0, 0, 1, 1]), 3).confusion
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert per_class_accuracy(counts) == pytest.approx([0.5, 1.0, math.nan], nan_ok=True)


def test_the_auc_is_the_share_of_pairs_in_order_and_ties_count_half() -> None:
    second = np.array([0.1, 0.4, 0.4, 0.8], np.float32)
    probabilities = np.stack([1 - second, second], 1)
    assert score_of(probabilities, np.array([0, 0, 1, 1]), 2).auc == pytest.approx((3 + 0.5) / 4)


def test_wilson_s_interval_of_8_in_10() -> None:
    assert wilson_interval(0.8, 10) == pytest.approx((0.490, 0.943), abs=0.001)  # Wilson 1927, worked by hand
