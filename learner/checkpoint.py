"""Checkpoints: everything that a learner needs to go on, in a folder whose manifest is written last.

    <root>/e0003-n000012-s00000450/model.safetensors, optimizer.safetensors, rng.safetensors, state.json, manifest.json

A checkpoint counts when its manifest is there and every file is what the manifest says. The learner's epoch
and a running number order the folders, so two learners never write into the same one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.lineage import Segment
from learner.model import PolicyModel
from shared.errors import CheckpointError, StoreError
from shared.intervals import Intervals
from shared.manifest import MANIFEST, seal, stored_files, unseal
from shared.store import check, read_small, stored_file, sync_folder, write_durably

_NAME = re.compile(r"e(\d{4,})-n(\d{6,})-s(\d{8,})")
_STATE = "state.json"
_EPOCH = "epoch-"  # empty files: the newest is the learner that the run belongs to
_PARTS = ("model", "optimizer", "rng")
TORN = ".torn"
_MOMENTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Adafactor": {"step", "row_var", "col_var", "variance"}}


@dataclass(frozen=True)
class TrainingState:
    """Where training stands, without its tensors."""

    step: int  # optimizer steps, skipped ones included
    batches: int  # batches of groups consumed
    policy_version: int  # newest published version that the weights descend from
    segments: tuple[Segment, ...]  # of the lineage
    finished: Intervals  # the ledger of prompt indices
    counts: dict[str, Any]
    config: dict[str, Any]  # resolved, without secrets


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint in memory."""

    name: str
    state: TrainingState
    tensors: dict[str, dict[str, Tensor]]  # of "model", "optimizer" and "rng"


class CheckpointStore:
    """A folder of checkpoints."""

    def __init__(self, root: Path, keep: int, say: Callable[[str], None]) -> None:
        self.root = root
        self._keep = keep
        self._say = say

    def write(self, epoch: int, state: TrainingState, tensors: dict[str, dict[str, Tensor]]) -> str:
        """Writes a checkpoint, reads it back, then removes those that are no longer kept.

        Returns:
            Its name; from now on it is durable.

        Raises:
            CheckpointError: the disk refused, or what was read back is not what was written.

        """
        number = max((parts[1] for parts in map(_parts, self._all())), default=0) + 1
        folder = self.root / f"e{epoch:04d}-n{number:06d}-s{state.step:08d}"
        try:
            folder.mkdir(parents=True)
            for part in _PARTS:
                save_file(tensors[part], folder / f"{part}.safetensors")
            write_durably(folder / _STATE, json.dumps(_to_json(state)).encode())
            files = [asdict(stored_file(path)) for path in sorted(folder.iterdir())]
            write_durably(folder / MANIFEST, seal({"files": files}))
            sync_folder(self.root)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write the checkpoint {folder}: {error}") from error
        self._verify(folder)
        self._forget()
        return folder.name

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint; a torn or altered one is set aside, and said."""
        for name in reversed(self.names()):
            try:
                return self.read(name)
            except CheckpointError as error:
                self._say(f"checkpoint {name} cannot be used and is set aside as {name}{TORN}: {error}")
                (self.root / name).rename(self.root / (name + TORN))
        return None

    def read(self, name: str) -> Checkpoint:
        """One checkpoint; changes nothing. Raises CheckpointError where it is torn, altered or not there."""
        self._verify(self.root / name)
        return _load(self.root / name)

    def names(self) -> list[str]:
        """Checkpoints with a manifest that were not set aside, oldest first."""
        return [n for n in self._all() if _NAME.fullmatch(n) and (self.root / n / MANIFEST).is_file()]

    def newest_epoch(self) -> int:
        """The highest learner epoch that ever began here; also known where Redis has lost its data."""
        begun = [int(path.name.removeprefix(_EPOCH)) for path in self.root.glob(_EPOCH + "[0-9]*")]
        return max([0, *begun, *(parts[0] for parts in map(_parts, self._all()))])

    def begin_epoch(self, epoch: int) -> bool:
        """Claims an epoch for one learner, for good; False where another one has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            (self.root / f"{_EPOCH}{epoch}").touch(exist_ok=False)
        except FileExistsError:
            return False
        sync_folder(self.root)
        for older in range(1, epoch):
            (self.root / f"{_EPOCH}{older}").unlink(missing_ok=True)
        return True

    def versions(self) -> list[int]:
        """The policy versions from which a restore may have to go on."""
        found = []
        for name in self.names():
            try:
                found.append(_read_state(self.root / name).policy_version)
            except CheckpointError:
                continue  # not one to restore from
        return found

    def _all(self) -> list[str]:
        """Folders of checkpoints, unfinished and torn ones too, oldest first."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if _NAME.match(path.name)]
        return sorted(names, key=_parts)

    def _verify(self, folder: Path) -> None:
        try:
            manifest = unseal(read_small(folder / MANIFEST), str(folder / MANIFEST))
            expected = stored_files(manifest["files"])
            for file in expected:
                check(folder / file.name, file)
        except (OSError, StoreError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(str(error)) from error

    def _forget(self) -> None:
        """Removes all but the newest whole checkpoints; of torn ones, those that are older than all kept."""
        kept = self.names()[-self._keep :]
        for name in self._all():
            if name not in kept and _parts(name) < _parts(kept[0]):
                (self.root / name / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(self.root / name, ignore_errors=True)


def collect_tensors(policy: PolicyModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Weights, optimizer state and random number states, on the CPU."""
    parameters = policy.named_parameters()
    moments = {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    rng = {"cpu": torch.get_rng_state()}
    if policy.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(policy.device)
    model = {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
    return {"model": model, "optimizer": moments, "rng": rng}


@torch.no_grad()
def restore_tensors(
    tensors: dict[str, dict[str, Tensor]], policy: PolicyModel, optimizer: torch.optim.Optimizer
) -> None:
    """Puts a checkpoint's tensors back. Raises CheckpointError where they are of another model."""
    restore_weights(tensors["model"], policy)
    names = list(policy.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors["optimizer"].items():
        name, _, field = key.rpartition("/")
        state.setdefault(names.index(name), {})[field] = value
    kind = type(optimizer).__name__
    fields = {field for moments in state.values() for field in moments}
    if fields - _MOMENTS.get(kind, fields):
        raise CheckpointError(
            f"the checkpoint's optimizer is not {kind}: set learner.optimizer to that which the run began with, or "
            "take another run.folder"
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng"]["cpu"])
    if "cuda" in tensors["rng"] and policy.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng"]["cuda"], policy.device)


@torch.no_grad()
def restore_weights(stored: dict[str, Tensor], policy: PolicyModel) -> None:
    """Puts a checkpoint's weights into the policy. Raises CheckpointError where they are of another model."""
    parameters = policy.named_parameters()
    wrong = [n for n, p in parameters.items() if n not in stored or stored[n].shape != p.shape]
    if wrong or len(stored) != len(parameters):
        raise CheckpointError(
            f"the checkpoint is of another model than model.path ({', '.join(wrong[:3]) or 'it has more weights'}): "
            "use the model that the run began with, or another run.folder"
        )
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])


def _load(folder: Path) -> Checkpoint:
    try:
        tensors = {part: load_file(folder / f"{part}.safetensors") for part in _PARTS}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(folder.name, _read_state(folder), tensors)


def _read_state(folder: Path) -> TrainingState:
    try:
        data = json.loads(read_small(folder / _STATE))
        data["segments"] = tuple(Segment(**item) for item in data["segments"])
        data["finished"] = Intervals(tuple(pair) for pair in data["finished"])
        return TrainingState(**data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / _STATE}: {error}") from error


def _to_json(state: TrainingState) -> dict[str, Any]:
    data = {name: getattr(state, name) for name in ("step", "batches", "policy_version", "counts", "config")}
    segments = [asdict(segment) for segment in state.segments]
    return {**data, "segments": segments, "finished": list(state.finished.pairs())}


def _parts(name: str) -> tuple[int, int, int]:
    """(epoch, number, step) of a folder's name: also its order."""
    match = _NAME.match(name)
    assert match, name
    epoch, number, step = (int(part) for part in match.groups())
    return epoch, number, step
