"""Keys of the rollout servers: engine, sampling, and what they may ask for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field

from shared.config.lag import LagSetting
from shared.config.section import Named, Seconds, Section, default_kind
from shared.policies import AdmissionPolicy, build


class SamplingConfig(Section):
    """How rollout servers draw tokens. All but temperature and max_tokens must stay neutral."""

    temperature: float = Field(1.0, ge=0, le=10)
    """Divides the logits, in the engine and in the learner alike."""
    max_tokens: int = Field(16, ge=1, le=131_072)
    """Longest completion, tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2)


class VllmEngineConfig(Section):
    """vLLM's AsyncLLM inside the rollout server's process."""

    kind: Literal["vllm"] = "vllm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Precision that the engine computes in; `model`: that of the published weights, model.dtype. A lower one than the
    learner's is allowed: how far both then differ is the numerics floor, and proof_tolerance_nats bounds it."""
    quantization: Literal["none", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block"] = "none"
    """Weights quantized as they are loaded, also at every new version; the learner's and the published ones are not.
    What that costs is the numerics floor. On CPU fp8_per_channel works, with dtype bfloat16."""
    max_model_len: int = Field(2048, ge=16, le=1_048_576)
    """Longest prompt plus completion, tokens."""
    max_num_seqs: int = Field(256, ge=1, le=8192)
    """Completions in one engine batch."""
    kv_cache_gib: float = Field(0.5, gt=0, le=4096)
    """KV cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=0.98)
    """Share of the GPU's memory that vLLM takes."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    enforce_eager: bool = True
    """No compilation and no graphs: a fast start, and no compiler needed."""
    startup_deadline_s: Seconds = 600.0


class TransformersEngineConfig(Section):
    """transformers' own generation: slow, exact, for machines without vLLM and for tests."""

    kind: Literal["transformers"] = "transformers"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Precision that the engine computes in; `model`: that of the published weights, model.dtype. A lower one than the
    learner's is allowed: how far both then differ is the numerics floor, and proof_tolerance_nats bounds it."""
    quantization: Literal["none", "int8"] = "none"
    """int8: every projection's weights rounded to 8 bits, each output row with a scale of its own."""


EngineConfig = Annotated[VllmEngineConfig | TransformersEngineConfig, Field(discriminator="kind"), default_kind("vllm")]


class RolloutConfig(Section):
    """The rollout servers."""

    servers: int = Field(1, ge=0, le=64)
    """How many `trustbatch up` starts on this machine."""
    engine: EngineConfig = VllmEngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    group_size: int = Field(8, ge=1, le=1024)
    """Completions of one prompt."""
    experts: int = Field(0, ge=0, le=64)
    """Expert answers added to every group, for an objective that learns from them (chord).
    The environment gives them, over and over if it has fewer."""
    groups_in_flight: int = Field(16, ge=1, le=4096)
    """Groups that one server generates at once."""
    lag: LagSetting = LagSetting()
    """Versions behind the latest that a server serves on purpose: a number, a distribution, a schedule, or a section
    with a dwell, a control arm and single servers. `trustbatch lag` changes it while the run goes on."""
    max_lag: int | None = Field(None, ge=0, le=1024)
    """The largest lag that may be asked for while the run goes on; the learner keeps so many versions more.
    Empty: the largest that `lag` itself can ask for."""
    reward_deadline_s: Seconds = 30.0
    """Time that the scorer has for one completion; beyond it the group is an infrastructure failure."""
    reward_workers: int = Field(1, ge=1, le=64)
    """Threads that score completions outside the event loop."""
    proof_tolerance_nats: float | None = Field(None, gt=0, le=10)
    """Largest difference between a loaded version and its probe. Empty: 1e-3 in float32, 0.5 where the published
    weights or the engine are bfloat16, 1 where the engine quantizes."""
    sync: Literal["in_flight", "drain", "between_groups"] = "in_flight"
    """When a server takes up a new version. in_flight: at once; groups in flight go on with the new weights, every
    token carries the version that drew it. drain: no new group begins, those in flight end first, so each is drawn by
    one version. between_groups: as drain, but new groups begin until none happens to be in flight, at most for
    sync_gap_s."""
    sync_gap_s: Seconds = 10.0
    """Longest wait for a moment without a group in flight (sync: between_groups); then the server drains."""
    max_refused_versions: int = Field(3, ge=1, le=1000)
    """Versions in a row that cannot be proven after which a server ends; until then it waits for a newer one."""

    @property
    def largest_lag(self) -> int:
        """What a server may be asked for at most, versions."""
        return self.lag.largest if self.max_lag is None else self.max_lag


class AdmissionConfig(Section):
    """What rollout servers may ask for before the learner has caught up."""

    max_staleness: int = Field(4, ge=0, le=4096)
    """Versions beyond the lag that was asked for. 0 is lockstep: staleness is the lag, and with lag 0 the run is
    synchronous."""
    max_bytes: ByteSize = Field(ByteSize(128 * 2**20), ge=2**20)
    """All that the stream may hold in Redis, acknowledged or not."""
    dead_letter_bytes: ByteSize = Field(ByteSize(16 * 2**20), ge=2**16)
    """All that the dead letters may hold in Redis, beside max_bytes; the oldest are dropped first, and counted."""
    lease_s: Seconds = 30.0
    """Leases and heartbeats that are not renewed for this long return to the pool."""
    admit: Named = Named(name="credit")
    """How much may be asked for: credit (a group that too many others pass comes too late), in_order (none does: the
    others wait for the slowest), ess (either, by its `in_order`; less while the token ESS is below `target`)."""
    select: Named = Named(name="oldest")
    """Which of the waiting groups go into a batch: oldest (that came first), stalest (that have the least time left),
    newest, mixed (`newest_share` of them the newest)."""
    evict: Named = Named(name="too_stale")
    """Which groups are dropped: too_stale (beyond lag + max_staleness + `slack`), keep (none)."""
    window: int | None = Field(None, ge=2, le=64)
    """Batches of groups that the learner holds to choose from, where `select` chooses; oldest holds one. Empty: what
    may wait, max_staleness + 1, at most 64."""

    @property
    def batches_held(self) -> int:
        """Batches that the learner may hold."""
        return (self.window or max(2, min(64, self.max_staleness + 1))) if self.policy.chooses else 1

    @property
    def policy(self) -> AdmissionPolicy:
        """The three together."""
        return build(*((named.name, named.knobs) for named in (self.admit, self.select, self.evict)))
