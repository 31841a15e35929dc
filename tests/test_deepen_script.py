"""benchmarks/deepen.py: twice the layers, the same function, and the new blocks learn."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from models import CONFIG, lively, some_tokens

import nextpixel
from nextpixel.config import MODERN, Levels
from nextpixel.tokens.words import Words


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        yield importlib.import_module("deepen")
    finally:
        sys.path.pop(0)
        sys.modules.pop("deepen", None)


@pytest.mark.parametrize("options", [{}, {"class_layer": 1, "classes": ("a", "b")}, {"words": 8}, MODERN])
def test_a_deeper_model_computes_the_same_and_learns(script: ModuleType, options: dict, tmp_path: Path) -> None:
    config = replace(CONFIG, **options)
    model, tokens = lively(config, torch.float32), some_tokens(3, config)
    model.levels = Levels(range=(0.0, 4000.0))
    model.words = Words(list("abcdefgh")) if config.words else None
    for name, parameter in model.named_parameters():  # those that start at zero as well
        if parameter.ndim == 2:
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    for block in model.blocks:
        if block.mix is not None:
            block.mix.copy_(torch.tensor([0.9, 0.2]))
    model.palette = nextpixel.Palette(torch.rand(config.colors, 3, generator=torch.Generator().manual_seed(0)).numpy())
    deeper = script.deepen(model)
    assert deeper.config.layers == 2 * config.layers and deeper.levels == model.levels and deeper.words is model.words
    assert torch.allclose(deeper(tokens), model(tokens), atol=1e-4)
    if config.classes:
        assert torch.allclose(deeper.classify(tokens), model.classify(tokens), atol=1e-5)
    deeper(tokens).square().sum().backward()
    assert all(block.attention.out.weight.grad.any() and block.mlp.down.weight.grad.any() for block in deeper.blocks)
    nextpixel.save(deeper, tmp_path / "deeper")
    assert torch.equal(nextpixel.load(tmp_path / "deeper")(tokens), deeper(tokens))
