"""Where an engine keeps its private files: a temporary folder that outlives no process for long."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

WORKDIR = "trustbatch-vllm"


def make_workdir() -> Path:
    """A folder of this process's own; those of processes that were killed are removed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{WORKDIR}-*-*"):
        owner = folder.name.split("-")[-2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{WORKDIR}-{os.getpid()}-"))
