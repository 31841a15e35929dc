import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import lively

import nextpixel
from nextpixel import ExactPalette, ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.config import ResNetConfig
from nextpixel.evaluation.comparison import choose_real, compare_feature_files
from nextpixel.images import from_array
from nextpixel.network.resnet import ResNet
from nextpixel.representation.extractors import Extractor, onnx_extractor, open_extractor, pixel_extractor
from nextpixel.tokens import reconstruct

COLOURS = np.array([[-1.0, -1, -1], [1, 1, 1], [1, -1, -1]])


def squares(count: int, side: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture
def model() -> ImageGPT:
    model = lively(ImageGPTConfig(layers=2, width=8, heads=2, side=4, colors=3)).eval()
    model.palette = Palette(COLOURS)
    return model


# ---- extractors


def test_the_pixel_extractor_gives_the_pixels(model: ImageGPT) -> None:
    extractor = open_extractor("pixels", model)
    assert extractor.name == "pixels-4"
    assert np.array_equal(extractor(squares(3)), (squares(3) / 255).astype(np.float32).reshape(3, -1))


def test_a_model_gives_its_hidden_states_and_its_hash(model: ImageGPT, tmp_path: Path) -> None:
    nextpixel.save(model, tmp_path / "model")
    for layer, taken in ((2, 2), (None, 1)):
        extractor = open_extractor(str(tmp_path / "model"), model, layer)
        assert np.allclose(extractor(squares(3)), nextpixel.features(model, squares(3), layer=taken), atol=1e-6)
        assert extractor.name.startswith("igpt-") and extractor.name.endswith(f" layer {taken}")
    before = extractor.name
    model.head.weight.data[-1, -1] += 1
    nextpixel.save(model, tmp_path / "other")
    assert open_extractor(str(tmp_path / "other"), model).name != before, "a single weight counts"


def test_a_student_gives_its_pooled_features_and_its_statistics_count(model: ImageGPT, tmp_path: Path) -> None:
    student = ResNet(ResNetConfig(blocks=1, side=8)).eval()
    nextpixel.save(student, tmp_path / "student")
    extractor = open_extractor(str(tmp_path / "student"), model)
    assert extractor.size == (8, 8) and extractor.name.startswith("resnet-") and extractor.name.endswith(" layer 0")
    assert np.allclose(extractor(squares(3, 8)), nextpixel.features(student, squares(3, 8)), atol=1e-6)
    student.norm.running_mean += 1
    nextpixel.save(student, tmp_path / "other")
    assert open_extractor(str(tmp_path / "other"), model).name != extractor.name
    with pytest.raises(InputError, match="layer: "):
        open_extractor(str(tmp_path / "student"), model, 1)


def test_an_untrained_network_is_the_same_each_time(model: ImageGPT) -> None:
    one, again = (open_extractor("untrained", model) for _ in range(2))
    assert one.name == again.name and np.array_equal(one(squares(3)), again(squares(3)))
    assert not np.allclose(one(squares(3)), nextpixel.features(model, squares(3)), atol=1e-3)


def test_pictures_of_another_side_are_resized() -> None:
    flat = np.broadcast_to(squares(5, 1), (5, 8, 8, 3))
    assert np.array_equal(pixel_extractor((4, 4))(flat), pixel_extractor((4, 4))(np.ascontiguousarray(flat[:, :4, :4])))


@pytest.fixture
def art() -> ImageGPT:
    """A model of exact colours, two of them with transparency."""
    art = lively(ImageGPTConfig(layers=2, width=8, heads=2, side=4, colors=4), torch.float32)
    art.tokenizer = ExactPalette(np.array([[0, 0, 0, 0], [200, 10, 0, 100], [200, 0, 0, 255], [0, 0, 250, 255]]))
    return art


def test_pictures_are_laid_over_white_or_made_opaque_for_what_takes_others(
    model: ImageGPT, art: ImageGPT, tmp_path: Path
) -> None:
    nextpixel.save(model, tmp_path / "model")
    nextpixel.save(ResNet(ResNetConfig(blocks=1, side=8)).eval(), tmp_path / "student")
    nextpixel.save(art, tmp_path / "art")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 4), np.uint8)
    alpha = pictures[..., 3:] / 255.0
    flat = np.stack([np.asarray(from_array(one)) for one in pictures])
    assert np.abs(flat - (pictures[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    own = Extractor("own", (4, 4), lambda x: x.reshape(len(x), -1).astype(np.float32))
    assert np.array_equal(own(pictures), flat.reshape(5, -1))
    for name in ("model", "student"):
        extractor = open_extractor(str(tmp_path / name), art)
        assert np.array_equal(extractor(pictures), extractor(flat))
    assert np.array_equal(open_extractor("pixels", art)(pictures), (pictures / 255).astype(np.float32).reshape(5, -1))
    opaque = np.concatenate([flat, np.full((5, 4, 4, 1), 255, np.uint8)], 3)
    extractor = open_extractor(str(tmp_path / "art"), model)
    assert np.array_equal(extractor(flat), nextpixel.features(art, list(opaque)))
    real = np.random.default_rng(1).integers(0, 256, (45, 4, 4, 4), np.uint8)
    names = [str(tmp_path / "model"), str(tmp_path / "student"), "pixels", "untrained"]
    found = nextpixel.compare_samples(art, list(real), 20, extractor=names)
    assert [one.width for one in found] == [8, 64, 64, 8] and all(one.palette is not None for one in found)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pixel_extractor((4, 4))(squares(10))
    monkeypatch.setattr("nextpixel.representation.extractors.CHUNK_IMAGES", 3)
    assert [len(part) for part in pixel_extractor((4, 4)).chunks(squares(10))] == [3, 3, 3, 1]
    assert np.array_equal(pixel_extractor((4, 4))(squares(10)), whole)


# ---- ONNX


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str, shape: list[Any], answer: Any) -> list[np.ndarray]:
    """An onnxruntime whose network has that input, and the arrays that it gets."""
    fed: list[np.ndarray] = []

    def run(_: Any, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        fed.append(values["x"])
        return [answer(values["x"])]

    inputs = [SimpleNamespace(name="x", type=kind, shape=shape)]
    session = SimpleNamespace(get_inputs=lambda: inputs, run=run)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=lambda *_, **__: session))
    return fed


@pytest.fixture
def network(tmp_path: Path) -> Path:
    (tmp_path / "net.onnx").write_bytes(b"as it were")
    return tmp_path / "net.onnx"


def test_an_onnx_network_gets_the_input_that_its_file_declares(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mean(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1).mean(1, keepdims=True)

    fed = pretend(monkeypatch, "tensor(float)", ["N", 3, 8, 8], lambda x: mean(x)[..., None])
    white = np.full((70, 4, 4, 3), 255, np.uint8)
    white[:, :, :, 1] = 0
    extractor = onnx_extractor(network, (4, 4))
    assert extractor.size == (8, 8) and extractor.name.startswith("net-")
    assert np.allclose(extractor(white), 1 / 3)
    assert [x.shape for x in fed] == [(64, 3, 8, 8), (6, 3, 8, 8)] and fed[0].dtype == np.float32
    assert fed[0][:, 0].min() == 1 and fed[0][:, 1].max() == -1

    fed = pretend(monkeypatch, "tensor(uint8)", [4, None, None, 3], mean)
    extractor = onnx_extractor(network, (4, 4))
    assert np.allclose(extractor(white[:6]), 170) and extractor(white[:6]).shape == (6, 1)
    assert [x.shape for x in fed[:2]] == [(4, 4, 4, 3)] * 2 and fed[0].dtype == np.uint8

    fed = pretend(monkeypatch, "tensor(float)", [None, 3, 8, 6], mean)
    onnx_extractor(network, (4, 4))(white)
    assert fed[0].shape == (64, 3, 8, 6)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("tensor(double)", [None, 3, 8, 8]),
        ("tensor(float)", [None, 8, 8, 3]),
        ("tensor(uint8)", [None, 3, 8, 8]),
        ("tensor(float)", [None, 192]),
    ],
)
def test_a_network_with_another_input_is_refused(
    kind: str, shape: list[Any], network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, kind, shape, lambda x: x)
    with pytest.raises(InputError, match=r"net\.onnx: expected one input, uint8 \(N, H, W, 3\) or float32"):
        onnx_extractor(network, (8, 8))


def test_an_output_that_is_a_map_is_refused(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensor(float)", [None, 3, 4, 4], lambda x: x)
    with pytest.raises(InputError, match=r"expected an output \(N, D\), got \(2, 3, 4, 4\)"):
        onnx_extractor(network, (4, 4))(squares(2))


def test_without_onnxruntime_the_message_has_the_command_that_installs_it(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'nextpixel\[onnx\]'"):
        onnx_extractor(network, (4, 4))


def test_a_real_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(InputError, match=r"text\.onnx: expected a network in ONNX format"):
        onnx_extractor(tmp_path / "text.onnx", 4)
    helper, kinds = onnx.helper, onnx.TensorProto
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", kinds.FLOAT, ["N", 3, 4, 4])
    y = helper.make_tensor_value_info("y", kinds.FLOAT, ["N", 3, 1, 1])
    graph = helper.make_graph([node], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "pool.onnx")
    found = onnx_extractor(tmp_path / "pool.onnx", 9)(squares(5))
    assert np.allclose(found, squares(5).mean((1, 2)) / 127.5 - 1, atol=1e-5)


# ---- comparison


def test_compare_samples_takes_anything_with_features(model: ImageGPT) -> None:
    colours = Extractor("colours", (4, 4), lambda x: x.mean((1, 2)).astype(np.float32))
    real = squares(90)
    bright, same = nextpixel.compare_samples(model, real, squares(30, seed=1) // 4 + 190, extractor=[colours, "pixels"])
    assert (bright.extractor, bright.width, same.width) == ("colours", 3, 48)
    assert bright.drawn.precision == 0 and bright.floor.precision > 0.5 and bright.palette is None
    assert bright.drawn.frechet > 100 * bright.floor.frechet
    (drawn,) = nextpixel.compare_samples(model, real, 20, references=40, extractor=colours, seed=1)
    assert (drawn.drawn.samples, drawn.drawn.references) == (20, 40) and drawn.palette is not None
    assert drawn.floor.references == 40 and drawn.floor.samples == 20


def test_real_images_are_chosen_by_the_seed_without_repeats() -> None:
    choice = choose_real(100, 30, None, 0)
    assert len(choice.reference) == 30 and choice.floor[0] is choice.reference
    assert len(choice.floor[1]) == 30 and not set(choice.reference) & set(choice.floor[1])
    assert np.array_equal(choose_real(100, 30, None, 0).reference, choice.reference)
    assert not np.array_equal(choose_real(100, 30, None, 1).reference, choice.reference)
    few = choose_real(50, 40, None, 0)
    assert [len(part) for part in (few.reference, *few.floor)] == [40, 25, 25]
    assert not set(few.floor[0]) & set(few.floor[1])


def test_the_floor_is_the_metric_of_real_pictures(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 6))
    np.savez(tmp_path / "a.npz", features=rows[:150])
    np.savez(tmp_path / "b.npz", features=rows[150:])
    found = compare_feature_files(tmp_path / "a.npz", tmp_path / "b.npz")
    assert found.extractor.startswith("features-") and found.drawn.samples == found.floor.samples == 50
    assert found.drawn.frechet == pytest.approx(found.floor.frechet, rel=0.5)
    assert abs(found.drawn.kernel) < 4 * found.drawn.kernel_error


def test_colours_of_the_palette_stay() -> None:
    """A copy keeps distance 0, although it and the original are converted to the model's colours."""
    palette = Palette.openai()
    pictures = palette.rgb.reshape(2, 16, 16, 3)
    assert np.array_equal(reconstruct(palette, pictures), pictures)
