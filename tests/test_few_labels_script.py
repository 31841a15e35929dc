"""benchmarks/few_labels.py: what it computes, keeps and prints, for a model of colours and one of learned tokens."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from models import CONFIG, dark_and_bright, lively, random_codec

import nextpixel
from nextpixel.representation import baselines
from nextpixel.tokens.learned import Learned
from nextpixel.training import convnet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("few_labels")
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("few_labels", None)


def token_model() -> nextpixel.ImageGPT:
    """8 x 8 pixels of 4 x 4 a token."""
    model = lively(replace(CONFIG, side=2, colors=1_000), torch.float32)
    model.tokenizer = Learned(random_codec())
    return model


def test_it_fills_a_table_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convnet, "IMAGE_PASSES_AT_LEAST", 64)
    monkeypatch.setattr(script, "SIDE", (8, 8))
    monkeypatch.setattr(baselines, "CODES", 10)
    data = tmp_path / "data.npz"
    (x_train, y_train), (x_test, y_test) = dark_and_bright(40), dark_and_bright(20)
    np.savez(data, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    nextpixel.save(token_model(), tmp_path / "tokens")
    words = [str(data), "--out", str(tmp_path / "out"), "--labels", "2", "400", "--draws", "2", "--resnet-draws", "1"]
    words += ["--pool", "6", "--test", "12", "--model", str(tmp_path / "tokens")]
    script.main(words)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    found = [(line["method"].split(str(tmp_path))[0], line["labels"], line["draw"]) for line in lines]
    probes = ("raw pixels", "k-means patches", "")
    expected = [(name, count, draw) for count, draw in ((2, 0), (2, 1), (6, 0)) for name in probes]
    assert sorted(found) == sorted([*expected, ("ResNet-20", 2, 0), ("ResNet-20", 6, 0)])
    assert all(line["accuracy"] == line["auc"] == 1 for line in lines if line["method"] == "raw pixels")
    printed = capsys.readouterr().out
    assert "| raw pixels | 100.0% ± 0.0, AUC 1.000 ± 0.000 | 100.0% (± 0.0), AUC 1.000 |" in printed
    script.main([*words, "--mirror"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line.get("mirror")]) == 9  # all but the ResNet, beside those of before
    printed = capsys.readouterr().out
    assert "| raw pixels | 100.0%" in printed and "| raw pixels, mirrored | " in printed
    monkeypatch.setattr(script, "features_of", None)
    monkeypatch.setattr(script, "probe_result", None)
    script.main(words)  # nothing is computed again
    assert capsys.readouterr().out == printed


def test_the_error_of_one_draw_is_over_test_pictures_of_several_over_draws(script: ModuleType) -> None:
    rows = [{"accuracy": share, "auc": None, "test": 400} for share in (0.5, 0.6)]
    assert script.cell(rows[:1]) == "50.0% (± 2.5)"
    assert script.cell(rows) == "55.0% ± 5.0"


def test_a_half_written_result_is_computed_again(script: ModuleType, tmp_path: Path) -> None:
    line = {"data": "a", "method": "raw pixels", "labels": 4, "draw": 0, "accuracy": 0.5}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line)[:30])
    assert list(script.known(tmp_path / "results.jsonl").values()) == [line]
