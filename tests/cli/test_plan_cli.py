import json

import pytest

from nextpixel.cli import main


def test_the_plan_of_a_recipe_in_words_and_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--recipe", "imagenet32-l", "--images", "1.28M", "--count", "64", "--hourly-rate", "2.5"]
    assert main([*words, "--utilisation", "0.45"]) == 0
    out = capsys.readouterr().out
    assert "1,362,250,752" in out and "(100.0 epochs)" in out and "64 x h200, data parallel" in out and "price" in out
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 128_000_000 and facts["utilisation"] == 0.4
    assert facts["price"] == pytest.approx(facts["seconds"] / 3600 * 64 * 2.5)
    assert facts["memory_bytes"] == sum(facts["layout"]["memory"].values())


def test_a_larger_side_takes_more(capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for side in ("32", "48"):
        assert main(["plan", "--size", "l", "--side", side, "--json"]) == 0
        times.append(json.loads(capsys.readouterr().out)["seconds"])
    assert 2.25 < times[1] / times[0] < 3.5  # 2.25 times the pixels, and attention grows faster
