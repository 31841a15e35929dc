"""The cost of a run stands in several texts, and is what `nextpixel plan` says."""

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from nextpixel.cli import main
from nextpixel.tokens import save_tokenizer
from nextpixel.tokens.patches import Patches

RECIPES = {
    file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
    for file in (resources.files("nextpixel") / "recipes").iterdir()
    if file.name.endswith(".toml")
}
PLANNED = [name for name, text in RECIPES.items() if "of one H200" in text]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of one of 4,096 codes for 4 x 4 pixels."""
    folder = tmp_path_factory.mktemp("tokenizers") / "tok"
    save_tokenizer(Patches(np.random.default_rng(0).integers(0, 256, (4_096, 4, 4, 3), np.uint8)), folder, {})
    return str(folder)


def planned(name: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str, str]:
    """FLOP in all, time, and the share of the peak that is assumed."""
    words = ["--tokenizer", tokenizer] if "--tokenizer" in RECIPES[name] else []
    assert main(["plan", "--recipe", name, "--hardware", "h200", *words]) == 0
    out = capsys.readouterr().out
    flops = re.search(r"images: (\S+ FLOP)", out)
    took = re.search(r"^time\s+(.+?) at (\d+%) of the bf16 peak", out, re.MULTILINE)
    assert flops and took, out
    return flops[1], took[1], took[2]


@pytest.mark.parametrize("name", PLANNED)
def test_the_header_of_a_recipe_costs_what_its_plan_does(
    name: str, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flops, took, share = planned(name, tokenizer, capsys)
    assert f"# cost      {flops}: {took} of one H200 at {share} of its bf16 peak" in RECIPES[name]


ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| (S|M|L|XL), \d+ x \d+", line)
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} on {row[3]}")
def test_every_row_of_the_table_is_what_the_plan_says(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model, parameters, flops, devices, layout, memory, took, price = row
    size, side = re.match(r"(\w+), (\d+)", model).groups()
    count, hardware = devices.lower().split(" x ")
    batch = re.search(r"(\d+) images a step", model)
    argv = ["plan", "--size", size.lower(), "--side", side, "--images", "1.28M", "--steps", "1000000"]
    argv += ["--hardware", hardware.replace(" ", ""), "--count", count, "--batch-images", batch[1] if batch else "128"]
    argv += ["--hourly-rate", "3"] if price else []
    argv += ["--checkpoint-activations"] if "recomputed" in layout else []
    assert main(argv) == 0
    out = capsys.readouterr().out
    planned = {line.split()[0]: line for line in out.splitlines()}
    millions = float(planned["parameters"].split()[1].replace(",", "")) / 1e6
    told, unit = parameters.split()
    assert float(told) == pytest.approx(millions / (1000 if unit == "B" else 1), rel=0.005)
    work = float(planned["work"].split()[-2])
    assert float(f"{work:.1e}") == float(flops)
    assert re.search(r"time\s+(.+?) at 40%", planned["time"])[1] == took
    assert not price or planned["price"].split()[1] == price
    used, whole = re.search(r"([\d.]+) of (\d+) GB", planned["memory"]).groups()
    assert memory == f"{float(used):.0f} of {whole} GB"
    assert re.search(r"(\d+) images?", layout)[1] == re.search(r"(\d+) images? at a time", planned["layout"])[1]


def test_the_readme_costs_what_the_plan_does(tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, took, _ = planned("imagenet32-s", tokenizer, capsys)
    root = Path(__file__).parents[1]
    assert f"({took} of one H200" in (root / "README.md").read_text(encoding="utf-8")
    assert {"imagenet32-s", "imagenet32-m", "imagenet32-l", "cifar10-s", "photos-64", "photos-128"} <= set(PLANNED)
