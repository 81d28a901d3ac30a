"""Seconds, memory and the rate of matrix products: those of the processor on a CPU, of the clock on CUDA."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any

import torch

SQUARE = 2048  # rows of the matrices whose product is the machine's rate


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large product, the best of seven."""
    n = SQUARE if device.type == "cpu" else 4 * SQUARE
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(timed(lambda: torch.mm(a, b), device)[0] for _ in range(7))


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """The seconds that some work takes, and what it returns."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    started = clock()
    told = work()
    synchronize(device)
    return clock() - started, told


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def begin_peak(device: torch.device) -> int:
    """Bytes held now; from here on the peak is looked at."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """The most bytes held since `begin_peak`."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))
