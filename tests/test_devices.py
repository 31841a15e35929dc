"""What the machine is found to have."""

import os
from pathlib import Path

import pytest
import torch

from nextpixel import devices
from nextpixel.devices import can_compile, free_memory_bytes

MEMINFO = "MemTotal:  24000 kB\nMemFree:  1000 kB\nMemAvailable:  9000 kB\nHugePages_Total:  0\n"
UNLIMITED_V1 = "9223372036854771712"


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    return tmp_path


def test_without_a_cgroup_the_kernels_estimate_holds(root: Path) -> None:
    assert free_memory_bytes("cpu", root) == 9000 * 1024


def test_the_limits_of_all_outer_cgroups_hold_and_their_page_cache_is_free(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    mount = root / "sys/fs/cgroup"
    stat = "anon 60\ninactive_file 30"
    group(mount / "jobs/mine", memory__max="max", memory__current="100", memory__stat=stat)
    group(mount / "jobs", memory__max="1000", memory__current="500", memory__stat="anon 200\ninactive_file 300")
    group(mount, memory__stat=stat)  # the outermost has no limit
    assert free_memory_bytes("cpu", root) == 1000 - (500 - 300)
    group(mount / "jobs", memory__max="10000000", memory__current="500", memory__stat="inactive_file 0")
    assert free_memory_bytes("cpu", root) == 9000 * 1024, "the kernel's estimate is lower"


@pytest.mark.parametrize("path", ["/jobs/mine", "/docker/0123"], ids=["host", "container"])
def test_the_limit_of_a_version_1_cgroup_holds(root: Path, path: str) -> None:
    """Inside a container the path is often the host's, and the mounted folder is the group itself."""
    (root / "proc/self/cgroup").write_text(f"5:cpu,cpuacct:{path}\n4:memory:{path}\n0::/\n")
    own = root / "sys/fs/cgroup/memory" / ("" if "docker" in path else "jobs/mine")
    used = {"memory__usage_in_bytes": "500", "memory__stat": "cache 400\ntotal_inactive_file 300"}
    group(root / "sys/fs/cgroup/memory", memory__limit_in_bytes=UNLIMITED_V1, **used)
    group(own, memory__limit_in_bytes="1000", **used)
    assert free_memory_bytes("cpu", root) == 800
    group(own, memory__limit_in_bytes="100", **used)
    assert free_memory_bytes("cpu", root) == 0, "never negative"


def test_a_gpu_compiles_with_triton_and_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for triton in (None, "found"):
        for compilers in ((), ("gcc",), ("clang",), ("/opt/cc",)):
            monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name, found=triton: found)
            monkeypatch.setattr(devices.shutil, "which", lambda name, found=compilers: name in found or None)
            monkeypatch.setenv("CC", "/opt/cc")
            assert can_compile("cuda:1") == bool(triton and compilers)
            assert not can_compile("cpu") and not can_compile("mps")


def test_a_mac_has_the_memory_of_its_gpu_or_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 << 30)
    assert free_memory_bytes("mps", tmp_path) == free_memory_bytes("mps:0", tmp_path) == 10 << 30
    known = {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 1 << 14}  # os.sysconf of macOS knows no SC_AVPHYS_PAGES

    def sysconf(name: str) -> int:
        if name not in known:
            raise ValueError("unrecognized configuration name")
        return known[name]

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert free_memory_bytes("cpu", tmp_path) == 16 << 30
    known.clear()
    assert free_memory_bytes("cpu", tmp_path) == 4 << 30


def test_a_system_without_reports_has_some_memory(tmp_path: Path) -> None:
    assert free_memory_bytes("cpu", tmp_path) > 0
