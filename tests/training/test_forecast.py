"""What a run says it will take before it starts, and what is refused because it cannot fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import flags, on_call, photos, settings

import nextpixel
from nextpixel import SIZES, InputError
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.cli.spelling import spell
from nextpixel.config import ImageGPTConfig, PretrainConfig
from nextpixel.hardware import find_hardware
from nextpixel.network.cost import (
    activation_bytes_per_image,
    choose_layout,
    flops_per_image,
    memory,
    micro_batch_images,
    remedy,
    usable_bytes,
)
from nextpixel.training import decisions
from nextpixel.training.decisions import Placement
from nextpixel.training.forecast import check_fits, forecast, smaller_shapes

S = SIZES["s"]
HOW = {"dtype": "fp32", "compiled": False}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photos(tmp_path)


def test_pretrain_tells_its_plan_before_its_first_step(images, tmp_path, capsys, monkeypatch):
    seen = []
    on_call(monkeypatch, "nextpixel.training.pretraining.place_model", 1, lambda: seen.append(capsys.readouterr().err))
    assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path))]) == 0
    shape = ImageGPTConfig(1, 16, 2, 4, 8)
    [told] = seen
    assert f"Plan: {shape.parameters:,} parameters" in told and "for 48 images" in told
    flops = f"{flops_per_image(shape) * 48:.2e} FLOP"
    assert flops in told and "free on cpu" in told and "2 images at a time, fp32, not compiled" in told
    assert all(f"{part} " in told for part in ("weights", "gradients", "optimizer", "activations", "logits"))
    assert "Plan:" not in capsys.readouterr().err, "told once"


def test_resuming_tells_what_is_left_and_warns_where_it_may_not_fit(images, tmp_path, capsys, monkeypatch):
    import os
    import signal

    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path))]) == 130
    assert Run(tmp_path / "run").steps()[-1] == 3
    capsys.readouterr()
    monkeypatch.setattr(decisions, "free_memory_bytes", lambda device: 10_000)
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert "for 36 images" in err and "It may not fit: this run is expected to need" in err


def test_what_cannot_fit_is_refused_before_anything_is_written(images, tmp_path, cache, capsys, monkeypatch):
    def plan_of(micro: int) -> int:
        return memory(ImageGPTConfig(1, 16, 2, 4, 8), micro, dtype="fp32", compiled=False, on_cpu=True).total

    # room for one image at a time, and not for the two that are asked for
    monkeypatch.setattr(decisions, "free_memory_bytes", lambda device: plan_of(1) / 0.9 + 1)
    command = ["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path))]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"need {plan_of(2) / 1e6:,.1f} MB" in err
    assert "it fits with --micro-batch-images 1, or use --force to start anyway" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before and not (cache / "decoded").exists()
    assert main([*command, "--micro-batch-images", "1"]) == 0, "what the sentence names does fit"
    forced = [word if word != str(tmp_path / "run") else str(tmp_path / "forced") for word in command]
    assert main([*forced, "--force"]) == 0
    with pytest.raises(InputError, match="`micro_batch_images=1`"):
        nextpixel.pretrain(images, out=tmp_path / "other", **settings(tmp_path))
    nextpixel.pretrain(images, out=tmp_path / "other", force=True, **settings(tmp_path, steps=1))


def test_a_micro_batch_of_its_own_choice_leaves_room_for_the_weights(monkeypatch):
    """Half of the memory for activations would be too much beside weights and optimiser that take more than half."""
    config = PretrainConfig(
        size="s", batch_images=16, device="cpu", dtype="fp32", compile="off", checkpoint_activations=True
    )
    image = activation_bytes_per_image(S, dtype="fp32", checkpointed=True)
    state = memory(
        S, 0, dtype="fp32", compiled=False, on_cpu=True
    ).total  # beside which each image takes half as much again
    free = (state + 2.5 * 1.5 * image) / 0.9
    assert micro_batch_images(16, image, free, True) > 2
    monkeypatch.setattr(decisions, "free_memory_bytes", lambda device: free)
    place = decisions.place(config, S, config.steps)
    assert place.micro_batch_images == 2
    check_fits(forecast(config, S, place))


@pytest.mark.parametrize(
    ("free", "options", "named"),
    [
        (8e9, {}, "--micro-batch-images 4"),
        (2.5e9, {}, "--checkpoint-activations"),
        (1.9e9, {}, "--checkpoint-activations --micro-batch-images 4"),
        (1.2e9, {}, "--size xs --micro-batch-images 4"),
        (1.2e9, {"devices": 4}, "--shard --checkpoint-activations --micro-batch-images 4"),
        (1.2e9, {"smaller": ()}, None),
        (1e5, {}, None),
    ],
)
def test_the_setting_that_is_named_does_fit(free, options, named):
    """Each by the plan's own arithmetic, and nothing cheaper in the order of trying would do."""
    assert memory(S, 8, **HOW).total > usable_bytes(free)
    smaller = smaller_shapes(PretrainConfig(), S, (1, 1))
    found = remedy(S, 8, free, batch_images=8, **HOW, **{"smaller": smaller} | options)
    if named is None:
        assert found is None
        return
    assert spell(found) == named
    words = named.split()
    micro = int(words[words.index("--micro-batch-images") + 1]) if "--micro-batch-images" in words else 8
    size = SIZES[words[words.index("--size") + 1]] if "--size" in words else S
    how = HOW | {"checkpointed": "--checkpoint-activations" in words, "shards": 4 if "--shard" in words else 1}
    assert memory(size, micro, **how).total <= usable_bytes(free)
    assert 8 % micro == 0
    if micro < 8:
        larger = next(n for n in (2, 4, 8) if n > micro)
        assert memory(size, larger, **how).total > usable_bytes(free)


def test_a_run_that_goes_on_from_a_model_is_not_told_to_shrink_it():
    config = PretrainConfig(init="embedded", batch_images=8)
    place = Placement("cpu", "fp32", False, 8, 1.2e9)
    with pytest.raises(InputError, match=r"no setting makes it fit: use a device with more memory, or .* `force`"):
        check_fits(forecast(config, S, place))
    with pytest.raises(InputError, match="it fits with `size"):
        check_fits(forecast(replace(config, init=None), S, place))


@pytest.mark.parametrize(
    ("options", "patch"),
    [
        ({}, (1, 1)),
        ({"side": (24, 16)}, (1, 1)),
        ({"side": (64, 48)}, (4, 4)),
        ({"side": (12, 40)}, (2, 4)),
        ({"layers": 3}, (1, 1)),
        ({"layers": 12, "width": 320}, (1, 1)),
        ({"layers": 24, "width": 512, "heads": 8}, (1, 1)),
        ({"preset": "modern", "size": "xxs"}, (2, 2)),
    ],
)
def test_smaller_networks_are_those_of_the_settings_that_are_named(options, patch):
    config = PretrainConfig(**{"size": "s"} | options)
    shape = config.model(8, patch=patch)
    for setting, smaller in smaller_shapes(config, shape, patch):
        name, value = setting.strip("`").split("=")
        height, _, width = value.partition("x")
        changed = {"side": (int(height), int(width or height))} if name == "side" else {name: value}
        assert replace(config, **changed).model(8, patch=patch) == smaller
        assert flops_per_image(smaller) < flops_per_image(shape)


def test_exact_colours_are_not_told_another_side():
    config = PretrainConfig(palette="exact", side=32, size="xxs")
    assert list(smaller_shapes(config, config.model(8), (1, 1))) == []


def test_plan_knows_the_micro_batch_and_eager_activations(capsys):
    needs = {}
    for more in ("", "--micro-batch-images 8", "--micro-batch-images 8 --compile off"):
        assert main(f"plan --size l --batch-images 64 --json {more}".split()) == 0
        layout = json.loads(capsys.readouterr().out)["layout"]
        needs[more] = layout["memory"]["activations"]
        assert layout["micro_batch_images"] == (8 if more else layout["micro_batch_images"])
    compiled, eager = needs["--micro-batch-images 8"], needs["--micro-batch-images 8 --compile off"]
    assert 1.3 < eager / compiled < 1.5  # 57 bytes against 39 a block
    with pytest.raises(InputError, match=r"for 64 images at a time, .* a smaller `micro_batch_images`"):
        choose_layout(SIZES["l"], 64, 24e9, micro_batch=64)


@pytest.mark.parametrize(
    ("name", "memory_bytes", "key"),
    [
        ("NVIDIA H200", 150e9, "h200"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", 25e9, "rtx4090"),
        ("Tesla V100-SXM2-32GB", 34e9, "v100"),
        ("NVIDIA H100 PCIe", 85e9, None),
        ("NVIDIA T4", 16e9, None),
    ],
)
def test_a_driver_s_name_finds_the_device_or_nothing(name, memory_bytes, key):
    found = find_hardware(name, memory_bytes)
    assert (found and found.name) == key


def test_the_time_is_measured_before_it_is_told(images, tmp_path, capsys, monkeypatch):
    """By the second line of the log, whose steps neither compile nor warm up."""
    monkeypatch.setattr("nextpixel.training.log.ESTIMATE_FROM_SECONDS", 0.0)
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, log_every_steps=3))
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("About ")]
    assert "left for 6 steps, without evaluations" in line and "over steps 4 to 6" in line
    speed = next(e["images_per_second"] for e in Run(tmp_path / "run").read_log() if e["step"] == 6)
    assert f"{speed:,.3g} images/s" in line
