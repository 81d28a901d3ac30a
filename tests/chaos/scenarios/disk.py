"""8. A full disk at checkpoint and at publish; torn, truncated and altered checkpoints, manifests and shards."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from services.children import Child
from shared.errors import StoreError
from shared.store import PolicyStore
from tests.chaos.processes import ended
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

SMALL_DISK = "4m"
BELOW_A_MODEL = 16_384  # bytes: a file-size limit that no model file fits in
FILES = ("model.safetensors", "state.json", "manifest.json", "optimizer.safetensors", "rng.safetensors")


def run(short: bool, workdir: Path) -> ScenarioResult:
    """One run lives through all of it."""
    result = ScenarioResult(8, "disk full; torn and altered files", short)
    files = FILES[:2] if short else FILES
    damages = [(file, damage) for file in files for damage in ((_truncate, _flip) if not short else (_flip,))]
    if short:
        damages.append(("manifest.json", _truncate))
    steps = 60 + 30 * (len(damages) + 2)
    with Stack(workdir, steps, settings=("learner.checkpoint_every=5",)) as stack:
        stack.start_load("--rate", "500")
        for folder in ("checkpoints", "policy"):
            _full_disk(result, stack, folder)
        for file, damage in damages:
            _damaged_checkpoint(result, stack, file, damage)
        learner = stack.start_learner()
        stack.until_phase("finished", 180)
        ended(learner, 20)
        stack.fill_in(result)
        _damaged_version(result, stack)
    return result


def _full_disk(result: ScenarioResult, stack: Stack, folder: str) -> None:
    """The folder's disk fills up while the learner runs; it ends with the reason, and goes on when there is room."""
    before = stack.step_of_learner()
    with _small_disk(stack.folder / "run" / folder) as (way, fill, free):
        learner = stack.start_learner()
        stack.reach(before + 12, 60)
        stack.fault()
        fill(learner)
        code = ended(learner, 60)
        reason = stack.phase()[1]
        said = "cannot write" in reason or "No space" in reason
        result.check(f"{folder}, disk full ({way}): the learner ends and says why", code == 1 and said, reason[:160])
        free()
        stack.control.set_phase("starting")
        learner = stack.start_learner()
        _keep_load(stack)
        stack.reach(stack.step_of_learner() + 12, 60)
        stack.signal(learner, signal.SIGTERM)
        ended(learner, 20)


def _keep_load(stack: Stack) -> None:
    """A failed learner ends its producers too: they start again with it."""
    if not any(child.name == "load" and child.exit_code() is None for child in stack.children):
        stack.start_load("--rate", "500")


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[tuple[str, Callable[[Child], None], Callable[[], None]]]:
    """A disk of a few MiB under a folder where the system lets us, else a limit on the learner's file sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.with_name(folder.name + ".kept")
    mounted = os.geteuid() == 0 and _mount(folder, kept)
    filler = folder / "filler"

    def fill(learner: Child) -> None:
        if not mounted:
            resource.prlimit(learner.pid, resource.RLIMIT_FSIZE, (BELOW_A_MODEL, BELOW_A_MODEL))
            return
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    try:
        yield ("tmpfs" if mounted else "RLIMIT_FSIZE"), fill, lambda: filler.unlink(missing_ok=True)
    finally:
        if mounted:
            back = folder.with_name(folder.name + ".back")
            shutil.copytree(folder, back)
            subprocess.run(["umount", str(folder)], check=True)
            shutil.rmtree(folder)
            back.rename(folder)


def _mount(folder: Path, kept: Path) -> bool:
    """Puts a small tmpfs with the same content in the folder's place."""
    shutil.copytree(folder, kept)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if done:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    shutil.rmtree(kept)
    return done


def _damaged_checkpoint(
    result: ScenarioResult, stack: Stack, file: str, damage: Callable[[Path], None]
) -> None:
    """After an orderly stop the newest checkpoint is damaged: the next start says so and takes the one before."""
    learner = stack.start_learner()
    stack.reach(stack.step_of_learner() + 12, 60)
    stack.signal(learner, signal.SIGTERM)
    ended(learner, 20)
    newest = stack.checkpoints[-1]
    damage(newest / file)
    learner = stack.start_learner()
    stack.reach(stack.step_of_learner() + 6, 60)
    what = f"{file} {damage.__name__.strip('_')}"
    said = f"{newest.name} cannot be used and is set aside" in stack.log_of("learner")
    torn = newest.with_name(newest.name + ".torn").is_dir()
    result.check(f"{what}: set aside and said", said and torn, newest.name)
    stack.signal(learner, signal.SIGTERM)
    ended(learner, 20)


def _damaged_version(result: ScenarioResult, stack: Stack) -> None:
    """What a rollout server does before it loads a version: hold and verify it."""
    store = PolicyStore(stack.folder / "run" / "policy")
    newest = store.versions()[-1]
    store.hold(newest, "sound")
    store.let_go("sound")
    for file in ("model.safetensors", "manifest.json"):
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
