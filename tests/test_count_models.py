"""benchmarks/count_models.py: closed forms on tiny sets of tokens."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "count_models.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("count_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["count_models"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["count_models"]


def random_tokens(n, side=4, colors=5, seed=0):
    return np.random.default_rng(seed).integers(0, colors, (n, side, side))


def test_context_keys_by_hand(script):
    tokens = np.array([[[0, 1], [1, 0]]])  # 2 colours; 2 is the border
    assert script.context_keys(tokens, "", 2).tolist() == [0, 0, 0, 0]
    assert script.context_keys(tokens, "left", 2).tolist() == [2, 0, 2, 1]
    assert script.context_keys(tokens, "above", 2).tolist() == [2, 2, 0, 1]
    assert script.context_keys(tokens, "left above", 2).tolist() == [
        2 * 3 + 2,
        0 * 3 + 2,
        2 * 3 + 0,
        1 * 3 + 1,
    ]


def test_tally_counts_and_answers_zero_for_the_unseen(script):
    tally = script.Tally(np.array([7, 3, 7, 7]))
    assert tally(np.array([3, 7, 0, 5, 9])).tolist() == [1, 3, 0, 0, 0]


def test_frequencies_by_hand(script):
    train = np.array([[[0, 1], [0, 1]], [[0, 0], [1, 1]]])
    left, seen = script.Frequencies(train, "left", 3)(np.array([[[0, 1], [2, 0]]]))
    # Left pixels: border 4 times (0, 0, 0, 1), colour 0 three times (1, 1, 0), colour 1 once, colour 2 never.
    assert left.tolist() == pytest.approx([3 / 4, 2 / 3, 0, 1 / 3])
    assert seen.tolist() == [4, 3, 4, 0]


@pytest.mark.parametrize("name", ["unigram", "left", "left and above"])
def test_probabilities_sum_to_one_in_any_context(script, name):
    colors = 6  # colour 5 never occurs in training
    model = script.fit(script.MODELS[name], random_tokens(20), random_tokens(10, seed=1), colors)
    for seed in range(5):
        image = random_tokens(1, colors=colors, seed=seed)[0]
        for row, column in np.ndindex(image.shape):
            variants = np.repeat(image[None], colors, axis=0)
            variants[:, row, column] = np.arange(colors)
            mine = model.probabilities(variants).reshape(variants.shape)[:, row, column]
            assert mine.min() > 0
            assert mine.sum() == pytest.approx(1)


def test_unigram_reaches_the_entropy(script):
    random = np.random.default_rng(0)
    chances = np.array([0.6, 0.3, 0.1])
    train, held_out, test = (random.choice(3, (n, 8, 8), p=chances) for n in (2000, 500, 500))
    nats = script.fit(script.MODELS["unigram"], train, held_out, 3).image_nats(test)
    observed = np.bincount(test.ravel()) / test.size
    assert nats.mean() == pytest.approx(-(observed * np.log(chances)).sum(), abs=1e-3)


def test_neighbours_pay_where_they_decide(script):
    """Rows of one colour each, and then columns too: the model that sees the deciding neighbour wins."""
    random = np.random.default_rng(1)
    rows = np.repeat(random.integers(0, 4, (300, 4, 1)), 4, axis=2)
    columns = np.transpose(rows, (0, 2, 1))
    score = {
        (data, name): script.fit(contexts, tokens[:200], tokens[200:250], 4).image_nats(tokens[250:]).mean()
        for data, tokens in {"rows": rows, "columns": columns}.items()
        for name, contexts in script.MODELS.items()
    }
    one_in_four = np.log(4) / 4  # one free choice for each row or column of four pixels
    assert score["rows", "unigram"] == pytest.approx(np.log(4), abs=0.02)
    assert score["rows", "left"] == pytest.approx(one_in_four, abs=0.02)
    assert score["columns", "left"] == pytest.approx(np.log(4), abs=0.02)
    assert score["columns", "left and above"] == pytest.approx(one_in_four, abs=0.03)


def test_weights_of_a_known_mixture(script):
    """Of two parts, each sure of one half of the outcomes, the weights are the share of each half."""
    parts = np.array([[1.0, 0.0]] * 750 + [[0.0, 1.0]] * 250)
    weights = script.fit_weights(parts, np.ones(1000, dtype=int))
    assert weights[1].tolist() == pytest.approx([751 / 1002, 251 / 1002])
    assert weights[0].tolist() == [0.5, 0.5]


def test_nats_do_not_depend_on_the_chunks(script, monkeypatch):
    train, held_out, test = (random_tokens(n, seed=n) for n in (30, 10, 11))
    whole = script.fit(script.MODELS["left"], train, held_out, 5).image_nats(test)
    monkeypatch.setattr(script, "CHUNK_IMAGES", 3)
    parts = script.fit(script.MODELS["left"], train, held_out, 5).image_nats(test)
    assert np.allclose(whole, parts, rtol=1e-12)


def test_output(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "read", lambda args: (random_tokens(9), random_tokens(5), random_tokens(4), 5))
    assert script.main(["a", "--test", "b", "--train-images", "9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["train_images"] == 9
    assert set(report["models"]) == {"unigram", "left", "left and above"}
    assert all(0 < model["nats_per_pixel"] < 5 for model in report["models"].values())
    assert script.main(["a", "--test", "b", "--train-images", "9"]) == 0
    assert "nats per pixel" in capsys.readouterr().out
