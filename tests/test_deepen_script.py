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
from nextpixel.config import MODERN


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        yield importlib.import_module("deepen")
    finally:
        sys.path.pop(0)
        sys.modules.pop("deepen", None)


@pytest.mark.parametrize("options", [{}, MODERN | {"zero_projections": False}])
def test_a_deeper_model_computes_the_same_and_learns(script: ModuleType, options: dict, tmp_path: Path) -> None:
    config = replace(CONFIG, **options)
    model, tokens = lively(config, torch.float32), some_tokens(3, config)
    for block in model.blocks:
        if block.mix is not None:
            block.mix.copy_(torch.tensor([0.9, 0.2]))
    model.palette = nextpixel.Palette(torch.rand(config.colors, 3, generator=torch.Generator().manual_seed(0)).numpy())
    deeper = script.deepen(model)
    assert deeper.config == replace(config, layers=2 * config.layers)
    assert torch.allclose(deeper(tokens), model(tokens), atol=1e-4)
    deeper(tokens).square().sum().backward()
    assert all(block.attention.out.weight.grad.any() and block.mlp.down.weight.grad.any() for block in deeper.blocks)
    nextpixel.save(deeper, tmp_path / "deeper")
    assert torch.equal(nextpixel.load(tmp_path / "deeper")(tokens), deeper(tokens))
