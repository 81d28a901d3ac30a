"""8. A full disk at checkpoint and at publish; torn, truncated and altered checkpoints, manifests and shards."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.children import Child
from shared.errors import StoreError
from shared.store import PolicyStore
from tests.chaos.processes import ended, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

SMALL_DISK = "4m"
BELOW_A_MODEL = 16_384  # bytes: a file-size limit that no model file fits in
FILES = ("model.safetensors", "state.json", "manifest.json", "optimizer.safetensors", "rng.safetensors")


def run(short: bool, workdir: Path) -> ScenarioResult:
    """One run lives through all of it."""
    result = ScenarioResult(8, "disk full; torn and altered files", short)
    files = FILES[:1] if short else FILES
    damages = [(file, damage) for file in files for damage in ((_truncate, _flip) if not short else (_flip,))]
    if short:
        damages.append(("manifest.json", _truncate))
    steps = 60 + (35 if short else 60) * (len(damages) + 2)
    run_folder = workdir / "run"
    settings = ("learner.checkpoint_every=5",)
    with (
        _small_disk(run_folder / "checkpoints") as checkpoints,
        _small_disk(run_folder / "policy") as policy,
        Stack(workdir, steps, settings=settings) as stack,
    ):
        for disk in (checkpoints, policy):
            _full_disk(result, stack, disk)
        for file, damage in damages:
            _damaged_checkpoint(result, stack, file, damage)
        learner = _go_on(stack)
        stack.until_phase("finished", 180)
        ended(learner, 20)
        stack.fill_in(result)
        _damaged_version(result, stack)
    return result


@dataclass(frozen=True)
class Disk:
    """A folder whose disk can be filled."""

    folder: Path
    mounted: bool  # a tmpfs; without the right to mount, a limit on the learner's file sizes stands for it

    def fill(self, learner: Child) -> None:
        """No more room; what the learner frees meanwhile is taken when this is called again."""
        if learner.exit_code() is not None:
            return
        if not self.mounted:
            resource.prlimit(learner.pid, resource.RLIMIT_FSIZE, (BELOW_A_MODEL, BELOW_A_MODEL))
            return
        with contextlib.suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def free(self) -> None:
        """Room again."""
        (self.folder / "filler").unlink(missing_ok=True)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _full_disk(result: ScenarioResult, stack: Stack, disk: Disk) -> None:
    """The folder's disk fills up while the learner runs; it ends with the reason, and goes on when there is room."""
    learner = _go_on(stack)
    stack.fault()

    def met() -> bool:
        disk.fill(learner)
        return learner.exit_code() is not None

    wait_for("the learner to meet the full disk", 60, met)
    code = ended(learner, 1)
    reason = stack.phase()[1]
    name, way = disk.folder.name, "tmpfs" if disk.mounted else "RLIMIT_FSIZE"
    said = code == 1 and reason.startswith("cannot write")
    result.check(f"{name}, disk full ({way}): the learner ends and says why", said, reason[:160])
    disk.free()
    stack.control.set_phase("starting")


def _go_on(stack: Stack) -> Child:
    """A learner, and producers where those of before have ended with a failed one."""
    learner = stack.start_learner()
    if not any(child.name == "load" and child.exit_code() is None for child in stack.children):
        stack.start_load("--rate", "300")
    stack.reach(stack.step_of_learner() + 12, 60)
    return learner


def _damaged_checkpoint(result: ScenarioResult, stack: Stack, file: str, damage: Callable[[Path], None]) -> None:
    """After an orderly stop the newest checkpoint is damaged: the next start says so and takes the one before."""
    learner = _go_on(stack)
    stack.signal(learner, signal.SIGTERM)
    ended(learner, 20)
    newest = stack.checkpoints[-1]
    damage(newest / file)
    stack.start_learner()
    said = f"{newest.name} cannot be used and is set aside"
    wait_for("the damaged checkpoint to be named", 60, lambda: said in stack.log_of("learner"))
    torn = newest.with_name(newest.name + ".torn").is_dir()
    result.check(f"{file} {damage.__name__.strip('_')}: set aside and said", torn, newest.name)
    assert stack.learner is not None
    stack.kill(stack.learner)  # at once: before it has written anything of its own


def _damaged_version(result: ScenarioResult, stack: Stack) -> None:
    """What a rollout server does before it loads a version: hold and verify it."""
    store = PolicyStore(stack.folder / "run" / "policy")
    newest = store.versions()[-1]
    store.hold(newest, "sound")
    store.let_go("sound")
    [weights] = store.folder(newest).glob("model.safetensors*")  # whole, or its patch
    for file in (weights.name, "manifest.json"):
        for damage in (_truncate, _flip):
            path = store.folder(newest) / file
            good = path.read_bytes()
            damage(path)
            try:
                store.hold(newest, "damaged")
                refused = ""
            except StoreError as error:
                refused = str(error)
            path.write_bytes(good)
            store.let_go("damaged")
            result.check(f"version, {file} {damage.__name__.strip('_')}: never loaded", bool(refused), refused[:160])


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    """One bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
