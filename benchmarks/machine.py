"""What stands beside every figure: hardware, versions, date."""

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine(device: torch.device, *packages: str) -> str:
    """One line: processor or GPU, cores, versions, date."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", *packages))
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores; Python {platform.python_version()}, {versions}; {date.today().isoformat()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
