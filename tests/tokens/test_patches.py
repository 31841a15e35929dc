"""Patches of pixels as tokens: the nearest against brute force, fitting, folders, and what can be wrong with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively

import nextpixel
from nextpixel import ImageGPTConfig, InputError
from nextpixel.cli import main
from nextpixel.config import PretrainConfig, SamplingConfig
from nextpixel.drawing.sampling import draw, join
from nextpixel.tokens import load_tokenizer, reconstruct, reconstruction, save_tokenizer
from nextpixel.tokens.codec import CodecShape, PatchDecoder
from nextpixel.tokens.patches import Patches
from nextpixel.training.initial import token_shares

RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 256, (50, 4, 4, 3), np.uint8)
TINY = "--batch-images 4 --sample-images 1 --device cpu --threads 1"
NOISE = RNG.integers(0, 256, (6, 16, 24, 3), np.uint8)


def smooth(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Pictures (count, side, side, 3) of soft gradients."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : 1j * side, 0 : 1 : 1j * side]
    a, b, c = rng.uniform(-200, 200, (3, count, 1, 1, 3))
    noise = rng.normal(0, 4, (count, side, side, 3))
    return (128 + a * x[..., None] + b * y[..., None] + c * (x * y)[..., None] + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [2, 4])
def test_tokens_are_the_nearest_patches_by_brute_force_in_whole_numbers(side: int) -> None:
    codes = RNG.integers(0, 256, (300, side, side, 3), np.uint8)
    tokens = Patches(codes).encode(NOISE)
    for row in range(16 // side):
        for column in range(24 // side):
            own = NOISE[:, row * side : (row + 1) * side, column * side : (column + 1) * side].astype(np.int64)
            distances = np.square(own[:, None] - codes.astype(np.int64)).sum((2, 3, 4))
            assert np.array_equal(tokens[:, row * (24 // side) + column], distances.argmin(1))


def test_the_first_of_equally_near_patches_is_taken() -> None:
    codes = np.full((3, 2, 2, 3), 100, np.uint8)
    codes[0] += 2  # as far from 101 as the next
    codes[2, 0, 0, 0] = 7
    assert Patches(codes).encode(np.full((1, 2, 2, 3), 101, np.uint8)).tolist() == [[0]]
    assert Patches(codes[::-1].copy()).encode(np.full((1, 2, 2, 3), 101, np.uint8)).tolist() == [[1]]


def test_a_token_depends_on_its_own_patch_alone() -> None:
    tokenizer, others = Patches(CODES), NOISE.copy()
    others[:, 4:] = 255 - others[:, 4:]
    assert torch.equal(tokenizer.encode(NOISE)[:, :6], tokenizer.encode(others)[:, :6])
    assert not torch.equal(tokenizer.encode(NOISE)[:, 6:], tokenizer.encode(others)[:, 6:])


def test_fitted_patches_are_repeatable_distinct_and_near_the_images() -> None:
    pictures = smooth(40, 16)
    tokenizer = Patches.fit(pictures, 64, 4, seed=1)
    assert Patches.fit(pictures, 64, 4, seed=1).hash == tokenizer.hash != Patches.fit(pictures, 64, 4, seed=2).hash
    every = torch.arange(64)[:, None]
    assert torch.equal(tokenizer.encode(tokenizer.decode(every, 1)), every)
    found = reconstruction(tokenizer, pictures)
    assert found.psnr_db > reconstruction(Patches(CODES), pictures).psnr_db + 6
    assert 0.9 < found.codes_used <= 1
    error = np.square(reconstruct(tokenizer, pictures) - pictures.astype(np.float64)).mean()
    assert found.psnr_of_mean_error_db == pytest.approx(10 * np.log10(255**2 / error))
    finer = Patches.fit(pictures, 64, 2)
    assert reconstruction(finer, pictures).psnr_db > found.psnr_db


def test_repeated_means_are_replaced() -> None:
    """Two clusters a rounding apart, and a patch that is far from both."""
    pictures = np.zeros((64, 2, 2, 3), np.uint8)
    pictures[1:32, 0, 0, 0], pictures[63] = 1, 255
    tokenizer = Patches.fit(pictures, 3, 2)
    assert len(tokenizer) == 3 and np.array_equal(reconstruct(tokenizer, pictures), pictures)
    with pytest.raises(InputError, match="codes: expected at most 3, the number of different patches"):
        Patches.fit(pictures, 4, 2)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 2, 2, 3), np.uint8), "some repeated"),
        (np.zeros((2, 3, 3, 3), np.uint8), r"with p 2 or 4, got \(2, 3, 3, 3\)"),
        (np.zeros((2, 2, 4, 3), np.uint8), "got"),
        (np.zeros((0, 2, 2, 3), np.uint8), "expected 1 to 16,384"),
        (CODES.astype(np.float32), "of uint8, got float32"),
        ([1, 2], "got"),
    ],
)
def test_other_codes_are_refused(codes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Patches(codes)


def test_other_images_are_refused() -> None:
    for images in (NOISE[:, :15], NOISE[:, :, :22], NOISE[..., :1], NOISE[0], NOISE.astype(np.float32)):
        with pytest.raises(ValueError, match="images: expected"):
            Patches(CODES).encode(images)


def test_a_folder_without_its_arrays_or_with_others_is_refused(tmp_path: Path) -> None:
    save_tokenizer(Patches(CODES), tmp_path / "tok", {"source": "photos"})
    assert load_tokenizer(tmp_path / "tok").hash == Patches(CODES).hash
    assert json.loads((tmp_path / "tok" / "tokenizer.json").read_text())["source"] == "photos"
    arrays = tmp_path / "tok" / "tokenizer.safetensors"
    save_tokenizer(Patches(CODES[:49]), tmp_path / "other", {})
    arrays.write_bytes((tmp_path / "other" / "tokenizer.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"tokenizer.safetensors: expected the arrays of the tokenizer .*another"):
        load_tokenizer(tmp_path / "tok")
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(InputError, match=r"tokenizer.safetensors: .* got something unreadable"):
        load_tokenizer(tmp_path / "tok")
    arrays.unlink()
    with pytest.raises(InputError, match=r"tokenizer.safetensors: .* got no such file"):
        load_tokenizer(tmp_path / "tok")
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="tokenizer: expected a folder that nextpixel tokenizer wrote"):
            load_tokenizer(path)
    with pytest.raises(InputError, match="exists already"):
        save_tokenizer(Patches(CODES), tmp_path / "other", {})


def test_a_model_travels_with_its_patches_and_keeps_given_pixels(tmp_path: Path) -> None:
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=(4, 6), colors=50), torch.float32)
    model.tokenizer = Patches(CODES)
    nextpixel.save(model, tmp_path / "model")
    again = nextpixel.load(tmp_path / "model")
    assert again.size == (16, 24) and again.tokenizer.hash == model.tokenizer.hash
    drawing = draw(again, NOISE, keep=0.5, n=2, sampling=SamplingConfig(speed="exact"))
    assert np.array_equal(drawing.images[:, :8], NOISE[:, :8].repeat(2, 0))
    assert not np.array_equal(drawing.images[:, 8:], NOISE[:, 8:].repeat(2, 0))
    assert np.isfinite(nextpixel.nll(again, NOISE)).all()
    (tmp_path / "model" / "tokenizer.safetensors").unlink()
    with pytest.raises(InputError, match="expected the arrays of a tokenizer"):
        nextpixel.load(tmp_path / "model")


@pytest.mark.parametrize(("side", "grid"), [(64, 16), ((48, 64), (12, 16)), (None, 8)])
def test_the_side_of_a_run_is_in_pixels_and_its_grid_in_tokens(side: Any, grid: Any) -> None:
    assert PretrainConfig(side=side).model(50, patch=(4, 4)).side == grid
    assert PretrainConfig(side=side).model(50).side == (side or 32)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    np.save("photos.npy", smooth(24, 16))
    return "photos.npy"


def test_the_verb_and_every_other_one_behind_it(photos: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(words: str) -> str:
        assert main(words.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    told = json.loads(run(f"tokenizer {photos} --side 16 --codes 32 --out tok --json"))
    assert told["codes"] == 32 and told["psnr_db"] > 18 and 0 < told["codes_used"] <= 1 and told["held_out_images"] == 2
    assert {path.name for path in Path("tok").iterdir()} == {
        "tokenizer.json", "tokenizer.safetensors", "reconstructions.png",
    }  # fmt: skip
    small = f"--layers 2 --width 16 --heads 2 {TINY}"
    run(f"pretrain {photos} --tokenizer tok --side 16 --steps 6 {small} --checkpoint-every-steps 3 --out run")
    model = nextpixel.load("run")
    assert model.size == (16, 16) and model.config.side == 4 and model.config.colors == 32
    assert model.tokenizer.hash == told["sha256"]
    found = json.loads(run(f"evaluate {photos} --model run --json"))
    assert found["nats_per_token"] == pytest.approx(16 * found["nats_per_pixel"])
    assert found["reconstruction"]["psnr_db"] > 18
    assert "nats per token; tokens reconstruct these images at" in run(f"evaluate {photos} --model run")
    run(f"complete {photos} --model run -n 2 --out completed.png")
    run("sample --model run -n 2 --out drawn.png")
    assert len(run(f"score {photos} --model run --heatmap maps").splitlines()) >= 24
    run(f"features {photos} --model run --out features.npz")
    with np.load("features.npz") as features:
        assert features["features"].shape == (24, 16)
    assert "pixels_of_a_token" in run("info run")
    assert json.loads(run("info run --json"))["palette"] == {
        "kind": "patches", "tokens": 32, "pixels_of_a_token": "4 x 4",
    }  # fmt: skip
    assert main(f"pretrain {photos} --init run --side 32 --out b".split()) == 2
    assert "--side: the model of --init works at side 16, got 32" in capsys.readouterr().err
    run(f"pretrain {photos} --tokenizer tok --steps 1 {small} --out default")
    assert nextpixel.load("default").size == (16, 16)  # that to which the tokenizer was fitted
    shape = small.partition(" --batch")[0]
    assert json.loads(run(f"plan --tokenizer tok {shape} --json"))["parameters"] == model.config.parameters
    Path("tok").rename("moved")  # the run no longer needs it
    run("pretrain --resume run")
    run(f"pretrain {photos} --init run --steps 2 {TINY} --out continued")
    assert nextpixel.load("continued").tokenizer.hash == told["sha256"]


def test_a_run_branches_with_its_tokenizer_and_resumes_to_the_same_weights(photos: str) -> None:
    save_tokenizer(Patches(CODES), "tok", {})
    settings: dict[str, Any] = dict(tokenizer="tok", side=16, layers=1, width=16, heads=2, preset="modern")
    settings |= dict(batch_images=4, steps=8, sample_images=0, device="cpu", threads=1, checkpoint_every_steps=2)
    whole = nextpixel.pretrain(photos, out="run", **settings)
    shutil.rmtree("tok")
    for step in (4, 8):
        shutil.rmtree(f"run/step_{step:07d}", ignore_errors=True)
    again = nextpixel.pretrain(resume="run")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    branch = nextpixel.pretrain(branch="run", steps=4, out="branch")
    assert branch.tokenizer.hash == Patches(CODES).hash and branch.size == (16, 16)


def test_a_model_goes_on_over_the_tokens_of_another_tokenizer(photos: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=50), dtype=torch.float32)
    model.tokenizer = Patches(CODES)
    nextpixel.save(model, "base")
    save_tokenizer(Patches(CODES[::-1].copy()), "turned", {})
    run = f"pretrain {photos} --init base --tokenizer turned --steps 1 {TINY} --out run --checkpoint-every-steps 1"
    assert main(run.split()) == 0
    first, pictures = nextpixel.load("run/step_0000000"), np.load(photos)
    seen = Patches(CODES).encode(pictures).unique()
    assert torch.equal(first.token_embedding[49 - seen], model.token_embedding[seen])
    assert torch.equal(first.head.weight[49 - seen], model.head.weight[seen])
    assert first.tokenizer.hash == Patches(CODES[::-1].copy()).hash and first.facts["continued_from"] == "base"
    tokens = first.tokenizer.encode(pictures)
    assert torch.allclose(first(tokens)[..., 49 - seen], model(49 - tokens)[..., seen], atol=1e-5)

    halves = CODES[:, :2, :2].copy()
    for name, tokenizer in {"fewer": Patches(CODES[:7]), "small": Patches(halves)}.items():
        save_tokenizer(tokenizer, name, {"fitted": {"side": 99}})
    capsys.readouterr()
    assert main(f"pretrain {photos} --init base --tokenizer small --steps 1 --out other".split()) == 2
    expected = "--tokenizer: expected tokens of 4 x 4 pixels, as those of the model of --init, got 2 x 2"
    assert expected in capsys.readouterr().err and not Path("other").exists()
    assert main("plan --init base --tokenizer fewer --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["shape"]["colors"] == 7
    fewer = nextpixel.pretrain(photos, init="base", tokenizer="fewer", steps=1, out="less", device="cpu", threads=1)
    assert fewer.config.colors == 7 and fewer.size == (16, 16)


def test_the_shares_of_old_tokens_are_those_of_the_same_patches() -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=2, colors=3))
    first, second, third = (np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 200))
    model.tokenizer = Patches(np.stack([first, second, third]))
    new = Patches(np.stack([first, third, np.full((4, 4, 3), 255, np.uint8)]))
    one, other = (np.block([[[first], [second]], [[last], [last]]]) for last in (second, third))
    pictures = np.stack([one, other])
    assert new.encode(pictures).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]  # 100 is as far from 0 as from 200
    expected = [[1 / 3, 2 / 3, 0], [0, 0, 1], [1 / 4, 1 / 2, 1 / 4]]
    found = token_shares(new, model, pictures, np.arange(2))
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
    assert torch.equal(token_shares(new, model, pictures, np.array([1]))[1], torch.tensor([0.0, 0.0, 1.0]))


def test_a_learned_decoder_repaints_the_same_tokens_and_its_run_resumes(
    photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "--side 16 --codes 24 --width 16 --blocks 2 --batch-images 4 --learned-decoder --device cpu --threads 1"
    words = f"tokenizer {photos} {settings} --steps 120 --evaluate-every-steps 40 --checkpoint-every-steps 40 --out tok"
    assert main([*words.split(), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    whole = load_tokenizer("tok")
    assert isinstance(whole, Patches) and whole.hash == told["sha256"] and "repainted" in repr(whole)
    plain, pictures = Patches(whole.codes), np.load(photos)
    tokens = plain.encode(pictures)
    assert torch.equal(whole.encode(pictures), tokens) and whole.hash != plain.hash
    assert reconstruction(whole, pictures).psnr_db > reconstruction(plain, pictures).psnr_db + 2
    assert whole.decode(tokens[:, :0], 4).shape == (24, 0, 16, 3)
    for name in ("step_0000120", "best.json", "tokenizer.json", "tokenizer.safetensors"):
        path = Path("tok") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for _ in "of its last checkpoint", "of a finished run":
        assert main("tokenizer --resume tok".split()) == 0
        assert load_tokenizer("tok").hash == whole.hash
    assert main(f"tokenizer {photos} --kind learned --learned-decoder --side 16 --out other".split()) == 2
    assert "--learned-decoder: expected --kind patches with it" in capsys.readouterr().err


def test_an_untrained_decoder_repaints_nothing_and_other_weights_are_refused(tmp_path: Path) -> None:
    shape = CodecShape(4, None, 16, 2)
    tokenizer = Patches(CODES, PatchDecoder(shape))
    tokens = tokenizer.encode(NOISE)
    assert np.abs(tokenizer.decode(tokens, 6).astype(int) - Patches(CODES).decode(tokens, 6)).max() <= 1
    save_tokenizer(tokenizer, tmp_path / "tok", {})
    again = load_tokenizer(tmp_path / "tok")
    assert isinstance(again, Patches) and again.hash == tokenizer.hash and again.decoder is not None
    assert again.decoder.shape == shape
    with pytest.raises(InputError, match="expected a decoder of patches of 4, got one of 2"):
        Patches(CODES, PatchDecoder(CodecShape(2, None, 16, 2)))
    values = tokenizer.values()
    for wrong in (
        {"paint.bias": np.zeros(5, np.float32)},
        {"expand.weight": None},
        {"decoder": values["decoder"] | {"patch": 3}},
        {"decoder": values["decoder"] | {"patch": 2}},
    ):
        with pytest.raises(InputError, match="expected"):
            Patches.from_values(values | wrong)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("TOKENIZER --side 18", "--side: expected multiples of 4, got 18"),
        ("TOKENIZER --patch 3", "--patch: expected 2 or 4, got 3"),
        ("TOKENIZER --codes 1", "--codes: expected 2 to 16384, got 1"),
        ("TOKENIZER --codes 20000", "--codes: expected 2 to 16384, got 20000"),
        ("TOKENIZER --side 16 --codes 16000", "--codes: expected at most"),
        ("TOKENIZER --side 16 --out tok", "exists already"),
        ("PRETRAIN --tokenizer missing", "--tokenizer: expected a folder that nextpixel tokenizer"),
        ("PRETRAIN --tokenizer tok --side 18", "--side: expected multiples of 4, the pixels of a"),
        ("PRETRAIN --tokenizer tok --palette exact", "--tokenizer: cannot be combined with --palette"),
        ("PRETRAIN --tokenizer tok --side 16 --augment shift", "needs exact colours"),
        ("PRETRAIN --tokenizer tok --side 16 --fit place", "expected crop, imagenet or squash"),
        ("PRETRAIN --tokenizer tok --init embedded", "--tokenizer: expected tokens of 1 x 1 pixels"),
        ("plan --tokenizer tok --side 30", "--side: expected multiples of 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(
    photos: str, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(Patches(CODES), "tok", {})
    before = {path.name for path in Path().iterdir()}
    assert (
        main(
            words.replace("PRETRAIN", "pretrain photos.npy --out run")
            .replace("TOKENIZER", "tokenizer photos.npy --out new")
            .split()
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == before


def test_pixels_outside_a_hole_stay_themselves_to_its_rim() -> None:
    """A hole that no patch divides."""
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=(4, 6), colors=50), torch.float32)
    model.tokenizer = Patches(CODES)
    hole = np.zeros((16, 24), bool)
    hole[3:10, 5:11] = True
    for picture in nextpixel.complete(model, NOISE[:2], mask=hole, n=2, speed="exact"):
        pixels = np.asarray(picture)
        same = [np.array_equal(pixels[~hole], square[~hole]) for square in NOISE[:2]]
        assert sum(same) == 1 and not np.array_equal(pixels[hole], NOISE[same.index(True)][hole])


def test_what_patches_are_wrong_by_fades_into_the_hole() -> None:
    """Flat patches of 100 and 200 stand for 90: 10 too bright at the rim, on top of whatever is drawn."""
    tokenizer = Patches(np.full((2, 4, 4, 3), [[[[100]]], [[[200]]]], np.uint8))
    square = np.full((1, 32, 24, 3), 90, np.uint8)
    given = np.arange(32)[:, None] < 8
    for drawn in (100, 200):
        images = np.full((2, 32, 24, 3), 100, np.uint8)
        images[:, 8:] = drawn
        for rows in (32, 12):  # all, or those drawn so far
            joined = join(tokenizer, images[:, :rows], square, given).astype(int)
            assert (joined[:, :8] == 90).all()
            added = joined[0, 8:, 0, 0] - drawn
            assert (joined[:, 8:] - drawn == added[:, None, None]).all()
            assert added[0] == -9 and (np.diff(added) >= 0).all()
            assert (added[8:] == 0).all() and added[: min(8, rows - 8)].all()
    hole = np.ones((32, 24), bool)
    assert np.array_equal(join(tokenizer, images, square, ~hole), images)


@pytest.mark.parametrize("mask", [True, False])
def test_streamed_rows_end_as_the_picture(mask: bool) -> None:
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=(4, 6), colors=50), torch.float32)
    model.tokenizer = Patches(CODES)
    hole = np.zeros((16, 24), bool)
    hole[8:] = True
    settings = {"mask": hole} if mask else {"keep": 0.5}
    [picture] = nextpixel.complete(model, NOISE[0], **settings, speed="exact")
    rows = {row.y: row.pixels[0] for row in nextpixel.stream(model, NOISE[0], **settings, speed="exact")}
    assert sorted(rows) == list(range(8, 16))
    assert np.array_equal(np.stack([rows[y] for y in sorted(rows)]), np.asarray(picture)[8:])
