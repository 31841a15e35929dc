"""Checkpoints and token arrays of openai/image-gpt.

tests/golden/openai-*: bundles that TensorFlow wrote and its logits for them, by benchmarks/openai_proof.py. The
autoregressive one also holds the slots of Adam and a class head.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from bundles import write_bundle
from hypothesis import given
from hypothesis import strategies as st

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.checkpoints import load_openai
from nextpixel.checkpoints.tensorflow import Bundle, fields, pairs
from nextpixel.cli import main
from nextpixel.config import Fit
from nextpixel.evaluation.likelihood import evaluate
from nextpixel.images.sources import load_images, open_source
from nextpixel.images.sources.tokens import read_openai_tokens

GOLDEN = Path(__file__).parents[1] / "golden"
COLORS = np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3)

both = pytest.mark.parametrize("name", ["openai-autoregressive", "openai-masked"])


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: copies of the golden bundles, and a palette for their six colours."""
    for path in GOLDEN.glob("openai-*"):
        shutil.copy(path, tmp_path)
    np.save(tmp_path / "six.npy", COLORS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(name: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What the model is given, and TensorFlow's logits by type."""
    with np.load(f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return [tensors[key] for key in ("tokens", "masked") if key in tensors], tensors


def golden(name: str) -> dict[str, np.ndarray]:
    """The tensors of a model that are no optimiser's."""
    bundle = Bundle(name)
    entries = {name: entry for name, entry in bundle.entries.items() if entry.dtype == 1 and "Adam" not in name}
    return {name: bundle.read(name, entry.shape) for name, entry in entries.items() if name.startswith("model/")}


def load(prefix: str | Path) -> ImageGPT:
    return load_openai(prefix, palette=Palette(COLORS))


# ---- the same model


def test_an_absent_device_and_an_unusable_type_are_refused() -> None:
    with pytest.raises(InputError, match="cpu:x is not available here"):
        load_openai("openai", palette=Palette(COLORS), device="cpu:x")
    with pytest.raises(InputError, match=r"dtype: expected one of torch\.float32"):
        load_openai("openai", palette=Palette(COLORS), dtype=torch.int8)


@both
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_are_those_of_tensorflow(name: str, dtype: torch.dtype, tolerance: float) -> None:
    inputs, logits = expected(name)
    model = load_openai(name, palette=Palette(COLORS), dtype=dtype)
    with torch.no_grad():
        difference = model(*inputs) - logits[str(dtype).removeprefix("torch.")]
    assert difference.dtype == dtype and difference.abs().max() < tolerance
    assert not model.training and np.array_equal(model.palette.colors, COLORS)


@both
def test_a_converted_model_is_the_same_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", name, "out", "--palette", "six.npy"]) == 0
    assert capsys.readouterr().out.startswith("out: layers ")
    model, converted = load(name), nextpixel.load("out")
    assert converted.config == model.config
    assert np.array_equal(converted.palette.colors, COLORS)
    for (key, a), (_, b) in zip(model.named_parameters(), converted.named_parameters(), strict=True):
        assert torch.equal(a, b), key


def test_the_shape_is_read_off_the_tensors() -> None:
    masked = load("openai-masked").config
    assert (masked.layers, masked.width, masked.heads, masked.side, masked.colors) == (1, 8, 2, 3, 6)
    assert masked.objective == "masked"
    assert load("openai-autoregressive").config.objective == "autoregressive"


def test_what_an_optimiser_and_a_class_head_left_is_ignored() -> None:
    assert {"model/wte/Adam", "model/h0/attn/q_proj/Adam_1", "beta1_power", "global_step", "model/clf/wclf"} <= set(
        Bundle("openai-autoregressive").entries
    )
    model = load("openai-autoregressive")
    assert sum(weight.numel() for weight in model.parameters()) == model.config.parameters


@pytest.mark.parametrize("end", [".index", ".meta", ".data-00000-of-00001"])
def test_any_of_its_files_names_a_checkpoint(end: str) -> None:
    assert Bundle(f"openai-masked{end}").prefix == "openai-masked"


def test_512_colours_are_openais_unless_told() -> None:
    tensors = golden("openai-masked")
    for name in ("model/wte", "model/wtet"):
        tensors[name] = np.random.default_rng(0).normal(size=(512, 8)).astype(np.float32)
    write_bundle(Path("model.ckpt-1000000"), tensors, shards=32)
    assert main(["convert", "model.ckpt-1000000", "out"]) == 0
    assert nextpixel.load("out").palette.hash == Palette.openai().hash


def test_the_index_may_have_many_blocks() -> None:
    tensors = golden("openai-autoregressive")
    write_bundle(Path("many"), tensors, names_a_block=2, shards=3)
    bundle = Bundle("many")
    assert set(bundle.entries) == set(tensors)
    assert all(np.array_equal(bundle.read(name, array.shape), array) for name, array in tensors.items())


# ---- not the same model: one sentence, and nothing half converted


def refused(capsys: pytest.CaptureFixture[str], *words: str, checkpoint: str = "broken", palette: str = "six") -> None:
    before = sorted(Path().rglob("*"))
    assert main(["convert", checkpoint, "out", "--palette", f"{palette}.npy"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nextpixel: ") and err.count("\n") == 1
    assert [word for word in words if word not in err] == [], err
    assert sorted(Path().rglob("*")) == before


def without(tensors: dict[str, Any], name: str) -> None:
    del tensors[name]


def change(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: to(tensors[name])})


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "no embedding": (lambda t: without(t, "model/wte"), ["'model/wte'", "found none"]),
    "no norm": (lambda t: without(t, "model/h1/ln_2/g"), ["'model/h1/ln_2/g'", "found none"]),
    "no keys": (lambda t: without(t, "model/h0/attn/k_proj"), ["'model/h0/attn/k_proj'"]),
    "no block": (lambda t: t.update({"model/h7/ln_1/g": t["model/h0/ln_1/g"]}), ["'model/h2/ln_1/g'"]),
    "a bias": (lambda t: t.update({"model/h0/mlp/c_fc/b": t["model/sos"]}), ["'model/h0/mlp/c_fc/b' as well"]),
    "transposed": (change("model/h0/mlp/c_fc/w", lambda w: w.T), ["model/h0/mlp/c_fc/w", "(8, 32)", "(32, 8)"]),
    "flat heads": (change("model/h0/attn/q_proj", lambda w: w.reshape(8, 8)), ["q_proj", "3 axes", "(8, 8)"]),
    "three heads": (
        change("model/h0/attn/q_proj", lambda w: w[[0, 0, 1]]),
        ["width: expected a multiple of heads 3, got 8"],
    ),
    "other heads": (change("model/h1/attn/q_proj", lambda w: w.reshape(4, 2, 8)), ["(2, 4, 8)", "(4, 2, 8)"]),
    "oblong": (change("model/wpe", lambda w: w[:8]), ["model/wpe", "square", "got 8"]),
    "no pixels": (change("model/wpe", lambda w: w[:0]), ["side", "got 0"]),
    "other colours": (change("model/wtet", lambda w: w[:5]), ["model/wtet", "(6, 8)", "(5, 8)"]),
    "doubles": (change("model/ln_f/g", lambda w: w.astype(np.float64)), ["model/ln_f/g", "float32", "float64"]),
    "integers": (change("model/wte", lambda w: w.astype(np.int32)), ["model/wte", "float32", "int32"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_tensor_that_does_not_fit_is_named(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = WRONG[case]
    tensors = golden("openai-autoregressive")
    spoil(tensors)
    write_bundle(Path("broken"), tensors, shards=2)
    refused(capsys, "broken.index", *words)


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"partitioned": "model/wpe"}, ["model/wpe", "a whole tensor", "partitioned"]),
        ({"endianness": 1}, ["big-endian"]),
        ({"compression": 1}, ["compressed"]),
    ],
)
def test_a_bundle_of_another_kind_is_refused(
    flaw: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(Path("broken"), golden("openai-autoregressive"), **flaw)
    refused(capsys, "broken.index", *words)


def test_colours_must_be_those_of_the_palette(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("five.npy", COLORS[:5])
    refused(capsys, "expected 5 colours", "got 6", checkpoint="openai-masked", palette="five")
    assert main(["convert", "openai-masked", "out"]) == 2
    assert "expected 512 colours" in capsys.readouterr().err


def test_a_missing_or_short_shard_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    shard = Path("openai-autoregressive.data-00001-of-00002")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    refused(capsys, str(shard), f"at least {len(data)} bytes", checkpoint="openai-autoregressive")
    shard.unlink()
    refused(capsys, str(shard), "no such file", "2 such files", checkpoint="openai-autoregressive")


def test_a_damaged_shard_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    shard = Path("openai-masked.data-00000-of-00001")
    data = bytearray(shard.read_bytes())
    for position in range(0, len(data), 400):
        data[position] ^= 4
        shard.write_bytes(data)
        with pytest.raises(InputError, match=r"00001: model/\S+: expected the recorded checksum"):
            load("openai-masked")
        data[position] ^= 4
    shard.write_bytes(data[:100] + b"!" + data[101:])
    refused(capsys, str(shard), "checksum", checkpoint="openai-masked")


def test_no_flipped_bit_of_the_index_goes_unnoticed() -> None:
    whole, path = Bundle("openai-masked"), Path("openai-masked.index")
    data = bytearray(path.read_bytes())
    noticed = 0
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        try:
            assert Bundle("openai-masked").entries == whole.entries  # bytes that mean nothing: a footer's zeros
        except InputError:
            noticed += 1
        data[position] ^= 1 << position % 8
    assert noticed > 0.8 * len(data)


def test_an_index_cut_short_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("openai-masked.index")
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"openai-masked\.index: expected the index of a TensorFlow checkpoint"):
            Bundle("openai-masked")
    refused(capsys, "openai-masked.index", "cut short, or of another kind", checkpoint="openai-masked")


@pytest.mark.parametrize("checkpoint", ["nope", "six.npy", ".", "folder/model.ckpt-1000000"])
def test_what_is_no_checkpoint_is_refused(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, checkpoint, "prefix of a TensorFlow checkpoint", "there is no file", checkpoint=checkpoint)


def test_out_must_be_new(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    refused(capsys, "OUT: out exists already", checkpoint="openai-masked")
    Path("out").rmdir()
    assert main(["convert", "openai-masked", "six.npy/out", "--palette", "six.npy"]) == 2
    assert "OUT: expected a folder, got the file" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(Path().rglob("*"))
    monkeypatch.setattr("nextpixel.checkpoints.weights.save_file", full)
    assert main(["convert", "openai-masked", "out", "--palette", "six.npy"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


# ---- the parts of the reader


def test_without_the_library_for_checksums_one_sentence_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    assert main(["convert", "openai-masked", "out"]) == 2
    assert 'needs: pip install "nextpixel[openai]"' in capsys.readouterr().err


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for parser in (fields, pairs):
        try:
            list(parser(data))
        except ValueError as error:
            assert "a damaged one" in str(error)


# ---- token arrays


def test_token_arrays_and_their_labels(desk: Path) -> None:
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 512, (20, 16), np.int32), rng.integers(0, 10, 20)
    np.save("cifar10_teX.npy", tokens)
    found, none = read_openai_tokens("cifar10_teX.npy")
    assert isinstance(found, np.memmap) and np.array_equal(found, tokens) and none is None
    np.save("cifar10_teY.npy", np.eye(10, dtype=np.float32)[labels])
    found, classes = read_openai_tokens(str(desk / "cifar10_teX.npy"))
    assert np.array_equal(found, tokens) and np.array_equal(classes, labels) and classes.dtype == np.int64


@pytest.mark.parametrize(
    ("tokens", "labels", "words"),
    [
        (np.zeros((2, 15), int), None, "aX.npy: expected a square number of pixels in each image, got 15"),
        (np.zeros((2, 16)), None, "aX.npy: expected whole numbers"),
        (np.zeros((2, 4, 4), int), None, r"aX.npy: expected whole numbers .* \(2, 4, 4\)"),
        (np.zeros((0, 16), int), None, "aX.npy: expected whole numbers"),
        (np.full((2, 16), 512), None, r"aX.npy: expected tokens in 0\.\.511, got 512"),
        (np.full((2, 16), -1), None, r"aX.npy: expected tokens in 0\.\.511, got -1"),
        (np.zeros((2, 16), int), np.eye(3), r"aY.npy: expected one-hot labels of shape \(2, classes\)"),
        (np.zeros((2, 16), int), np.ones((2, 3)), "aY.npy: expected one 1 in each row"),
        (np.zeros((2, 16), int), np.zeros((2, 3)), "aY.npy: expected one 1 in each row"),
    ],
)
def test_other_arrays_are_refused(tokens: np.ndarray, labels: np.ndarray | None, words: str) -> None:
    np.save("aX.npy", tokens)
    if labels is not None:
        np.save("aY.npy", labels)
    with pytest.raises(InputError, match=words):
        read_openai_tokens("aX.npy")


def test_a_file_that_is_no_array_is_refused() -> None:
    Path("aX.npy").write_text("no array")
    np.savez("bX.npz", tokens=np.zeros((2, 16), int))
    for name in ("aX.npy", "bX.npz", "cX.npy"):
        with pytest.raises(InputError, match=rf"{name}: expected a \.npy file"):
            read_openai_tokens(name)


def test_their_token_arrays_are_a_dataset_whose_tokens_do_not_change(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 512, (70, 16)).astype(np.int32)
    np.save(tmp_path / "cifar10_teX.npy", tokens)
    np.save(tmp_path / "cifar10_teY.npy", np.eye(10, dtype=np.float32)[np.arange(70) % 10])
    source = open_source(tmp_path / "cifar10_teX.npy")
    assert source.labels is not None and source.labels[:3].tolist() == [0, 1, 2]
    for fit in get_args(Fit):
        pictures = load_images(tmp_path / "cifar10_teX.npy", 4, fit=fit)
        assert np.array_equal(Palette.openai().encode(pictures[..., :3]), tokens), fit
        assert (pictures[..., 3:] == 255).all()  # place keeps transparency, of which there is none
    model = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=512))
    torch.nn.init.normal_(model.head.weight)
    model.palette = Palette.openai()
    with torch.no_grad():
        logs = model(torch.from_numpy(tokens[:64].astype(np.int64))).log_softmax(-1)
    expected = -logs.gather(-1, torch.from_numpy(tokens[:64, :, None].astype(np.int64))).mean().item()
    scored = evaluate(model, tmp_path / "cifar10_teX.npy", protocol="openai")
    assert scored.images == 64 and scored.nats_per_pixel == pytest.approx(expected, rel=1e-6)


def test_their_palette_file_is_a_palette(tmp_path: Path) -> None:
    np.save(tmp_path / "kmeans_centers.npy", Palette.openai().colors.astype(np.float64))
    assert Palette.read(tmp_path / "kmeans_centers.npy").hash == Palette.openai().hash
