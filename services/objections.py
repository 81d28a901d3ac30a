"""What the learner's and the rollout server's own checks say of a configuration: each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from shared.config import Config
from shared.config.environment import ReasoningGymConfig
from shared.config.secrets import excluded


def of_learner(config: Config) -> str:
    """Why the learner cannot serve the objectives, or ''."""
    return _ask("learner.check", config.model_dump(mode="json", exclude=excluded()))


def of_rollout(environment: ReasoningGymConfig, experts: int) -> str:
    """Why a rollout server cannot serve the task, or ''."""
    return _ask("rollout.check", {"name": environment.dataset, "params": environment.params, "experts": experts})


def _ask(module: str, given: dict[str, Any]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be checked: {error}"
    said = done.stderr.strip().splitlines() or [f"the check left with exit code {done.returncode}"]
    return said[-1] if done.returncode else ""
