"""How much may be asked for ahead of training: the configuration's, or less where somebody wants that for now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared import untrusted
from shared.admission import Credit
from shared.wishes import canonical

if TYPE_CHECKING:
    from shared.config import Config


@dataclass(frozen=True)
class Budgets:
    """Of the whole run."""

    max_staleness: int  # versions of credit, less one: what is asked for now is at most so stale beyond its lag
    max_bytes: int  # that the stream may hold

    def wish(self, config: Config) -> bytes:
        """As it is stored: only what is below the configuration; scripts.LEASE reads it too."""
        wanted = {"max_bytes": self.max_bytes, "max_staleness": self.max_staleness}
        configured = budgets(config, b"")
        return canonical({name: n for name, n in wanted.items() if n < getattr(configured, name)})


def budgets(config: Config, wish: bytes) -> Budgets:
    """What counts now. A wish can only lower what is configured; one that cannot be read counts as none."""
    wanted = untrusted.json_object(wish or None)
    admission = config.admission
    return Budgets(
        max_staleness=_lower(wanted.get("max_staleness"), admission.max_staleness, 0),
        max_bytes=_lower(wanted.get("max_bytes"), int(admission.max_bytes), least_bytes(config)),
    )


def credit(config: Config) -> Credit:
    """What a rollout server asks for prompts with; scripts.LEASE bounds the wish as `budgets` does."""
    return Credit(
        versions=config.admission.max_staleness + 1,
        groups_per_version=config.learner.groups_per_publish,
        max_bytes=int(config.admission.max_bytes),  # a plain int: the client refuses its subclasses
        group_bytes=config.group_bytes_bound,
        lease_s=config.admission.lease_s,
        least_bytes=least_bytes(config),
    )


def least_bytes(config: Config) -> int:
    """With less no batch could ever be complete."""
    return config.learner.groups_per_batch * config.group_bytes_bound


def _lower(wanted: object, configured: int, least: int) -> int:
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        return configured
    return max(min(least, configured), min(configured, wanted))
