"""What the API answers: every field typed and described, numbers that are not finite given as null."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from services.control_plane.controller import controller_fields
from services.status import Member, RunStatus
from services.verdict import Level, verdict
from shared.config import Config
from shared.metrics import STEP_TEXTS
from shared.records import StepRecord


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Answer(BaseModel):
    """Base of every answer: descriptions come from the fields' docstrings."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class MemberStatus(Answer):
    """One process of the run, as its heartbeat says; what a kind of process does not report is null."""

    component: str
    """`learner`, `rollout:<server_id>` or `control-plane:<id>`."""
    kind: str
    alive: bool
    """False: it did not leave in order and its heartbeat ran out."""
    state: str
    """What it does or what it waits for."""
    since: Number = None
    """Unix seconds since which it is in this state."""
    host: str | None = None
    pid: int | None = None
    policy_version: int | None = None
    """The version that it serves, -1 for none yet; for the learner its newest."""
    step: int | None = None
    """Optimizer steps (learner)."""
    lag: int | None = None
    """Versions behind the latest that it is asked to serve (rollout server)."""
    lag_served: int | None = None
    """Versions that what it serves is behind the latest; null where that is none of its ancestors."""
    arm: str | None = None
    """`control`: at lag 0 on purpose, while others lag."""
    in_flight: int | None = None
    """Groups being generated (rollout server)."""
    groups: int | None = None
    """Groups appended (rollout server)."""
    tokens: int | None = None
    """Tokens drawn for training (rollout server)."""
    proof_max_nats: Number = None
    """Numerics floor: largest difference between the served version and its probe, nats (rollout server)."""
    floor_mean_nats: Number = None
    """Numerics floor: mean |difference| between the served version and its probe, nats (rollout server)."""
    floor_token_ess: Number = None
    """Numerics floor: token_ess of the probe at staleness 0, in [1/n, 1] (rollout server)."""
    pause_median_s: Number = None
    """Seconds that generation stood still for a new version, median of the last 1000 (rollout server)."""
    pause_p99_s: Number = None
    """Of these, the 99th percentile (rollout server)."""
    refused_version: int | None = None
    """The version that it cannot prove, so that it generates nothing; null where there is none (rollout server)."""
    refused_nats: Number = None
    """By how much that version's probe is off, nats (rollout server)."""
    engine: str | None = None
    device: str | None = None
    metrics: str | None = None
    """Address of its Prometheus endpoint."""
    address: str | None = None
    """Address of its HTTP API (control plane)."""


class LatestVersion(Answer):
    """The newest published version."""

    policy_version: int
    parent: int
    """The version that it was made from; -1 for the starting model."""
    step: int
    """Optimizer steps in it."""


class BacklogStatus(Answer):
    """What the stream holds."""

    groups: int
    """Groups in Redis, applied or not."""
    unapplied: int
    """Of these, not applied yet."""
    leased: int
    """Groups asked for and not yet appended."""
    bytes: int
    """Payload bytes in Redis."""
    appended: int
    """Groups acknowledged since the run began."""
    dead_letters: int
    """Entries that could not be trained on."""


class DeadLetterTotals(Answer):
    """Dead letters of one reason since the run began."""

    count: int
    bytes: int
    """Of payload."""
    dropped: int
    """Of them, removed to stay within admission.dead_letter_bytes."""
    dropped_bytes: int
    requeued: int
    """Put back into the stream by an operator."""


class Evaluation(Answer):
    """Held-out accuracy of one version."""

    policy_version: int
    accuracy: Number
    prompts: int
    mean_length: Number
    """Tokens of an answer."""
    seconds: Number
    server_id: str
    at: float
    """Unix seconds."""


class Event(Answer):
    """Something that happened."""

    kind: str
    text: str
    by: str
    at: float
    """Unix seconds."""


def _step_fields() -> dict[str, Any]:
    """StepRecord's fields without the prompt indices, which only the report needs; a missing one is null."""
    hints = get_type_hints(StepRecord)
    names = [field.name for field in fields(StepRecord) if field.name != "prompt_indices"]
    types = {name: Number if hints[name] in (float, float | None) else hints[name] | None for name in names}
    return {name: (types[name], Field(None, description=STEP_TEXTS.get(name))) for name in names}


Step = create_model("Step", __base__=Answer, __doc__="What one optimizer step saw and did.", **_step_fields())


class Controller(Answer):
    """What the controller does, and why."""

    level: Literal["watching", "narrowed", "synced", "paused"]
    """watching: everything is as the operator wants it; narrowed; synced: lag 0 and nothing drawn ahead; paused."""
    sentence: str
    """All of it in words."""
    holder: str
    """The control plane whose controller acts; empty: nobody watches."""
    lag: int | None
    """The largest lag that it lets servers have, versions; null: the operator's setting."""
    max_staleness: int | None
    """Versions that it lets servers draw ahead; null: the operator's setting."""
    actions: dict[str, int]
    """What it has done since the run began, by kind: narrow, widen, sync, pause."""
    actions_left: int
    """What it may still do within the hour."""
    changed_at: Number
    """Unix seconds of the last action; null where there was none."""


class VerdictPart(Answer):
    """One thing that the verdict rests on."""

    level: Level
    sentence: str
    numbers: dict[str, Number | str]
    """Medians over the newest steps: shares and ESS in [0, 1], staleness in versions, floors in nats."""


class Judged(Answer):
    """Whether the batch may be trusted, and why not."""

    level: Level
    """How much attention the run needs."""
    sentence: str
    """The most important thing to know about the run now."""
    parts: dict[str, VerdictPart]
    """`ess`, `floor`, `staleness` and `concentration`, as far as they are known."""


class Status(Answer):
    """Where the run stands."""

    run_id: str
    phase: Literal["starting", "running", "paused", "finished", "failed", "stopped"]
    reason: str
    """Why it is in this phase; empty where that needs no words."""
    verdict: Judged
    paused: bool
    """The run is to stand still."""
    paused_by: str
    """Who wants that: `operator` or `controller`; empty where nobody does."""
    steps_total: int
    """Optimizer steps after which the run is over (learner.steps)."""
    latest: LatestVersion | None
    """Null before the first version is published."""
    backlog: BacklogStatus
    members: list[MemberStatus]
    last: Step | None
    """The newest optimizer step; null before the first."""
    evaluations: list[Evaluation]
    """Held-out results, by version."""
    pending_evaluations: list[int]
    """Versions that wait for an evaluation."""
    events: list[Event]
    """The newest first."""
    dead_letters: dict[str, DeadLetterTotals]
    """By reason; `trustbatch dead-letters` shows and requeues them."""
    controller: Controller | None
    """Null where controller.enabled is false, and for another run than this control plane's."""


class History(Answer):
    """Step records, oldest first."""

    steps: list[Step]


class Paused(Answer):
    """What the operator wants now."""

    paused: bool
    changed: bool
    """False where it was wanted already."""


class Health(Answer):
    """The process is up."""

    status: Literal["ok"] = "ok"


class Readiness(Answer):
    """The process can do its work."""

    status: Literal["ready"] = "ready"
    redis_version: str


class Problem(Answer):
    """An error, as RFC 9457 describes it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    """What is wrong and what to do."""


def status_answer(status: RunStatus, config: Config) -> Status:
    """The API's view of a run."""
    controller = controller_fields(status, config)
    return Status(
        run_id=status.run_id,
        phase=status.phase,
        reason=status.reason,
        verdict=Judged.model_validate(asdict(verdict(status))),
        paused=status.paused,
        paused_by=status.paused_by,
        steps_total=config.learner.steps,
        latest=LatestVersion(**asdict(status.latest)) if status.latest else None,
        backlog=BacklogStatus(**asdict(status.backlog)),
        members=[_member(member) for member in status.members],
        last=Step.model_validate(status.last) if status.last else None,
        evaluations=[Evaluation(**asdict(result)) for result in status.evaluations],
        pending_evaluations=list(status.pending_evaluations),
        events=[Event.model_validate(event) for event in status.events],
        dead_letters={reason: DeadLetterTotals(**asdict(t)) for reason, t in status.dead_letters.items()},
        controller=None if controller is None else Controller(**controller),
    )


def _member(member: Member) -> MemberStatus:
    known = {name: member.values[name] for name in MemberStatus.model_fields if name in member.values}
    own = {"component": member.component, "kind": member.kind, "alive": member.alive, "state": member.state}
    return MemberStatus.model_validate({**known, **own})
