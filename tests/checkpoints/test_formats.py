"""Weight files as others write them: legacy, sharded, hostile; and what goes to a hub."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import some_tokens
from safetensors.torch import load_file, save_file
from transformers import ImageGPTImageProcessorPil

import nextpixel
from nextpixel import ImageGPT, InputError
from nextpixel.cli import main


def same(model: ImageGPT, folder: Path) -> bool:
    again = nextpixel.load(folder)
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_legacy_bin_file_with_its_old_buffers_is_read(model: ImageGPT, folder: Path, zipped: bool) -> None:
    tensors = load_file(folder / "model.safetensors")
    for i in range(2):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert same(model, folder)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_through_their_index(model: ImageGPT, folder: Path, kind: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, ending = kind.split(".")
    files = [f"{stem}-{i:05d}-of-00003.{ending}" for i in (1, 2, 3)]
    where = {name: files[i % 3] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensor for name, tensor in tensors.items() if where[name] == file}
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
    index = folder / f"{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert same(model, folder)
    (folder / files[1]).unlink()
    with pytest.raises(InputError, match="00002-of-00003"):
        nextpixel.load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(InputError, match="expected the shard"):
        nextpixel.load(folder)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(folder: Path, tmp_path: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Hostile(tmp_path / "owned")}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="refused"):
        nextpixel.load(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        nextpixel.load(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("length", [0, 10, 1000, 5000])
def test_a_truncated_bin_file_is_named(folder: Path, length: int) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        nextpixel.load(folder)


@pytest.mark.parametrize("old", [{"size": 4, "feature_extractor_type": "ImageGPTFeatureExtractor"}, {}])
def test_old_and_new_preprocessor_files_are_read(model: ImageGPT, folder: Path, old: dict) -> None:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    kept = {"clusters": values["clusters"], "do_normalize": True, "do_resize": True, "resample": 2}
    path.write_text(json.dumps(kept | old))
    again = nextpixel.load(folder)
    assert np.array_equal(again.palette.colors, model.palette.colors)
    assert again.fit == "crop"


@pytest.mark.parametrize("color", [1e308, -1e39, 10**400, float("inf"), 2])
def test_colors_beyond_reason_are_refused(folder: Path, color: float) -> None:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values["clusters"][3][1] = color
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"preprocessor_config\.json: clusters: "):
        nextpixel.load(folder)


@pytest.mark.parametrize(
    "levels", [{"bands": [1, 2, 10**20]}, {"bands": [65_536]}, {"bands": "1e400"}, {"range": [0, 10**400]}]
)
def test_levels_beyond_reason_are_refused(folder: Path, levels: dict) -> None:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values["nextpixel"] |= levels
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"preprocessor_config\.json: {next(iter(levels))}: expected"):
        nextpixel.load(folder)


def test_their_image_processor_gives_the_same_tokens_from_our_folder(folder: Path) -> None:
    processor = ImageGPTImageProcessorPil.from_pretrained(folder)
    pictures = list(np.random.default_rng(1).integers(0, 256, (6, 4, 4, 3), np.uint8))
    theirs = np.asarray(processor(pictures, input_data_format="channels_last")["input_ids"]).reshape(6, 16)
    ours = nextpixel.load(folder).palette.encode(np.stack(pictures)).numpy()
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("fit", ["imagenet", "squash"])
def test_how_pictures_become_squares_is_kept_with_the_model(model: ImageGPT, tmp_path: Path, fit: str) -> None:
    model.fit = fit  # type: ignore[assignment]
    nextpixel.save(model, tmp_path / "model")
    assert nextpixel.load(tmp_path / "model").fit == fit


def test_a_hub_name_asks_for_safetensors_and_then_for_legacy_files(
    model: ImageGPT, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    legacy = tmp_path / "legacy"
    shutil.copytree(folder, legacy)
    (legacy / "model.safetensors").unlink()

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if any("bin" in pattern for pattern in allow_patterns):
            torch.save(load_file(folder / "model.safetensors"), legacy / "pytorch_model.bin")
        return str(legacy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    again = nextpixel.load("someone/a-model")
    assert [name for name, _ in asked] == ["someone/a-model"] * 2
    tokens = some_tokens(1, model.config)
    assert torch.equal(again(tokens), model(tokens))


def test_push_uploads_a_model_folder_with_its_card(
    model: ImageGPT,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    seen = tmp_path / "seen"

    class Hub:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert (name, private, exist_ok) == ("ann/tiny", True, True)

        def upload_folder(self, folder_path: Path, repo_id: str, commit_message: str) -> str:
            shutil.copytree(folder_path, seen)
            return f"hub:{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert main(["push", str(folder), "ann/tiny", "--private"]) == 0
    assert capsys.readouterr().out == "hub:ann/tiny\n"
    assert sorted(path.name for path in seen.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    card = (seen / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and 'nextpixel.load("ann/tiny")' in card
    assert nextpixel.load(seen).config == model.config


def test_a_failed_upload_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("401 Unauthorized\nmore lines")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    assert main(["push", str(folder), "ann/tiny"]) == 1
    assert main(["push", str(folder), "tiny"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "401 Unauthorized. Log in" in first and "expected a hub name" in second
