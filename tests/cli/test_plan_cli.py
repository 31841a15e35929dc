import json

import numpy as np
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


def test_the_recipe_of_sprites_has_a_network_by_the_number_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    flops = []
    for images in ("300", "2000", "5000"):
        assert main(["plan", "--recipe", "sprites", "--images", images, "--side", "16", "--json"]) == 0
        flops.append(json.loads(capsys.readouterr().out)["flops_per_image"])
    assert flops == sorted(flops) and len(set(flops)) == 3


def test_the_price_of_a_short_run_is_not_rounded_to_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--size", "xxs", "--side", "8", "--images", "10000", "--hourly-rate", "3"]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["device_hours"] < 0.5
    assert main(words) == 0
    found = capsys.readouterr().out.partition("price")[2].split()
    assert float(found[0]) == pytest.approx(facts["price"], rel=0.05)
    assert float(found[2]) == pytest.approx(facts["device_hours"], rel=0.05)


def test_a_continued_model_is_planned_with_the_optimizer_of_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for options in ([], ["--optimizer", "muon"], ["--optimizer", "adam"]):
        assert main(["plan", "--init", "embedded", "--json", *options]) == 0
        states.append(json.loads(capsys.readouterr().out)["layout"]["memory"]["optimizer"])
    assert states[0] == states[1] < states[2]  # the embedded model is modern; Muon keeps one moment of a matrix


def test_pixel_art_that_fits_on_no_canvas_is_refused(tmp_path, capsys):
    np.save(tmp_path / "large.npy", np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8))
    assert main(["plan", "--images", str(tmp_path / "large.npy"), "--palette", "exact"]) == 2
    assert "fits on 32 pixels; plan a larger side" in capsys.readouterr().err
