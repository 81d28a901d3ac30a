"""`trustbatch bench weights`: from the learner's memory to a proven version in a rollout server, part by part.

A real run (`trustbatch up`: Redis, learner, one rollout server) with a model of random weights of that size. The
learner's log says when it began to publish a version and what its parts took, the server's log when it had proven it.

    publish   save (bytes, checksums, patch), probe, commit
    pickup    fetch (held and verified), stage, load (the pause within), tensors (compared with the files), probe

The reference is taken in the same folder, before and after the run: the same bytes written once into a preallocated
map, read once into memory, and one XXH3 of them.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xxhash

from shared.errors import ConfigError

DEADLINE_S = 1800.0
REFERENCES = 3  # before and after the run, each
PUBLISH = ("save_s", "probe_s", "commit_s")
PICKUP = ("fetch_s", "stage_s", "load_s", "pause_s", "tensors_s", "probe_s")


@dataclass(frozen=True)
class Passage:
    """One version on its way; seconds by part."""

    version: int
    stored_bytes: int
    is_patch: bool
    publish: Mapping[str, float]
    pickup: Mapping[str, float]
    begun_at: float  # unix seconds
    served_at: float

    @property
    def latency_s(self) -> float:
        """From the learner's first byte to the proof."""
        return self.served_at - self.begun_at


def show(megabytes: float, versions: int, learning_rate: float, engine: str, dtype: str, as_json: bool) -> None:
    """Measures and prints. Raises ConfigError where the run does not get to its end."""
    found = measure(megabytes, versions, learning_rate, engine, dtype)
    print(json.dumps(found, indent=2) if as_json else table(found))


def measure(megabytes: float, versions: int, learning_rate: float, engine: str, dtype: str) -> dict[str, Any]:
    """The run and the reference, as plain numbers."""
    with tempfile.TemporaryDirectory(prefix="trustbatch-bench-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        model = folder / "model"
        _run([sys.executable, "-m", "learner.random_model", str(model), "--megabytes", str(megabytes)], folder)
        size = (model / "model.safetensors").stat().st_size // (1 if dtype == "float32" else 2)
        references = [_reference(folder, size) for _ in range(REFERENCES)]
        _run([*_up(folder, model, versions, learning_rate, engine, dtype)], folder)
        references += [_reference(folder, size) for _ in range(REFERENCES)]
        passages = list(read(folder / "run" / "logs"))
    if not passages:
        raise ConfigError("the server has proven none of the versions: nothing was measured")
    return summary(passages, size, references) | {
        "engine": engine,
        "dtype": dtype,
        "learning_rate": learning_rate,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


def _up(folder: Path, model: Path, versions: int, learning_rate: float, engine: str, dtype: str) -> list[str]:
    kind = "{kind: transformers, device: cpu}"
    if engine == "vllm":
        kind = "{kind: vllm, max_model_len: 128, max_num_seqs: 16, kv_cache_gib: 0.25}"
    settings = (
        "run.id=bench",
        f"run.folder={folder / 'run'}",
        f"model={{path: {model}, dtype: {dtype}}}",
        "environment={kind: reasoning_gym, dataset: spell_backward}",
        f"rollout={{engine: {kind}, group_size: 2, groups_in_flight: 4, sampling: {{max_tokens: 8}}}}",
        f"learner={{learning_rate: {learning_rate}, groups_per_batch: 2, steps: {versions}, record_bytes: 0}}",
        "learner.objective={name: p3o, entropy_weight: 0.01}",  # random words earn nothing: this moves every weight
        f"learner.checkpoint_every={versions}",
        f"evaluation={{prompts: 1, every: {versions + 1}}}",
        "control_plane.auth=none",
    )
    return [sys.executable, "-m", "services.cli", "up", *(word for pair in settings for word in ("--set", pair))]


def _run(command: list[str], folder: Path) -> None:
    log = folder / "output.txt"
    with log.open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=DEADLINE_S)
    if done.returncode:
        last = "\n".join(log.read_text().splitlines()[-15:])
        raise ConfigError(f"`{' '.join(command[1:4])}` ended with {done.returncode}:\n{last}")


def _reference(folder: Path, size: int) -> dict[str, float]:
    """Seconds that the same bytes take, written, read and checked once."""
    source, path = np.arange(size, dtype=np.uint8), folder / "reference"
    with path.open("wb+") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        with mmap.mmap(file.fileno(), size) as mapped:
            moments = [time.perf_counter()]
            np.frombuffer(mapped, dtype=np.uint8)[:] = source
            moments.append(time.perf_counter())
            read_back = np.array(np.frombuffer(mapped, dtype=np.uint8))
            moments.append(time.perf_counter())
            xxhash.xxh3_128_digest(read_back.data)
            moments.append(time.perf_counter())
    path.unlink()
    write_s, read_s, checksum_s = np.diff(moments).tolist()
    return {"write_s": write_s, "read_s": read_s, "checksum_s": checksum_s}


def read(logs: Path) -> Iterator[Passage]:
    """What the logs of learner and server say of every version but the starting one, which starts the engine."""
    published = {row["version"]: row for row in _events(logs / "learner.jsonl", "published")}
    for row in _events(logs / "rollout-r0.jsonl", "a version is proven"):
        learner = published.get(row["policy_version"])
        if learner is None or row["policy_version"] == 0 or row["attempt"] > 1:
            continue
        publish = {part: float(learner[part]) for part in PUBLISH}
        yield Passage(
            version=row["policy_version"],
            stored_bytes=learner["stored_bytes"],
            is_patch=learner["base"] >= 0,
            publish=publish,
            pickup={part: float(row.get(part, 0.0)) for part in PICKUP},
            begun_at=_unix(learner["timestamp"]) - sum(publish.values()),
            served_at=_unix(row["timestamp"]),
        )


def _events(path: Path, name: str) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a library's own line
            continue
        if isinstance(row, dict) and row.get("event") == name:
            yield row


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def summary(passages: list[Passage], size: int, references: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the versions, and what they are times the reference."""
    reference = {part: median(row[part] for row in references) for part in references[0]}
    whole = sum(reference.values())
    moved = [p.publish["save_s"] + p.publish["commit_s"] + p.pickup["fetch_s"] + p.pickup["stage_s"] for p in passages]
    latency = [p.latency_s for p in passages]
    pauses = sorted(p.pickup["pause_s"] for p in passages)
    return {
        "bytes": size,
        "versions": len(passages),
        "patches": sum(p.is_patch for p in passages),
        "stored_bytes_median": median(p.stored_bytes for p in passages),
        "reference": {**reference, "sum_s": whole},
        "latency_s": {"median": median(latency), "max": max(latency), "times_reference": median(latency) / whole},
        "bytes_moved_s": {"median": median(moved), "times_reference": median(moved) / whole},
        "pause_s": {"median": median(pauses), "p99": pauses[min(len(pauses) - 1, int(0.99 * len(pauses)))]},
        "publish": {part: median(p.publish[part] for p in passages) for part in PUBLISH},
        "pickup": {part: median(p.pickup[part] for p in passages) for part in PICKUP},
    }


def table(found: Mapping[str, Any]) -> str:
    """The same for people."""
    whole = found["reference"]["sum_s"]
    rows = [
        ("reference: write + read + checksum", whole),
        *((f"publish: {part[:-2]}", found["publish"][part]) for part in PUBLISH),
        *((f"pickup: {part[:-2]}", found["pickup"][part]) for part in PICKUP),
        ("bytes moved: save, commit, fetch, stage", found["bytes_moved_s"]["median"]),
        ("publish begun to proven", found["latency_s"]["median"]),
        ("pause, p99", found["pause_s"]["p99"]),
    ]
    head = (
        f"{found['bytes']:,} bytes ({found['dtype']}), {found['versions']} versions ({found['patches']} as patches, "
        f"{found['stored_bytes_median']:,.0f} bytes in the median), {found['engine']}, {found['cores']} cores, load "
        f"average {found['load_average']:.1f}"
    )
    return "\n".join([head, *(f"{name:<40} {1000 * s:>9.1f} ms {s / whole:>7.2f} x" for name, s in rows)])
