"""Learned tokens: what a token depends on, folders, training that learns and resumes, and what can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively, random_codec
from safetensors.numpy import load_file, save_file

import nextpixel
from nextpixel import ImageGPTConfig, InputError
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import SamplingConfig
from nextpixel.drawing.sampling import draw
from nextpixel.tokens import load_tokenizer, read_tokenizer, reconstruction, save_tokenizer, write_tokenizer
from nextpixel.tokens.codec import LEVELS, Codec, CodecShape
from nextpixel.tokens.learned import Learned

NOISE = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), np.uint8)
SMALL = "--kind learned --codes 1000 --width 16 --blocks 2 --side 16 --batch-images 4 --device cpu --threads 1"


@pytest.mark.parametrize("codes", LEVELS)
@pytest.mark.parametrize("patch", [2, 4])
def test_every_token_is_decoded_and_read_again(patch: int, codes: int, tmp_path: Path) -> None:
    tokenizer = Learned(random_codec(patch, codes))
    assert len(tokenizer) == codes == np.prod(LEVELS[codes])
    tokens = tokenizer.encode(NOISE)
    assert tokens.shape == (6, (16 // patch) * (24 // patch)) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < codes and len(tokens.unique()) > 20
    assert torch.equal(tokenizer.encode(torch.from_numpy(NOISE)), tokens)
    pictures = tokenizer.decode(tokens, 24 // patch)
    assert pictures.shape == NOISE.shape and pictures.dtype == np.uint8
    assert tokenizer.decode(tokens[:, :0], 24 // patch).shape == (6, 0, 24, 3)
    ends = tokenizer.decode(np.array([[0, codes - 1]]), 2)
    assert ends.shape == (1, patch, 2 * patch, 3)
    again = read_tokenizer(json.loads(json.dumps(write_tokenizer(tokenizer, tmp_path))), tmp_path)
    assert again.hash == tokenizer.hash and again.patch == (patch, patch)
    assert torch.equal(again.encode(NOISE), tokens) and np.array_equal(again.decode(tokens, 24 // patch), pictures)


def test_numbers_of_tokens_and_levels_are_the_same() -> None:
    codec = random_codec()
    levels = codec.quantise(torch.from_numpy(NOISE).float().permute(0, 3, 1, 2) / 127.5 - 1)
    eight, five, *_ = LEVELS[1_000]
    by_hand = (levels * torch.tensor([1, eight, eight * five, eight * five * five])[:, None, None]).sum(1)
    assert torch.equal(Learned(codec).encode(NOISE), by_hand.flatten(1).long())
    assert torch.equal(levels, levels.round()) and levels.amax((0, 2, 3)).tolist() <= [7, 4, 4, 4]


def test_tokens_need_fp32_and_pixels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Learned(random_codec())
    tokens = tokenizer.encode(NOISE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(NOISE), tokens)
    found = {}
    for dtype in ("bf16", "fp32"):
        monkeypatch.setattr("nextpixel.tokens.codec.choose_dtype", lambda *_, dtype=dtype: dtype)
        found[dtype] = tokenizer.decode(tokens, 6).astype(int)
    difference = np.abs(found["bf16"] - found["fp32"])
    assert 0 < difference.max() <= 8 and difference.mean() < 0.5


@pytest.mark.parametrize("patch", [2, 4])
def test_a_token_depends_on_its_own_patch_alone_and_pixels_on_those_around(patch: int) -> None:
    tokenizer, others = Learned(random_codec(patch)), NOISE.copy()
    others[:, 8:] = 255 - others[:, 8:]
    own, changed = (tokenizer.encode(images).view(6, 16 // patch, -1) for images in (NOISE, others))
    assert torch.equal(own[:, : 8 // patch], changed[:, : 8 // patch])
    assert not torch.equal(own[:, 8 // patch :], changed[:, 8 // patch :])
    pictures = [tokenizer.decode(one.flatten(1), 24 // patch) for one in (own, changed)]
    assert not np.array_equal(pictures[0][:, 8 - patch : 8], pictures[1][:, 8 - patch : 8])


def test_gradients_pass_the_rounding() -> None:
    codec = random_codec()
    images = torch.from_numpy(NOISE).float().permute(0, 3, 1, 2) / 127.5 - 1
    (codec(images) - images).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.parameters())


def test_other_weights_shapes_and_images_are_refused(tmp_path: Path) -> None:
    for shape, message in (
        (dict(patch=3), "patch: expected 2 or 4"),
        (dict(codes=512), "codes: expected one of 1000, 4096, 16384, got 512"),
        (dict(width=7), "width: expected an even number"),
        (dict(width=514), "width: expected an even number from 2 to 512"),
        (dict(codes=4096.0), "codes: expected one of"),
        (dict(blocks=0), "blocks: expected an even number"),
    ):
        with pytest.raises(InputError, match=message):
            CodecShape(**shape)  # type: ignore[arg-type]
    for images in (NOISE[:, :15], NOISE[..., :1], NOISE.astype(np.float32)):
        with pytest.raises(ValueError, match="images: expected"):
            Learned(random_codec()).encode(images)
    save_tokenizer(Learned(random_codec()), tmp_path / "tok", {})
    path = tmp_path / "tok" / "tokenizer.safetensors"
    weights = load_file(path)
    for value, message in (
        (weights["paint.bias"][:5], r"of shape \(12,\)"),
        (weights["paint.bias"].astype(np.float64), "expected float32"),
        (np.full(12, np.nan, np.float32), "got NaN"),
        (weights["paint.bias"] + 1, "those of another"),
    ):
        save_file(weights | {"paint.bias": value}, path)
        with pytest.raises(InputError, match=message):
            load_tokenizer(tmp_path / "tok")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:16j, 0:1:16j]
    a, b = rng.uniform(-120, 120, (2, 24, 1, 1, 3))
    np.save("photos.npy", (128 + a * (x[..., None] - 0.5) + b * (y[..., None] - 0.5)).clip(0, 255).astype(np.uint8))
    return "photos.npy"


def test_a_run_learns_resumes_to_the_same_weights_and_serves_a_model(
    photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(words: str) -> str:
        assert main(words.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    settings = f"{SMALL} --steps 200 --evaluate-every-steps 100 --checkpoint-every-steps 80"
    told = json.loads(run(f"tokenizer {photos} {settings} --out tok --json"))
    whole = load_tokenizer("tok")
    assert told["sha256"] == whole.hash and told["codes"] == 1_000 and told["held_out_images"] == 2
    untrained = reconstruction(Learned(Codec(CodecShape(4, 1_000, 16, 2))), np.load(photos)).psnr_db
    assert told["psnr_db"] > untrained + 3
    log = [json.loads(line) for line in Path("tok/log.jsonl").read_text().splitlines()]
    figures = [entry for entry in log if "validation_psnr_db" in entry]
    assert [entry["step"] for entry in figures] == [100, 200] and 0 < figures[1]["validation_codes_used"] <= 1
    assert {path.name for path in Path("tok/samples").iterdir()} == {"step_0000100.png", "step_0000200.png"}

    for name in ("step_0000200", "best.json", "tokenizer.json", "tokenizer.safetensors"):
        path = Path("tok") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(f"pretrain {photos} --tokenizer tok --side 16 --out run".split()) == 2  # it is not trained to its end
    err = capsys.readouterr().err
    assert (
        "--tokenizer: expected a finished tokenizer, got " in err and "resume it: nextpixel tokenizer --resume" in err
    )
    assert main("sample --model tok".split()) == 2
    assert "--model: expected a model, got the tokenizer 'tok'" in capsys.readouterr().err
    assert main("info tok --html tok.html".split()) == 2
    assert "--html: expected the run of a model" in capsys.readouterr().err
    run("tokenizer --resume tok")
    assert load_tokenizer("tok").hash == whole.hash

    tiny = "--layers 1 --width 16 --heads 2 --steps 4 --batch-images 4 --sample-images 1 --device cpu --threads 1"
    run(f"pretrain {photos} --tokenizer tok --side 16 {tiny} --out run")
    shutil.rmtree("tok")
    model = nextpixel.load("run")
    assert model.size == (16, 16) and model.tokenizer.hash == whole.hash and model.config.colors == 1_000
    pictures = np.load(photos)
    drawing = draw(model, pictures, keep=0.5, sampling=SamplingConfig(speed="exact"))
    assert np.array_equal(drawing.images[:, :8], pictures[:, :8])
    assert json.loads(run(f"evaluate {photos} --model run --json"))["reconstruction"]["psnr_db"] > untrained


def test_a_long_run_does_not_explode(photos: str) -> None:
    """Steps as many and as large as made a decoder without weight decay explode; see optim.muon."""
    options = SMALL.replace("--codes 1000", "--codes 16").replace("learned", "patches --learned-decoder")
    command = f"tokenizer {photos} {options} --steps 150 --learning-rate 0.2 --evaluate-every-steps 150 --out tok"
    assert main(command.split()) == 0
    assert max(entry["highest_loss"] for entry in Run(Path("tok")).read_log() if "loss" in entry) < 1


def test_streamed_rows_are_decoded_below_those_before_them() -> None:
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=(4, 6), colors=1_000), torch.float32)
    model.tokenizer = Learned(random_codec())
    settings: dict[str, Any] = dict(n=2, seed=3, speed="exact")
    rows = list(nextpixel.stream(model, NOISE, keep=0.5, **settings))
    assert [row.y for row in rows] == list(range(8, 16))
    sampling = SamplingConfig(seed=3, speed="exact")
    last = draw(model, NOISE, keep=0.5, n=2, sampling=sampling).images  # no row follows the last ones
    assert all(np.array_equal(row.pixels, last[:, row.y]) for row in rows[4:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            f"tokenizer photos.npy {SMALL.replace('1000', '512')} --out tok",
            "--codes: expected one of 1000, 4096, 16384",
        ),
        (f"tokenizer photos.npy {SMALL} --width 5 --out tok", "--width: expected an even number"),
        (f"tokenizer photos.npy {SMALL} --side 18 --out tok", "--side: expected multiples of 4, got 18"),
        (f"tokenizer photos.npy {SMALL} --steps 0 --out tok", "--steps: expected at least 1, got 0"),
        (f"tokenizer photos.npy {SMALL}", "expected images and --out"),
        ("tokenizer --resume photos.npy", "--resume: expected a run folder"),
        (f"tokenizer photos.npy {SMALL} --fit place --out tok", "--fit: expected crop, imagenet or squash, got place"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    photos: str, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err and {path.name for path in Path().iterdir()} == {photos}
