"""Two processes do what one does with the same batch: gloo on the CPU, one torchrun for all runs here."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import SIDE, flags, leftovers, photos, pictures, settings

import nextpixel
from nextpixel import distributed
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.errors import InputError

STEPS = 20
SWITCHES = {"shard"}


def run_flags(folder: Path, **changes: Any) -> list[str]:
    values = settings(folder, steps=STEPS, evaluate_every_steps=10, cache=str(folder / "cache")) | changes
    return flags(values) + [f"--{name}" for name in SWITCHES & values.keys() if values.pop(name)]


def torchrun(folder: Path, commands: list[list[str]], *options: str) -> None:
    """Two processes run these commands; `options` are torchrun's."""
    (folder / "commands.json").write_text(json.dumps(commands))
    script = str(Path(__file__).with_name("many_processes.py"))
    given = [*options] or ["--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "torch.distributed.run", *given, script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


VARIANTS: dict[str, dict[str, Any]] = {
    "classic": {},
    "bf16": {"dtype": "bf16"},
    "muon": {"optimizer": "muon"},
    "masked": {"objective": "masked"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant alone, by two processes and by two with shards; and runs that change their number midway."""
    folder = tmp_path_factory.mktemp("many")
    images = str(photos(folder))
    (folder / "seen").mkdir()
    np.savez(folder / "labelled.npz", images=pictures(24, seed=5), labels=np.arange(24) % 2)
    commands = []
    for name, changes in VARIANTS.items():
        assert main(["pretrain", images, "--out", str(folder / f"{name}-alone"), *run_flags(folder, **changes)]) == 0
        for way, shard in (("copies", []), ("shards", ["--shard"])):
            if name in ("bf16", "masked") and way == "copies":
                continue
            out = str(folder / f"{name}-{way}")
            commands.append(["pretrain", images, "--out", out, *run_flags(folder, **changes), *shard])
    torchrun(folder, commands)
    return folder


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in Run(run).read_log() if "loss" in entry]


@pytest.mark.parametrize("way", ["copies", "shards"])
def test_two_processes_equal_one(folder, way):
    alone, ours = folder / "classic-alone", folder / f"classic-{way}"
    print(np.abs(np.array(losses(ours)) - losses(alone)).max())
    assert len(losses(ours)) == STEPS
    np.testing.assert_allclose(losses(ours), losses(alone), atol=1e-5)
