"""The cost of a run stands in several texts, and is what `nextpixel plan` says."""

import re
from importlib import resources
from pathlib import Path

import pytest

from nextpixel.cli import main

RECIPES = {
    file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
    for file in (resources.files("nextpixel") / "recipes").iterdir()
    if file.name.endswith(".toml")
}
PLANNED = [name for name, text in RECIPES.items() if "of one H200" in text]


def planned(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str, str]:
    """FLOP in all, time, and the share of the peak that is assumed."""
    assert main(["plan", "--recipe", name, "--hardware", "h200"]) == 0
    out = capsys.readouterr().out
    flops = re.search(r"images: (\S+ FLOP)", out)
    took = re.search(r"^time\s+(.+?) at (\d+%) of the bf16 peak", out, re.MULTILINE)
    assert flops and took, out
    return flops[1], took[1], took[2]


@pytest.mark.parametrize("name", PLANNED)
def test_the_header_of_a_recipe_costs_what_its_plan_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flops, took, share = planned(name, capsys)
    assert f"# cost      {flops}: {took} of one H200 at {share} of its bf16 peak" in RECIPES[name]


def test_the_readme_and_the_table_cost_what_the_plan_does(capsys: pytest.CaptureFixture[str]) -> None:
    _, took, share = planned("imagenet32-s", capsys)
    root = Path(__file__).parents[1]
    assert f"({took} of one H200" in (root / "README.md").read_text(encoding="utf-8")
    scaling = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    [row] = [line for line in scaling.splitlines() if line.startswith("| S, 32 x 32") and "| 1 x H200 |" in line]
    assert f"| {took} |" in row and f"an assumed {share.replace('%', ' %')}" in scaling
    assert {"imagenet32-s", "imagenet32-m", "imagenet32-l", "cifar10-s"} <= set(PLANNED)
