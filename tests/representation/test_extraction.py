import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from averages import Averages
from models import lively, some_tokens
from picture_files import png, shard
from torch import Tensor
from transformers import ImageGPTModel

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.config import ResNetConfig
from nextpixel.data.decoded import masks
from nextpixel.devices import can_compile
from nextpixel.images import save_png
from nextpixel.network.resnet import ResNet
from nextpixel.representation import extraction
from nextpixel.representation.extraction import (
    POOLINGS,
    check_layers,
    extract,
    features,
    features_of,
    pooled,
    pooled_columns,
    poolings_to_try,
)

CONFIG = ImageGPTConfig(layers=4, width=24, heads=3, side=4, colors=16)


@pytest.fixture
def model() -> ImageGPT:
    model = lively(CONFIG, torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    return model


def test_features_are_the_pooled_states_after_each_first_norm(model: ImageGPT) -> None:
    seen: dict[int, Tensor] = {}
    norms = [*(block.norm_1 for block in model.blocks), model.norm]
    hooks = [
        norm.register_forward_hook(lambda _m, _i, output, layer=layer: seen.update({layer: output}))
        for layer, norm in enumerate(norms)
    ]
    tokens = some_tokens(5, CONFIG)
    model(tokens)
    for hook in hooks:
        hook.remove()
    expected = torch.stack([seen[layer].mean(1) for layer in range(5)], 1)
    assert np.allclose(pooled(model, tokens, range(5)), expected, atol=1e-6)


def test_the_early_stop_gives_identical_features_and_runs_no_deeper_block(model: ImageGPT) -> None:
    tokens = some_tokens(3, CONFIG)
    every = pooled(model, tokens, range(5))
    model.blocks[2].forward = lambda *_: pytest.fail("a block behind the deepest layer was run")
    assert np.array_equal(pooled(model, tokens, [2])[:, 0], every[:, 2])


def test_layers_are_concatenated_in_the_order_given(model: ImageGPT) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8)
    both = features(model, pictures, layer=[3, 1])
    assert both.shape == (3, 48) and both.dtype == np.float32
    assert np.array_equal(both, np.concatenate([features(model, pictures, 3), features(model, pictures, 1)], 1))
    assert features(model, pictures).shape == (3, 24)


@pytest.mark.parametrize("layer", [5, -1, [], [1, 9], "best", True, [1, False], 2.0, np.float32(2)])
def test_a_layer_that_the_model_lacks_is_refused(model: ImageGPT, layer: object) -> None:
    with pytest.raises(InputError, match="from 0 to 4"):
        features(model, np.zeros((4, 4, 3), np.uint8), layer=layer)


@pytest.mark.parametrize("layer", [np.int64(2), [np.uint8(2)], np.array([2]), range(2, 3)])
def test_any_whole_number_names_a_layer(model: ImageGPT, layer: object) -> None:
    assert check_layers(model, layer) == [2]


def test_a_masked_model_can_give_features_with_hidden_pixels() -> None:
    masked_model = lively(dataclasses.replace(CONFIG, objective="masked"), torch.float32)
    masked_model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    pictures = np.random.default_rng(4).integers(0, 256, (20, 4, 4, 3), np.uint8)  # more than one batch
    hidden = torch.from_numpy(masks(np.arange(20), 16, seed=3))
    [(_, states)] = masked_model.hidden(masked_model.palette.encode(pictures), [2], hidden)
    found = features(masked_model, pictures, 2, mask_seed=3)
    assert np.allclose(found, states.detach().mean(1), atol=1e-6)
    assert np.array_equal(features(masked_model, pictures, 2, mask_seed=3, start_token=False), found)
    for other in (None, 4):
        assert not np.allclose(features(masked_model, pictures, 2, mask_seed=other), found, atol=1e-3)


def test_an_autoregressive_model_has_no_masks(model: ImageGPT) -> None:
    with pytest.raises(InputError, match="mask_seed: expected None"):
        features(model, np.zeros((4, 4, 3), np.uint8), mask_seed=0)


@pytest.mark.parametrize("start_token", [True, False])
def test_features_are_transformers_hidden_states_after_each_norm(
    model: ImageGPT, tmp_path: Path, start_token: bool
) -> None:
    """Its hidden states are taken before each block's first norm, but after the last one."""
    nextpixel.save(model, tmp_path / "model")
    theirs = ImageGPTModel.from_pretrained(tmp_path / "model").eval()
    pictures = np.random.default_rng(2).integers(0, 256, (3, 4, 4, 3), np.uint8)
    tokens = model.palette.encode(pictures)
    fed = torch.cat([torch.full((3, 1), 16), tokens[:, :-1]], 1) if start_token else tokens
    with torch.no_grad():
        states = theirs(fed, output_hidden_states=True).hidden_states
        normed = [block.ln_1(state) for block, state in zip(theirs.h, states, strict=False)] + [states[-1]]
    for layer, state in enumerate(normed):
        ours = features(model, pictures, layer, start_token=start_token)
        assert np.allclose(ours, state.mean(1), atol=1e-5)


def test_standard_deviations_over_the_pixels_follow_the_means(model: ImageGPT) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8)
    both = features(model, pictures, layer=[3, 1], pooling="mean-std")
    assert both.shape == (3, 96)
    for place, layer in enumerate((3, 1)):
        [(_, hidden)] = model.hidden(model.tokenizer.encode(pictures), [layer])
        pixels = hidden.detach().numpy()  # (3, 16, 24)
        expected = np.concatenate([pixels.mean(1), pixels.std(1)], 1)
        assert np.allclose(both[:, 48 * place : 48 * (place + 1)], expected, atol=1e-5)
    for wrong in ("max", "grid-3", "best"):
        with pytest.raises(InputError, match=f"pooling: expected one of mean, mean-std, grid, got '{wrong}'"):
            features(model, pictures, pooling=wrong)
    with pytest.raises(InputError, match="pooling: expected mean for a convolutional student, got grid"):
        features(ResNet(ResNetConfig()), np.zeros((1, 32, 32, 3), np.uint8), 0, pooling="grid")


@pytest.mark.parametrize("side", [(8, 4), (5, 7), (2, 9), (1, 3)])
def test_a_grid_has_the_means_and_deviations_of_its_cells(side: tuple[int, int]) -> None:
    """Rows and columns that four does not divide, and fewer than four of them."""
    config = dataclasses.replace(CONFIG, side=side)
    model, tokens = lively(config, torch.float32), some_tokens(5, config)
    [(_, hidden)] = model.hidden(tokens, [2])
    states = hidden.detach().numpy().reshape(5, *side, 24)
    bands = np.array_split(states, min(4, side[0]), 1)
    cells = [cell for band in bands for cell in np.array_split(band, min(4, side[1]), 2)]
    found = pooled(model, tokens, [2], poolings=["grid"])
    assert found.shape == (5, 1, 2 * 24 * min(4, side[0]) * min(4, side[1])) == (5, 1, config.pooled_width("grid"))
    expected = [cell.mean((1, 2)) for cell in cells] + [cell.std((1, 2)) for cell in cells]
    assert np.allclose(found[:, 0], np.concatenate(expected, 1), atol=1e-5)


def test_the_grid_is_that_of_the_tokens() -> None:
    model = lively(ImageGPTConfig(layers=2, width=16, heads=2, side=(8, 3), colors=8), torch.float32)
    model.tokenizer = Averages(8)
    pictures = np.random.default_rng(1).integers(0, 256, (3, 16, 6, 3), np.uint8)
    found = features(model, pictures, 1, pooling="grid")
    [(_, hidden)] = model.hidden(model.tokenizer.encode(pictures), [1])
    second = hidden[:, [1, 4]].mean(1).detach()  # column 1 of rows 0 and 1
    assert found.shape == (3, 2 * 12 * 16) and np.allclose(found[:, 16:32], second, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_poolings_come_from_one_pass(model: ImageGPT, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    tokens, layers = some_tokens(5, CONFIG), [1, 3]
    apart = {name: pooled(model, tokens, layers, dtype=dtype, poolings=[name]) for name in POOLINGS}
    passes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *a, **k: (passes.append(1), hidden(*a, **k))[1])
    found = pooled(model, tokens, layers, dtype=dtype, poolings=POOLINGS)
    columns = pooled_columns(model, POOLINGS)
    assert len(passes) == 1 and found.shape[2] == 24 * (1 + 2 + 32)
    assert all(np.array_equal(found[:, :, columns[name]], apart[name]) for name in POOLINGS)


def test_poolings_that_take_too_much_memory_are_left_out(
    model: ImageGPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poolings_to_try(model, 5, 1000) == list(POOLINGS)
    assert poolings_to_try(ResNet(ResNetConfig()), 1, 1000) == ["mean"]
    monkeypatch.setattr(extraction, "POOLED_BYTES", 1000 * 5 * 24 * 3 * 4)  # bytes of mean and mean-std
    assert poolings_to_try(model, 5, 1000) == ["mean", "mean-std"]
    assert "not trying grid" in capsys.readouterr().err
    assert poolings_to_try(model, 5, 1001) == ["mean"]
    assert poolings_to_try(model, 5, 10**6) == ["mean"]


@pytest.mark.slow  # compiles
@pytest.mark.skipif(not can_compile("cpu"), reason="needs g++")
def test_compiled_blocks_give_the_same_features_and_are_eager_again_afterwards() -> None:
    model = ImageGPT(ImageGPTConfig(layers=4, width=64, heads=2, side=8, colors=16), seed=1).eval()
    tokens = torch.randint(0, 16, (20, 64), generator=torch.Generator().manual_seed(0))
    plain = pooled(model, tokens, [1, 3], compiled=False)
    assert np.allclose(pooled(model, tokens, [1, 3], compiled=True), plain, atol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        model(tokens[:7])  # blocks that are still compiled would have to be compiled for seven pictures


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
@pytest.mark.parametrize("kind", ["classic", "modern", "masked"])
@pytest.mark.parametrize("shifted", [False, True])
def test_int8_features_are_close_to_the_plain_ones(kind: str, shifted: bool) -> None:
    options: dict[str, Any] = {
        "classic": {"classes": ("a", "b"), "class_layer": 3, "class_pooling": "grid"},  # as after fine-tuning
        "modern": dict(positions="rotary", qk_norm=True, activation="squared-relu", mix_input=True),
        "masked": {"objective": "masked"},
    }[kind]
    config = ImageGPTConfig(layers=4, width=64, heads=2, side=10, colors=16, **options)
    model, layers = lively(config, torch.float32), [4, 0, 2, 2]
    tokens = some_tokens(20, config)
    plain, rounded = (
        pooled(model, tokens, layers, dtype=dtype, shifted=shifted, poolings=["mean-std", "grid"])
        for dtype in ("fp32", "int8")
    )
    assert np.allclose(rounded[:, 1], plain[:, 1], atol=1e-6)  # in front of all blocks
    off = np.linalg.norm(rounded - plain, axis=2) / np.linalg.norm(plain, axis=2)
    assert 0 < off[:, [0, 2, 3]].max() < 0.03
    few = pooled(model, tokens[:3], [2], dtype="int8", shifted=shifted, poolings=["mean-std", "grid"])
    assert np.array_equal(few[:, 0], rounded[:3, 2])


def test_int8_features_are_refused_where_they_are_not_supported() -> None:
    config = ImageGPTConfig(layers=1, width=24, heads=3, side=4, colors=16)
    model = lively(config, torch.float32)
    with pytest.raises(InputError, match="dtype: int8 features need an Image GPT of a width that 16 divides"):
        pooled(model, some_tokens(2, config), [1], dtype="int8")
    with pytest.raises(InputError, match="dtype: int8 features need an Image GPT"):
        features_of(ResNet(ResNetConfig()), np.zeros((1, 32, 32, 3), np.uint8), [0], dtype="int8")


# ---- chunks


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 pictures; three in a row, a whole chunk, are unreadable."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(np.random.default_rng(2).integers(0, 256, (30, 4, 4, 3), np.uint8)):
        save_png(picture, folder / f"{i:02}.png")
        if 3 <= i < 6:
            (folder / f"{i:02}.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("pooling", ["mean", "mean-std", "grid"])
def test_a_chunk_without_a_readable_picture(model: ImageGPT, pictures: Path, monkeypatch, pooling: Any) -> None:
    monkeypatch.setattr(extraction, "CHUNK_IMAGES", 3)
    parts = pictures.parent / "parts"
    values, names, lost = extract(model, pictures, [1, 2], parts, pooling=pooling)
    assert names == [f"{i:02}.png" for i in (0, 1, 2, *range(6, 30))] and len(lost) == 3
    readable = [pictures / name for name in names]
    assert np.allclose(values, features(model, list(map(str, readable)), [1, 2], pooling=pooling), atol=1e-6)
    again, *_ = extract(model, pictures, [1, 2], parts, pooling=pooling)
    assert np.array_equal(again, values)


def test_a_truncated_chunk_is_extracted_again(model: ImageGPT, pictures: Path, monkeypatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK_IMAGES", 3)
    parts = pictures.parent / "parts"
    values, *_ = extract(model, pictures, [1], parts)
    for number, chunk in enumerate(sorted(parts.iterdir())):
        os.truncate(chunk, [0, 1, chunk.stat().st_size // 2, chunk.stat().st_size - 1][number % 4])
    again, *_ = extract(model, pictures, [1], parts)
    assert np.array_equal(again, values)
    monkeypatch.setattr(extraction, "features_of", pytest.fail)  # whole ones are not
    assert np.array_equal(extract(model, pictures, [1], parts)[0], values)


@pytest.mark.parametrize("kind", ["parquet", "tar", "folder"])
def test_over_one_in_ten_unreadable_pictures_are_bad_input(model: ImageGPT, tmp_path: Path, kind: str) -> None:
    cells = [png(), b"no picture", b""]
    images = tmp_path / f"pictures.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"image": cells}), images)
    elif kind == "tar":
        shard(images, [(f"{i}.png", cell) for i, cell in enumerate(cells)])
    else:
        images.mkdir()
        for i, cell in enumerate(cells):
            (images / f"{i}.png").write_bytes(cell)
    with pytest.raises(InputError, match="2 of 3 pictures cannot be read, expected at most one in ten"):
        extract(model, images, [1], tmp_path / "parts")
