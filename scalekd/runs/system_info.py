"""The machine on which something was measured."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import scalekd


def describe_machine() -> dict[str, Any]:
    """Operating system, processor, number of CPU cores and GPU (None without one)."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_versions() -> dict[str, str]:
    """Versions of this package, of the libraries that it trains with, and of Python, by name."""
    return {
        "scalekd": scalekd.__version__,
        **{name: version(name) for name in ("torch", "timm", "lightning", "numpy")},
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's model name from /proc/cpuinfo, or what Python's `platform` gives."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
