"""benchmarks/words_in_order.py: a word a slot."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nextpixel.config import TAGS
from nextpixel.tokens.words import Words

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("words_in_order", BENCHMARKS / "words_in_order.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_every_word_has_a_slot_of_its_own_in_order(script: ModuleType) -> None:
    table = ["red", "hair", "long", "glasses"]
    words = script.WordsInOrder(table)
    found = words.encode(["long red hair, glasses", "", ", ".join(["red hair"] * 12)])
    assert found.shape == (3, TAGS, 1)
    assert found[0, :, 0].tolist() == [3, 1, 2, 4] + [0] * 12
    assert not found[1].any()
    assert found[2, :, 0].tolist() == [1, 2] * 8  # what does not fit is left out
    assert torch.equal(script.one_a_slot(Words(table).encode(["long red hair, glasses"])), found[:1])
