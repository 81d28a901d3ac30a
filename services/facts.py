"""What only Redis knows about a run: asked before it is stopped, kept in the run folder for later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from services.history import Row
from services.status import read_status
from shared.config import Config
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import Client, connect, translated
from shared.types import group_id_for

_PAGE = 64
FACTS = "redis.json"


@dataclass(frozen=True)
class RedisFacts:
    """What only Redis knows about a run."""

    appended: int  # groups that were ever acknowledged
    in_stream: list[int]  # prompt indices of the entries that are still there; -1 where one is not of this run
    dead_letters: list[int]  # likewise
    policy_version: int | None
    phase: str
    reason: str
    proof_max_nats: float | None  # largest over the living rollout servers
    evaluations: list[Row]


def ask_facts(config: Config, timeout_s: float) -> RedisFacts | None:
    """What the run's Redis says, or None where it cannot be asked."""
    try:
        client = connect(config, timeout_s=timeout_s)
        try:
            return read_facts(client, Keys(config.run.id))
        finally:
            client.close()
    except StreamError:
        return None


def read_facts(client: Client, keys: Keys) -> RedisFacts:
    """Asks Redis for what the run folder does not hold. Raises StreamError."""
    status = read_status(client, keys, events=1)
    proofs = [member.values.get("proof_max_nats") for member in status.of_kind("rollout")]
    return RedisFacts(
        appended=status.backlog.appended,
        in_stream=_indices(client, keys.groups, keys.run_id),
        dead_letters=_indices(client, keys.dead_letters, keys.run_id),
        policy_version=status.latest.policy_version if status.latest else None,
        phase=status.phase,
        reason=status.reason,
        proof_max_nats=max((proof for proof in proofs if proof is not None), default=None),
        evaluations=[asdict(result) for result in status.evaluations],
    )


def keep(facts: RedisFacts, folder: Path) -> None:
    """Writes them into the run folder. Raises OSError."""
    (folder / FACTS).write_text(json.dumps(asdict(facts)) + "\n")


def kept(folder: Path) -> RedisFacts | None:
    """What was written there last, or None."""
    try:
        return RedisFacts(**json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _indices(client: Client, stream: str, run_id: str) -> list[int]:
    """The prompt index of every entry of a stream, page by page."""
    found: list[int] = []
    start = "-"
    while True:
        with translated():
            page = client.xrange(stream, min=start, count=_PAGE)
        if not page:
            return found
        found += [_index(fields, run_id) for _, fields in page]
        start = "(" + page[-1][0].decode()


def _index(fields: dict[bytes, bytes], run_id: str) -> int:
    raw = fields.get(b"prompt_index", b"")
    index = int(raw) if raw.isdigit() and len(raw) < 20 else -1
    return index if fields.get(b"group_id", b"").decode(errors="replace") == group_id_for(run_id, index) else -1
