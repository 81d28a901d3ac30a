"""`python -m learner.replay RUN_FOLDER ...`: what any objective makes of the steps that the flight recorder kept.

recorded files --select--> recordings --replay_step--> ReplayedStep --> tables, or JSON that repeats byte for byte
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from learner.recording import FOLDER, RecordedFile, Recording, read, recorded_files
from shared.errors import ConfigError, DecodeError, TrustbatchError

if TYPE_CHECKING:
    from learner.model import PolicyModel
    from learner.objective.registry import Objective
    from learner.replay_step import ReplayedStep
    from shared.store import PolicyStore

ALL = "all"
NEWEST = "newest"
REPLAY = "replay"  # as a holder of versions


@dataclass(frozen=True)
class Report:
    """What a replay found."""

    weights: str  # whose log-probs
    steps: tuple[ReplayedStep, ...]
    refused: tuple[tuple[str, str], ...]  # (file, why)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process. 0: replayed; 1: it cannot be, or every file is refused; 2: wrong arguments, or no such step."""
    given = _parser().parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with it
    try:
        report = make_report(given)
        if given.figure is not None:
            draw(given)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (TrustbatchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if given.figure is not None:
        print(f"drawn into {given.figure}", file=sys.stderr)
    if given.json:
        sys.stdout.write(json.dumps(_plain(asdict(report)), indent=1, allow_nan=False) + "\n")
    else:
        from learner.replay_table import show

        show(report)
    return 0 if report.steps else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trustbatch replay", description="Replays recorded optimizer steps.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--objective", action="append", default=[], metavar="NAME")
    parser.add_argument("--set-knob", action="append", default=[], metavar="[NAME:]KNOB=VALUE")
    parser.add_argument("--steps", default="..", metavar="A..B")
    parser.add_argument("--checkpoint", metavar="NAME")
    parser.add_argument("--abandoned", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    return parser


def make_report(given: argparse.Namespace) -> Report:
    """Replays what was asked for. Raises ConfigError, StoreError, CheckpointError, OSError."""
    chosen = select(given.folder / FOLDER, given.steps, abandoned=given.abandoned)

    import torch  # what the arguments alone rule out is said at once

    from learner.replay_step import device_of, replay

    torch.use_deterministic_algorithms(True, warn_only=True)
    wanted = wanted_objectives(given.objective, given.set_knob)
    refused: list[tuple[str, str]] = []
    steps: list[ReplayedStep] = []
    policy: PolicyModel | None = None
    weights = "the recorded log-probs"
    for name, recording in _recordings(given.folder / FOLDER, chosen, refused):
        if given.checkpoint is not None and policy is None:
            weights, policy = load_weights(given.folder, given.checkpoint, recording, device_of(recording))
        try:
            steps.append(replay(recording, wanted, policy))
        except DecodeError as error:
            refused.append((name, str(error)))
    return Report(weights, tuple(steps), tuple(refused))


def draw(given: argparse.Namespace) -> None:
    """Draws the weights that the objectives give to the recorded tokens. Raises ConfigError, OSError."""
    from learner.figures import draw_weights
    from learner.replay_step import device_of, lacking, step_of, with_derived

    wanted = wanted_objectives(given.objective, given.set_knob)
    needs: frozenset[str] = frozenset().union(*(objective.needs for objective in wanted))
    chosen = select(given.folder / FOLDER, given.steps, abandoned=given.abandoned)
    refused: list[tuple[str, str]] = []
    recordings = [recording for _, recording in _recordings(given.folder / FOLDER, chosen, refused)]
    if not recordings:
        raise ConfigError(f"--figure: none of the steps can be read: {'; '.join(map(': '.join, refused))}")
    steps = [with_derived(r, step_of(r, device_of(r)), needs) for r in recordings]
    able = [o for o in wanted if not any(lacking(o, step) for step in steps)]
    if not able:
        raise ConfigError(f"--figure: the steps lack what {', '.join(o.name for o in wanted)} needs")
    first, last = recordings[0], recordings[-1]
    tokens = sum(step.tokens for step in steps)
    which = f"steps {first.step} to {last.step}" if first is not last else f"step {first.step}"
    title = f"{given.folder.name}, {which}: {tokens:,} tokens"
    try:
        draw_weights(given.figure, steps, able, title)
    except ValueError as error:
        raise ConfigError(f"--figure {given.figure}: {error}") from None


def select(folder: Path, steps: str, *, abandoned: bool = False) -> list[RecordedFile]:
    """The files to replay, by step: of the surviving lineage, or else of what restores abandoned.

    Args:
        folder: of the recorded files.
        steps: `A..B`, `A..`, `..B` or one number; both ends count.
        abandoned: choose the abandoned ones.

    Raises:
        ConfigError: nothing is left; says what there is.

    """
    match = re.fullmatch(r"(\d*)\.\.(\d*)|(\d+)", steps)
    if not match:
        raise ConfigError(f"--steps: {steps!r} is not A..B, A.., ..B or one step")
    if not folder.parent.is_dir():
        raise ConfigError(f"{folder.parent} is no folder: give that of a run, such as runs/demo-20261120-163642")
    first, last, single = match.groups()
    least = int(single or first or 0)
    most = int(single or last or sys.maxsize)
    if least > most:
        raise ConfigError(f"--steps: {steps!r} ends before it begins")
    files = recorded_files(folder)
    if not files:
        raise ConfigError(
            f"{folder}: no recorded step. A learner records each step while learner.record_bytes is above 0; "
            "`trustbatch record RUN_FOLDER` shows what is there"
        )
    kept = [file for file in files if file.abandoned == abandoned]
    if not abandoned:  # of two learners that overlapped, the later one is the lineage
        kept = list({file.step: file for file in kept}.values())
    found = sorted((f for f in kept if least <= f.step <= most), key=lambda f: (f.step, f.epoch))
    if not found:
        there = f"recorded are {min(f.step for f in kept)}..{max(f.step for f in kept)}" if kept else "there are none"
        if not abandoned and any(f.abandoned and least <= f.step <= most for f in files):
            there += "; --abandoned replays what a restore left behind"
        raise ConfigError(f"{folder}: no such step{' that a restore abandoned' * abandoned}: {there}")
    return found


def _recordings(
    folder: Path, files: Sequence[RecordedFile], refused: list[tuple[str, str]]
) -> Iterator[tuple[str, Recording]]:
    """One after the other; those that cannot be read are refused by name."""
    for file in files:
        try:
            yield file.name, read(folder / file.name)
        except DecodeError as error:
            refused.append((file.name, str(error)))
        except FileNotFoundError:
            refused.append((file.name, "the learner has removed it to stay within the bound"))


def wanted_objectives(names: Sequence[str], knobs: Sequence[str]) -> list[Objective]:
    """The objectives to look at.

    Args:
        names: of objectives, or `all`; none means all.
        knobs: `KNOB=VALUE` for every one that has the knob, `NAME:KNOB=VALUE` for one.

    Raises:
        ConfigError: an unknown name or knob, or a value that is not allowed.

    """
    from learner.objective.registry import OBJECTIVES, build, canonical, knobs_of
    from learner.objective.regularization import regularized

    chosen = list(OBJECTIVES) if not names or ALL in names else list(dict.fromkeys(names))
    own = {name: canonical(name)[0] for name in chosen}
    settings: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for text in knobs:
        target, knob, value = _knob(text)
        able = [n for n in chosen if own[n] in OBJECTIVES and knob in {k.name for k in knobs_of(OBJECTIVES[own[n]])}]
        common = knob in {k.name for k in knobs_of(regularized)}
        named = [n for n in chosen if n == target] or [n for n in chosen if own[n] == canonical(target)[0]]
        takers = named if target else chosen if common else able
        if not takers:
            raise ConfigError(f"--set-knob {text}: no chosen objective takes it; `trustbatch objectives` lists them")
        for taker in takers:
            settings[taker][knob] = value
    try:
        built = [build(name, settings[name]) for name in settings]
        return list({objective.label: objective for objective in built}.values())  # two names of one are one
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _knob(text: str) -> tuple[str, str, Any]:
    """(objective or '', knob, value)."""
    match = re.fullmatch(r"(?:(\w+):)?(\w+)=(.+)", text)
    if not match:
        raise ConfigError(f"--set-knob: {text!r} is not KNOB=VALUE or NAME:KNOB=VALUE")
    target, knob, value = match.groups()
    try:
        return target or "", knob, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set-knob {text}: {value!r} is no value") from None


def load_weights(folder: Path, wanted: str, recording: Recording, device: Any) -> tuple[str, PolicyModel]:
    """A checkpoint of the run, one of its published versions, or a Hugging Face folder: (what it is, the model).

    Raises:
        ConfigError, CheckpointError: it is not there, or cannot be loaded.
        StoreError: the store does not answer, or what it has is not as published.

    """
    from learner.checkpoint import CheckpointStore, restore_weights
    from learner.model import PolicyModel

    load = partial(
        PolicyModel.load, dtype=recording.dtype, device=device, matrices=recording.matrix_dtype, key="--checkpoint"
    )
    checkpoints = CheckpointStore(folder / "checkpoints", 2, print)
    names = checkpoints.names()
    name = names[-1] if names and wanted == NEWEST else wanted
    if name in names:
        checkpoint = checkpoints.read(name)
        policy = load(checkpoint.state.config["model"]["path"])
        restore_weights(checkpoint.tensors["model"], policy)
        return f"checkpoint {name}", policy
    version, is_folder = re.fullmatch(r"v?(\d+)", name), Path(name).is_dir()
    store = _store(folder) if version or not is_folder else None  # which may be far away
    published = store.versions() if store else []
    if store and version and int(version[1]) in published:
        return _published(store, int(version[1]), load)
    if is_folder:
        return f"the model in {name}", load(name)
    versions = ", ".join(map(str, published[-5:])) or "none"
    raise ConfigError(
        f"--checkpoint {wanted}: no checkpoint of the run ({', '.join(names) or 'it has none'}), no published version "
        f"that is still there (newest: {versions}) and no folder"
    )


def _store(folder: Path) -> PolicyStore:
    """Where the configuration of the run has its versions; without one, in its folder. Raises as `load_weights`."""
    from shared.config import load_config
    from shared.store import PolicyStore, open_store

    path = folder / "config.yaml"
    if not path.exists():
        return PolicyStore(folder / "policy")
    config = load_config(path)
    here = config.run.model_copy(update={"folder": folder})  # wherever the run has been moved to
    return open_store(config.model_copy(update={"run": here}), REPLAY)


def _published(store: PolicyStore, number: int, load: Callable[[str], PolicyModel]) -> tuple[str, PolicyModel]:
    from shared.tensor_table import has_weights

    if not has_weights(store.manifest(number)):
        raise ConfigError(
            f"--checkpoint: version {number} went over the wire alone, the store has no files of its weights: give a "
            "checkpoint of the run, or a version with files, such as every store.full_every-th"
        )
    try:
        held = store.hold(number, REPLAY)[1]  # rebuilt, where it is stored as a patch
        return f"published version {number}", load(str(held))
    finally:
        store.forget(REPLAY)


def _plain(value: Any) -> Any:
    """As JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
