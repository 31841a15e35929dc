"""What glibc does with freed memory while a network is trained."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import lively, some_tokens

from nextpixel import heap, pretrain
from nextpixel.heap import freed_memory_kept
from nextpixel.representation.scoring import batches
from nextpixel.training import loop

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
PROGRAM = """if True:
    import contextlib, resource, sys, torch
    from nextpixel.heap import freed_memory_kept, return_freed_memory

    def faults():
        for _ in range(30):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            [torch.ones(4_000_000) for _ in range(4)]  # 64 MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def held():
        return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

    start = held()
    with freed_memory_kept():
        within, kept = faults(), held() - start
        return_freed_memory()
        returned = held() - start
        faults()
    print(within, kept, returned, held() - start)
    """


def run(**environment: str) -> list[int]:
    """Page faults of an allocation in the context; MB held in it, after returning them, and after the context."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


@glibc
def test_freed_memory_is_kept_and_then_returned() -> None:
    faults, kept, returned, after = run()
    assert faults < 100 and kept > 60 and returned < 40 and after < 40


@glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_a_heap_that_is_set_up_stays_so(name: str) -> None:
    faults, kept, *_ = run(**{name: "131072"})
    assert faults > 100 and kept < 40


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        assert not heap._kept
        heap.return_freed_memory()


@glibc
def test_training_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its end; what reads the free memory, as drawing at an evaluation does, has it returned before."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    kept, trims = [], []
    step, trim = loop._optimizer_step, heap._glibc

    def watched(name: str) -> Any:
        return (lambda pad: trims.append(heap._kept)) if name == "malloc_trim" else trim(name)

    monkeypatch.setattr(loop, "_optimizer_step", lambda *args: (kept.append(heap._kept), step(*args))[1])
    monkeypatch.setattr(heap, "_glibc", watched)
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    pretrain(
        images, out=tmp_path / "run", steps=2, batch_images=4, sample_images=2, side=8, layers=1, width=16, heads=2
    )
    assert kept == [True, True] and len(trims) > 1 and all(trims) and not heap._kept


@glibc
def test_scoring_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    assert list(batches(lively(), some_tokens(3), lambda tokens, masked: heap._kept, batch_images=2)) == [True, True]
    assert not heap._kept
