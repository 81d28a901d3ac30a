"""Where a run keeps its files, what it is called, and who holds it.

Every `trustbatch up` is a run of its own: the file's run.id and run.folder with the time appended
(runs/demo -> runs/demo-20261120-153000), unless the operator names it. `--resume` goes on with the run that
the configuration names, else with the newest one that was started from it, and with the settings stored there.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from shared.config import Config, secrets
from shared.config.load import dump_config, load_config
from shared.config.run import RunConfig
from shared.config.secrets import SECRET_KEYS
from shared.errors import ConfigError, DeadlineError
from shared.process import Deadline

CONFIG = "config.yaml"
LOCK_WAIT_S = 12.0  # what is left of a killed run needs up to ten seconds to disappear
_STAMP = "%Y%m%d-%H%M%S"
_STAMPED = re.compile(r"-\d{8}-\d{6}$")


def named(config: Config, name: str) -> Config:
    """The same configuration for a run of this name, its folder beside the configured one."""
    return _placed(config, name, config.run.folder.parent / name)


def stamped(config: Config, now: datetime) -> Config:
    """The same configuration for a new run: the time is appended to its name and its folder."""
    stamp = now.strftime(_STAMP)
    return _placed(config, f"{config.run.id}-{stamp}", config.run.folder.with_name(f"{config.run.folder.name}-{stamp}"))


def to_resume(config: Config, overrides: Sequence[str] = (), environ: dict[str, str] | None = None) -> Config:
    """The configuration of the run to go on with: the one it was started with, and what is given now.

    Args:
        config: where to look for the run; of its settings only the secrets count, which no run stores.
        overrides: what --set gives now.
        environ: what the environment gives now; defaults to os.environ.

    Raises:
        ConfigError: there is no such run, or what it was started with cannot be used any more.

    """
    folder = _to_resume(config.run.folder)
    stored = load_config(folder / CONFIG, overrides, environ)
    for key in SECRET_KEYS:
        if secrets.get(stored, key) is None:
            stored = secrets.put(stored, key, secrets.get(config, key))
    return _placed(stored, _recorded_id(folder) or config.run.id, folder)


def _to_resume(folder: Path) -> Path:
    if (folder / CONFIG).is_file():
        return folder
    siblings = folder.parent.glob(f"{folder.name}-*") if folder.parent.is_dir() else ()
    runs = sorted(path for path in siblings if _STAMPED.search(path.name) and (path / CONFIG).is_file())
    if not runs:
        raise ConfigError(f"--resume: there is no run in {folder} or {folder}-<time>; leave --resume away to start one")
    return runs[-1]


def create(config: Config) -> None:
    """Makes the run folder. Raises ConfigError where it holds a run already."""
    folder = config.run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"run.folder {folder} cannot be used: {error}") from None
    if occupied:
        raise ConfigError(
            f"run.folder {folder} is not empty: --resume goes on with the run in it, --name NAME starts another"
        )


def hold(folder: Path) -> int | None:
    """Locks a run folder for this process and whoever inherits the descriptor; no file is left behind.

    Returns:
        The descriptor, or None on a file system that cannot lock.

    Raises:
        ConfigError: somebody else holds it and does not let go.

    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    deadline = Deadline(f"the processes of an earlier start to leave {folder}", LOCK_WAIT_S)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            try:
                deadline.check()
            except DeadlineError as error:
                os.close(descriptor)
                raise ConfigError(f"{folder} is held by a `trustbatch up` that still runs ({error})") from None
            time.sleep(0.1)
        except OSError:
            os.close(descriptor)
            return None


def write_config(config: Config) -> Path:
    """Stores the resolved configuration in the run folder; other terminals join with it."""
    path = config.run.folder / CONFIG
    partial = path.with_suffix(".partial")
    partial.write_text(dump_config(config))
    partial.replace(path)
    return path


def recorded_url(folder: Path) -> str | None:
    """The Redis address that this run's stored configuration names."""
    recorded = _recorded(folder).get("redis")
    url = recorded.get("url") if isinstance(recorded, dict) else None
    return str(url) if url else None


def own_redis_port(config: Config) -> int | None:
    """The port of the Redis that this run had of its own (0: none yet), or None where it uses another's."""
    url, recorded = config.redis.url, recorded_url(config.run.folder)
    if url is None or ((config.run.folder / "redis").is_dir() and url == recorded):
        return (urlsplit(recorded).port or 0) if recorded else 0
    return None


def _placed(config: Config, run_id: str, folder: Path) -> Config:
    try:
        run = RunConfig.model_validate({**config.run.model_dump(), "id": run_id, "folder": folder})
    except ValidationError as error:
        raise ConfigError(f"run.id {run_id!r} cannot be the name of a run: {error.errors()[0]['msg']}") from None
    return config.model_copy(update={"run": run})


def _recorded_id(folder: Path) -> str | None:
    run = _recorded(folder).get("run")
    return str(run["id"]) if isinstance(run, dict) and "id" in run else None


def _recorded(folder: Path) -> dict[str, object]:
    try:
        loaded = yaml.safe_load((folder / CONFIG).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
