"""What every test gets: a cache of its own, so that none touches the user's, and a disk that is not waited for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
    return folder
