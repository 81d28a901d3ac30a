"""What differs between two configurations, and which processes have to start again for it.

Every process reads its configuration once, at its start. So nothing changes under a living run, and what does change
takes effect in those processes that read the key: this table says which they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared.config import secrets
from shared.config.models import Config
from shared.config.secrets import SECRET_KEYS, excluded

LEARNER, ROLLOUT, CONTROL_PLANE, REDIS = "learner", "rollout", "control-plane", "redis"
ORDER = (REDIS, LEARNER, ROLLOUT, CONTROL_PLANE)
ABSENT = "-"
HIDDEN = "(a secret)"

# The longest name that a key begins with counts.
READERS: dict[str, tuple[str, ...]] = {
    "run": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "run.folder": (LEARNER, ROLLOUT),
    "run.seed": (LEARNER, ROLLOUT),
    "model": (LEARNER, ROLLOUT),
    "redis": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "redis.max_memory": (REDIS,),
    "redis.appendfsync": (REDIS,),
    "store": (LEARNER, ROLLOUT),
    "store.token": (ROLLOUT,),  # the learner writes to no http(s):// url
    "store.token_file": (ROLLOUT,),
    "store.cache": (ROLLOUT,),  # these two: only what picks versions up
    "store.part_bytes": (ROLLOUT,),
    "store.full_every": (LEARNER,),  # and these: only what publishes
    "store.patch_share": (LEARNER,),
    "store.transfer.host": (LEARNER,),  # servers are told with each call
    "store.transfer.port": (LEARNER,),
    "environment": (ROLLOUT,),
    "evaluation": (ROLLOUT,),
    "evaluation.every": (LEARNER,),
    "evaluation.deadline_s": (LEARNER, ROLLOUT),
    "rollout": (ROLLOUT,),
    "rollout.servers": (),  # only `trustbatch up` reads it
    "rollout.sampling": (LEARNER, ROLLOUT),
    "rollout.group_size": (LEARNER, ROLLOUT),
    "rollout.experts": (LEARNER, ROLLOUT),
    "rollout.lag": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "rollout.max_lag": (LEARNER, ROLLOUT, CONTROL_PLANE),  # what is kept, what a server tells, what may be asked for
    "rollout.engine.max_model_len": (LEARNER, ROLLOUT),
    "learner": (LEARNER,),
    "learner.idle_deadline_s": (LEARNER, ROLLOUT),
    "learner.steps": (LEARNER, CONTROL_PLANE),
    "learner.groups_per_batch": (LEARNER, ROLLOUT, CONTROL_PLANE),  # these four: what is asked for in advance
    "learner.minibatches": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "learner.passes": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "learner.publish_every": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "admission": (LEARNER, ROLLOUT),
    "admission.max_staleness": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "admission.max_bytes": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "admission.lease_s": (LEARNER, ROLLOUT, CONTROL_PLANE),
    "admission.dead_letter_bytes": (LEARNER,),
    "admission.admit": (LEARNER,),  # with each version it says what rollout servers may ask for
    "admission.select": (LEARNER,),
    "admission.evict": (LEARNER,),
    "admission.window": (LEARNER,),
    "control_plane": (CONTROL_PLANE,),
    "control_plane.history_bytes": (LEARNER, CONTROL_PLANE),
    "metrics": (LEARNER, ROLLOUT),
}

# With another value of these, prompts, held-out questions or weights are not those that the run began with.
OF_THE_RUN = ("run.id", "run.seed", "model.path", "model.tiny", "environment", "evaluation.prompts")


@dataclass(frozen=True)
class Change:
    """One key that differs."""

    key: str
    before: Any
    after: Any
    restarts: tuple[str, ...]  # kinds of processes that read it, in the order in which to start them again
    another_run: bool  # it belongs to a run of its own, under another run.id


def changes(before: Config, after: Config) -> list[Change]:
    """Every key that differs, by name; secrets without their values."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key, ABSENT) != new.get(key, ABSENT))
    found = [_change(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    return found + [_change(key, HIDDEN, HIDDEN) for key in sorted(SECRET_KEYS) if _secret(before, key, after)]


def readers(key: str) -> tuple[str, ...]:
    """Kinds of processes that read a key."""
    parts = key.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next(READERS[name] for name in names if name in READERS)


def _change(key: str, before: Any, after: Any) -> Change:
    another = any(key == name or key.startswith(f"{name}.") for name in OF_THE_RUN)
    return Change(key, before, after, tuple(name for name in ORDER if name in readers(key)), another)


def _secret(before: Config, key: str, after: Config) -> bool:
    return secrets.get(before, key) != secrets.get(after, key)


def _leaves(config: Config) -> Iterator[tuple[str, Any]]:
    return _flattened(config.model_dump(mode="json", exclude=excluded()), "")


def _flattened(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
