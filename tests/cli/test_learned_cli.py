"""Every verb over a model whose tokens a learned codec made."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import lively, random_codec
from PIL import Image

import nextpixel
from nextpixel import ImageGPTConfig
from nextpixel.cli import main
from nextpixel.tokens import save_tokenizer
from nextpixel.tokens.learned import Learned

TINY = "--batch-images 4 --device cpu --threads 1"
RUN = (
    f"pretrain photos.npy --tokenizer tok --side 16 --layers 1 --width 16 --heads 2 --steps 1 --sample-images 0 {TINY}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its tokenizer, photos, and dark and bright ones with labels, in two splits."""
    folder = tmp_path_factory.mktemp("learned")
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=4, colors=1_000), torch.float32)
    model.tokenizer = Learned(random_codec())
    nextpixel.save(model, folder / "model")
    save_tokenizer(model.tokenizer, folder / "tok", {})
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (60, 16, 16, 3), np.uint8)
    photos[1::2] //= 3
    np.save(folder / "photos.npy", photos[:20])
    np.save(folder / "one.npy", photos[:1])
    np.save(folder / "real.npy", photos[::2].repeat(2, 0) // 2 + rng.integers(0, 128, photos.shape, np.uint8))
    for number, photo in enumerate(photos[:28]):
        place = folder / "labelled" / ("train" if number < 16 else "test") / ("dark" if number % 2 else "bright")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(place / f"{number}.png")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"


def run(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = main(words.split())
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


VERBS = [
    ("complete one.npy --model model --full full --out c.png", "nats per pixel"),
    ("complete one.npy --model model --box 3,3,11,9 --particles 2 -n 1 --full full --out c.png", "nats per pixel"),
    ("vary one.npy --model model -n 1 --strength 0.2 --out v.png", "v.png"),
    ("score photos.npy --model model", "mean"),
    ("bench --model model --work decode,score,encode --batch 1 --repeats 1 --pixels 2 --device cpu", "encode"),
    ("convert model copy; sample --model copy -n 1 --out s.png", "s.png"),
    ("prepare photos.npy ready --side 16; features ready --model model --out f.npz", "20 images, 32 features"),
    ("probe labelled --model model --no-baselines --out probe; predict probe one.npy", "bright"),
    (f"finetune labelled --model model --epochs 1 --augment flip {TINY} --out ft; predict ft one.npy", "bright"),
    (f"distill photos.npy --model model --steps 1 --blocks 1 {TINY} --out st; features one.npy --model st --out f.npz",
     "1 images, 64 features"),
    (f"{RUN} --out a; {RUN} --seed 1 --out b; study a b --data labelled --out study", "on 12 test images"),
    (f"{RUN} --out a; info a --html a.html", "reconstruction_psnr_db"),
]  # fmt: skip


@pytest.mark.parametrize(("commands", "told"), VERBS, ids=[commands.split()[0] for commands, _ in VERBS])
def test_every_verb(here: Path, commands: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands.split("; "):
        found = run(words, capsys)
    assert told in found


def test_samples_are_compared_by_a_network_that_is_not_ours_beside_the_codecs_own_floor(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Session:
        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="x", type="tensor(uint8)", shape=["N", 16, 16, 3])]

        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [given["x"].reshape(-1, 16, 4, 4, 3).std(1).mean(1).astype(np.float32).reshape(len(given["x"]), -1)]

    monkeypatch.setitem(
        __import__("sys").modules, "onnxruntime", SimpleNamespace(InferenceSession=lambda *_, **__: Session())
    )
    Path("net.onnx").write_bytes(b"as it were")
    found = json.loads(run("evaluate real.npy --model model --samples 20 --extractor net.onnx --json", capsys))
    [frechet] = [value for name, value in found["metrics"].items() if name.startswith("frechet")]
    assert 0 < frechet["floor"] < frechet["palette"] and frechet["value"] > frechet["floor"]
    assert "in the model's tokens" in run("evaluate real.npy --model model --samples 20 --extractor net.onnx", capsys)


def test_a_pushed_folder_has_its_tokenizer(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hub:
        def create_repo(self, *_: object, **__: object) -> None: ...

        def upload_folder(self, folder_path: Path, **_: object) -> str:
            shutil.copytree(folder_path, "pushed")
            return "hub:ann/tiny"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert run("push model ann/tiny", capsys) == "hub:ann/tiny\n"
    assert nextpixel.load("pushed").tokenizer.hash == nextpixel.load("model").tokenizer.hash


def test_served_pictures_are_those_of_the_package(here: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `server`")
    import base64
    import io

    from fastapi.testclient import TestClient

    from nextpixel.config import ServeConfig
    from nextpixel.server.app import create_app

    model = nextpixel.load("model")
    picture, sent = Image.fromarray(np.load("one.npy")[0]), io.BytesIO()
    picture.save(sent, "PNG")
    body = {"image": base64.b64encode(sent.getvalue()).decode(), "n": 2, "seed": 1}
    with TestClient(
        create_app({"model": model}, ServeConfig(speed="exact")), base_url="http://127.0.0.1:8000"
    ) as client:
        answer = client.post("/v1/complete", json=body)
        assert answer.status_code == 200, answer.text
        found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in answer.json()["images"]]
    wanted = nextpixel.complete(model, picture, n=2, seed=1, speed="exact")
    assert np.array_equal(np.stack(found), np.stack([np.asarray(one) for one in wanted]))


WRONG = [
    ("pretrain photos.npy --tokenizer model --side 16 --out x", "--tokenizer: expected a folder"),
    ("pretrain photos.npy --tokenizer tok --side 18 --out x", "--side: expected multiples of 4"),
    ("pretrain photos.npy --tokenizer tok --palette openai --out x", "--tokenizer: cannot be combined with --palette"),
    ("pretrain photos.npy --init model --palette exact --out x", "--init: cannot be combined with --palette"),
    ("pretrain --resume run --tokenizer tok", "--resume: cannot be combined with --tokenizer"),
    ("convert model x --for-transformers", "cannot be saved for transformers"),
    ("sample --model model --allow-colors #ff0000", "the tokens of this model are not colours"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_what_cannot_be_is_one_sentence(
    here: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err and not Path("x").exists()


def test_a_model_without_its_tokenizer_or_with_another_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("model/tokenizer.safetensors")
    path.rename("kept")
    assert main("sample --model model".split()) == 2
    assert f"{path}: expected the arrays of a tokenizer (learned), got no such file" in capsys.readouterr().err
    other = random_codec()
    other.paint.bias.data += 1
    save_tokenizer(Learned(other), "other", {})
    shutil.copy("other/tokenizer.safetensors", path)
    assert main("sample --model model".split()) == 2
    assert "got those of another" in capsys.readouterr().err
    Path("kept").replace(path)
    values = json.loads(Path("model/preprocessor_config.json").read_text())
    del values["nextpixel"]["tokenizer"]
    Path("model/preprocessor_config.json").write_text(json.dumps(values))
    assert main("sample --model model".split()) == 2
    assert "model/preprocessor_config.json: clusters: " in capsys.readouterr().err


def test_a_run_resumes_with_its_own_tokenizer_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{RUN.replace('--steps 1', '--steps 2')} --checkpoint-every-steps 1 --out run", capsys)
    other = random_codec()
    other.squeeze.weight.data *= -1
    save_tokenizer(Learned(other), "other", {})
    path = Path("run/tokenizer.safetensors")
    shutil.copy("other/tokenizer.safetensors", path)
    assert main("pretrain --resume run".split()) == 2
    assert f"{path}: expected the arrays of the tokenizer" in capsys.readouterr().err
