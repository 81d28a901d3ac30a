"""What no single key can know: combinations that cannot work, in the operator's words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from shared.config.access import access_problems
from shared.config.learner import LearnerConfig
from shared.config.rollout import AdmissionConfig, RolloutConfig, VllmEngineConfig
from shared.config.store import StoreConfig
from shared.policies import TABLES, chosen
from shared.sampling import filter_problems, temperature_problems

if TYPE_CHECKING:
    from shared.config.models import Config


def combination_problems(config: Config) -> Iterator[str]:
    """Every combination of this configuration that cannot work."""
    return chain(
        _steps(config.learner),
        _versions(config),
        _policies(config.admission),
        _stalls(config),
        _memory(config),
        _drawing(config.rollout, config.learner),
        _tiny(config),
        access_problems(config.redis, config.control_plane),
        _scaling(config),
        _controller(config),
        _overlong(config),
        _store(config.store),
        _transfer(config),
        _quantization(config),
    )


def _steps(learner: LearnerConfig) -> Iterator[str]:
    yield from _multiple(
        "learner.groups_per_batch", learner.groups_per_batch, "learner.minibatches", learner.minibatches
    )
    per_batch = "learner.minibatches x learner.passes"
    for name in ("publish_every", "checkpoint_every", "steps"):
        yield from _multiple(f"learner.{name}", getattr(learner, name), per_batch, learner.steps_per_batch)
    if learner.warmup_steps > learner.steps:
        yield f"learner.warmup_steps is {learner.warmup_steps}; it must be at most learner.steps ({learner.steps})"


def _versions(config: Config) -> Iterator[str]:
    learner, rollout = config.learner, config.rollout
    if rollout.lag.largest > rollout.largest_lag:
        yield (
            f"rollout.lag asks for up to {rollout.lag.largest} versions; rollout.max_lag is {rollout.max_lag}: "
            "raise it, or leave it away"
        )
    if config.admission.max_staleness == 0 and learner.publish_every != learner.steps_per_batch:
        yield (
            f"admission.max_staleness is 0, so every batch must be published before the next is drawn: "
            f"learner.publish_every must be {learner.steps_per_batch}, not {learner.publish_every}"
        )


def _policies(admission: AdmissionConfig) -> Iterator[str]:
    for question in TABLES:
        named = getattr(admission, question)
        try:
            chosen(question, named.name, named.knobs)
        except ValueError as error:
            yield str(error)


def _stalls(config: Config) -> Iterator[str]:
    stalled, works = config.metrics.stalled_after_s, {"evaluation.deadline_s": config.evaluation.deadline_s}
    if isinstance(config.rollout.engine, VllmEngineConfig):
        works["rollout.engine.startup_deadline_s"] = config.rollout.engine.startup_deadline_s
    for key, seconds in works.items():
        if stalled <= seconds:
            yield (
                f"metrics.stalled_after_s is {stalled:g}; it must be above {key} ({seconds:g}), or a server that is "
                "within its time would be taken for stalled"
            )


def _memory(config: Config) -> Iterator[str]:
    groups, most = config.learner.groups_per_batch, config.admission.max_bytes
    needed = groups * config.group_bytes_bound
    if most < needed:
        yield (
            f"admission.max_bytes is {most:,}, but one batch of {groups} groups "
            f"may take {needed:,} bytes: raise it, or lower learner.groups_per_batch, rollout.group_size "
            "or rollout.sampling.max_tokens"
        )
    letters, history = config.admission.dead_letter_bytes, config.control_plane.history_bytes
    if config.redis.url is None and config.redis.max_memory < 2 * most + letters + history:
        yield (
            f"redis.max_memory is {config.redis.max_memory:,}; it must be at least twice admission.max_bytes "
            f"({most:,}), admission.dead_letter_bytes ({letters:,}) and control_plane.history_bytes ({history:,}), so "
            "that heartbeats and acknowledgements always fit"
        )


def _drawing(rollout: RolloutConfig, learner: LearnerConfig) -> Iterator[str]:
    for problem in temperature_problems(rollout.sampling) + filter_problems(rollout.sampling):
        yield f"rollout.{problem}"
    longest, engine = rollout.sampling.max_tokens, rollout.engine
    if longest >= learner.micro_batch_tokens:
        yield (
            f"rollout.sampling.max_tokens is {longest}; it must be below learner.micro_batch_tokens "
            f"({learner.micro_batch_tokens}), which one trajectory must fit with its prompt: raise that"
        )
    if isinstance(engine, VllmEngineConfig) and longest >= engine.max_model_len:
        yield (
            f"rollout.sampling.max_tokens is {longest}; it must be below rollout.engine.max_model_len "
            f"({engine.max_model_len}), which the prompt needs its part of"
        )
    if rollout.group_size == 1:
        yield (
            f"rollout.group_size is 1; it must be at least 2, because learner.advantage {learner.advantage} compares "
            "the completions of a group with each other"
        )


def _overlong(config: Config) -> Iterator[str]:
    buffer, longest = config.learner.overlong_buffer, config.rollout.sampling.max_tokens
    if buffer > longest:
        yield f"learner.overlong_buffer is {buffer}; it must be at most rollout.sampling.max_tokens ({longest})"


def _store(store: StoreConfig) -> Iterator[str]:
    scheme = store.url.partition("://")[0] if "://" in store.url else ""
    if store.endpoint and scheme != "s3":
        yield f"store.endpoint is for a store.url that begins with s3://, not for {store.url!r}"
    if store.token and store.token_file:
        yield "store.token and store.token_file are both given: give only one of them"
    if (store.token or store.token_file) and scheme not in ("http", "https"):
        yield f"store.token is for a store.url that begins with http:// or https://, not for {store.url!r}"


def _quantization(config: Config) -> Iterator[str]:
    engine = config.rollout.engine
    if not isinstance(engine, VllmEngineConfig) or engine.quantization == "none":
        return
    if config.engine_dtype != "bfloat16":
        yield (
            f"rollout.engine.quantization is {engine.quantization}, which vLLM computes in bfloat16: set "
            f"rollout.engine.dtype to bfloat16, not {config.engine_dtype}"
        )
    if config.store.transfer.kind != "files":
        yield (
            f"rollout.engine.quantization is {engine.quantization}, and weights over the wire would not be quantized "
            "anew: set store.transfer.kind to files"
        )


def _scaling(config: Config) -> Iterator[str]:
    least, most = config.control_plane.least_servers, config.control_plane.most_servers
    if least > most:
        yield f"control_plane.least_servers is {least}; it must be at most control_plane.most_servers ({most})"


def _controller(config: Config) -> Iterator[str]:
    controller = config.controller
    if controller.pause_token_ess > controller.token_ess:
        yield (
            f"controller.pause_token_ess is {controller.pause_token_ess:g}; it must be at most controller.token_ess "
            f"({controller.token_ess:g})"
        )
    if controller.enabled and config.admission.admit.name == "ess":
        yield (
            "controller.enabled and admission.admit: ess would both steer the credit by the token ESS: switch one of "
            "them off"
        )


def _tiny(config: Config) -> Iterator[str]:
    tiny, engine = config.model.tiny, config.rollout.engine
    if tiny is None:
        return
    yield from _multiple(
        "model.tiny.num_attention_heads",
        tiny.num_attention_heads,
        "model.tiny.num_key_value_heads",
        tiny.num_key_value_heads,
    )
    if isinstance(engine, VllmEngineConfig) and tiny.max_position_embeddings < engine.max_model_len:
        yield (
            f"model.tiny.max_position_embeddings is {tiny.max_position_embeddings}; it must be at least "
            f"rollout.engine.max_model_len ({engine.max_model_len})"
        )


def _transfer(config: Config) -> Iterator[str]:
    kind, engine = config.store.transfer.kind, config.rollout.engine
    if kind == "files":
        return
    if not isinstance(engine, VllmEngineConfig):
        yield f"store.transfer.kind is {kind}, which only vLLM can take: set it to files or rollout.engine.kind to vllm"
    unfit = "cpu" if kind == "nccl" else "cuda"
    for name, device in (("rollout.engine", engine.device), ("learner", config.learner.device)):
        if device == unfit:
            yield f"store.transfer.kind is {kind}, which does not go with {name}.device {unfit}"
    if kind == "gloo" and getattr(engine, "tensor_parallel_size", 1) > 1:
        yield "store.transfer.kind is gloo, which is for one worker: rollout.engine.tensor_parallel_size must be 1"
    if (most := config.rollout.largest_lag) > 0:
        key = "rollout.lag" if config.rollout.max_lag is None else "rollout.max_lag"
        yield (
            f"store.transfer.kind is {kind}, but {key} lets servers lag by up to {most} versions: a server that lags "
            f"wants versions that the learner no longer holds; set store.transfer.kind to files, or {key} to 0"
        )
    if config.rollout.sync != "in_flight":
        yield (
            f"store.transfer.kind is {kind}, but rollout.sync is {config.rollout.sync}: servers that take weights over "
            "the wire stand still together, and cannot wait for one whose groups end first; set it to in_flight"
        )
    if "://" in config.store.url or config.store.cache is not None:
        key = "url" if "://" in config.store.url else "cache"
        yield (
            f"store.transfer.kind is {kind}, but store.{key} is given: files that are written after all need a store "
            "in a folder that learner and servers share; leave it away, or set store.transfer.kind to files"
        )


def _multiple(name: str, value: int, of: str, unit: int) -> Iterator[str]:
    if value % unit:
        yield f"{name} is {value}; it must be a multiple of {of} ({unit})"
