"""Processes started by torchrun: what they know of each other and decide together. No-ops in a single process.

join comes first. Decisions are exchanged over two gloo groups on the CPU: one waits for timeout_minutes, the other, for
work of unknown length, for a week. Only gradients and shards use the device's backend, see parallel.
"""

from __future__ import annotations

import atexit
import gc
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from nextpixel.errors import InputError, WorkError
from nextpixel.progress import is_first

T = TypeVar("T")
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class _Groups:
    control: Any
    patient: Any
    minutes: float


_groups: _Groups | None = None  # global, as the process group of torch.distributed is


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def rank() -> int:
    """The rank of this process; rank 0 writes and prints (progress.is_first)."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def under_torchrun() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(device: str, timeout_minutes: float) -> str:
    """Connect to the other processes; returns the device of this one: cuda becomes cuda:0, cuda:1, ...

    Raises InputError for more processes than GPUs, and for a device that cannot be shared.
    """
    global _groups
    if world_size() == 1:
        return device
    kind = device.split(":")[0]
    if kind == "mps":
        raise InputError("expected cpu or cuda for several processes, got mps", argument="device")
    if kind == "cuda":
        if local_world_size() > torch.cuda.device_count():
            raise InputError(
                f"nproc-per-node of torchrun: expected at most the {torch.cuda.device_count()} GPUs of this machine, "
                f"got {local_world_size()}"
            )
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if _groups is None:
        timeout = timedelta(minutes=timeout_minutes)
        with lost_process_errors():
            if not dist.is_initialized():
                store, rank, world = next(iter(dist.rendezvous("env://", timeout=timeout)))
                store = dist.PrefixStore(_rendezvous_name(store, timeout), store)
                backend = "nccl" if kind == "cuda" else "gloo"
                dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
                atexit.register(_leave)
            control = dist.new_group(backend="gloo", timeout=timeout)
            dist.barrier(control)  # a missing process is noticed here, within the shorter timeout
            _groups = _Groups(control, dist.new_group(backend="gloo", timeout=PATIENCE), timeout_minutes)
    return device


def _leave() -> None:
    """Destroy the process groups, and with them their threads, before the interpreter shuts down.

    A gloo thread that frees a tensor during shutdown aborts the process. A group lives as long as any reference to it,
    which may be part of a cycle; hence the garbage collection.
    """
    global _groups
    _groups = None
    if dist.is_initialized():  # the caller may have done so
        dist.destroy_process_group()
    gc.collect()


def _rendezvous_name(store: Any, timeout: timedelta) -> str:
    """A prefix for the store, which all processes of this start agree on and no earlier start has used.

    torchrun's store outlives restarts and keeps the addresses of dead processes (pytorch issue 135712), and the restart
    count differs between machines. So each process publishes a fresh name, and the first one publishes the names it
    sees until every process has found its own among them.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f"name-{rank()}", own)
    while time.monotonic() < end:
        if is_first():
            store.set("offer", ",".join(store.get(f"name-{i}").decode() for i in range(world_size())))
            if all(store.check([f"{own}-{i}"]) for i in range(1, world_size())):
                return own
        else:
            names = store.get("offer").decode().split(",")
            if names[rank() : rank() + 1] == [own]:
                store.set(f"{names[0]}-{rank()}", "found")
                return names[0]
        time.sleep(0.05)
    raise dist.DistStoreError("not all processes connected")


def group() -> Any:
    """The gloo group of all processes after join; None in a single process."""
    return None if _groups is None else _groups.control


def local_batch_images(batch_images: int) -> int:
    """Images of a batch per process. Raises InputError for a batch that cannot be divided."""
    if batch_images % world_size():
        raise InputError(
            f"expected a multiple of the {world_size()} processes, got {batch_images}; change it, or "
            "the number of processes",
            argument="batch_images",
        )
    return batch_images // world_size()


def on_all_ranks(work: Callable[[], T], *, patient: bool = False) -> T:
    """Call `work` in every process and wait for all. If one fails, all fail, and that one reports why."""
    if _groups is None:
        return work()
    failure = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failed: list[Any] = [None] * world_size()
    with lost_process_errors():
        dist.all_gather_object(failed, failure is not None, group=_groups.patient if patient else _groups.control)
    if not any(failed):
        return result
    if failure is not None and failed.index(True) == rank():
        if isinstance(failure, InputError | WorkError):
            failure.everywhere = True
        raise failure
    raise WorkError(f"process {failed.index(True)} failed; stopping all processes, see its error") from failure


def on_first_rank(work: Callable[[], T], *, patient: bool = False) -> T:
    """Call `work` in the first process only; all wait for its result, or fail with it."""
    if _groups is None:
        return work()
    result = [on_all_ranks(lambda: work() if is_first() else None, patient=patient)]
    with lost_process_errors():
        dist.broadcast_object_list(result, src=0, group=_groups.control)
    return cast(T, result[0])


def node_by_node(work: Callable[[], T]) -> T:
    """Call `work` in the first process, then in the first of every other machine, then in the rest, to share caches."""
    turn = 0 if rank() == 0 else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    results = [on_all_ranks(lambda now=now: work() if now == turn else None, patient=True) for now in range(3)]  # type: ignore[misc]
    return cast(T, results[turn])


def any_true(*flags: bool) -> list[bool]:
    """For each flag whether it is true in any process. Uses the CPU only, so it does not synchronise GPUs."""
    if _groups is None:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    with lost_process_errors():
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=_groups.control)
    return [bool(flag) for flag in raised.tolist()]


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """The mean of each value over the processes."""
    if _groups is None:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    with lost_process_errors():
        dist.all_reduce(total, group=_groups.control)
    return (total / world_size()).tolist()


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Turn errors caused by a dead or hanging process into a WorkError that says so."""
    try:
        yield
    except WorkError:
        raise
    except RuntimeError as error:
        named = "gloo", "Gloo", "NCCL", "caused pair closure"  # the last is gloo's, who does not always say so
        lost = isinstance(error, dist.DistError) or any(name in str(error) for name in named)
        if world_size() == 1 or not lost:
            raise
        minutes = "" if _groups is None else f" within {_groups.minutes:g} minutes"
        reason = " ".join(str(error).split())
        lost_process = WorkError(
            f"another process died, or did not answer{minutes} (`timeout_minutes`). Continue from the last checkpoint "
            f"with `resume`; torchrun does so by itself with max-restarts ({reason})"
        )
        lost_process.everywhere = True
        raise lost_process from error
