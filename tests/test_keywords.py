"""Public functions take keywords that editors and type checkers know; a typo is answered with the near name."""

import dataclasses
import inspect
import pickle
import typing

import pytest

import nextpixel
from nextpixel import config
from nextpixel.config.keywords import Settings

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


def test_settings_are_still_dataclasses():
    assert dataclasses.replace(config.SamplingConfig(), seed=3) == config.SamplingConfig(seed=3)
    assert pickle.loads(pickle.dumps(config.PretrainConfig(steps=3))) == config.PretrainConfig(steps=3)
