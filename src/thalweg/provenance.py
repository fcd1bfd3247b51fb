"""What a result was made with: versions, hardware, seed, time."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from typing import Any

import numpy
import torch

from . import __version__


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores and accelerator in words."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            name = next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), name)
    except OSError:
        pass
    out: dict[str, Any] = {"processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.startswith("cuda") and torch.cuda.is_available():
        out["accelerator"] = torch.cuda.get_device_name(torch.device(device))
    return out


def manifest(device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """The manifest of a run."""
    return {
        "thalweg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": device,
        "hardware": hardware(device),
        "seed": seed,
        "command": " ".join(os.path.basename(a) if i == 0 else a for i, a in enumerate(sys.argv)),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
