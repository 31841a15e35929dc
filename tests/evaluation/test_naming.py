"""Likelihoods given captions, and what follows from them by Bayes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively, with_words

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.cli import main
from nextpixel.evaluation.likelihood import evaluate
from nextpixel.evaluation.naming import caption_gains, tag_probabilities, word_probabilities
from nextpixel.network.losses import cross_entropy

CONFIG = ImageGPTConfig(layers=2, width=32, heads=2, side=4, colors=12)
IMAGES = np.random.default_rng(1).integers(0, 256, (19, 4, 4, 3), np.uint8)  # more than a batch
CAPTIONS = ["red hair", "", "long green shirt, hat", *["glasses"] * 16]


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    return with_words(CONFIG)


def nats(model: ImageGPT, captions: list[str]) -> np.ndarray:
    """-ln p of each picture given its caption, (19,)."""
    assert model.words is not None
    tokens = model.tokenizer.encode(IMAGES)
    losses = cross_entropy(model(tokens, tags=model.words.encode(captions)), tokens, reduction="none")
    return losses.sum(1).numpy()


def test_nats_are_given_the_caption_of_each_image(model: ImageGPT) -> None:
    assert np.allclose(nextpixel.nll(model, IMAGES, captions=CAPTIONS), nats(model, CAPTIONS) / 16, rtol=1e-5)
    assert np.allclose(nextpixel.nll(model, IMAGES), nats(model, [""] * 19) / 16, rtol=1e-5)
    found = evaluate(model, IMAGES, captions=CAPTIONS)
    assert found.nats_per_pixel == pytest.approx(nats(model, CAPTIONS).mean() / 16, rel=1e-5)
    assert found.nats_per_pixel_without_captions == pytest.approx(nats(model, [""] * 19).mean() / 16, rel=1e-5)
    assert evaluate(model, IMAGES).nats_per_pixel_without_captions is None


def test_captions_are_weighed_against_none(model: ImageGPT) -> None:
    gains = caption_gains(model, IMAGES, ["red", "green shirt", ""])
    by_hand = [nats(model, [""] * 19) - nats(model, [caption] * 19) for caption in ("red", "green shirt", "")]
    assert np.allclose(gains, np.stack(by_hand, 1), atol=1e-4)
    assert np.allclose(tag_probabilities(gains), torch.from_numpy(gains).softmax(1))
    assert np.isfinite(tag_probabilities(gains * 1e5)).all()


def test_probabilities_of_words_are_by_bayes_and_at_most_one(model: ImageGPT) -> None:
    found = word_probabilities(model, IMAGES)
    assert model.words is not None and found.shape == (19, 8)
    by_hand = 0.5 * np.exp(caption_gains(model, IMAGES, model.words.table))
    assert np.allclose(found, np.minimum(by_hand, 1), rtol=1e-6)
    assert (by_hand > 1).any() and (found < 1).any()


def test_bad_captions_are_refused(model: ImageGPT) -> None:
    plain = lively(CONFIG)
    plain.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    for call in (lambda: nextpixel.nll(plain, IMAGES, captions=CAPTIONS), lambda: word_probabilities(plain, IMAGES)):
        with pytest.raises(InputError, match=r"captions?: expected none, as the model was trained without captions"):
            call()
    with pytest.raises(InputError, match="captions: expected 19 texts, one for each image, got 2"):
        nextpixel.nll(model, IMAGES, captions=["red", "hat"])
    with pytest.raises(InputError, match="captions: expected words that the model knows, got 'zebra'"):
        nextpixel.nll(model, IMAGES, captions=["zebra"] * 19)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "predict embedded {images} --words",
            "--words: expected a model that was trained with captions, got one without words",
        ),
        ("predict {model} {images} --among red", "--among: expected at least two different tags, got 'red'"),
        ("predict {model} {images} --among red,red", "--among: expected at least two different tags"),
        ("predict {model} {images} --among red,zebra", "expected words that the model knows, got 'zebra'"),
        ("predict {model} {images} --among red,hat --words", "--words: cannot be combined with --among"),
        ("predict {model} {images} --words --model embedded", "--model: cannot be combined with --words or --among"),
        ("predict {model} {images} --words --masks 5", "--masks: cannot be combined with --words or --among"),
        ("predict {model} {images} --among red,hat --masks 5", "--masks: cannot be combined with --words or --among"),
        ("evaluate {images} --captions names", "expected none, as the model was trained without captions"),
        ("evaluate {images} --guidance 2", "--guidance: requires --samples"),
        ("score {images} --captions names", "expected none, as the model was trained without captions"),
        ("score {images} --captions names --out a.csv", "--captions: cannot be combined with --report, --out or"),
    ],
)
def test_bad_commands_end_in_one_sentence(
    model: ImageGPT, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    nextpixel.save(model, tmp_path / "model")
    np.save(tmp_path / "images.npy", IMAGES)
    known = {"model": str(tmp_path / "model"), "images": str(tmp_path / "images.npy")}
    assert main([part.format(**known) for part in command.split()]) == 2
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1] and not out
