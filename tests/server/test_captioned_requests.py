"""Captions, guidance and colours over HTTP."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `server`")

from fastapi.testclient import TestClient
from models import lively, with_words
from PIL import Image

from nextpixel import ImageGPT, ImageGPTConfig, Palette, complete, sample
from nextpixel.config import ServeConfig
from nextpixel.network.decoding import Decoder
from nextpixel.server.app import create_app

CONFIG = ImageGPTConfig(layers=2, width=32, heads=4, side=6, colors=12)
PICTURE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 6, 3), np.uint8))


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    return with_words(CONFIG)


@pytest.fixture(scope="module")
def client(model: ImageGPT) -> Iterator[TestClient]:
    plain = lively(CONFIG)
    plain.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    app = create_app({"words": model, "plain": plain}, ServeConfig(slots=5, speed="exact"))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def drawn(client: TestClient, **body: Any) -> np.ndarray:
    path = "/v1/complete" if "image" in body else "/v1/sample"
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in answer.json()["images"]])


def text(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


SETTINGS: list[dict[str, Any]] = [
    {"seed": 1},
    {"caption": "long red hair, glasses"},
    {"caption": "long red hair, glasses", "guidance": 3.0},
    {"caption": "green shirt", "guidance": 0.0, "seed": 2},
    {"caption": "happy", "guidance": 1.5, "temperature": 0.7},
    {"allow_colors": "1,2,5", "n": 3},
    {"caption": "hat", "forbid_colors": "0,3", "guidance": 2.0},
]


def test_pictures_are_those_of_the_package_whatever_else_is_drawn(client: TestClient, model: ImageGPT) -> None:
    with ThreadPoolExecutor(len(SETTINGS)) as pool:  # more rows than slots, and different guidance side by side
        found = list(pool.map(lambda body: drawn(client, **({"n": 2} | body)), SETTINGS))
    for body, images in zip(SETTINGS, found, strict=True):
        wanted = sample(model, body.get("n", 2), speed="exact", **{key: body[key] for key in body if key != "n"})
        assert np.array_equal(images, np.stack([np.asarray(picture) for picture in wanted])), body


def test_a_row_is_drawn_twice_only_where_it_is_guided(
    client: TestClient, model: ImageGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens: (rows.append(len(tokens)), step(self, tokens))[1])
    drawn(client, caption="red hair", n=3)
    assert set(rows) == {3} and len(rows) == 35
    rows.clear()
    drawn(client, caption="red hair", guidance=2.0, n=2)
    assert set(rows) == {4} and len(rows) == 35
    assert drawn(client, caption="red hair", guidance=2.0, n=5).shape[0] == 5  # more than there are slots for


def test_completions_take_captions(client: TestClient, model: ImageGPT) -> None:
    settings: dict[str, Any] = {"caption": "red hair", "guidance": 2.0, "seed": 3}
    found = drawn(client, image=text(PICTURE), n=2, keep=0.5, **settings)
    wanted = complete(model, PICTURE, keep=0.5, n=2, speed="exact", **settings)
    assert np.array_equal(found, np.stack([np.asarray(picture) for picture in wanted]))
    assert not np.array_equal(found, drawn(client, image=text(PICTURE), n=2, keep=0.5, seed=3))


def test_models_list_their_words(client: TestClient, model: ImageGPT) -> None:
    told = {one["id"]: one["words"] for one in client.get("/v1/models").json()["models"]}
    assert model.words is not None
    assert told == {"words": list(model.words.table), "plain": None}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"caption": "zebra"}, "caption: expected words that the model knows, got 'zebra'"),
        ({"caption": ",".join(["red"] * 17)}, "caption: expected at most 16 tags"),
        ({"caption": "r" * 2001}, "caption: string should have at most 2000 characters"),
        ({"caption": 7}, "caption: input should be a valid string"),
        ({"caption": "red", "model": "plain"}, "caption: expected none, as the model was trained without captions"),
        ({"guidance": 2, "model": "plain"}, "guidance: expected 1, as the model was trained without captions, got 2"),
        ({"guidance": 2}, "guidance: expected 1, without `caption`, got 2"),
        ({"caption": "red", "guidance": -1}, "guidance: input should be greater than or equal to 0"),
        ({"allow_colors": "99"}, "allow_colors: expected #rrggbb"),
        ({"allow_colors": "1", "forbid_colors": "1"}, "forbid_colors: expected at least one of 12 colours"),
    ],
)
def test_bad_captions_are_refused_in_one_sentence(client: TestClient, body: dict[str, Any], message: str) -> None:
    answer = client.post("/v1/sample", json=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"].startswith(message), answer.text
