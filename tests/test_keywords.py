"""Public functions take keywords that editors and type checkers know; a typo is answered with the near name."""

import dataclasses
import inspect
import pickle
import typing

import numpy as np
import pytest
import torch

import nextpixel
from nextpixel import InputError, config
from nextpixel.config import PretrainConfig
from nextpixel.config.settings import Settings
from nextpixel.images import UnreadableImage, decode
from nextpixel.network.resnet import ResNet

PAIRS = {
    config.SamplingKeywords: config.SamplingConfig,
    config.PretrainKeywords: config.PretrainConfig,
    config.FinetuneKeywords: config.FinetuneConfig,
    config.DistillKeywords: config.DistillConfig,
}
FUNCTIONS = {name: value for name in nextpixel.__all__ if inspect.isfunction(value := getattr(nextpixel, name))}
SETTINGS = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Settings)]


@pytest.mark.parametrize(("keywords", "kind"), PAIRS.items(), ids=lambda kind: kind.__name__)
def test_keywords_are_the_fields_of_their_dataclass(keywords, kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    assert typing.get_type_hints(keywords) == {name: hints[name] for name in fields}
    assert keywords.__required_keys__ == frozenset()


def keywords_of(function):
    """The names a function takes, and whether each has a type."""
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kind = vars(config)[parameter.annotation.removeprefix("Unpack[").removesuffix("]")]
            yield from typing.get_type_hints(kind)
        elif parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            yield parameter.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_misspelled_keyword_of_a_function_names_the_near_one(name):
    function, names = FUNCTIONS[name], set(keywords_of(FUNCTIONS[name]))
    for keyword in {word for word in names if len(word) > 3}:
        with pytest.raises(TypeError, match=rf"^{name}: unknown argument '{keyword}x'; did you mean {keyword}\?$"):
            function(**{f"{keyword}x": 1})


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_a_misspelled_setting_names_the_near_one(kind):
    for field in dataclasses.fields(kind):
        expected = rf"^{kind.__name__}: unknown argument '{field.name}x'; did you mean {field.name}\?$"
        with pytest.raises(TypeError, match=expected):
            kind(**{f"{field.name}x": 1})


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda: config.SamplingConfig(zzz=1), "SamplingConfig: unknown argument 'zzz'; expected one of temperature, "),
        (
            lambda: nextpixel.LinearProbe(None, strenghts=[1]),
            "LinearProbe: unknown argument 'strenghts'; did you mean st",
        ),
        (
            lambda: nextpixel.sample(None, temprature=0.5),
            "sample: unknown argument 'temprature'; did you mean temperat",
        ),
        (lambda: nextpixel.complete(None, [], kep=0.5), "complete: unknown argument 'kep'; did you mean keep?"),
        (lambda: nextpixel.stream(None, [], toppp=1), "stream: unknown argument 'toppp'; did you mean top_p?"),
    ],
)
def test_typos_that_people_make(call, answer):
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value).startswith(answer)


@pytest.mark.parametrize("name", sorted({*nextpixel.__all__} - {"__version__"}))
def test_public_names_say_what_they_are(name):
    value = getattr(nextpixel, name)
    assert isinstance(value, dict) or len(inspect.getdoc(value) or "") > 20
    if name in FUNCTIONS:
        assert inspect.signature(value).return_annotation is not inspect.Signature.empty


def test_what_is_public_prints_in_one_line(model):
    noise = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    images = list(noise)
    probe = nextpixel.LinearProbe(model).fit(images, list("abababab"))
    shown = {
        "ExactPalette(2 colours, ": nextpixel.ExactPalette([[0, 0, 0, 255], [9, 9, 9, 255]]),
        "ImageGPT(2 layers x 24, 3 heads, 4 x 4 pixels, 16 colours, ": model,
        "ImageGPT(1 layers x 8, 2 heads, 3 x 2 pixels, 5 colours, ": nextpixel.ImageGPT(
            nextpixel.ImageGPTConfig(layers=1, width=8, heads=2, side=(2, 3), colors=5)
        ),
        "ImageGPTConfig(layers=24, width=512, heads=8, side=32, colors=512)": nextpixel.SIZES["s"],
        "ImageGPTConfig(layers=1, width=8, heads=2, side=(2, 3), colors=5, qk_norm=True)": nextpixel.ImageGPTConfig(
            layers=1, width=8, heads=2, side=(2, 3), colors=5, qk_norm=True
        ),
        "LinearProbe(2 classes, layers [": probe,
        "Palette(512 colours, ": nextpixel.Palette.openai(),
        "<2 PIL pictures of 4 x 4 pixels>": nextpixel.sample(model, 2),
        "DrawnRow(range(0, 2), y=2, pixels uint8 (2, 4, 3))": next(nextpixel.stream(model, images[:1], n=2)),
        "Oddness(8 images by nats_per_pixel, nats_corrected, ": nextpixel.odd_images(model, images),
        "ResNet(20 layers, 64 features, ": ResNet(config.ResNetConfig()),
    }
    for beginning, value in shown.items():
        assert repr(value).startswith(beginning) and len(repr(value)) < 200 and "\n" not in repr(value)


def test_settings_are_still_dataclasses():
    assert dataclasses.replace(config.SamplingConfig(), seed=3) == config.SamplingConfig(seed=3)
    assert pickle.loads(pickle.dumps(config.PretrainConfig(steps=3))) == config.PretrainConfig(steps=3)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda model, x: nextpixel.complete(model, x, keep="half"), "keep: expected a fraction .* got 'half'"),
        (lambda model, x: nextpixel.complete(model, x, keep=None), "keep: expected a fraction .* got None"),
        (lambda model, x: nextpixel.complete(model, x, n="2"), "n: expected a whole number, at least 1, got '2'"),
        (lambda model, x: nextpixel.sample(model, n=1.5), "n: expected a whole number, at least 1, got 1.5"),
        (lambda model, x: nextpixel.sample(model, n=0), "n: expected at least 1, got 0"),
        (lambda model, x: nextpixel.sample(model, n=10**9), "n: expected at most 100,000, got 1,000,000,000"),
        (lambda model, x: nextpixel.sample(model, seed="x"), "seed: expected a whole number, 0 or more, got 'x'"),
        (lambda model, x: nextpixel.sample(model, top_k=[1]), "top_k: expected a whole number, at least 1, got"),
        (lambda model, x: nextpixel.sample(model, temperature="hot"), "temperature: expected a number of 0 or more"),
        (lambda model, x: next(nextpixel.stream(model, None, n=2.0)), "n: expected a whole number"),
        (lambda model, x: nextpixel.load(dtype="fp32"), r"dtype: expected one of torch\.float32, .*, got 'fp32'"),
        (lambda model, x: nextpixel.load(dtype=torch.int8), r"dtype: expected one of torch\..* got torch\.int8"),
        (lambda model, x: PretrainConfig(steps="9"), "steps: expected a whole number, at least 1, got '9'"),
        (lambda model, x: PretrainConfig(learning_rate="x"), "learning_rate: expected a number above 0, got 'x'"),
        (lambda model, x: decode(np.zeros(4, np.uint8), "x"), r"x: expected \(H, W\), .* got the shape \(4,\)"),
        (lambda model, x: decode(np.zeros((0, 4, 3)), "x"), r"x: expected .* with pixels, got the shape \(0, 4, 3\)"),
    ],
)  # fmt: skip
def test_arguments_of_a_wrong_type_are_named(model, call, answer):
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=answer) as caught:
        call(model, image)
    assert isinstance(caught.value, InputError | UnreadableImage)


def test_numbers_of_numpy_are_numbers(model):
    ours, theirs = (nextpixel.sample(model, n=n, seed=seed)[1] for n, seed in ((2, 3), (np.int64(2), np.uint8(3))))
    assert np.array_equal(ours, theirs)
