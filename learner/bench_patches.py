"""What patches between versions take and cost over the learner's real update: `python -m learner.bench patches`.

For every learning rate the same model takes the same steps on random groups, float32 here and bfloat16 in its files.
Each version goes through a real store, is held as a rollout server holds it, and is compared byte by byte.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from learner.batch import StepBatch, batch_rewards, build_step
from learner.bench import GROUP_SIZE, GROUPS, LONGEST, PROMPT, machine, random_group
from learner.model import PolicyModel
from learner.objective.registry import build
from learner.objectives import Objectives
from learner.step import make_optimizer, take_step
from learner.tiny_model import build_model, build_tokenizer
from learner.version_writer import PATCH, VersionWriter, Written
from learner.weight_file import WEIGHTS
from shared.config.learner import LearnerConfig
from shared.config.run import TinyModelConfig
from shared.config.store import StoreConfig
from shared.manifest import Probe
from shared.patch import apply, encode
from shared.store import PolicyStore

MODEL = TinyModelConfig(
    hidden_size=640,
    intermediate_size=1920,
    num_hidden_layers=8,
    num_attention_heads=10,
    num_key_value_heads=5,
    head_dim=64,
)
LEARNING_RATES = (1e-6, 1e-5, 1e-4)
GIGABIT = 125_000_000  # bytes a second
_TIMES = ("encode_s", "encode_cpu_s", "apply_s", "apply_cpu_s")
_PROBE = Probe([[0, 1]], [[-1.0]])  # of no interest here


def measure(device: torch.device, versions: int) -> dict[str, Any]:
    """Bytes and seconds of every version after the first, for every learning rate."""
    rates = {}
    for learning_rate in LEARNING_RATES:
        policy = _policy(device)
        with tempfile.TemporaryDirectory() as root:
            rates[f"{learning_rate:g}"] = _summary(list(_published(policy, learning_rate, versions, Path(root))))
    return {
        **machine(device, policy),
        "whole_bytes": policy.files.layout.size,
        "versions": versions,
        "seconds_for_whole_bytes": _whole_seconds(policy),
        "by_learning_rate": rates,
    }


def table(told: dict[str, Any]) -> str:
    """The same for people."""
    whole = told["whole_bytes"]
    lines = [
        f"{told['parameters']:,} parameters, whole {whole:,} bytes, {told['threads']} threads, {told['device']}",
        "learning rate  version   patch bytes   share   changed  encode s (cpu)   apply s (cpu)  1 Gbit/s saves  same",
    ]
    for rate, found in told["by_learning_rate"].items():
        for row in found["versions"]:
            saved = (whole - row["patch_bytes"]) / GIGABIT
            lines.append(
                f"{rate:>13}  {row['version']:>7}  {row['patch_bytes']:>12,}  {row['share']:>6.2%}  "
                f"{row['changed_share']:>8.2%}  {row['encode_s']:>6.3f} ({row['encode_cpu_s']:.3f})  "
                f"{row['apply_s']:>6.3f} ({row['apply_cpu_s']:.3f})  "
                f"{saved:>14.3f}  {'yes' if row['identical'] else 'NO':>4}"
            )
    for name, taken in told["seconds_for_whole_bytes"].items():
        lines.append(f"whole bytes, {name}: {taken['s']:.3f} s ({taken['cpu_s']:.3f} of the processor)")
    return "\n".join(lines)


def _policy(device: torch.device) -> PolicyModel:
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = build_tokenizer(["1 + 2 = 3"], MODEL.vocab_size)
    return PolicyModel(build_model(MODEL, tokenizer).to(device), "bfloat16")


def _published(policy: PolicyModel, learning_rate: float, versions: int, root: Path) -> Iterator[dict[str, Any]]:
    """One optimizer step for each version, and what its patch took."""
    store = PolicyStore(root)
    config = StoreConfig(full_every=256, patch_share=1.0, parallel=torch.get_num_threads())
    writer = VersionWriter(policy.files, config, lambda _: True)
    training = LearnerConfig(learning_rate=learning_rate)
    optimizer, objectives = make_optimizer(policy, training), Objectives(build("p3o"))
    _publish(store, writer, 0)
    before = _bytes_of(policy)
    for version in range(1, versions + 1):
        if take_step(policy, optimizer, _batch(version), objectives, training, version).skipped:
            raise RuntimeError(f"step {version} was skipped: nothing was measured")
        written, after = _publish(store, writer, version), _bytes_of(policy)
        patch = (store.folder(version) / PATCH).read_bytes()
        _, held = store.hold(version, "bench")
        out, threads = np.empty_like(after), config.parallel
        encode_s = _seconds(partial(encode, before.data, after.data, policy.files.layout.width, threads))
        apply_s = _seconds(partial(apply, before.data, memoryview(patch), out.data, threads))
        yield {
            "version": version,
            "patch_bytes": written.stored_bytes,
            "share": round(written.stored_bytes / len(after), 5),
            "changed_share": round(float(np.mean(before.view(np.uint16) != after.view(np.uint16))), 5),
            "encode_s": encode_s.passed,
            "encode_cpu_s": encode_s.worked,
            "apply_s": apply_s.passed,
            "apply_cpu_s": apply_s.worked,
            "identical": (held / WEIGHTS).read_bytes() == after.tobytes() == out.tobytes(),
        }
        before = after


def _publish(store: PolicyStore, writer: VersionWriter, version: int) -> Written:
    written = writer.write(store.begin(version), version, version - 1)
    store.commit(version, version - 1, version, _PROBE, time.time(), written.known, written.base)
    writer.published()
    return written


def _bytes_of(policy: PolicyModel) -> np.ndarray[Any, Any]:
    found = np.empty(policy.files.layout.size, dtype=np.uint8)
    for _ in policy.files.layout.pieces(policy.files.tensors(), found.data):
        pass
    return found


def _batch(seed: int) -> StepBatch:
    rng = np.random.default_rng(seed)
    groups = [random_group(index, rng) for index in range(GROUPS)]
    return build_step(groups, batch_rewards(groups), "group_std", GROUPS * GROUP_SIZE * (PROMPT + LONGEST))


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    shares = [row["share"] for row in rows]
    return {
        "share_median": median(shares),
        "share_max": max(shares),
        **{f"{name}_median": median(row[name] for row in rows) for name in _TIMES},
        "identical": all(row["identical"] for row in rows),
        "versions": rows,
    }


def _whole_seconds(policy: PolicyModel) -> dict[str, dict[str, float]]:
    """Of writing the whole file: ours, save_pretrained's, and the copy in memory that bounds both; the best of 5."""
    memory = _bytes_of(policy)
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / str(i) for i in range(100))

        def theirs() -> None:
            state = {name: tensor.detach().to(policy.dtype) for name, tensor in policy.files.tensors().items()}
            policy.module.save_pretrained(next(folders), state_dict=state)

        ways: dict[str, Callable[[], object]] = {
            "memory copy": memory.copy,
            "write, with checksum": lambda: policy.save(next(folders)),
            "save_pretrained, without": theirs,
        }
        best = {
            way: [min(times) for times in zip(*(_seconds(work) for _ in range(5)), strict=True)]
            for way, work in ways.items()
        }
        return {way: {"s": passed, "cpu_s": worked} for way, (passed, worked) in best.items()}


class _Seconds(NamedTuple):
    """Of some work: by the clock, and of the processor, which other processes disturb less."""

    passed: float
    worked: float


def _seconds(work: Callable[[], object]) -> _Seconds:
    passed, worked = time.perf_counter(), time.process_time()
    work()
    return _Seconds(round(time.perf_counter() - passed, 4), round(time.process_time() - worked, 4))
