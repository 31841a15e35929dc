"""Devices for plans of runs: by their datasheets, or as measured by nextpixel bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nextpixel.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """One device: dense peaks, memory and its bandwidth."""

    name: str
    bf16_flops_per_second: float | None
    """None without native bf16: training and drawing then use fp32."""
    fp32_flops_per_second: float
    """Without TF32, which training does not use."""
    memory_bytes: float
    bytes_per_second: float
    source: str
    on_cpu: bool = False

    def peak(self, dtype: str) -> float | None:
        """FLOP/s of matrix products in fp32 or bf16."""
        return self.bf16_flops_per_second if dtype == "bf16" else self.fp32_flops_per_second


HARDWARE = {
    device.name: device
    for device in (
        Hardware("b200", 2250e12, 75e12, 180e9, 7.7e12, "NVIDIA DGX B200 datasheet, per GPU"),
        Hardware("h200", 989e12, 67e12, 141e9, 4.8e12, "NVIDIA H200 SXM datasheet"),
        Hardware("h100", 989e12, 67e12, 80e9, 3.35e12, "NVIDIA H100 SXM datasheet"),
        Hardware("a100-80gb", 312e12, 19.5e12, 80e9, 2.04e12, "NVIDIA A100 SXM datasheet"),
        Hardware("a100-40gb", 312e12, 19.5e12, 40e9, 1.56e12, "NVIDIA A100 SXM datasheet"),
        Hardware("l40s", 362e12, 91.6e12, 48e9, 0.86e12, "NVIDIA L40S datasheet"),
        Hardware("rtx4090", 165e12, 82.6e12, 24e9, 1.01e12, "NVIDIA Ada architecture whitepaper, fp32 accumulation"),
        Hardware("v100", None, 15.7e12, 32e9, 0.9e12, "NVIDIA V100 SXM2 datasheet, fp32: it has no bf16"),
    )
}


def measured_hardware(bench: dict[str, Any], where: str) -> tuple[Hardware, str, float]:
    """The device of a benchmark of training steps, with measured peaks; their dtype, and the best share of the peak.

    `where` is the file's name, for messages. Raises InputError without such steps.
    """
    try:
        rows = [row for row in bench["rows"] if row["work"] == "train" and row["contender"] == "nextpixel"]
        best = max(rows, key=lambda row: row["per_cent_of_floor"])
        reached, dtype = best["per_cent_of_floor"] / 100, best["how"].split(",")[0]
        machine, floors, clock = bench["machine"], bench["floors"], bench["clock"]
        name, memory = ("gpu", "gpu_memory_bytes") if "gpu" in machine else ("processor", "memory_bytes")
        more = max(1.0, reached)  # small products on a fast device may stay below the peak that training reaches
        hardware = Hardware(
            machine[name],
            more * floors["bf16_per_second"] if dtype == "bf16" else None,
            more * floors["fp32_per_second"],
            machine[memory],
            floors["bytes_per_second"],
            f"measured, {where}",
            on_cpu=machine["device"] == "cpu",
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{where} holds no timed training steps, or not all about their machine; expected what "
            "nextpixel bench `work=train` `out` writes",
            argument="hardware",
        ) from None
    if clock != "wall":
        raise InputError(
            f"{where} was timed with `clock={clock}`, expected wall: a plan tells wall time", argument="hardware"
        )
    return hardware, dtype, reached / more


def find_hardware(name: str, memory_bytes: float) -> Hardware | None:
    """The entry of HARDWARE for a driver's name such as "NVIDIA H200", or None.

    Of several variants, the one with the nearest memory. PCIe and NVL cards have no entry, as their peaks differ.
    """
    words = name.lower().replace("-", " ").split()
    if any("pcie" in word or "nvl" in word for word in words):
        return None
    joined = "".join(words)
    found = [device for key, device in HARDWARE.items() if key.partition("-")[0] in joined]
    return min(found, key=lambda device: abs(device.memory_bytes - memory_bytes), default=None)
