import json
from pathlib import Path

import numpy as np
import pytest

from nextpixel import ImageGPT, ImageGPTConfig, InputError
from nextpixel.bench import WORKS, bench, drawing_floor, table
from nextpixel.network.decoding import Decoder, Int8Decoder
from nextpixel.tokens.palette import Palette
from nextpixel.tokens.patches import Patches

CONFIG = ImageGPTConfig(layers=2, width=64, heads=2, side=4, colors=512)
LIMITS = {"bytes_per_second": 1e9, "fp32_per_second": 1e9, "bf16_per_second": 4e9}


@pytest.fixture
def model() -> ImageGPT:
    model = ImageGPT(CONFIG).eval()
    model.palette = Palette.openai()
    return model


def test_every_work_is_timed_and_every_repetition_kept(model: ImageGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextpixel.bench.floors", lambda *_: LIMITS)
    monkeypatch.setattr("nextpixel.bench.can_compile", lambda device: False)
    result = bench(model, list(WORKS), [1, 2], repeats=2)
    assert json.loads(json.dumps(result)) is not None
    rows = result["rows"]
    assert {row["work"] for row in rows} == set(WORKS)
    assert all(len(row["seconds"]) == 2 and row["images_per_second"] > 0 for row in rows)
    assert result["machine"]["threads"] >= 1 and result["versions"]["torch"]
    assert table(result).count("\n") == len(rows) + 1


def test_pixels_and_images_per_second_agree(model: ImageGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextpixel.bench.floors", lambda *_: LIMITS)
    for patch in (1, 2):
        if patch == 2:
            model.tokenizer = Patches(np.random.default_rng(0).integers(0, 256, (512, 2, 2, 3), np.uint8))
        [half] = bench(model, ["complete"], [3], repeats=1, pixels=5)["rows"]
        assert half["pixels_per_second"] == pytest.approx(3 * (5 if patch == 1 else 8) / half["seconds"][0])
        assert half["images_per_second"] == pytest.approx(half["pixels_per_second"] / (8 * patch**2))


def test_transformers_takes_its_turns(model: ImageGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("nextpixel.bench.floors", lambda *_: LIMITS)
    monkeypatch.setattr("nextpixel.bench.can_compile", lambda device: False)
    rows = bench(model, ["complete", "decode", "features", "train"], [2], repeats=1, pixels=2, against=True)["rows"]
    assert [row["contender"] for row in rows[:3]] == ["nextpixel", "transformers fp32", "transformers bf16"]
    for ours, *theirs in (rows[:3], rows[3:6], rows[6:9], rows[9:]):
        assert ours["ratio"] == pytest.approx(min(row["seconds"][0] for row in theirs) / ours["seconds"][0])


def test_both_draw_to_the_last_pixel(model: ImageGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("nextpixel.bench.floors", lambda *_: LIMITS)
    rows = bench(model, ["complete", "decode"], [1], repeats=1, against=True)["rows"]
    assert [len(row["seconds"]) for row in rows] == [1] * 6


def test_the_floor_of_a_step_is_what_it_reads_or_multiplies() -> None:
    matrices = 2 * 12 * 64**2 + 512 * 64
    cache = 2 * 2 * 9.5 * 64  # keys and values of two layers, on average over slots 9 and 10
    read = drawing_floor(CONFIG, Int8Decoder, 1, 8, 2, LIMITS | {"bf16_per_second": 1e15})
    cache *= 1 + 4 / CONFIG.head_width  # a byte a number and an fp32 scale a head
    assert read == pytest.approx(2 * (matrices + cache) / 1e9)
    multiplied = drawing_floor(CONFIG, Decoder, 1000, 8, 2, LIMITS | {"bytes_per_second": 1e15})
    assert multiplied == pytest.approx(2 * 2 * 1000 * matrices / 1e9)


def test_unknown_work_is_refused(model: ImageGPT) -> None:
    with pytest.raises(InputError, match="work: "):
        bench(model, ["fly"], [1])


def test_a_masked_model_is_not_asked_to_draw() -> None:
    masked = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=1, side=4, colors=512, objective="masked"))
    with pytest.raises(InputError, match="work: a masked model cannot draw; expected no decode"):
        bench(masked, ["decode"], [1])


def test_the_written_file_is_what_json_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nextpixel.cli import main

    out = tmp_path / "bench.json"
    assert main(f"bench --work encode --batch 4 --repeats 1 --json --out {out}".split()) == 0
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)


def test_a_plan_takes_what_bench_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is model FLOPs over what was measured, so a run of the timed shape takes the timed seconds."""
    from nextpixel.cli import main

    monkeypatch.setattr("nextpixel.bench.can_compile", lambda device: False)
    model = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=1, side=6, colors=512))
    model.palette = Palette.openai()
    found = bench(model, ["encode", "train"], [2, 4], repeats=2)
    out = tmp_path / "bench.json"
    out.write_text(json.dumps(found))
    shape = "--layers 1 --width 16 --heads 1 --side 6 --steps 10 --batch-images 4"
    assert main(f"plan --hardware {out} {shape} --json".split()) == 0
    plan = json.loads(capsys.readouterr().out)
    best = max(row["images_per_second"] for row in found["rows"] if row["work"] == "train")
    assert plan["seconds"] == pytest.approx(40 / best)
    assert plan["hardware"]["on_cpu"] and plan["layout"]["memory"]["heap"] > 0
    out.write_text(json.dumps(found | {"clock": "cpu"}))
    assert main(f"plan --hardware {out} {shape}".split()) == 2
    assert "--clock cpu" in capsys.readouterr().err
    found["rows"] = [row for row in found["rows"] if row["work"] == "encode"]
    out.write_text(json.dumps(found))
    assert main(f"plan --hardware {out} {shape}".split()) == 2
    assert "holds no timed training steps" in capsys.readouterr().err
