"""Sets whose tokens stand for several pixels are encoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import assert_same, on_call, settings

import nextpixel
from nextpixel.data.decoded import decode
from nextpixel.data.encoded import encode_set
from nextpixel.tokens import save_tokenizer
from nextpixel.tokens.patches import Patches

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (20, 4, 4, 3), np.uint8)
TOKENIZER = Patches(RNG.integers(0, 256, (10, 2, 2, 3), np.uint8))


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is to be encoded")


def test_pictures_and_mirror_images_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = decode(PICTURES, 4, cache=tmp_path)
    for mirrored in (False, True):
        found = encode_set(decoded, TOKENIZER, mirrored=mirrored, cache=tmp_path)
        views = [PICTURES, PICTURES[:, :, ::-1]][: 1 + mirrored]
        expected = [TOKENIZER.encode(np.ascontiguousarray(view)).numpy() for view in views]
        assert found.dtype == np.uint16 and np.array_equal(found, np.stack(expected, 1))
    other = Patches(TOKENIZER.codes[::-1].copy())
    assert not np.array_equal(encode_set(decoded, other, mirrored=True, cache=tmp_path), found)
    files = list((tmp_path / "tokens").iterdir())
    assert len(files) == 3
    with monkeypatch.context() as patched:
        patched.setattr(Patches, "encode", refuse)
        assert np.array_equal(encode_set(decoded, TOKENIZER, mirrored=True, cache=tmp_path), found)
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(encode_set(decoded, TOKENIZER, mirrored=True, cache=tmp_path), found)


def test_a_run_over_encoded_pictures_equals_one_that_encodes_them_and_resumes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(TOKENIZER, tmp_path / "tok", {})
    chosen = settings(tmp_path, tokenizer=str(tmp_path / "tok"), augment="flip", optimizer="adam") | {"palette": None}
    with monkeypatch.context() as patched:
        patched.setattr("nextpixel.training.steps.covers_pixels", lambda tokenizer: False)
        nextpixel.pretrain(PICTURES, out=tmp_path / "encoding", **chosen)
        assert not (cache / "tokens").exists()
    with monkeypatch.context() as patched:
        on_call(patched, "nextpixel.training.pretraining._rate", 9, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nextpixel.pretrain(PICTURES, out=tmp_path / "resumed", **chosen)
    [encoded] = (cache / "tokens").iterdir()
    encoded.unlink()
    nextpixel.pretrain(resume=tmp_path / "resumed", data=PICTURES)
    assert_same(tmp_path / "encoding", tmp_path / "resumed")
    capsys.readouterr()
    nextpixel.pretrain(PICTURES, out=tmp_path / "padded", **chosen | {"augment": "pad-flip", "steps": 1})
    assert "augmentation (pad-flip) changes pixels, so pictures are encoded at every step" in capsys.readouterr().err
