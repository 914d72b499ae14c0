"""Where a benchmark ran: hardware, versions and load, for the record."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

PACKAGES: Final = ("sglang-power", "torch", "triton", "flashinfer-python", "sglang", "numpy")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return date, processor, the GPU if that is the device, threads, load average and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{_processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: _installed(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
