import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nextpixel
from nextpixel import SIZES, ImageGPT, ImageGPTConfig, InputError
from nextpixel.config import PretrainConfig, peak_rate, read_recipe, replace_checked

# Exact counts for 512 colours and no class head; at side 32 those of S, M, L and XL are the paper's own.
PARAMETERS = {
    ("xxs", 32): 3_050_112,
    ("xs", 32): 6_820_352,
    ("s", 32): 76_571_648,
    ("m", 32): 455_157_760,
    ("l", 32): 1_362_250_752,
    ("xl", 32): 6_801_438_720,
    ("s", 48): 77_227_008,
    ("m", 48): 456_468_480,
    ("l", 48): 1_364_216_832,
    ("xl", 48): 6_805_370_880,
    ("s", 64): 78_144_512,
    ("m", 64): 458_303_488,
    ("l", 64): 1_366_969_344,
    ("xl", 64): 6_810_875_904,
}


@pytest.mark.parametrize(("size", "side"), PARAMETERS)
def test_sizes_have_exactly_the_published_number_of_parameters(size: str, side: int) -> None:
    config = dataclasses.replace(SIZES[size], side=side)
    with torch.device("meta"):
        model = ImageGPT(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters == PARAMETERS[size, side]


def test_sizes_have_the_published_learning_rates() -> None:
    rates = {"xxs": 0.003, "xs": 0.003, "s": 0.003, "m": 0.003, "l": 0.001, "xl": 0.0003}
    assert {name: peak_rate(config.parameters) for name, config in SIZES.items()} == rates


USE_A_NEW_SIZE = """
import contextlib, io, json, sys
import torch
import nextpixel
from nextpixel.cli import main
from nextpixel.config import PretrainConfig, peak_rate, read_recipe
from nextpixel.training.forecast import smaller_shapes

def said(*command):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(command)
    return code, out.getvalue(), err.getvalue()

shape, larger = nextpixel.SIZES["huge"], nextpixel.ImageGPTConfig(layers=99, width=6144, heads=48)
with torch.device("meta"):
    model = nextpixel.ImageGPT(shape)
plan = said("plan", "--size", "huge", "--hardware", "b200", "--count", "64", "--shard", "--json")
verbs = ["pretrain", "photos"], ["bench"], ["plan"]
print(json.dumps({
    "counts": [sum(p.numel() for p in model.parameters()), shape.parameters],
    "plan": json.loads(plan[1])["parameters"],
    "config": PretrainConfig(size="huge").model(512).parameters,
    "recipe": read_recipe(sys.argv[1]).size,
    "rate": peak_rate(shape.parameters),
    "choices": [said(*verb, "--size", "none")[2] for verb in verbs],
    "help": said("pretrain", "--help")[1],
    "remedy": next(smaller_shapes(PretrainConfig(), larger, (1, 1)))[0],
}))
"""


def test_a_size_is_one_line(tmp_path: Path) -> None:
    """A size added to the table, in a copy of the package, is known everywhere."""
    package = Path(nextpixel.__file__).parent
    shutil.copytree(package, tmp_path / "nextpixel", copy_function=os.symlink, ignore=shutil.ignore_patterns("*.pyc"))
    shapes, table = tmp_path / "nextpixel" / "config" / "shapes.py", "SIZES: dict[str, ImageGPTConfig] = {\n"
    text = shapes.read_text()
    assert text.count(table) == 1
    shapes.unlink()
    shapes.write_text(text.replace(table, table + '    "huge": ImageGPTConfig(layers=72, width=4096, heads=32),\n'))
    (tmp_path / "recipe.toml").write_text('size = "huge"\n')
    command = [sys.executable, "-c", USE_A_NEW_SIZE, str(tmp_path / "recipe.toml")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    count = 72 * (12 * 4096**2 + 2 * 4096) + (32 * 32 + 2 * 512 + 1 + 1) * 4096
    assert [*found["counts"], found["plan"], found["config"]] == [count] * 4
    assert found["recipe"] == "huge" and found["rate"] == 0.0003  # that of the nearest published size, xl
    assert all("huge, xxs, xs, s, m, l, xl" in choices for choices in found["choices"]), found["choices"]
    assert "huge" in found["help"]
    assert found["remedy"] == "`size=huge`"


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"width": 10, "heads": 4}, {"side": -1}, {"colors": 1.5}])
def test_impossible_shapes_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=r"expected|must"):
        ImageGPTConfig(**{"layers": 1, "width": 8, "heads": 2, "side": 4, "colors": 4} | wrong)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown argument 'lerning_rate'; did you mean learning_rate"):
        replace_checked(PretrainConfig(), {"lerning_rate": 0.1})


def test_sides_that_are_not_square_are_settings_from_python_and_from_recipes(tmp_path: Path) -> None:
    for side in ((24, 16), [24, 16]):
        assert replace_checked(PretrainConfig(), {"side": side, "slice": (16, 8)}).side == (24, 16)
    (tmp_path / "wide.toml").write_text("side = [24, 16]\n")
    assert read_recipe(str(tmp_path / "wide.toml")).side == (24, 16)
    for side in ((24, 16, 8), (24, "16"), "wide"):
        with pytest.raises(InputError, match=r"^side: expected a whole number or two whole numbers"):
            replace_checked(PretrainConfig(), {"side": side})


def test_seeds_are_those_that_every_library_takes() -> None:
    assert PretrainConfig(seed=2**32 - 1).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"^seed: expected 0 to 4294967295, got {seed}"):
            PretrainConfig(seed=seed)


@pytest.mark.parametrize("values", [{"steps": "many"}, {"steps": True}, {"augment": "rotate"}, {"steps": 1.5}])
def test_a_setting_of_the_wrong_type_is_refused(values: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(values))}: expected "):
        replace_checked(PretrainConfig(), values)
