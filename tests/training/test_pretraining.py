"""Pretraining: what is interrupted and resumed is what would have been, and what is learnt is right."""

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import COLORS, SIDE, assert_same, figures, flags, leftovers, on_call, photos, pictures, settings, state
from torch._inductor.exc import InductorError

import nextpixel
from nextpixel import InputError, WorkError
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import SIZES, ImageGPTConfig, PretrainConfig, peak_rate, read_recipe
from nextpixel.config.shapes import shape_of
from nextpixel.data.decoded import Batches, split_indices
from nextpixel.evaluation.likelihood import square_nats
from nextpixel.network import cost as plan
from nextpixel.training import loop, optim, pretraining, setup, steps
from nextpixel.training.loop import Interrupted


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photos(tmp_path)


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any interruption, in fp32 or, `in_both_dtypes`, in bf16 as well."""
    folder, dtype = tmp_path_factory.mktemp("whole"), getattr(request, "param", "fp32")
    nextpixel.pretrain(photos(folder), out=folder / "run", **settings(folder, dtype=dtype))
    return folder / "run"


in_both_dtypes = pytest.mark.parametrize("whole", ["fp32", "bf16"], indirect=True)


def config_of(run: Path) -> dict:
    return settings(run.parent, dtype=Run(run).facts()["config"]["dtype"])


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


# ---- interruption and resumption


@pytest.mark.parametrize(
    ("place", "call", "number"),
    [
        ("nextpixel.data.decoded.Batches.__call__", 4, signal.SIGINT),  # in the thread that prepares batches
        ("nextpixel.training.steps.cross_entropy", 1, signal.SIGTERM),  # in the first step
        ("nextpixel.training.steps.cross_entropy", 6, signal.SIGINT),  # in step 3, between its micro-batches
        ("nextpixel.training.loop.save_trainer_state", 3, signal.SIGTERM),  # while a checkpoint is written
        ("nextpixel.training.pretraining.image_nats", 1, signal.SIGINT),  # while validating
        ("nextpixel.training.pretraining.draw", 1, signal.SIGTERM),  # while samples are drawn
        ("nextpixel.checkpoints.runs.write_json", 2, signal.SIGINT),  # while the best checkpoint is marked
        ("nextpixel.training.steps.cross_entropy", 24, signal.SIGTERM),  # in the last step
        ("nextpixel.training.pretraining.draw", 2, signal.SIGINT),  # after the last step
    ],
)
def test_a_run_resumed_is_the_run_uninterrupted(whole, place, call, number, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        on_call(patch, place, call, lambda: interrupt(number))
        with pytest.raises(Interrupted):
            nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **config_of(whole))
    assert len(figures(tmp_path / "run")) < len(figures(whole)), "the signal came too late to show anything"
    nextpixel.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("signalled", [True, False])
def test_a_compiler_that_ctrl_c_ended_is_no_error(signalled, whole, tmp_path, monkeypatch):
    """A terminal sends it to the C++ compiler of the first step as well."""

    def killed() -> None:
        if signalled:
            interrupt()
        raise InductorError(RuntimeError("C++ compile error"), None)

    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 1, killed)
        with pytest.raises(Interrupted if signalled else InductorError, match="at once" if signalled else "C\\+\\+"):
            nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **config_of(whole))
    nextpixel.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@in_both_dtypes
def test_a_run_stopped_at_every_step_is_the_run_uninterrupted(whole, tmp_path, monkeypatch):
    rate = optim.cosine_rate
    monkeypatch.setattr(optim, "cosine_rate", lambda *args, **kwargs: (interrupt(), rate(*args, **kwargs))[1])
    arguments = {"images": photos(tmp_path), "out": tmp_path / "run", **config_of(whole)}
    for step in range(1, 13):
        with pytest.raises(Interrupted, match=f"saved at step {step}$"):
            nextpixel.pretrain(**arguments)
        arguments = {"resume": tmp_path / "run"}
    nextpixel.pretrain(**arguments)
    assert_same(tmp_path / "run", whole)


def test_a_masked_run_resumed_is_the_run_uninterrupted(images, tmp_path, monkeypatch):
    config = settings(tmp_path, objective="masked")
    nextpixel.pretrain(images, out=tmp_path / "whole", **config)
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.masked_cross_entropy", 6, interrupt)
        with pytest.raises(Interrupted):
            nextpixel.pretrain(images, out=tmp_path / "run", **config)
    nextpixel.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


@in_both_dtypes
def test_a_second_signal_stops_at_once_and_loses_only_steps_since_the_checkpoint(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 17, lambda: (interrupt(), interrupt()))
        with pytest.raises(Interrupted, match="stopped at once"):
            nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **config_of(whole))
    assert Run(tmp_path / "run").steps()[-1] == 6
    nextpixel.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_a_second_signal_in_the_middle_of_a_checkpoint_leaves_none(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        on_call(patch, "torch.distributed.checkpoint.save", 3, lambda: (interrupt(), interrupt()))
        with pytest.raises(Interrupted, match="stopped at once"):
            nextpixel.pretrain(photos(tmp_path), out=tmp_path / "run", **config_of(whole))
    assert Run(tmp_path / "run").steps() == [1, 3]
    assert leftovers(tmp_path / "run") == []


def test_a_signal_after_the_last_look_waits_for_the_next_step(images, tmp_path, monkeypatch):
    """Nothing is called saved that is not: the signal comes while step 2, which is not due, is logged."""
    on_call(monkeypatch, "nextpixel.checkpoints.Run.log", 2, interrupt)
    with pytest.raises(Interrupted, match="saved at step 3"):
        nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path))
    assert Run(tmp_path / "run").steps() == [1, 3]


def test_the_handlers_of_signals_are_put_back(images, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, steps=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_command_prints_how_to_go_on_and_that_goes_on(whole, tmp_path, monkeypatch, capsys):
    command = ["pretrain", str(photos(tmp_path)), "--out", str(tmp_path / "run"), *flags(config_of(whole))]
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 5, interrupt)
        assert main(command) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert "a second signal stops at once" in said.err
    last = said.err.splitlines()[-1]
    assert "stopped and saved at step 3; resume with: nextpixel pretrain --resume" in last
    assert main(shlex.split(last.partition("resume with: nextpixel ")[2])) == 0
    assert "nats per pixel at step" in capsys.readouterr().out
    assert_same(tmp_path / "run", whole)


def test_an_interruption_before_there_is_a_run_leaves_nothing(images, tmp_path, cache, monkeypatch, capsys):
    on_call(monkeypatch, "nextpixel.images.sources.arrays.ArraySource.content", 3, interrupt)
    assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path))]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nextpixel: interrupted"
    assert not (tmp_path / "run").exists()
    assert list((cache / "decoded").iterdir()) == []


def test_an_interruption_before_the_first_step_tells_how_to_go_on(images, tmp_path, monkeypatch, capsys):
    on_call(monkeypatch, "nextpixel.training.steps.Batches", 1, interrupt)
    assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path))]) == 130
    assert "stopped; resume with: nextpixel pretrain --resume" in capsys.readouterr().err
    nextpixel.pretrain(resume=tmp_path / "run")
    assert Run(tmp_path / "run").steps()[-1] == 12


def test_it_trains_in_a_thread_where_no_signals_come(images, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(nextpixel.pretrain, images, out=tmp_path / "run", **settings(tmp_path, steps=2)).result()
    assert Run(tmp_path / "run").steps()[-1] == 2


def test_resuming_a_finished_run_changes_nothing(whole, capsys):
    before = {
        path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    nextpixel.pretrain(resume=whole)
    assert main(["pretrain", "--resume", str(whole)]) == 0
    assert f"{whole} is complete, with {Run(whole).steps()[-1]:,} steps" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("beside", [{"steps": 3}, {"out": "elsewhere"}, {"recipe": "cifar10-s"}, {"split": "train"}])
def test_resume_takes_no_settings(whole, beside):
    with pytest.raises(InputError, match="resume: "):
        nextpixel.pretrain(resume=whole, **beside)


# ---- numbers that are none


def spoil(monkeypatch, call, how):
    """Change what cross_entropy returns in training, from that call on."""
    original, calls = steps.cross_entropy, iter(range(1, 1000))
    monkeypatch.setattr(steps, "cross_entropy", lambda *a: how(original(*a)) if next(calls) >= call else original(*a))


def spoil_gradient(loss):
    loss.register_hook(lambda gradient: gradient * math.nan)
    return loss


@pytest.mark.parametrize(
    ("how", "log_every_steps", "found_at"),
    [(lambda loss: loss + math.inf, 1, 7), (lambda loss: loss + math.nan, 100, 10), (spoil_gradient, 100, 8)],
    ids=["infinite loss, seen when logged", "no number, seen when saved", "gradient, seen when saved"],
)
def test_a_loss_that_is_no_number_stops_before_a_bad_checkpoint(
    images, tmp_path, monkeypatch, how, log_every_steps, found_at
):
    spoil(monkeypatch, 13, how)  # from step 7 on
    config = settings(tmp_path, log_every_steps=log_every_steps)
    if how is spoil_gradient:
        config["checkpoint_every_steps"] = 4
    with pytest.raises(WorkError) as raised:
        nextpixel.pretrain(images, out=tmp_path / "run", **config)
    assert f"by step {found_at}; the last good checkpoint is {tmp_path / 'run' / 'step_0000006'}." in str(raised.value)
    assert Run(tmp_path / "run").steps()[-1] == 6
    assert all(tensor.isfinite().all() for tensor in state(tmp_path / "run").values())
    assert leftovers(tmp_path / "run") == []


def test_an_absurd_learning_rate_is_a_failure_of_the_work(images, tmp_path, capsys):
    command = ["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path, learning_rate=1e30))]
    assert main(command) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "finite" in message and "by step 1;" in message and "no checkpoint had been written" in message
    assert Run(tmp_path / "run").steps() == []


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("pretrain", "`init` takes"), ("finetune", "`model` takes"), ("distill", None), ("tokenizer", None)],
)
def test_the_advice_after_a_divergence_names_an_argument_of_its_verb(tmp_path, kind, advice):
    run = Run.create(tmp_path / "run", {"kind": kind})
    assert "takes that checkpoint" not in str(loop._non_finite(run, 9))
    run.folder(5).mkdir()
    message = str(loop._non_finite(run, 9))
    assert (advice or "`clip_norm=1`") in message and ("takes that checkpoint" in message) == (advice is not None)


def test_a_run_names_the_commit_of_its_own_package_alone(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    package = tmp_path / "package"
    package.mkdir()
    for name in ("setup.py", "other.py"):
        (package / name).touch()
    git("init", "-q")
    git("add", "package/other.py")
    git("commit", "-q", "-m", "a project that holds the package, ignored")
    monkeypatch.setattr(setup, "__file__", str(package / "setup.py"))
    assert "commit" not in setup._versions()
    git("add", "package/setup.py")
    git("commit", "-q", "-m", "the package itself")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert setup._versions()["commit"] == head.stdout.strip()


def test_validation_that_is_no_number_marks_no_best_checkpoint(images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "image_nats", lambda *a, **k: np.full(2, np.nan))
    with pytest.raises(WorkError, match=r"by step 6; the last good checkpoint is .*step_0000005"):
        nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path))
    assert Run(tmp_path / "run").best() == {}


# ---- learning


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt something."""
    folder = tmp_path_factory.mktemp("learned")
    config = settings(folder, steps=60, evaluate_every_steps=20, checkpoint_every_steps=20)
    model = nextpixel.pretrain(photos(folder), out=folder / "run", **config)
    assert not model.training
    return folder / "run"


def test_it_learns_and_its_best_is_the_lowest_on_validation(learned):
    losses = [value for _, name, value in figures(learned) if name == "loss"]
    assert losses[0] == pytest.approx(math.log(8), abs=1e-5)
    assert losses[-1] < 0.6 * math.log(8)
    held_out = {value: step for step, name, value in figures(learned) if name == "validation_nats"}
    best = Run(learned).best()
    assert (best["nats"], best["step"]) == min(held_out.items())
    weight = nextpixel.load(Run(learned).folder(best["step"])).head.weight
    assert torch.equal(nextpixel.load(learned).head.weight, weight)


def test_micro_batches_add_up_to_the_batch(images, tmp_path, monkeypatch):
    values = {}
    for size in (1, 2, 3, 4):  # 3 leaves a last one of a single picture
        monkeypatch.setattr(plan, "micro_batch_images", lambda *_, size=size: size)
        nextpixel.pretrain(images, out=tmp_path / f"run{size}", **settings(tmp_path, micro_batch_images=None))
        values[size] = [value for *_, value in figures(tmp_path / f"run{size}")]
    for size in (1, 2, 3):
        np.testing.assert_allclose(values[size], values[4], rtol=0, atol=1e-6)


def test_recomputed_activations_change_no_number(images, tmp_path):
    for kept in (False, True):
        config = settings(tmp_path, steps=5, checkpoint_activations=kept)
        nextpixel.pretrain(images, out=tmp_path / f"run{kept}", **config)
    assert_same(tmp_path / "runFalse", tmp_path / "runTrue")


def test_patience_ends_a_run_that_no_longer_improves(images, tmp_path, capsys):
    config = settings(tmp_path, steps=60, evaluate_every_steps=2, patience=3, learning_rate=3.0, sample_images=0)
    nextpixel.pretrain(images, out=tmp_path / "run", **config)
    run = Run(tmp_path / "run")
    evaluated = [entry["step"] for entry in run.read_log() if "validation_nats" in entry]
    assert run.steps()[-1] == evaluated[-1] == run.best()["step"] + 3 * 2 < 60
    assert f"no better validation nats in 3 evaluations: done at step {evaluated[-1]}" in capsys.readouterr().err


@pytest.mark.parametrize("augment", ["none", "crop", "pad-flip"])
def test_every_augmentation_trains_and_validates_on_whole_pictures(images, tmp_path, augment):
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, steps=3, augment=augment))
    assert len(figures(tmp_path / "run")) == 4


def test_validation_images_of_ones_own(images, tmp_path):
    np.save(tmp_path / "held.npy", pictures(5, seed=1))
    config = settings(tmp_path, steps=2, validation=str(tmp_path / "held.npy"), validation_images=3)
    nextpixel.pretrain(images, out=tmp_path / "run", **config)
    data = Run(tmp_path / "run").facts()["data"]
    assert (data["train_images"], data["validation_images"]) == (20, 3)


def continued(tmp_path, init, **changes):
    config = settings(tmp_path, steps=6, batch_images=18, micro_batch_images=9, augment="none", init=str(init))
    for name in ("layers", "width", "heads", "palette", "side"):
        config.pop(name)
    return config | changes


@pytest.mark.parametrize("saved_as", ["run", "folder"])
def test_a_continued_model_starts_at_its_loss_with_its_palette(learned, images, tmp_path, saved_as):
    model = nextpixel.load(learned)
    init = learned if saved_as == "run" else tmp_path / "saved"
    if saved_as == "folder":
        nextpixel.save(model, init)
    more = nextpixel.pretrain(images, out=tmp_path / "more", **continued(tmp_path, init))
    _, _, first = figures(tmp_path / "more")[0]
    shown = Batches(
        pictures(20), split_indices(20, 0.1, 0)[0], size=(SIDE, SIDE), batch_images=18, augment="none", seed=0
    )(0)
    assert first == pytest.approx(np.concatenate(list(square_nats(model, shown))).mean(), abs=1e-5)
    assert first < 0.6 * math.log(8)
    assert np.array_equal(more.palette.colors, model.palette.colors)
    assert len(more.palette) == len(COLORS)


def test_a_continued_run_resumes_exactly_without_the_model_it_began_with(learned, images, tmp_path, monkeypatch):
    nextpixel.pretrain(images, out=tmp_path / "whole", **continued(tmp_path, learned))
    begun = shutil.copytree(learned, tmp_path / "begun")
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 1, lambda: (interrupt(), interrupt()))
        with pytest.raises(Interrupted):
            nextpixel.pretrain(images, out=tmp_path / "more", **continued(tmp_path, begun))
    assert Run(tmp_path / "more").steps() == [0]  # the run no longer needs the model it began with
    shutil.rmtree(begun)
    monkeypatch.chdir(tmp_path.parent)
    nextpixel.pretrain(resume=tmp_path / "more")
    assert_same(tmp_path / "more", tmp_path / "whole")


def test_a_continued_model_keeps_its_side(learned, images, tmp_path):
    with pytest.raises(InputError, match=f"side: the model of `init` works at side {SIDE}, got 8"):
        nextpixel.pretrain(images, out=tmp_path / "more", **continued(tmp_path, learned, side=8))
    assert not (tmp_path / "more").exists()


# ---- settings


def test_flags_go_over_the_recipe_and_the_recipe_over_the_defaults(images, tmp_path, capsys):
    values = {k: v for k, v in settings(tmp_path).items() if k != "width"}
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    (tmp_path / "tiny.toml").write_text("\n".join([*lines, "width = 24"]).replace("True", "true"))
    command = ["pretrain", str(images), "--recipe", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]
    assert main([*command, "--steps", "2", "--seed", "5"]) == 0
    config = PretrainConfig(**Run(tmp_path / "run").facts()["config"])
    assert (config.steps, config.seed) == (2, 5)  # flags
    assert (config.width, config.batch_images) == (24, 4)  # recipe
    assert config.validation_fraction == PretrainConfig().validation_fraction
    model = nextpixel.pretrain(images, recipe=str(tmp_path / "tiny.toml"), steps=1, out=tmp_path / "other")
    assert model.config.width == 24


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("learing_rate = 0.1", "did you mean learning_rate"),
        ("steps = 'many'", "steps: expected a whole number, got 'many'"),
        ("augment = 'rotate'", "augment: expected none, or some of flip, crop, pad"),
        ("steps = 0", "steps: expected at least 1, got 0"),
        ("steps = ", "expected a valid TOML file"),
    ],
)
def test_a_recipe_with_a_mistake_is_bad_input(images, tmp_path, line, complaint, capsys):
    (tmp_path / "wrong.toml").write_text(line)
    with pytest.raises(InputError, match=complaint):
        read_recipe(str(tmp_path / "wrong.toml"))
    command = ["pretrain", str(images), "--recipe", str(tmp_path / "wrong.toml"), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


RECIPES = sorted(p.name for p in (resources.files("nextpixel") / "recipes").iterdir() if p.name.endswith(".toml"))


@pytest.mark.parametrize(
    ("count", "width"), [(300, 96), (1_000, 96), (1_001, 128), (5_000, 160), (50_000, 192), (None, 192)]
)
def test_the_network_of_size_auto_grows_with_the_number_of_images(count, width):
    assert PretrainConfig(size="auto").model(16, count).width == width
    assert PretrainConfig(size="auto", width=64, heads=2).model(16, count).width == 64


def test_a_run_of_size_auto_has_the_network_of_its_set(images, tmp_path):
    config = settings(tmp_path, steps=1, size="auto") | {"layers": None, "width": None, "heads": None}
    made = nextpixel.pretrain(images, out=tmp_path / "run", **config)
    assert (made.config.layers, made.config.width) == (4, 96)
    assert Run(tmp_path / "run").facts()["config"]["size"] == "auto"


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_whole(name):
    config = read_recipe(name.removesuffix(".toml"))
    assert config != PretrainConfig()
    assert config.model(512).layers == (config.layers or shape_of(config.size).layers)


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(InputError, match=RECIPES[0].removesuffix(".toml")):
        read_recipe("no-such-recipe")


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    def rate(step):
        return optim.cosine_rate(step, steps=1100, warmup_steps=100, peak=0.4)

    assert rate(0) == pytest.approx(0.004)
    assert rate(49) == pytest.approx(0.2)
    assert rate(99) == rate(100) == 0.4
    assert rate(600) == pytest.approx(0.2)
    assert 0 < rate(1099) < 1e-5
    assert rate(1100) == pytest.approx(0, abs=1e-12)
    assert optim.cosine_rate(0, steps=10, warmup_steps=0, peak=0.4) == 0.4
    assert optim.cosine_rate(0, steps=1, warmup_steps=1, peak=0.4) == 0.4


def test_warm_up_takes_an_epoch_and_at_most_a_twentieth_of_the_steps():
    assert optim.default_warmup_steps(steps=1000, images=400, batch_images=10) == 40
    assert optim.default_warmup_steps(steps=1000, images=4000, batch_images=10) == 50
    assert optim.default_warmup_steps(steps=3, images=4, batch_images=10) == 1


def test_the_rate_of_each_step_is_logged(images, tmp_path):
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, warmup_steps=4))
    rates = [entry["rate"] for entry in Run(tmp_path / "run").read_log() if "rate" in entry]
    assert rates == [optim.cosine_rate(i, steps=12, warmup_steps=4, peak=0.01) for i in range(12)]


def test_micro_batches_are_few_and_alike_and_fit_the_memory():
    assert plan.micro_batch_images(128, image_bytes=10, free_bytes=10_000, on_cpu=False) == 128
    assert plan.micro_batch_images(128, image_bytes=10, free_bytes=10_000, on_cpu=True) == 16
    assert plan.micro_batch_images(100, image_bytes=10, free_bytes=300, on_cpu=False) == 15  # and 10 at last
    assert plan.micro_batch_images(7, image_bytes=10, free_bytes=100, on_cpu=False) == 4  # and 3, not 5 and 2
    assert plan.micro_batch_images(127, image_bytes=10, free_bytes=10_000, on_cpu=True) == 16
    assert plan.micro_batch_images(4, image_bytes=10**12, free_bytes=100, on_cpu=False) == 1


def test_flops_of_a_step_are_six_for_each_weight_and_pixel_and_attention():
    config = ImageGPTConfig(layers=2, width=8, heads=2, side=4, colors=10)
    matrices = sum(p.numel() for name, p in nextpixel.ImageGPT(config).named_parameters() if "weight" in name)
    assert plan.flops_per_image(config) == 6 * 16 * matrices + 3 * 2 * (2 * 16 * 16 * 8) // 2 * 2


# ---- what a run tells


def test_tensorboard_gets_the_figures_of_each_step_once(images, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.steps.cross_entropy", 17, lambda: (interrupt(), interrupt()))
        with pytest.raises(Interrupted):
            nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path))
    nextpixel.pretrain(resume=tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(step, value) for step, name, value in figures(tmp_path / "run") if name == "loss"]
    assert [event.step for event in board.Scalars("loss")] == [step for step, _ in logged]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([value for _, value in logged])
    assert [event.step for event in board.Scalars("validation_nats")] == [6, 12]


@pytest.mark.parametrize("name", ["__init__", "add_scalar", "close"])
def test_a_tensorboard_that_cannot_write_stops_nothing(images, tmp_path, monkeypatch, name):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, name, full)
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, steps=2))
    assert len(figures(tmp_path / "run")) == 3


@pytest.mark.parametrize("error", [ImportError("absent"), TypeError("a protobuf that does not fit")])
def test_training_needs_no_tensorboard(images, tmp_path, monkeypatch, error):
    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name.startswith(("torch.utils.tensorboard", "tensorboard")):
                raise error

    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path, steps=2))
    assert len(figures(tmp_path / "run")) == 3
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_run_tells_what_made_it(whole):
    facts = Run(whole).facts()
    assert facts["config"] == PretrainConfig(**facts["config"]).__dict__
    assert facts["decisions"]["micro_batch_images"] == 2
    assert facts["decisions"]["threads"] == 1
    assert facts["data"]["source"] == str(whole.parent / "photos.npy")
    assert facts["versions"]["torch"] == torch.__version__
    entry = Run(whole).read_log()[0]
    assert entry["step"] == 1 and entry["images_per_second"] > 0


def test_a_continued_run_takes_a_tenth_of_the_rate_of_the_nearest_size_and_no_size_beside_it(learned, images, tmp_path):
    with pytest.raises(InputError, match=r"init: cannot be combined with `size=\w+`, given or from the recipe"):
        nextpixel.pretrain(images, out=tmp_path / "more", **continued(tmp_path, learned, size="l"))
    nextpixel.pretrain(images, out=tmp_path / "more", **continued(tmp_path, learned, learning_rate=None, steps=1))
    assert Run(tmp_path / "more").facts()["decisions"]["learning_rate"] == pytest.approx(0.0003)  # xxs has 0.003
    assert [peak_rate(SIZES[size].parameters) for size in ("xxs", "s", "l", "xl")] == [0.003, 0.003, 0.001, 0.0003]


def test_a_run_goes_on_from_another_folder_and_without_its_cache(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("held.npy", pictures(5, seed=9))
    typed = settings(Path("."), validation="held.npy", cache="decoded", steps=6)
    on_call(monkeypatch, "nextpixel.training.steps.cross_entropy", 4, interrupt)
    with pytest.raises(Interrupted):
        nextpixel.pretrain(images.name, out="run", **typed)
    shutil.rmtree("decoded")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    nextpixel.pretrain(resume=tmp_path / "run")
    assert Run(tmp_path / "run").steps()[-1] == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_a_compiled_run_learns_the_same_and_resumes_exactly(images, tmp_path, monkeypatch):
    nextpixel.pretrain(images, out=tmp_path / "eager", **settings(tmp_path))
    compiled = settings(tmp_path, compile="on")
    nextpixel.pretrain(images, out=tmp_path / "whole", **compiled)
    pairs = zip(figures(tmp_path / "eager"), figures(tmp_path / "whole"), strict=True)
    assert all(a[:2] == b[:2] and a[2] == pytest.approx(b[2], abs=1e-4) for a, b in pairs)
    with monkeypatch.context() as patch:
        on_call(patch, "nextpixel.training.parallel.gradient_sync", 9, interrupt)
        with pytest.raises(Interrupted):
            nextpixel.pretrain(images, out=tmp_path / "cut", **compiled)
    nextpixel.pretrain(resume=tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("masked", [False, True])
def test_the_compiled_loss_is_the_loss_without_a_copy_of_the_logits_in_fp32(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = 8 * torch.randn(2, 9, 32, generator=generator)
    tokens, hidden = torch.randint(0, 32, (2, 9), generator=generator), None
    if masked:
        hidden = torch.rand(2, 9, generator=generator) < 0.5
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    found, wanted = (wide.bfloat16().requires_grad_() for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = steps.choose_pixel_loss(SimpleNamespace(compile=True))(found, tokens, hidden)
    assert {tensor.dtype for tensor in kept if tensor.numel() >= wide.numel()} == {torch.bfloat16}
    loss.backward()
    plain = steps.choose_pixel_loss(SimpleNamespace(compile=False))(wanted, tokens, hidden)
    plain.backward()
    torch.testing.assert_close(loss, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.grad, wanted.grad, atol=1e-6, rtol=2**-7)
