"""The only user of torch.distributed: trainer state in and out. Alone, it needs no process group.

The metadata of torch.distributed.checkpoint is a pickle: only a run that is resumed is read through here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.optim import Optimizer


def save_trainer_state(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write the optimiser's state, by parameter name."""
    state: dict[str, Any] = {"optimizer": dcp_state.get_optimizer_state_dict(model, optimizer)}
    with _quiet():
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def load_trainer_state(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Read what save_trainer_state wrote into this optimiser."""
    state = {"optimizer": dcp_state.get_optimizer_state_dict(model, optimizer)}
    with _quiet():
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    dcp_state.set_optimizer_state_dict(model, optimizer, state["optimizer"])


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that a lone process has no process group, which is what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        yield
