"""What this machine has: cores, and how many threads each process may take of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the container's CPU quota; at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota(_CGROUP_LIMIT)))


def threads_per_process(cores: int, processes: int) -> int:
    """Cores shared out evenly among the processes that compute; engine and learner fight for cores otherwise."""
    return max(1, cores // max(1, processes))


def _quota(path: Path) -> int:
    """Whole cores of a cgroup-2 limit ("200000 100000" is 2); effectively unlimited where there is none."""
    try:
        quota, period = path.read_text().split()
        return max(1, math.floor(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or the word "max"
        return 1 << 20
