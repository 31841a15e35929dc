"""What the machine has: device, precision, memory, threads."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from nextpixel.errors import InputError
from nextpixel.heap import return_freed_memory


def choose_device(name: str) -> str:
    """The device of that name; auto takes cuda, then mps, then cpu. Raises InputError if it is missing."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available.get(kind) or (index and not (index.isdecimal() and int(index) < count)):
        raise InputError(
            f"{name} is not available here, expected one of "
            f"{', '.join(device for device, found in available.items() if found)}",
            argument="device",
        )
    return name


def choose_dtype(name: str, device: str) -> str:
    """The autocast type: bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def can_compile(device: str) -> bool:
    """Whether torch.compile works on the device: on a CPU it needs g++, on a GPU Triton and a C compiler."""
    if device.startswith("cuda"):
        compilers = os.environ.get("CC", ""), "gcc", "clang", "cc"
        return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))
    return device == "cpu" and shutil.which("g++") is not None


def compiled_code(stance: str) -> AbstractContextManager[object]:
    """torch.compiler.set_stance, without the seconds that importing the compiler takes where nothing is compiled."""
    return torch.compiler.set_stance(stance) if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def autocast(device: str, dtype: str) -> AbstractContextManager[object]:
    """Matrix products in that type, fp32 or bf16; weights stay as they are. Raises InputError for another."""
    if dtype not in ("fp32", "bf16"):
        raise InputError(f"expected fp32 or bf16, got {dtype!r}", argument="dtype")
    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], torch.bfloat16)


def free_memory_bytes(device: str, root: Path = Path("/")) -> int:
    """Free memory of the device now; for the CPU, what the kernel and every cgroup allow, read from below `root`."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    if device.startswith("mps"):
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return_freed_memory()
    if reported := _reported_bytes(root):
        return max(0, min(reported))
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS has only the second: all of its memory
        with contextlib.suppress(ValueError, OSError, AttributeError):
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def _reported_bytes(root: Path) -> list[int]:
    """What Linux reports as free: MemAvailable, and what is left of the limit of each cgroup around this process.

    Page cache counts as free in both: the kernel gives it up before it refuses memory.
    """
    found = []
    with contextlib.suppress(OSError, LookupError, ValueError):
        found.append(_numbers(root / "proc/meminfo")["MemAvailable:"] * 1024)
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                mount, limit, used, cache = "", "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                mount, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                cache = "total_inactive_file"
            else:
                continue
            group = root / "sys/fs/cgroup" / mount / path.lstrip("/")
            for folder in (group, *group.parents):  # outer limits hold too; a container may not see its own path
                with contextlib.suppress(OSError, LookupError, ValueError):  # ValueError: "max", which is no limit
                    taken = int((folder / used).read_text()) - _numbers(folder / "memory.stat")[cache]
                    found.append(int((folder / limit).read_text()) - taken)
    return found


def _numbers(path: Path) -> dict[str, int]:
    """The first two words of every line."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def machine(device: str) -> dict[str, object]:
    """What a run worked on, for its run.json: processor, cores, memory, and the GPU where it is on one."""
    found: dict[str, object] = {"processor": processor_name(), "cores": os.cpu_count()}
    with contextlib.suppress(ValueError, OSError, AttributeError):  # not every system reports it
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.startswith("cuda"):
        gpu = torch.cuda.get_device_properties(torch.device(device))
        found |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory}
    return found


def processor_name() -> str:
    """The model name of the CPU, where the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def set_threads(threads: int | None) -> int:
    """Use that many CPU threads, or leave torch's choice; returns the number in use."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
