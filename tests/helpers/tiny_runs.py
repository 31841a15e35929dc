"""Small pretraining runs for tests: pictures of eight colours, a network of one block, and what to compare after."""

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nextpixel
from nextpixel.checkpoints import Run
from nextpixel.training import optim
from nextpixel.training.parallel import load_trainer_state

SIDE = 4
COLORS = np.random.default_rng(8).integers(0, 256, (8, 3), dtype=np.uint8)


def pictures(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """uint8 (count, side, side, 3): rows of one colour each, so that there is something to learn."""
    rows = np.random.default_rng(seed).integers(0, len(COLORS), (count, side, 1))
    return COLORS[np.broadcast_to(rows, (count, side, side))]


def photos(folder: Path, count: int = 20, seed: int = 0) -> Path:
    """A .npy file of pictures, and beside it palette.npy with their colours."""
    np.save(folder / "palette.npy", COLORS / 127.5 - 1)
    np.save(folder / "photos.npy", pictures(count, seed=seed))
    return folder / "photos.npy"


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """12 steps over 18 training images, 4 a step: an epoch ends within a batch."""
    tiny = {
        "layers": 1, "width": 16, "heads": 2, "side": SIDE, "palette": str(folder / "palette.npy"),
        "steps": 12, "batch_images": 4, "micro_batch_images": 2, "learning_rate": 0.01, "sample_images": 1,
        "checkpoint_every_steps": 5, "evaluate_every_steps": 6, "log_every_steps": 1,
        "device": "cpu", "dtype": "fp32", "compile": "off", "threads": 1,
    }  # fmt: skip
    return tiny | changes


def flags(values: dict[str, Any]) -> list[str]:
    """Settings as they are typed."""
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def state(run: Path, step: int | None = None) -> dict[str, Tensor]:
    """Every tensor of a checkpoint (default: the last): the weights and the optimiser's state, by name."""
    found = Run(run)
    folder = found.folder(found.steps()[-1] if step is None else step)
    model = nextpixel.load(folder)
    optimizers = optim.adam(model)
    load_trainer_state(folder / "trainer", model, optimizers)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{name} {key}": value for key, value in optimizers[0].state[parameter].items()}
    return tensors


def assert_same(run: Path, other: Path) -> None:
    """Both runs ended with the same weights and optimiser state, bit for bit, and the same losses."""
    ours, theirs = state(run), state(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4 * len(list(nextpixel.load(run).parameters()))  # each with its step and two moments
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert figures(run) == figures(other)
    assert Run(run).best() == Run(other).best()


def figures(run: Path) -> list[tuple[int, str, float]]:
    """(step, "loss" or "validation_nats", value) of every line of log.jsonl, in order."""
    names = "loss", "validation_nats"
    return [(entry["step"], name, entry[name]) for entry in Run(run).read_log() for name in names if name in entry]


def leftovers(folder: Path) -> list[str]:
    """Files and folders below that bear a temporary name."""
    return [str(path) for path in folder.rglob("*") if ".part" in path.name or path.name.startswith(".step")]


def on_call(monkeypatch: pytest.MonkeyPatch, target: str, number: int, do: Callable[[], Any]) -> None:
    """Have `do` run just before call `number`, counted from 1, of the function with that dotted name."""
    original = resolve_name(target)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            do()
        return original(*args, **kwargs)

    monkeypatch.setattr(target, wrapped)
