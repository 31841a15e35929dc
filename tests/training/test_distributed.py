"""Two processes do what one does with the same batch: gloo on the CPU, one torchrun for all runs of the default tests.

Those marked torchrun start more of them: two agents as two machines, four processes, killed and stopped ones.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively
from PIL import Image
from tiny_runs import COLORS, flags, leftovers, photos, pictures, settings
from torch.distributed.checkpoint import FileSystemReader

import nextpixel
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import ImageGPTConfig, PretrainConfig
from nextpixel.errors import InputError
from nextpixel.training import decisions, distributed, parallel
from nextpixel.training.pretraining import start_run

pytestmark = pytest.mark.timeout(600)  # as many processes wait for each other on a busy machine
STEPS, HALF = 20, 10
MANY = str(Path(__file__).parents[1] / "helpers" / "many_processes.py")
VARIANTS: dict[str, dict[str, Any]] = {
    "classic": {},
    "bf16": {"dtype": "bf16"},
    "muon": {"optimizer": "muon", "schedule": "linear"},
    "masked": {"objective": "masked", "clip_norm": 0.1},
    "modern": {"preset": "modern", "checkpoint_activations": True},
    "words": {"captions": "captions.csv", "steps": 6, "evaluate_every_steps": 3},
}
CHECKED = [("classic", "copies"), ("classic", "shards"), ("bf16", "shards"), ("muon", "shards"), ("words", "copies")]
MORE = [("bf16", "copies"), ("muon", "copies"), ("masked", "copies"), ("masked", "shards"), ("modern", "shards")]
# nats; Muon works in bf16
BANDS = {"classic": 1e-5, "words": 1e-5, "masked": 1e-5, "bf16": 0.02, "muon": 1e-3, "modern": 0.01}


def pretraining(folder: Path, out: str, shard: bool = False, **changes: Any) -> list[str]:
    """The command of a run of 20 steps over 18 images, 4 a step, one at a time."""
    tiny = {"steps": STEPS, "evaluate_every_steps": HALF, "micro_batch_images": 1, "cache": str(folder / "cache")}
    values = settings(folder, **tiny | changes)
    values |= {"captions": str(folder / values["captions"])} if "captions" in values else {}
    switches = ["--shard"] * shard + ["--checkpoint-activations"] * values.pop("checkpoint_activations", False)
    return ["pretrain", str(folder / "photos.npy"), "--out", str(folder / out), *flags(values), *switches]


def finetuning(folder: Path, out: str) -> list[str]:
    """The command of two epochs on 22 of 24 images, and 8 test images."""
    labelled, test = str(folder / "labelled.npz"), str(folder / "test.npz")
    model = str(folder / "three-layers")
    values = {"batch_images": 4, "micro_batch_images": 1, "epochs": 2, "log_every_steps": 1, "device": "cpu"}
    values |= {"dtype": "fp32", "compile": "off", "threads": 1, "cache": str(folder / "cache")}
    return ["finetune", labelled, "--test", test, "--model", model, "--out", str(folder / out), *flags(values)]


def start(folder: Path, commands: list[list[str]], *options: str) -> subprocess.Popen[str]:
    """torchrun with these options, whose processes run the commands."""
    (folder / "commands.json").write_text(json.dumps(commands))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *options, MANY, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def torchrun(folder: Path, commands: list[list[str]], processes: int = 2) -> str:
    """Have that many processes run these commands; returns what they said."""
    started = start(folder, commands, "--standalone", "--nproc-per-node", str(processes))
    out, said = started.communicate(timeout=600)
    assert started.returncode == 0, said[-4000:]
    return out + said


def figures(run: Path, name: str = "loss") -> list[float]:
    return [entry[name] for entry in Run(run).read_log() if name in entry]


def cut(run: Path, to: Path) -> Path:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(run, to)
    for step in Run(to).steps():
        if step > HALF:
            shutil.rmtree(Run(to).folder(step))
    (to / "best.json").unlink()
    return to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process does, and then, with one torchrun, what two do."""
    folder = tmp_path_factory.mktemp("many")
    photos(folder)
    np.savez(folder / "labelled.npz", images=pictures(24, seed=15), labels=np.arange(24) % 2)
    np.savez(folder / "test.npz", images=pictures(8, seed=6), labels=np.arange(8) % 2)
    rows = [f"{i:02},{('red', 'blue')[i % 2]} rows, picture" for i in range(20)]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *(f'{r[:3]}"{r[3:]}"' for r in rows)]))
    for name in ("classic", "bf16", "muon", "words"):
        assert main(pretraining(folder, f"{name}-alone", **VARIANTS[name])) == 0
    cut(folder / "classic-alone", folder / "one-then-two")
    again = folder / "classic-alone" / "step_0000020"
    features = ["features", str(folder / "photos.npy"), "--model", str(again), "--layer", "0,1", "--device", "cpu"]
    assert main([*features, "--out", str(folder / "alone.npz")]) == 0
    shape = {"layers": 3, "width": 16, "heads": 2, "side": 4, "colors": 8}
    mixed = lively(ImageGPTConfig(**shape, mix_input=True, positions="rotary", qk_norm=True), torch.float32)
    mixed.palette = nextpixel.Palette(COLORS / 127.5 - 1)
    nextpixel.save(mixed, folder / "three-layers")
    assert main(finetuning(folder, "finetune-alone")) == 0
    branch = ["pretrain", "--branch", str(folder / "muon-alone"), "--steps", "24"]
    assert main([*branch, "--out", str(folder / "branch-alone")]) == 0
    torchrun(
        folder,
        [pretraining(folder, f"{name}-{way}", way == "shards", **VARIANTS[name]) for name, way in CHECKED]
        + [["pretrain", "--resume", str(folder / "one-then-two")]]
        + [[*features, "--out", str(folder / "two.npz")]]
        + [[*finetuning(folder, "finetune-shards"), "--shard"]]
        + [[*branch, "--out", str(folder / "branch-two")]],
    )
    return folder


def assert_close(run: Path, alone: Path, band: float) -> None:
    for name in ("loss", "validation_nats"):
        assert len(figures(run, name)) == len(figures(alone, name)) > 0
        np.testing.assert_allclose(figures(run, name), figures(alone, name), atol=band)
    assert Run(run).steps() == Run(alone).steps()
    assert leftovers(run) == []


@pytest.mark.parametrize(("name", "way"), CHECKED)
def test_two_processes_equal_one(folder, name, way):
    assert_close(folder / f"{name}-{way}", folder / f"{name}-alone", BANDS[name])
    assert Run(folder / f"{name}-{way}").facts()["processes"] == 2
    told, alone = (figures(folder / f"{name}-{one}", "validation_nats_without_caption") for one in (way, "alone"))
    assert len(told) == 2 * (name == "words") and told == pytest.approx(alone, abs=BANDS[name])


def test_weights_of_two_processes(folder):
    alone, copies, shards = (nextpixel.load(folder / f"classic-{way}") for way in ("alone", "copies", "shards"))
    for name, weight in alone.named_parameters():
        for model in (copies, shards):
            torch.testing.assert_close(model.get_parameter(name), weight, atol=1e-4, rtol=0)


def test_shards_were_shards(folder):
    """What the optimiser keeps of a matrix was written in two parts, and in one where each process had a copy."""

    def parts(way: str) -> int:
        reader = FileSystemReader(folder / f"classic-{way}" / "step_0000020" / "trainer")
        found = reader.read_metadata().state_dict_metadata
        return len(found["optimizer.state.blocks.0.attention.qkv.weight.exp_avg"].chunks)

    assert parts("copies") == 1
    assert parts("shards") == 2


def test_every_image_is_seen_once_an_epoch(folder):
    shown = []
    for number in range(2):
        batches = [json.loads(line) for line in (folder / f"seen-{number}.jsonl").read_text().splitlines()]
        shown.append(dict(batches[:STEPS]))  # of the first run
    epochs = [image for step in range(STEPS) for rank in shown for image in rank[step]]
    assert all(len(rank[step]) == 2 for rank in shown for step in range(STEPS))
    assert len(set(epochs)) == 18
    for epoch in range(4):
        assert Counter(epochs[epoch * 18 : (epoch + 1) * 18]) == Counter(set(epochs))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have names on Linux")
def test_groups_end_before_python_does(folder):
    """Of three groups only the one is left that carried shards: torch's caches of sharded tensors hold it."""
    for number in range(2):
        names = json.loads((folder / f"threads-{number}.json").read_text())
        assert len(names) > 0
        assert names.count("gloo_tcp_loop") <= 1 and names.count("pt_gloo_runloop") <= 2


def test_a_run_goes_on_with_half_the_processes(folder):
    run = cut(folder / "classic-shards", folder / "two-then-one")
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert_close(run, folder / "classic-alone", 1e-5)


def test_a_run_goes_on_with_twice_the_processes(folder):
    assert_close(folder / "one-then-two", folder / "classic-alone", 1e-5)


def test_features_of_two_processes_are_those_of_one(folder):
    alone, two = np.load(folder / "alone.npz"), np.load(folder / "two.npz")
    assert alone.files == two.files
    for name in alone.files:
        np.testing.assert_array_equal(two[name], alone[name])
    assert not (folder / ".two.npz.parts").exists()


def test_a_branch_by_two_processes(folder):
    assert_close(folder / "branch-two", folder / "branch-alone", BANDS["muon"])
    facts = Run(folder / "branch-two").facts()
    assert facts["branched_from"]["step"] == HALF and facts["processes"] == 2
    assert facts["command"] == Run(folder / "classic-copies").facts()["command"]  # not that of the run it came from


def test_finetuning_by_two_processes(folder):
    alone, two = folder / "finetune-alone", folder / "finetune-shards"
    assert 0 < nextpixel.load(alone).config.class_layer < 3  # not the last: its block's norm is used by itself
    np.testing.assert_allclose(figures(two), figures(alone), atol=1e-5)
    assert figures(two, "validation_accuracy") == figures(alone, "validation_accuracy")
    assert json.loads((two / "test.json").read_text()) == json.loads((alone / "test.json").read_text())


@pytest.fixture
def third_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_the_residual_stream_of_shards_is_fp32_and_their_matrices_are_bf16(monkeypatch):
    model, seen = nextpixel.ImageGPT(nextpixel.ImageGPTConfig(layers=2, width=16, heads=2, side=4, colors=8)), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
        block.attention.qkv.register_forward_pre_hook(lambda part, _: seen.append(part.weight.dtype))
    monkeypatch.setattr(distributed, "_groups", distributed._Groups("control", None, 1.0))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        network = parallel.wrap(model, device="cpu", shard=list(model.blocks), dtype="bf16")
        with torch.autocast("cpu", torch.bfloat16):
            network(torch.zeros(1, 16, dtype=torch.int64))
    finally:
        torch.distributed.destroy_process_group()
    assert seen == 2 * [torch.float32, torch.bfloat16]


def test_a_process_may_have_no_part_of_any_parameter():
    assert parallel.is_finite([torch.empty(0)])
    assert not parallel.is_finite([torch.empty(0), torch.tensor([1.0, torch.inf])])


def test_a_micro_batch_is_at_most_the_images_of_a_process(third_of_three):
    config = PretrainConfig(batch_images=6, micro_batch_images=6, device="cpu")
    shape = nextpixel.ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=8)
    assert decisions.place(config, shape, 1).micro_batch_images == 2


def test_a_batch_that_does_not_divide(third_of_three):
    assert distributed.local_batch_images(12) == 4
    with pytest.raises(InputError, match="batch_images: expected a multiple of the 3 processes, got 128"):
        distributed.local_batch_images(128)


def test_only_the_first_process_speaks(third_of_three, monkeypatch, capsys):
    assert main(["vary", "cat.jpg"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["vary", "cat.jpg"]) == 2
    assert "vary cannot run under torchrun" in capsys.readouterr().err


def test_distillation_is_no_work_for_many(third_of_three, tmp_path):
    with pytest.raises(InputError, match="distill runs in a single process, got 3"):
        nextpixel.distill(pictures(24), out=tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"init": "model"}, {"side": (6, 4)}, {"palette": "exact", "slice": (4, 4)}])
def test_a_restarted_command_finds_its_run(tmp_path, monkeypatch, model, changes):
    monkeypatch.chdir(tmp_path)
    nextpixel.save(model, "model")
    Image.fromarray(pictures(1, side=8)[0]).save(photos(tmp_path).with_suffix(".png"))
    given = settings(tmp_path, **changes)
    if "init" in changes:
        given = {name: value for name, value in given.items() if name not in ("layers", "width", "heads", "palette")}
    images, config = "photos.png" if "slice" in changes else "photos.npy", PretrainConfig(**given)
    run = start_run(images, tmp_path / "run", config)
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert start_run(images, tmp_path / "run", config).facts() == run.facts()
    with pytest.raises(InputError, match="holds a run already"):
        start_run(images, tmp_path / "run", replace(config, seed=1))


def test_more_processes_than_gpus(third_of_three, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        InputError, match="nproc-per-node of torchrun: expected at most the 2 GPUs of this machine, got 3"
    ):
        distributed.join("cuda", 1.0)
    with pytest.raises(InputError, match="expected cpu or cuda for several processes, got mps"):
        distributed.join("mps", 1.0)


@pytest.mark.parametrize(
    "message",
    ["[gloo/transport/tcp/pair.cc:547] Connection closed by peer", "Application timeout caused pair closure"],
)
def test_a_process_that_loses_another_says_so(third_of_three, monkeypatch, capsys, message):
    def lose(rest: list[str]) -> None:
        with distributed.lost_process_errors():
            raise RuntimeError(message)

    monkeypatch.setattr("nextpixel.cli.pretrain.run", lose)
    assert main(["pretrain"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("process 2: nextpixel: another process died, or did not answer (--timeout-minutes)")
    assert "`" not in said
    with pytest.raises(RuntimeError, match="something else"), distributed.lost_process_errors():
        raise RuntimeError("something else")


def test_a_run_is_found_again_by_the_same_command_alone(folder, monkeypatch, capsys):
    """Where torchrun starts a command again, its run goes on; a run of another command is refused as ever."""
    command = pretraining(folder, "classic-alone")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    facts = Run(folder / "classic-alone").facts()
    assert main(command) == 0  # it was ended already
    assert "resuming from step 20" in capsys.readouterr().err
    branch = ["pretrain", "--branch", str(folder / "muon-alone"), "--out", str(folder / "branch-alone"), "--steps"]
    assert main([*branch, "24"]) == 0
    assert "resuming from step 24" in capsys.readouterr().err
    assert main([*branch, "26"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*command, "--seed", "1"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--other"])
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 2
    assert Run(folder / "classic-alone").facts() == facts


@pytest.fixture(scope="module")
def more(folder: Path) -> Path:
    for name in ("masked", "modern"):
        assert main(pretraining(folder, f"{name}-alone", **VARIANTS[name])) == 0
    assert main([*finetuning(folder, "frozen-alone"), "--freeze-trunk"]) == 0
    commands = [pretraining(folder, f"{n}-{way}", way == "shards", **VARIANTS[n]) for n, way in MORE]
    commands += [[*finetuning(folder, "frozen-copies"), "--freeze-trunk"], finetuning(folder, "finetune-copies")]
    commands += [[*finetuning(folder, "frozen-shards"), "--freeze-trunk", "--shard"]]
    torchrun(folder, commands)
    return folder


@pytest.mark.torchrun
@pytest.mark.parametrize(("name", "way"), MORE)
def test_two_processes_equal_one_also(more, name, way):
    assert_close(more / f"{name}-{way}", more / f"{name}-alone", BANDS[name])


@pytest.mark.torchrun
@pytest.mark.parametrize(
    ("two", "one"),
    [("finetune-copies", "finetune-alone"), ("frozen-copies", "frozen-alone"), ("frozen-shards", "frozen-alone")],
)
def test_finetuning_by_two_processes_also(more, two, one):
    np.testing.assert_allclose(figures(more / two), figures(more / one), atol=1e-5)
    assert figures(more / two, "validation_accuracy") == figures(more / one, "validation_accuracy")


@pytest.mark.torchrun
def test_shards_go_on_in_twice_the_processes(folder):
    run = cut(folder / "classic-shards", folder / "two-then-four")
    torchrun(folder, [["pretrain", "--resume", str(run)]], processes=4)
    assert_close(run, folder / "classic-alone", 1e-5)


@pytest.mark.torchrun
def test_two_machines(folder):
    """Two agents on the loopback, one process each."""
    options = "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id nodes --rdzv-endpoint localhost:29411"
    command = [pretraining(folder, "machines", shard=True)]
    agents = [start(folder, command, *options.split()) for _ in range(2)]
    for agent in agents:
        _, said = agent.communicate(timeout=500)
        assert agent.returncode == 0, said[-4000:]
    assert_close(folder / "machines", folder / "classic-alone", 1e-5)


def workers(agent: subprocess.Popen[str]) -> list[int]:
    """Process numbers of a torchrun's processes, in the order they were started."""
    found = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return sorted(pid for pid in map(int, found) if MANY in Path(f"/proc/{pid}/cmdline").read_text())


def wait_for(what: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def long_run(folder: Path, out: str, *options: str, **changes: Any) -> tuple[subprocess.Popen[str], Path]:
    """A run too long to end by itself, when it has a checkpoint."""
    command = pretraining(folder, out, steps=100_000, evaluate_every_steps=50_000, **changes)
    agent = start(folder, [command], "--standalone", "--nproc-per-node", "2", *options)
    wait_for(lambda: agent.poll() is not None or any((folder / out).glob("step_*")))
    assert agent.poll() is None, agent.communicate()[1]
    return agent, folder / out


@pytest.mark.torchrun
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_replaced(folder, victim):
    agent, run = long_run(folder, f"killed-{victim}", "--max-restarts", "1")
    first = workers(agent)
    saved = Run(run).steps()[-1]
    os.kill(first[victim], signal.SIGKILL)
    wait_for(lambda: Run(run).steps()[-1] > saved + 10 and set(workers(agent)).isdisjoint(first))
    agent.send_signal(signal.SIGINT)
    _, said = agent.communicate(timeout=120)
    assert "resuming from step" in said
    steps = [entry["step"] for entry in Run(run).read_log() if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1)) and Run(run).steps()[-1] == len(steps)
    assert leftovers(run) == []


@pytest.mark.torchrun
def test_a_run_that_another_process_trains_is_refused_once_for_all(folder):
    run = cut(folder / "classic-alone", folder / "busy")
    with Run(run).locked():
        agent = start(folder, [["pretrain", "--resume", str(run)]], "--standalone", "--nproc-per-node", "2")
        _, said = agent.communicate(timeout=120)
    assert agent.returncode != 0 and said.count("expected a run that no other process is training") == 1
    assert Run(run).steps()[-1] == HALF


@pytest.mark.torchrun
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_run_in_time(folder, victim):
    agent, run = long_run(folder, f"stopped-{victim}", "--shutdown-timeout", "3", timeout_minutes=0.1)
    pids = workers(agent)
    os.kill(pids[victim], signal.SIGSTOP)
    begun = time.monotonic()
    _, said = agent.communicate(timeout=120)
    assert agent.returncode != 0 and time.monotonic() - begun < 90
    assert "another process died, or did not answer within 0.1 minutes (--timeout-minutes)" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert Run(run).steps()


@pytest.mark.torchrun
@pytest.mark.parametrize("to", ["torchrun", "one process"])
def test_signals_stop_all_at_the_same_step(folder, to):
    agent, run = long_run(folder, to.replace(" ", "-"), checkpoint_every_steps=10_000, checkpoint_every_minutes=0.02)
    if to == "torchrun":
        agent.send_signal(signal.SIGINT)
    else:
        os.kill(workers(agent)[1], signal.SIGTERM)
    _, said = agent.communicate(timeout=120)
    assert agent.returncode != 0
    last = Run(run).steps()[-1]
    assert f"stopped and saved at step {last:,}; resume with: nextpixel pretrain --resume" in said
    assert Run(run).read_log()[-1]["step"] == last
    assert leftovers(run) == []
