"""`trustbatch prepare`: what has to be there before the processes of a run start, made once.

Where `trustbatch up` makes the small model itself, compose and Kubernetes run this first and to its end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from services import tiny_model
from shared.config import Config
from shared.config.load import dump_config
from shared.errors import TrainingError
from shared.process import Deadline

POLL_S = 1.0


def prepare(config: Config) -> str:
    """Makes the small model where model.tiny asks for one that is not there; says what was done.

    Raises:
        ConfigError: model.path holds a model of somebody else's.
        TrainingError: it could not be made; what says why is on stderr.

    """
    if config.model.tiny is None:
        return f"nothing to prepare: {config.model.path} is an ordinary model"
    if tiny_model.is_current(config):
        return f"{config.model.path}: there already"
    with tempfile.TemporaryDirectory(prefix="trustbatch-prepare-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(config))
        tiny_model.make(config, file, _run_to_end)
    return f"{config.model.path}: made"


def await_prepared(config: Config, seconds: float) -> str:
    """Waits until somebody else's `prepare` is done. Raises DeadlineError."""
    deadline = Deadline(f"the model in {config.model.path}, which `trustbatch prepare` makes", seconds)
    while config.model.tiny is not None and not tiny_model.is_current(config):
        deadline.check()
        time.sleep(POLL_S)
    return f"{config.model.path}: there"


def _run_to_end(name: str, arguments: Sequence[str]) -> None:
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code != 0:
        raise TrainingError(f"the small model could not be made: {name} left with exit code {code}")
