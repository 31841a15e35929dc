"""Checkpoint folders against transformers' ImageGPT, in both directions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import some_tokens
from safetensors.torch import load_file, save_file
from transformers import ImageGPTConfig as TheirConfig
from transformers import ImageGPTForCausalImageModeling

import nextpixel
from nextpixel import ImageGPT, InputError
from nextpixel.devices import choose_device
from nextpixel.images.sources import load_images
from nextpixel.tokens.patches import Patches


def shifted(tokens: torch.Tensor) -> torch.Tensor:
    """What transformers must be fed: the start token, then all pixels but the last."""
    return torch.cat([torch.full((len(tokens), 1), 16), tokens[:, :-1]], 1)


def test_transformers_opens_what_we_save_with_the_same_logits(model: ImageGPT, folder: Path) -> None:
    theirs, loading = ImageGPTForCausalImageModeling.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    tokens = some_tokens(2, model.config)
    with torch.no_grad():
        logits = theirs.eval()(shifted(tokens)).logits
    assert (logits - model(tokens)).abs().max() < 1e-5


def test_we_open_what_transformers_saves_with_the_same_logits(model: ImageGPT, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = ImageGPTForCausalImageModeling(
        TheirConfig(n_layer=2, n_embd=24, n_head=3, n_positions=16, vocab_size=17, initializer_range=0.3)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    ours = nextpixel.load(tmp_path / "theirs")
    tokens = some_tokens(2, model.config)
    with torch.no_grad():
        difference = theirs(shifted(tokens)).logits - ours(tokens)
    assert difference.abs().max() < 1e-4


def test_saved_and_loaded_is_the_same_model(model: ImageGPT, folder: Path) -> None:
    again = nextpixel.load(folder)
    assert again.config == model.config and not again.training
    assert np.array_equal(again.palette.colors, model.palette.colors)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_half_precision_weights_load_as_fp32_or_as_asked(model: ImageGPT, tmp_path: Path) -> None:
    nextpixel.save(model, tmp_path / "half", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert nextpixel.load(tmp_path / "half").head.weight.dtype == torch.float32
    assert nextpixel.load(tmp_path / "half", dtype=torch.bfloat16).head.weight.dtype == torch.bfloat16


def test_an_existing_folder_is_not_touched(model: ImageGPT, folder: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        nextpixel.save(model, folder)


def test_the_device_is_chosen_and_one_that_is_not_there_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert nextpixel.load(folder, device="auto").device.type == "cpu"
    for absent in ("cuda", "mps", "cuda:1", "abacus", "cpu:x", "cpu:1"):
        with pytest.raises(InputError, match=f"{absent} is not available here, expected one of cpu"):
            nextpixel.load(folder, device=absent)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [choose_device(name) for name in ("cuda", "cuda:1", "auto")] == ["cuda", "cuda:1", "cuda"]
    with pytest.raises(InputError, match="cuda:2 is not available here"):
        choose_device("cuda:2")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "bf16"])
def test_types_that_cannot_hold_weights_are_refused(model: ImageGPT, folder: Path, tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"dtype: expected one of torch\.float32"):
        nextpixel.load(folder, dtype=dtype)
    with pytest.raises(InputError, match=r"dtype: expected one of torch\.float32"):
        nextpixel.save(model, tmp_path / "x", dtype=dtype)
    assert not (tmp_path / "x").exists()


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(InputError, match=r"model: expected a checkpoint folder, .* got ''"):
        nextpixel.load("")


def test_an_unknown_fit_is_refused(model: ImageGPT) -> None:
    with pytest.raises(InputError, match="fit: expected one of crop, imagenet, squash, place, got 'sqaush'"):
        model.fit = "sqaush"  # type: ignore[assignment]


def test_a_trained_bias_is_refused_not_dropped(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = 0.5
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc\.bias: expected zeros"):
        nextpixel.load(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"n_positions": 17}, "n_positions"),
        ({"n_embd": "wide"}, "width"),
        ({"n_inner": 7}, "n_inner"),
        ({"activation_function": "gelu"}, "activation_function"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"n_layer": 3}, "expected a tensor"),
        ({"n_embd": 48}, "expected shape"),
    ],
)
def test_a_config_that_does_not_fit_is_named(folder: Path, change: dict, sentence: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        nextpixel.load(folder)


def test_a_truncated_weight_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        nextpixel.load(folder)


def test_a_model_without_a_tokenizer_says_so(model: ImageGPT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set model\.tokenizer"):
        nextpixel.save(ImageGPT(model.config), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_bundled_models_have_names_that_a_model_here_takes_over(
    model: ImageGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()  # such as a folder of pictures
    faces = nextpixel.load("faces")
    assert faces.size == (16, 16) and isinstance(faces.tokenizer, nextpixel.ExactPalette)
    assert faces.words is not None and {"hair", "red", "glasses"} <= set(faces.words.table)
    (tmp_path / "faces").rmdir()
    nextpixel.save(model, "faces")
    assert nextpixel.load("faces").config == model.config
    assert nextpixel.load("embedded").config == nextpixel.load().config
    with pytest.raises(InputError, match="embedded, faces, photos, or a hub name"):
        nextpixel.load("Faces")


def test_the_model_of_photographs_is_small_and_completes_at_64_pixels() -> None:
    photos = nextpixel.load("photos")
    assert photos.size == (64, 64) and photos.config.tokens == 256
    assert isinstance(photos.tokenizer, Patches) and photos.tokenizer.decoder is not None
    folder = Path(nextpixel.__file__).parent / "assets" / "photos"
    assert sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".png") <= 24_000_000
    cat = folder.parent / "pictures" / "cat.jpg"
    [half] = nextpixel.complete(photos, cat, seed=0)
    given = load_images(str(cat), (64, 64))[0]
    assert half.size == (64, 64) and np.array_equal(np.asarray(half)[:32], given[:32])
    found = nextpixel.nll(photos, [half])  # an untrained model has ln 4096 / 16 nats per pixel
    assert found[0] < 0.9 * np.log(4_096) / 16
    assert photos.words is not None and {"lemon", "seashore", "cat"} <= set(photos.words.table)

    def blue(caption: str) -> float:
        drawn = nextpixel.sample(photos, 4, caption=caption, guidance=3, seed=0)
        return float(np.mean([np.asarray(picture)[..., 2] for picture in drawn]))

    assert blue("lemon") + 30 < blue("seashore")


def test_the_model_of_faces_draws_its_colours_alone_and_shows_what_captions_state() -> None:
    faces = nextpixel.load("faces")
    pictures = np.stack(
        [
            np.asarray(picture.convert("RGBA"))
            for picture in nextpixel.sample(faces, 8, caption="long red hair, blue shirt", seed=0)
        ]
    )
    colours = {tuple(colour) for colour in np.asarray(faces.tokenizer.rgba)}
    assert {tuple(colour) for colour in pictures.reshape(-1, 4)} <= colours
    assert set(np.unique(pictures[..., 3])) == {0, 255}
    red = (pictures[..., 0] > 150) & (pictures[..., 1] < 60) & (pictures[..., 2] < 60)
    assert (red[:, :8].sum((1, 2)) > 8).mean() > 0.5
