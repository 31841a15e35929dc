"""The only user of torch.distributed: trainer state in and out. Alone, it needs no process group.

The metadata of torch.distributed.checkpoint is a pickle: only a run that is resumed is read through here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from nextpixel.errors import InputError


def save_trainer_state(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Write the optimisers' state, by parameter name. Raises OSError where that fails."""
    state: dict[str, Any] = {"optimizer": dcp_state.get_optimizer_state_dict(model, optimizers)}
    with _alone():
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def load_trainer_state(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Read what save_trainer_state wrote into these optimisers. Raises InputError where it is damaged."""
    state = {"optimizer": dcp_state.get_optimizer_state_dict(model, optimizers)}
    try:
        with _alone():
            dcp.load(state, checkpoint_id=folder, no_dist=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{folder}: expected the state of a trainer, got damaged or missing files ({reason})"
        ) from None
    dcp_state.set_optimizer_state_dict(model, optimizers, state["optimizer"])


@contextmanager
def _alone() -> Iterator[None]:
    """For a lone process: no warning that it has no process group, and errors as they were raised.

    torch wraps all of them, KeyboardInterrupt too, in a CheckpointException, which is no Exception; and before
    that it makes a RuntimeError of a full disk.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        try:
            yield
        except CheckpointException as wrapped:
            error, _ = next(iter(wrapped.failures.values()))
            hidden = error.__context__ if isinstance(error, RuntimeError) else None
            raise (hidden if isinstance(hidden, OSError) else error) from None
