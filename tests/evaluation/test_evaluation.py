import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.evaluation.likelihood import evaluate
from nextpixel.images import save_png
from nextpixel.tokens import reconstruction
from nextpixel.tokens.patches import Patches

BLACK_WHITE = Palette(np.array([[-1.0, -1, -1], [1, 1, 1]]))


def test_nats_of_a_two_colour_model_by_hand() -> None:
    """Only the head speaks: with zero blocks the logits depend on the pixel before alone."""
    model = ImageGPT(ImageGPTConfig(layers=1, width=2, heads=1, side=2, colors=2)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.norm.gain.fill_(1.0)
        model.start[0, 0] = 1.0
        model.token_embedding.copy_(torch.eye(2))
        model.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    model.palette = BLACK_WHITE
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 1] = 255  # black, white, black, black
    a = 1 / math.sqrt(0.5 + 1e-5)  # what the norm makes of a unit vector of two
    after_black, after_white = math.log(1 + math.exp(-a)), math.log(1 + math.exp(2 * a))
    white_after_black = math.log(1 + math.exp(a))
    expected = [after_black, white_after_black, after_white, after_black]
    assert nextpixel.surprise(model, picture).ravel() == pytest.approx(expected, rel=1e-6)
    assert nextpixel.nll(model, picture) == pytest.approx([sum(expected) / 4], rel=1e-6)


def test_all_pixels_count_the_first_one_included() -> None:
    model = lively(ImageGPTConfig(layers=1, width=8, heads=2, side=3, colors=2))
    model.palette = BLACK_WHITE
    pictures = np.random.default_rng(0).integers(0, 256, (37, 3, 3, 3), np.uint8)
    tokens = BLACK_WHITE.encode(pictures)
    logs = model(tokens).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    nats = nextpixel.nll(model, pictures)
    assert nats.shape == (37,)
    assert np.allclose(nats, -logs.mean(1), atol=1e-6)
    assert np.allclose(nextpixel.surprise(model, pictures).reshape(37, 9), -logs, atol=1e-6)


def test_the_last_partial_batch_counts_unless_the_original_protocol_is_asked_for() -> None:
    model = lively(ImageGPTConfig(layers=1, width=8, heads=2, side=3, colors=2))
    model.palette = BLACK_WHITE
    pictures = np.random.default_rng(1).integers(0, 256, (150, 3, 3, 3), np.uint8)
    nats = nextpixel.nll(model, pictures).astype(np.float64)
    every, openai = evaluate(model, pictures), evaluate(model, pictures, protocol="openai")
    assert (every.images, openai.images) == (150, 128)
    assert every.nats_per_pixel == pytest.approx(nats.mean(), rel=1e-9)
    assert openai.nats_per_pixel == pytest.approx(nats[:128].mean(), rel=1e-9)
    assert every.standard_error == pytest.approx(nats.std(ddof=1) / 150**0.5, rel=1e-9)
    assert every.bits_per_pixel == pytest.approx(nats.mean() / math.log(2), rel=1e-9)
    with pytest.raises(InputError, match="at least 64"):
        evaluate(model, pictures[:63], protocol="openai")


def test_patches_are_encoded_on_the_device_and_reconstructed_by_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    model = lively(ImageGPTConfig(layers=1, width=8, heads=2, side=3, colors=9))
    model.tokenizer = Patches(rng.integers(0, 256, (9, 2, 2, 3), np.uint8))
    pictures = rng.integers(0, 256, (70, 6, 6, 3), np.uint8)
    encode, kept, devices = Patches.encode, [], []

    def on_device(self: Patches, images: torch.Tensor) -> torch.Tensor:
        devices.append(images.device)
        return encode(self, images)

    def run(tasks: Sequence[Callable[[], Any]], facts: object) -> Any:
        kept.extend(task() for task in tasks)
        return kept

    monkeypatch.setattr("nextpixel.representation.scoring.CHUNK_IMAGES", 16)
    monkeypatch.setattr(Patches, "encode", on_device)
    assert evaluate(model, pictures, run=run).reconstruction == reconstruction(model.tokenizer, pictures)
    assert set(devices) == {model.device}
    devices.clear()
    assert evaluate(model, pictures, run=lambda *_: kept).reconstruction and not devices


def test_transformers_own_loss_leaves_out_the_first_pixel() -> None:
    """Its labels are shifted inside: of T pixels fed without a start token it scores T - 1."""
    from transformers import ImageGPTConfig as TheirConfig
    from transformers import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    theirs = ImageGPTForCausalImageModeling(
        TheirConfig(n_layer=1, n_embd=8, n_head=2, n_positions=9, vocab_size=3, initializer_range=0.5)
    ).eval()
    tokens = torch.randint(0, 2, (4, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = theirs(tokens, labels=tokens)
    logs = output.logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    assert logs.numel() == 4 * 8
    assert output.loss.item() == pytest.approx(-logs.mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_folders_is_read_as_a_folder_is(tmp_path: Path, kind: type) -> None:
    """An unreadable picture among many is left out and listed."""
    model = lively(ImageGPTConfig(layers=1, width=8, heads=2, side=3, colors=2))
    model.palette = BLACK_WHITE
    pictures = np.random.default_rng(1).integers(0, 256, (24, 3, 3, 3), np.uint8)
    for i, picture in enumerate(pictures):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        save_png(picture, tmp_path / "ab"[i % 2] / f"{i:02}.png")
    (tmp_path / "a" / "00.png").write_bytes(b"no picture")
    found = evaluate(model, kind([tmp_path / "a", str(tmp_path / "b")]))
    rest = np.concatenate([pictures[2::2], pictures[1::2]])
    assert found.images == 23 and len(found.unreadable) == 1 and "00.png" in found.unreadable[0]
    assert found.nats_per_pixel == pytest.approx(nextpixel.nll(model, rest).mean(), rel=1e-6)
    assert (
        nextpixel.compare_samples(model, list(pictures) * 2, kind([tmp_path / "a", tmp_path / "b"]))[0].drawn.samples
        == 23
    )
