"""Run folders: what is kept, what a kill, a full disk or damage can do to them, and what is said then."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import SIDE, assert_same, figures, flags, leftovers, on_call, photos, settings

import nextpixel
from nextpixel import InputError, WorkError
from nextpixel.checkpoints import Run
from nextpixel.checkpoints.runs import milestones
from nextpixel.cli import main
from nextpixel.config import PretrainConfig
from nextpixel.data.decoded import Batches
from nextpixel.images import decode
from nextpixel.training import loop as training
from nextpixel.training import optim, pretraining, run_images
from nextpixel.training.parallel import save_trainer_state

# Processes that can be killed: each is a fork of one that has imported everything, which saves seconds apiece.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "nextpixel.cli.pretrain", "nextpixel.training.pretraining", "scipy.spatial", "torch.utils.tensorboard"]
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photos(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any accident."""
    folder = tmp_path_factory.mktemp("whole")
    nextpixel.pretrain(photos(folder), out=folder / "run", **settings(folder))
    return folder / "run"


@pytest.fixture
def run(whole: Path, images: Path, tmp_path: Path) -> Path:
    """The same run stopped after step 8, with its own cache."""
    with pytest.MonkeyPatch.context() as patch:
        on_call(patch, "nextpixel.training.optim.cosine_rate", 8, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            nextpixel.pretrain(images, out=tmp_path / "run", **settings(tmp_path))
    assert Run(tmp_path / "run").steps()[-1] == 8
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is kept


def test_kept_are_the_last_two_the_milestones_and_the_best(images, tmp_path, monkeypatch):
    planned = iter([2.0, 1.9, 1.0, 1.5, 1.6, 1.7])  # nats at steps 4, 8, 12, 16, 20 and 21

    def image_nats(*_, **__):
        return np.full(2, next(planned))

    present = {}  # the checkpoints that were there when each was all but written
    rename = os.rename

    def spy(old, new):
        if Path(new).parent == tmp_path / "run" and Path(new).name.startswith("step"):
            present[int(Path(new).name.removeprefix("step_"))] = Run(tmp_path / "run").steps()
        rename(old, new)

    monkeypatch.setattr(pretraining, "image_nats", image_nats)
    monkeypatch.setattr(os, "rename", spy)
    config = settings(tmp_path, steps=21, evaluate_every_steps=4, checkpoint_every_steps=3)
    model = nextpixel.pretrain(images, out=tmp_path / "run", **config)

    run = Run(tmp_path / "run")
    assert milestones(21) == {1, 2, 5, 10, 21}
    assert run.steps() == [1, 2, 5, 10, 12, 20, 21]
    assert run.best() == {"step": 12, "nats": 1.0}
    assert run.best_checkpoint() == run.folder(12)
    assert np.array_equal(model.head.weight.detach(), nextpixel.load(run.folder(12)).head.weight.detach())
    written = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20, 21]  # every 3, every 4, milestones
    assert sorted(present) == written
    for before, last, step in zip(written, written[1:], written[2:], strict=False):
        assert {before, last} <= set(present[step]), "an older checkpoint goes only when a newer one is whole"
        assert step <= 12 or 12 in present[step]
    evaluated = [(step, value) for step, name, value in figures(tmp_path / "run") if name == "validation_nats"]
    assert evaluated == [(4, 2.0), (8, 1.9), (12, 1.0), (16, 1.5), (20, 1.6), (21, 1.7)]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [
        f"step_{step:07d}.png" for step in (4, 8, 12, 16, 20, 21)
    ]


def test_samples_are_pictures_and_none_are_drawn_on_request(images, tmp_path):
    nextpixel.pretrain(images, out=tmp_path / "five", **settings(tmp_path, steps=1, sample_images=5))
    path = tmp_path / "five" / "samples" / "step_0000001.png"
    picture = decode(str(path), path.name)
    assert picture.width > picture.height > SIDE  # three columns and two rows, magnified
    nextpixel.pretrain(images, out=tmp_path / "none", **settings(tmp_path, steps=1, sample_images=0))
    assert list((tmp_path / "none" / "samples").iterdir()) == []


@pytest.mark.parametrize(("minutes", "expected"), [(1e-9, [1, 2, 3, 4, 5, 6]), (1000.0, [1, 3, 6]), (0.0, [1, 3, 6])])
def test_checkpoints_by_time(images, tmp_path, monkeypatch, minutes, expected):
    written = []
    original = Run.new_checkpoint
    monkeypatch.setattr(Run, "new_checkpoint", lambda self, step, *a: written.append(step) or original(self, step, *a))
    config = settings(tmp_path, steps=6, checkpoint_every_steps=100, checkpoint_every_minutes=minutes)
    nextpixel.pretrain(images, out=tmp_path / "run", **config)
    assert written == expected  # milestones are written in any case


def test_the_clock_for_checkpoints_starts_anew_with_each():
    config = PretrainConfig(log_every_steps=10, checkpoint_every_steps=400, checkpoint_every_minutes=1)
    cadence = training.Cadence(config, steps=1000, evaluate_every_steps=300)
    assert [cadence.checkpoint_due(11, seconds) for seconds in (0, 59.9, 60)] == [False, False, True]
    assert [step for step in range(251, 1001) if cadence.checkpoint_due(step, 0)] == [
        300,
        400,
        500,
        600,
        800,
        900,
        1000,
    ]
    assert [step for step in range(1001) if cadence.evaluation_due(step)] == [300, 600, 900, 1000]


# ---- kills


def pretrain_in_a_process(arguments, stderr, begun, run, station, half_done, reached):
    """`nextpixel` with these arguments; the function `station` never returns once `run` holds `half_done`."""
    sys.stderr = stderr.open("w", buffering=1)
    patch = pytest.MonkeyPatch()
    batch = Batches.__call__

    def slow_batch(self, step):
        begun.set()
        time.sleep(0.02)
        return batch(self, step)

    patch.setattr(Batches, "__call__", slow_batch)
    if station:
        original = resolve_name(station)

        def wait(*args, **kwargs):
            if any(run.glob(half_done)):
                reached.set()
                time.sleep(60)
            return original(*args, **kwargs)

        patch.setattr(station, wait)
    sys.exit(main(arguments))


class Killable:
    """`nextpixel` in a process of its own, which may wait for its end at a `station`."""

    def __init__(self, arguments: list[str], run: Path, station: str = "", half_done: str = "") -> None:
        self.begun, self.reached = PROCESSES.Event(), PROCESSES.Event()
        self.stderr = run.with_name("stderr")
        handles = (arguments, self.stderr, self.begun, run, station, half_done, self.reached)
        self.process = PROCESSES.Process(target=pretrain_in_a_process, args=handles, daemon=True)
        self.process.start()

    def until(self, event) -> None:
        while not event.wait(0.1):
            assert self.process.is_alive(), f"it ended too early: {self.stderr.read_text()}"

    def end(self, number: int) -> int:
        """Send a signal; returns the exit code."""
        os.kill(self.process.pid, number)
        return self.wait()

    def wait(self) -> int:
        self.process.join(60)
        code = self.process.exitcode
        self.process.kill()
        self.process.close()
        return code


STATIONS = [  # the function that never returns, and what half-done work lies in the run when it is called
    ("nextpixel.training.steps.cross_entropy", "run.json"),  # no checkpoint yet
    ("nextpixel.training.loop.save_trainer_state", ".nextpixel-*.part/model.safetensors"),  # half a checkpoint
    ("os.rename", ".nextpixel-*.part/trainer/.metadata"),  # a whole one that has not taken its name
    ("shutil.rmtree", ".nextpixel-*.part/trainer"),  # an old one about to go
    ("nextpixel.training.pretraining.image_nats", "step_0000020"),  # one that is not evaluated
    ("os.replace", "samples/.nextpixel-*.part"),
    ("os.replace", ".nextpixel-*.part"),
    ("nextpixel.checkpoints.Run.log", "step_0000028"),
]


def test_killed_again_and_again(tmp_path):
    config = settings(tmp_path, steps=200, checkpoint_every_steps=7, evaluate_every_steps=20)
    images, run, whole = photos(tmp_path), tmp_path / "run", tmp_path / "whole"
    command = ["pretrain", str(images), "--out", str(run), *flags(config)]
    resume = ["pretrain", "--resume", str(run)]
    moments = random.Random(0)

    for station, half_done in STATIONS:
        killable = Killable(command, run, station, half_done)
        killable.until(killable.reached)
        assert killable.end(signal.SIGKILL) == -signal.SIGKILL
        command = resume
    for _ in range(5):  # at 20 ms a step these kills cannot reach the end
        killable = Killable(resume, run)
        killable.until(killable.begun)
        time.sleep(moments.uniform(0, 0.3))
        assert killable.end(signal.SIGKILL) == -signal.SIGKILL
    assert main(resume) == 0

    nextpixel.pretrain(images, out=whole, **config)
    assert_same(run, whole)  # with it every line of the log, once and in order
    assert Run(run).steps() == Run(whole).steps()
    assert leftovers(run) == []
    samples = sorted(path.name for path in (run / "samples").iterdir())
    assert samples == [f"step_{step:07d}.png" for step in range(20, 201, 20)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_from_outside_stop_the_command_with_130(tmp_path, number):
    config = settings(tmp_path, steps=1000)
    command = ["pretrain", str(photos(tmp_path)), "--out", str(tmp_path / "a run"), *flags(config)]
    killable = Killable(command, tmp_path / "a run")
    killable.until(killable.begun)
    time.sleep(0.1)
    assert killable.end(number) == 130
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    step = Run(tmp_path / "a run").steps()[-1]
    assert f"stopped and saved at step {step}; resume with: nextpixel pretrain --resume '{tmp_path}/a run'" in last


# ---- one process at a time

BUSY = "expected a run that no other process is training"


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, capsys):
    config, run = settings(tmp_path, steps=150), tmp_path / "run"
    killable = Killable(["pretrain", str(photos(tmp_path)), "--out", str(run), *flags(config)], run)
    killable.until(killable.begun)
    before = contents(run)
    assert main(["pretrain", "--resume", str(run)]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert f"{run}: {BUSY}" in sentence
    assert contents(run).keys() >= before.keys()
    assert killable.end(signal.SIGKILL) == -signal.SIGKILL
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert Run(run).steps()[-1] == 150


def test_an_interrupted_run_is_free_in_the_same_process_and_a_finished_one_too(run):
    with Run(run).locked(), pytest.raises(InputError, match=BUSY):
        nextpixel.pretrain(resume=run)
    for _ in range(2):
        nextpixel.pretrain(resume=run)


def test_where_there_are_no_locks_nothing_is_locked(run, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with Run(run).locked():
        with pytest.raises(InputError, match=BUSY), Run(run).locked():
            pass
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", unsupported)
            nextpixel.pretrain(resume=run)
        monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
        nextpixel.pretrain(resume=run)
    assert Run(run).steps()[-1] == 12


# ---- disks


@pytest.fixture
def limit() -> Iterator:
    """limit(n) makes every write beyond n bytes of a file fail, as a full disk does; limit() lifts that."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size: int = resource.RLIM_INFINITY) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield set_limit
    set_limit()


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_safetensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def refused(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(
    ("what", "how", "complaint"),
    [
        ("nextpixel.checkpoints.weights.save_file", full, "No space left on device"),
        ("nextpixel.checkpoints.weights.save_file", full_for_safetensors, "No space left on device"),
        ("nextpixel.training.loop.save_trainer_state", full, "No space left on device"),
        ("nextpixel.files.os.fsync", full, "No space left on device"),
        ("nextpixel.files.os.rename", refused, "Permission denied"),
        ("nextpixel.files.Path.mkdir", refused, "Permission denied"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_others(run, whole, monkeypatch, what, how, complaint):
    before = {name: content for name, content in contents(run).items() if name.startswith("step")}
    with monkeypatch.context() as patch:
        original = Run.new_checkpoint

        def fail(*arguments):  # only checkpoints fail, and the log and the rest do not
            patch.setattr(what, how)
            return original(*arguments)

        patch.setattr(Run, "new_checkpoint", fail)
        with pytest.raises(WorkError) as raised:
            nextpixel.pretrain(resume=run)
    assert str(raised.value).startswith(f"{run / 'step_0000010'}") and complaint in str(raised.value)
    assert {name: content for name, content in contents(run).items() if name.startswith("step")} == before
    assert leftovers(run) == []
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)


@pytest.mark.parametrize("size", [4_000, 25_000], ids=["in the weights", "in the trainer's state"])
def test_a_write_that_fails_half_way(run, whole, limit, monkeypatch, size, capsys):
    assert (run / "step_0000008" / "model.safetensors").stat().st_size < 25_000
    on_call(monkeypatch, "nextpixel.training.steps.write_model", 1, lambda: limit(size))
    assert main(["pretrain", "--resume", str(run)]) == 1
    limit()
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{run / 'step_0000010'}: cannot be written (" in last and "File too large" in last
    assert leftovers(run) == []
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)


def test_a_full_disk_under_torch_is_an_error_of_the_system(limit, tmp_path):
    model = nextpixel.ImageGPT(nextpixel.ImageGPTConfig(layers=1, width=64, heads=2))
    optimizers = optim.adam(model)
    model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
    optimizers[0].step()
    limit(100_000)
    with pytest.raises(OSError, match="File too large"):  # torch itself says: unexpected pos 704 vs 598
        save_trainer_state(tmp_path / "trainer", model, optimizers)


@pytest.mark.parametrize(
    ("what", "how", "name"),
    [
        ("nextpixel.checkpoints.Run.log", None, "log.jsonl"),
        ("PIL.Image.Image.save", full, "step_0000012.png"),
        ("nextpixel.checkpoints.runs.write_json", None, "best.json"),
    ],
)
def test_a_small_file_that_cannot_be_written_is_named(run, whole, limit, monkeypatch, what, how, name):
    with monkeypatch.context() as patch:
        if how:
            patch.setattr(what, how)
        else:
            on_call(patch, what, 1, lambda: limit(1))
        with pytest.raises(WorkError, match=f"{name}: cannot be written .*untouched"):
            nextpixel.pretrain(resume=run)
    limit()
    assert leftovers(run) == []
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)


def test_a_run_folder_that_cannot_be_made(images, tmp_path, monkeypatch, capsys):
    run_images.decode(str(images), SIDE)  # which renames as well, and may
    monkeypatch.setattr("nextpixel.files.os.rename", refused)
    assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *flags(settings(tmp_path))]) == 1
    assert f"{tmp_path / 'run'}: cannot be written (Permission denied)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and leftovers(tmp_path) == []


# ---- bad places


def nothing_may_be_decoded(monkeypatch):
    monkeypatch.setattr(run_images, "decode", lambda *_, **__: pytest.fail("images were decoded before the check"))


def test_a_run_is_never_overwritten(run, images, tmp_path, monkeypatch, capsys):
    nothing_may_be_decoded(monkeypatch)
    before = contents(run)
    assert main(["pretrain", str(images), "--out", str(run), *flags(settings(tmp_path))]) == 2
    assert f"out: {run} holds a run already; continue it with --resume {run}" in capsys.readouterr().err
    assert contents(run) == before


def test_neither_is_any_other_folder(images, tmp_path, monkeypatch):
    nothing_may_be_decoded(monkeypatch)
    with pytest.raises(InputError, match=f"out: {tmp_path} exists already"):
        nextpixel.pretrain(images, out=tmp_path, **settings(tmp_path))


def test_the_parent_of_a_run_must_be_a_folder(images, tmp_path, monkeypatch):
    nothing_may_be_decoded(monkeypatch)
    (tmp_path / "runs").touch()
    with pytest.raises(InputError, match=f"out: expected a folder, got the file {tmp_path / 'runs'}"):
        nextpixel.pretrain(images, out=tmp_path / "runs" / "a", **settings(tmp_path))


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_only_a_run_can_be_resumed(tmp_path, place):
    with pytest.raises(InputError, match=r"resume: expected a run folder with run\.json"):
        nextpixel.pretrain(resume=tmp_path / place)


# ---- damage


def test_what_a_killed_process_left_is_no_checkpoint_and_is_removed(run, whole):
    shutil.copytree(run / "step_0000008", run / ".step_0000009.part-123")
    (run / ".step_0000009.part-123" / "model.safetensors").write_bytes(b"half")
    shutil.copytree(run / "step_0000003", run / ".step_0000005.part-old")
    (run / ".best.json.part-123").write_text("{")
    (run / ".nextpixel-0123456789abcdef.part").write_text("{")
    (run / "samples" / ".nextpixel-fedcba9876543210.part").write_bytes(b"half")
    assert Run(run).best_checkpoint() == run / "step_0000006"
    nextpixel.pretrain(resume=run)
    assert leftovers(run) == []
    assert_same(run, whole)


@pytest.mark.parametrize("line", ['{"step": 9, "lo', "\0\0\0"])
def test_half_a_line_of_the_log_is_dropped(run, whole, line):
    with (run / "log.jsonl").open("a") as file:
        file.write(line)
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)
    assert all(json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines())


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [truncated, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer/__0_0.distcp", "trainer/.metadata"])
def test_a_damaged_checkpoint_is_named_and_what_is_advised_helps(run, whole, damage, name, capfd):
    damage(run / "step_0000008" / name)
    before = contents(run)
    assert main(["pretrain", "--resume", str(run)]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert str((run / "step_0000008" / name).parent) in last
    assert last.endswith(f"; remove {run / 'step_0000008'} to continue from the checkpoint before it")
    assert contents(run) == before
    shutil.rmtree(run / "step_0000008")
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)


def change(*keys: str, to: object = None):
    """Damage to run.json: the value under these keys is another, or for None gone."""

    def damage(facts: dict) -> dict:
        *path, last = keys
        place = facts
        for key in path:
            place = place[key]
        if to is None:
            del place[last]
        else:
            place[last] = to
        return facts

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(change(key) for key in ("config", "decisions", "model", "tokenizer", "data")),
        change("data", "source"),
        change("decisions", "train_key"),
        change("config", "steps", to="many"),
        change("config", "steps", to=-1),
        change("config", "unknown", to=1),
        change("model", "heads", to=3),
        change("tokenizer", "colors", to=[[0, 0, 0], [1]]),
        change("tokenizer", to="none"),
        lambda facts: [facts],
        lambda facts: "{",
        lambda facts: None,
    ],
)
def test_a_damaged_run_json_is_named(run, damage, capsys):
    facts = damage(Run(run).facts())
    (run / "run.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    before = contents(run)
    assert main(["pretrain", "--resume", str(run)]) == 2
    assert str(run / "run.json") in capsys.readouterr().err.splitlines()[-1]
    assert contents(run) == before


# ---- the images of a run


def test_a_run_resumes_without_its_images_as_long_as_they_are_cached(run, whole, images):
    images.unlink()
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)


def test_a_run_resumes_without_its_cache_as_long_as_the_images_are_the_same(run, whole, cache):
    shutil.rmtree(cache)
    nextpixel.pretrain(resume=run)
    assert_same(run, whole)


def test_a_run_does_not_go_on_with_other_images(run, images, cache):
    shutil.rmtree(cache)
    np.save(images, np.load(images)[::-1])
    before = contents(run)
    with pytest.raises(InputError, match=f"{images}: expected the original images of the run, got others"):
        nextpixel.pretrain(resume=run)
    assert contents(run) == before


def test_images_from_memory_are_given_again(whole, tmp_path, cache):
    photos(tmp_path)
    array = np.load(tmp_path / "photos.npy")
    with pytest.MonkeyPatch.context() as patch:
        on_call(patch, "nextpixel.training.optim.cosine_rate", 8, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            nextpixel.pretrain(array, out=tmp_path / "run", **settings(tmp_path))
    shutil.rmtree(cache)
    nextpixel.pretrain(array, resume=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_unreadable_pictures_are_listed_in_the_run(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "folder").mkdir()
    for number, picture in enumerate(np.load(photos(tmp_path, 22))):
        Image.fromarray(picture).save(tmp_path / "folder" / f"{number:02d}.png")
    (tmp_path / "folder" / "03.png").write_bytes(b"no picture")
    (tmp_path / "folder" / "17.png").write_bytes(b"")
    nextpixel.pretrain(tmp_path / "folder", out=tmp_path / "run", **settings(tmp_path, steps=1))
    lines = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert [("03.png" in line, "17.png" in line) for line in lines] == [(True, False), (False, True)]
    assert Run(tmp_path / "run").facts()["data"]["unreadable"] == 2
    assert "2 pictures cannot be read" in capsys.readouterr().err
