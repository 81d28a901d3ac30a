"""Every Redis key. Those of a run share one hash tag, so they live in one cluster slot."""

from __future__ import annotations

from dataclasses import dataclass

RUNS = "trustbatch:runs"
"""Hash, the only key of no run: run id -> JSON of when its learner was last started, and for how many steps."""


@dataclass(frozen=True)
class Keys:
    """The keys of one run."""

    run_id: str

    def _key(self, name: str) -> str:
        return f"trustbatch:{{{self.run_id}}}:{name}"

    # -- data path ------------------------------------------------------------------------------
    @property
    def groups(self) -> str:
        """Stream: one complete group an entry (fields: group_id, prompt_index, payload or failure)."""
        return self._key("groups")

    @property
    def dead_letters(self) -> str:
        """Stream: entries that could not be trained on, with the reason and the original payload."""
        return self._key("dead_letters")

    @property
    def dead_letter_totals(self) -> str:
        """Hash: count:, bytes:, dropped:, dropped_bytes: and requeued:REASON since the run began; kept: bytes now."""
        return self._key("dead_letter_totals")

    @property
    def buried(self) -> str:
        """Hash: prompt index -> id of the dead letter that it ended as, and its reason."""
        return self._key("buried")

    @property
    def acknowledged(self) -> str:
        """Hash: server_id -> its appends that Redis acknowledged: fewer than it knows of means that data were lost."""
        return self._key("acknowledged")

    @property
    def claims(self) -> str:
        """List: prompt indices whose acknowledged groups a server misses; the learner takes them off."""
        return self._key("claims")

    # -- admission ------------------------------------------------------------------------------
    @property
    def cursor(self) -> str:
        """Integer: the next prompt index that nobody was given yet."""
        return self._key("cursor")

    @property
    def leases(self) -> str:
        """Sorted set: prompt index -> unix milliseconds at which the lease runs out."""
        return self._key("leases")

    @property
    def drawing(self) -> str:
        """Sorted set: prompt index -> depth in the lineage of the version that it is leased for, less the server's lag.

        An index is there for as long as its lease.
        """
        return self._key("drawing")

    @property
    def owners(self) -> str:
        """Hash: prompt index -> server_id that holds its lease."""
        return self._key("owners")

    @property
    def returned(self) -> str:
        """Sorted set: prompt indices to be given out again, lowest first."""
        return self._key("returned")

    @property
    def attempts(self) -> str:
        """Hash: prompt index -> infrastructure failures so far."""
        return self._key("attempts")

    @property
    def unapplied(self) -> str:
        """Set: prompt indices that are in the stream and still hold staleness credit."""
        return self._key("unapplied")

    @property
    def bytes(self) -> str:
        """Integer: payload bytes in the stream, acknowledged or not."""
        return self._key("bytes")

    @property
    def appended(self) -> str:
        """Integer: groups that Redis has acknowledged since the run began."""
        return self._key("appended")

    @property
    def clock(self) -> str:
        """Unix milliseconds of the last lease or renewal that went through."""
        return self._key("clock")

    # -- control state --------------------------------------------------------------------------
    @property
    def epoch(self) -> str:
        """Integer: the learner epoch; a learner with a smaller one is fenced."""
        return self._key("epoch")

    @property
    def latest(self) -> str:
        """Hash: policy_version, parent and step of the newest published version."""
        return self._key("latest")

    @property
    def parents(self) -> str:
        """Hash: policy_version -> parent version (`=` behind it: a copy of it), of every version that may be served."""
        return self._key("parents")

    @property
    def desired(self) -> str:
        """Hash: what the operator wants (paused, record_bytes; lag, admission and objective with _by and _at)."""
        return self._key("desired")

    @property
    def draining(self) -> str:
        """Hash: server_id -> who wants it to take no new groups, and since when."""
        return self._key("draining")

    @property
    def requeues(self) -> str:
        """Hash: dead letter id -> who wants it back in the stream, and since when; the learner sees to it."""
        return self._key("requeues")

    @property
    def members(self) -> str:
        """Set: ids of the components that have ever sent a heartbeat and not left."""
        return self._key("members")

    def heartbeat(self, component: str) -> str:
        """String with expiry: JSON status of one component."""
        return self._key(f"heartbeat:{component}")

    @property
    def phase(self) -> str:
        """Hash: phase (running, paused, finished, failed) and reason of the run, by the learner."""
        return self._key("phase")

    @property
    def history(self) -> str:
        """Stream, bounded in bytes: one JSON row a step."""
        return self._key("history")

    @property
    def series(self) -> str:
        """Hash: the books of the rows' numbers by series: bytes of every block (TIER:NUMBER), and of each tier."""
        return self._key("series")

    @property
    def fleet(self) -> str:
        """Hash: the same for the numbers of rollout servers, and the last sample of them."""
        return self._key("fleet")

    def block(self, books: str, tier: str, number: int) -> str:
        """Hash: series -> packed numbers of one stretch of time; `books` is `series` or `fleet`."""
        return f"{books}:{tier}:{number}"

    @property
    def examples(self) -> str:
        """Stream, bounded in bytes: JSON of the few groups of each step that its ratios hang on (fields: step, row)."""
        return self._key("examples")

    @property
    def examples_bytes(self) -> str:
        """Integer: bytes of the rows in it."""
        return self._key("examples_bytes")

    @property
    def events(self) -> str:
        """Capped stream: what happened, when, by whom."""
        return self._key("events")

    @property
    def evaluation_jobs(self) -> str:
        """Hash: policy_version -> until when a wanted evaluation is claimed, and by whom."""
        return self._key("evaluation_jobs")

    @property
    def evaluation_results(self) -> str:
        """Hash: policy_version -> JSON of its held-out result."""
        return self._key("evaluation_results")

    # -- weights over the wire ------------------------------------------------------------------
    @property
    def transfer(self) -> str:
        """String with expiry: JSON of what the learner asks the servers to receive now."""
        return self._key("transfer")

    @property
    def transfer_answers(self) -> str:
        """Hash: server_id -> JSON of how far it is with what was asked last."""
        return self._key("transfer_answers")

    @property
    def transfer_wanted(self) -> str:
        """String: the newest version that some server can only get by files."""
        return self._key("transfer_wanted")
