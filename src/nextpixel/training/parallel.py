"""One model in several processes: replicated (DDP) or sharded (FSDP2), and the optimisers' state on disk.

The metadata of torch.distributed.checkpoint is a pickle, so only runs that are resumed are read with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nextpixel.errors import InputError
from nextpixel.training.distributed import any_true, group, lost_process_errors, world_size


class Network(nn.Module):
    """A module whose forward pass is one method of a model, so that DDP can wrap that method."""

    def __init__(self, model: nn.Module, method: str = "__call__") -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return getattr(self.model, self.method)(*inputs, **named)


def wrap(
    model: nn.Module,
    method: str = "__call__",
    *,
    device: str,
    shard: Sequence[nn.Module] | None = None,
    dtype: str = "fp32",
) -> nn.Module:
    """A module that calls `method` of `model`, for training in every process: replicated (DDP), or sharded (FSDP2).

    `shard` lists the modules that are gathered one by one when used; the rest of the model is one more such unit (Zhao
    et al. 2023). `dtype` is that of their gathered weights; those of the rest are fp32, as is the sum of gradients.
    Sharding turns the parameters into DTensors in place, so optimisers must be created afterwards.
    """
    if group() is None:
        return Network(model, method)
    with lost_process_errors():
        if shard is None:
            # saves a copy of the gradients
            return DistributedDataParallel(Network(model, method), gradient_as_bucket_view=True)
        mesh = init_device_mesh(device.split(":")[0], (world_size(),))
        weights = torch.bfloat16 if dtype == "bf16" else torch.float32
        # fp32 embeddings and uncast inputs keep the residual stream in fp32; autocast chooses as in a single process
        for units, kind in ((shard, weights), ([model], torch.float32)):
            policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
            for unit in units:
                fully_shard(unit, mesh=mesh, mp_policy=policy)
                if hasattr(unit, "state"):  # a block's part of its own weights is used outside its forward pass
                    register_fsdp_forward_method(unit, "state")
        if method != "__call__":
            register_fsdp_forward_method(model, method)
    return Network(model, method)


@contextmanager
def gradient_sync(network: nn.Module, enabled: bool) -> Iterator[None]:
    """Within, backward averages gradients over the processes if `enabled`, or accumulates them locally."""
    inner = getattr(network, "model", None)
    if isinstance(inner, FSDPModule):
        inner.set_requires_gradient_sync(enabled)
    with network.no_sync() if isinstance(network, DistributedDataParallel) and not enabled else nullcontext():
        yield


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The full tensors of a sharded model, on the CPU of the first process; all processes must call this."""
    options = dcp_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], dcp_state.get_model_state_dict(model, options=options))


def is_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether all values are finite, in every process."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in (p.detach() for p in parameters)]
    own = [p for p in own if p.numel()]  # small parameters have no part in some processes
    return not any_true(bool(own) and not all(torch.isfinite(norm) for norm in torch._foreach_norm(own)))[0]


def save_trainer_state(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Write the optimisers' state, by parameter name, from all processes. Raises OSError."""
    state: dict[str, Any] = {"optimizer": dcp_state.get_optimizer_state_dict(model, optimizers)}
    with _plain_errors():
        dcp.save(state, checkpoint_id=folder, **_where())


def load_trainer_state(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Load what save_trainer_state wrote, in any number of processes. Raises InputError for damaged files."""
    state = {"optimizer": dcp_state.get_optimizer_state_dict(model, optimizers)}
    try:
        with _plain_errors():
            dcp.load(state, checkpoint_id=folder, **_where())
    except Exception as error:  # damaged files raise various exceptions
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{folder}: expected the state of a trainer, got damaged or missing files ({reason})"
        ) from None
    dcp_state.set_optimizer_state_dict(model, optimizers, state["optimizer"])


def _where() -> dict[str, Any]:
    return {"no_dist": True} if group() is None else {"process_group": group()}


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Silence the warning about a missing process group, and unwrap errors.

    torch wraps all of them, even KeyboardInterrupt, in a CheckpointException, which is not an Exception, and turns the
    OSError of a full disk into a RuntimeError.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        try:
            yield
        except CheckpointException as wrapped:
            error, _ = next(iter(wrapped.failures.values()))
            cause = error.__context__ if isinstance(error, RuntimeError) else None
            raise (cause if isinstance(cause, OSError) else error) from None
