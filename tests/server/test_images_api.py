"""The routes that OpenAI's clients use: the pictures of the package, in OpenAI's shapes."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `server`")

from fastapi.testclient import TestClient
from models import lively, with_words
from PIL import Image
from test_server import events_of

from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig, Palette, complete, sample
from nextpixel.config import ServeConfig
from nextpixel.images.fitting import fit_image
from nextpixel.server.app import create_app

CONFIG = ImageGPTConfig(layers=2, width=32, heads=4, side=6, colors=12)
PIXELS = np.random.default_rng(2).integers(0, 256, (6, 6, 3), np.uint8)
HOLE = np.zeros((6, 6), bool)
HOLE[2:4, 1:5] = True


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


TRANSPARENT = png(np.dstack([np.zeros((6, 6, 3), np.uint8), np.where(HOLE, 0, 255).astype(np.uint8)]))


@pytest.fixture(scope="module")
def plain() -> ImageGPT:
    model = lively(CONFIG)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    return model


@pytest.fixture(scope="module")
def words() -> ImageGPT:
    return with_words(CONFIG)


@pytest.fixture(scope="module")
def client(plain: ImageGPT, words: ImageGPT) -> Iterator[TestClient]:
    app = create_app({"plain": plain, "words": words}, ServeConfig(slots=4, speed="exact"))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def pictures(answer: Any) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [decoded(one["b64_json"]) for one in answer.json()["data"]]


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def same(found: list[np.ndarray], wanted: Any) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, map(np.asarray, wanted)))


def test_generations_are_those_of_the_package(client: TestClient, words: ImageGPT) -> None:
    body = {"model": "words", "prompt": "glasses", "n": 2, "seed": 3, "guidance": 2.0, "user": "me", "quality": "low"}
    answer = client.post("/v1/images/generations", json=body, headers={"Authorization": "Bearer unused"})
    assert same(pictures(answer), sample(words, n=2, caption="glasses", guidance=2.0, seed=3, speed="exact"))
    assert answer.json()["size"] == "6x6" and isinstance(answer.json()["created"], int)
    without = client.post("/v1/images/generations", json={"model": "words", "prompt": " ", "size": "auto"})
    assert same(pictures(without), sample(words, speed="exact"))


def test_a_hole_is_transparent_in_the_mask_or_else_in_the_picture(client: TestClient, plain: ImageGPT) -> None:
    wanted = complete(plain, Image.fromarray(PIXELS), n=2, mask=HOLE, particles=4, seed=1, speed="exact")
    fields = {"prompt": "", "n": "2", "seed": "1", "particles": "4"}
    masked = {"image": ("a.png", png(PIXELS)), "mask": ("b.png", TRANSPARENT)}
    assert same(pictures(client.post("/v1/images/edits", data=fields, files=masked)), wanted)
    own = np.dstack([PIXELS, np.where(HOLE, 0, 255).astype(np.uint8)])
    [first, _] = pictures(client.post("/v1/images/edits", data=fields, files={"image[]": ("a.png", png(own))}))
    assert np.array_equal(first[~HOLE], np.asarray(wanted[0])[~HOLE])
    rows = client.post("/v1/images/edits", data={"keep": "0.5"}, files={"image": ("a.png", png(PIXELS))})
    assert same(pictures(rows), complete(plain, Image.fromarray(PIXELS), speed="exact"))


def test_photographs_are_joined_at_a_larger_size(client: TestClient) -> None:
    large = np.random.default_rng(3).integers(0, 256, (24, 24, 3), np.uint8)
    files = {"image": ("a.png", png(large)), "mask": ("b.png", TRANSPARENT)}
    [found] = pictures(client.post("/v1/images/edits", data={"size": "24x24"}, files=files))
    kept = ~HOLE.repeat(4, 0).repeat(4, 1)
    assert np.array_equal(found[kept], large[kept]) and not np.array_equal(found, large)
    [small] = pictures(client.post("/v1/images/generations", json={}))
    [wide] = pictures(client.post("/v1/images/generations", json={"size": "18x18"}))
    assert wide.shape == (18, 18, 3) and abs(wide.mean((0, 1)) - small.mean((0, 1))).max() < 8


def test_a_model_of_squashed_pictures_is_joined_to_the_whole_picture() -> None:
    model = lively(CONFIG)
    model.palette, model.fit = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3))), "squash"
    wide = np.random.default_rng(3).integers(0, 256, (12, 24, 3), np.uint8)
    files = {"image": ("a.png", png(wide)), "mask": ("b.png", TRANSPARENT)}
    with TestClient(create_app({"squashed": model}, ServeConfig(slots=4)), base_url="http://127.0.0.1:8000") as client:
        [found] = pictures(client.post("/v1/images/edits", data={"size": "12x12"}, files=files))
    kept = ~HOLE.repeat(2, 0).repeat(2, 1)
    assert np.array_equal(found[kept], fit_image(Image.fromarray(wide), (12, 12), "squash")[kept])


def sprites() -> tuple[ImageGPT, np.ndarray]:
    """A model of pixel art on a canvas of 6 x 6, and a picture of 4 x 4."""
    model = lively(ImageGPTConfig(layers=2, width=32, heads=4, side=6, colors=3))
    model.fit = "place"
    model.tokenizer = ExactPalette(np.array([[255, 0, 0, 255], [0, 0, 0, 0], [10, 20, 30, 255]], np.uint8))
    sprite = np.broadcast_to(np.array([255, 0, 0, 255], np.uint8), (4, 4, 4)).copy()
    sprite[0, 0] = 10, 20, 30, 255
    return model, sprite


def test_pixel_art_is_placed_with_its_mask_and_enlarged_without_smoothing() -> None:
    model, sprite = sprites()
    mask = np.full((4, 4, 4), 255, np.uint8)
    mask[2:, 1:, 3] = 0
    filled = np.zeros((6, 6), bool)
    filled[3:5, 2:5] = True  # in the middle of the canvas, as the sprite is
    files = {"image": ("a.png", png(sprite)), "mask": ("b.png", png(mask))}
    with TestClient(create_app({"sprites": model}, ServeConfig(slots=4)), base_url="http://127.0.0.1:8000") as client:
        answer = client.post("/v1/images/edits", data={"size": "18x18", "temperature": "9"}, files=files)
        [found] = pictures(answer)
        [partial, _] = events_of(
            client.post("/v1/images/generations", json={"stream": True, "partial_images": 1, "temperature": 9}).text
        )
    small = found[::3, ::3]
    assert answer.json()["background"] == "transparent" and np.array_equal(found, small.repeat(3, 0).repeat(3, 1))
    placed = np.zeros((6, 6, 4), np.uint8)
    placed[1:5, 1:5] = sprite
    assert np.array_equal(small[~filled], placed[~filled]) and not np.array_equal(small, placed)
    assert (decoded(partial[1]["b64_json"])[3:] == 0).all()


def test_a_mask_of_pixel_art_has_the_size_of_the_picture_or_of_the_canvas() -> None:
    model, sprite = sprites()
    filled = np.zeros((6, 6), bool)
    filled[3:5, 2:5] = True
    with TestClient(create_app({"sprites": model}, ServeConfig(slots=4)), base_url="http://127.0.0.1:8000") as client:
        for shown in (filled[1:5, 1:5], filled):
            body = {"image": base64.b64encode(png(sprite)).decode(), "temperature": 9, "seed": 1}
            body["mask"] = base64.b64encode(png(shown.astype(np.uint8) * 255)).decode()
            wanted = complete(model, Image.fromarray(sprite), mask=shown, temperature=9, seed=1)
            assert same(
                [decoded(client.post("/v1/complete", json=body).json()["images"][0])],
                [one.convert("RGBA") for one in wanted],
            )
        small = filled[2:5, 2:5]
        body["mask"] = base64.b64encode(png(small.astype(np.uint8) * 255)).decode()
        clear = png(np.dstack([np.zeros((3, 3, 3), np.uint8), np.where(small, 0, 255).astype(np.uint8)]))
        for answer in (
            client.post("/v1/complete", json=body),
            client.post("/v1/images/edits", files={"image": ("a.png", png(sprite)), "mask": ("b.png", clear)}),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "mask")
            assert "expected 4 x 4 pixels as the picture, or the model's 6 x 6, got 3 x 3" in error["message"]


def test_partial_images_show_more_and_more_rows(client: TestClient, plain: ImageGPT) -> None:
    body = {"stream": True, "partial_images": 2, "seed": 4}
    answer = client.post("/v1/images/generations", json=body)
    names, data = zip(*events_of(answer.text), strict=True)
    assert names == ("image_generation.partial_image",) * 2 + ("image_generation.completed",)
    assert [one["type"] for one in data] == list(names)
    assert [one.get("partial_image_index") for one in data] == [0, 1, None]
    *partial, whole = (decoded(one["b64_json"]) for one in data)
    assert same([whole], sample(plain, seed=4, speed="exact"))
    for picture, rows in zip(partial, (2, 4), strict=True):
        assert np.array_equal(picture[:rows], whole[:rows]) and (picture[rows:] == 225).all()
    files = {"image": ("a.png", png(PIXELS)), "mask": ("b.png", TRANSPARENT)}
    edited = client.post("/v1/images/edits", data={"stream": "true", "n": "2"}, files=files)
    assert [name for name, _ in events_of(edited.text)] == ["image_edit.completed"] * 2


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": "a cat"}, "prompt", "expected an empty one, as plain was trained without captions, got 'a cat'"),
        ({"model": "words", "prompt": "glases"}, "prompt", "'glases'"),
        ({"size": "1000x1000"}, "size", "expected auto, 6x6, or a whole multiple such as 12x12, up to 2046x2046"),
        ({"size": "12x6"}, "size", "whole multiple"),
        ({"size": "1536x1536", "n": 8}, "size", "at most 16,777,216 pixels in all pictures, got 18,874,368 (n is 8)"),
        ({"response_format": "url"}, "response_format", "expected b64_json, got 'url'; the server keeps no files"),
        ({"format": "png"}, "format", "expected json, got 'png'"),
        ({"output_format": "webp"}, "output_format", "expected png, got 'webp'"),
        ({"partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({"n": 33}, "n", "expected at most 32, got 33"),
        ({"sizes": "auto"}, "sizes", "not permitted"),
    ],
)
def test_refusals_name_the_field(client: TestClient, body: dict[str, Any], param: str, message: str) -> None:
    answer = client.post("/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and message in error["message"], answer.text
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)


def test_edits_without_anything_to_draw_are_refused(client: TestClient) -> None:
    image = {"image": ("a.png", png(PIXELS))}
    nearly = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 254, np.uint8)])
    for files, message in (
        (image | {"mask": ("b.png", png(nearly))}, "mask: expected transparent pixels, which are drawn, got none"),
        (image, "image: expected transparent pixels, which are drawn, a mask or `keep`, got none"),
        (image | {"mask": ("b.png", png(PIXELS))}, "mask: expected transparent pixels, which are drawn, got none"),
        ({"image": ("a.png", png(np.zeros((6, 6, 4), np.uint8)))}, "image: expected opaque pixels"),
    ):
        error = client.post("/v1/images/edits", files=files).json()["error"]
        assert error["message"].startswith(message), error
    for last in ("image[]", "image"):
        two = [("image[]", ("a.png", png(PIXELS))), (last, ("b.png", png(PIXELS)))]
        assert "image twice" in client.post("/v1/images/edits", files=two).json()["error"]["message"]
    both = client.post("/v1/images/edits", data={"keep": "0.5"}, files=image | {"mask": ("b.png", TRANSPARENT)})
    assert both.json()["error"]["message"].startswith("keep: cannot be combined with `mask`"), both.text
    answer = client.post("/v1/images/generations", json={"model": "gpt-image-1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")


def test_models_are_listed_as_openai_does(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(one["id"], one["object"]) for one in listed["data"]] == [("plain", "model"), ("words", "model")]
