"""What every test gets: a cache of its own, so that none touches the user's, and a disk that is not waited for.

And a tiny model, for those that ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nextpixel import progress

if TYPE_CHECKING:
    from nextpixel import ImageGPT


@pytest.fixture(scope="session", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for fixtures that live longer than one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTPIXEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(folder))
    progress.say_once.cache_clear()
    return folder


@pytest.fixture
def model() -> ImageGPT:
    """2 x 24 at side 4, its 16 colours at random."""
    import numpy as np
    import torch
    from models import lively

    from nextpixel import ImageGPTConfig, Palette

    model = lively(ImageGPTConfig(layers=2, width=24, heads=3, side=4, colors=16), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    return model


@pytest.fixture
def folder(model: ImageGPT, tmp_path: Path) -> Path:
    """The same model, saved."""
    import nextpixel

    nextpixel.save(model, tmp_path / "model")
    return tmp_path / "model"
