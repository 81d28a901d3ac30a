"""What objectives need beyond the batch: of which weights it is, and that the policy's own are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.minibatches import Minibatch
from learner.model import PolicyModel
from learner.objective.registry import build
from learner.objectives import Objectives
from learner.provision import Provision, load_reference, logprobs_now
from learner.step import make_optimizer, take_step
from learner.tiny_model import build_model, build_tokenizer
from learner.warm_start import save
from shared.config import Config, load_config
from shared.errors import ConfigError
from shared.types import Group
from tests import builders
from tests.learner import stale
from tests.learner.world import TINY

MOVING = stale.STILL.model_copy(update={"learning_rate": 1e-2})


@pytest.fixture
def policy(tiny_folder: Path) -> PolicyModel:
    return stale.load(tiny_folder)


def minibatches_of(policy: PolicyModel, micro_batch_tokens: int = stale.IN_THREE) -> list[Minibatch]:
    """Two of two groups each."""
    groups = stale.stale_groups(policy)
    return [Minibatch([], stale.cut_into(half, micro_batch_tokens)) for half in (groups[:2], groups[2:])]


def train(policy: PolicyModel, minibatch: Minibatch, beyond: dict[str, Tensor], objective: str = "reinforce") -> None:
    """A step that moves every log-prob visibly."""
    before = logprobs_now(policy, minibatch.step_batch)
    optimizer = make_optimizer(policy, MOVING)
    objectives = Objectives(build(objective))
    outcome = take_step(policy, optimizer, minibatch.step_batch, objectives, MOVING, 1, beyond=beyond)
    assert not outcome.skipped
    assert (logprobs_now(policy, minibatch.step_batch) - before).abs().max() > 0.05


def provided(provision: Provision, minibatches: list[Minibatch], field: str, number: int = 0) -> list[Tensor]:
    return [provision.of_pass(m, number)[field] for m in minibatches]


def as_lists(tensors: list[Tensor]) -> list[list[float]]:
    return [tensor.tolist() for tensor in tensors]


def test_proximal_log_probs_are_those_before_the_batchs_first_step_in_every_pass(policy: PolicyModel) -> None:
    minibatches = minibatches_of(policy)
    provision = Provision(policy, frozenset({"proximal_logprobs"}), None)
    for _ in range(2):  # batches
        provision.begin_batch(minibatches)
        before = as_lists([logprobs_now(policy, m.step_batch) for m in minibatches])
        for number in range(2):
            for m in minibatches:
                assert as_lists(provided(provision, minibatches, "proximal_logprobs", number)) == before
                train(policy, m, provision.of_pass(m, number), "decoupled_ppo")


def test_preceding_log_probs_are_of_the_weights_before_the_batch_before(policy: PolicyModel) -> None:
    minibatches = minibatches_of(policy)
    provision = Provision(policy, frozenset({"preceding_logprobs"}), None)
    before: list[list[list[float]]] = []  # of every batch
    for batch in range(4):
        before.append(as_lists([logprobs_now(policy, m.step_batch) for m in minibatches]))
        provision.begin_batch(minibatches)
        for m in minibatches:
            assert as_lists(provided(provision, minibatches, "preceding_logprobs")) == before[max(0, batch - 1)]
            train(policy, m, {})


def test_the_reference_stays_as_it_was(policy: PolicyModel, tiny_folder: Path) -> None:
    config = load_config(None, [f"model.path={tiny_folder}"], {})
    reference = load_reference(config, frozenset({"ref_logprobs"}), policy)
    assert reference is not None
    minibatches = minibatches_of(policy)
    at_start = as_lists([logprobs_now(policy, m.step_batch) for m in minibatches])
    provision = Provision(policy, frozenset({"ref_logprobs"}), reference)
    for _ in range(2):
        provision.begin_batch(minibatches)
        assert as_lists(provided(provision, minibatches, "ref_logprobs")) == at_start
        train(policy, minibatches[0], {})
    assert all(p.grad is None for p in reference.named_parameters().values())


def test_a_reference_is_loaded_only_where_it_is_needed(policy: PolicyModel) -> None:
    config = load_config(None, ["learner.reference=/nothing/here"], {})
    assert load_reference(config, frozenset({"proximal_logprobs"}), policy) is None


def another_vocabulary(folder: Path) -> Config:
    tokenizer = build_tokenizer(["what is 1 + 2?", "3"], TINY.vocab_size)
    tokenizer.add_tokens(["one more"])
    save(build_model(TINY, tokenizer), tokenizer, folder)
    return load_config(None, [f"learner.reference={folder}"], {})


def test_a_reference_with_another_vocabulary_is_refused(policy: PolicyModel, tmp_path: Path) -> None:
    config = another_vocabulary(tmp_path)
    has = f"has {policy.vocab_size + 1} tokens, the policy {policy.vocab_size}"
    with pytest.raises(ConfigError, match=rf"learner\.reference .*{has}"):
        load_reference(config, frozenset({"ref_logprobs"}), policy)


def test_a_reference_that_cannot_be_loaded_is_refused_by_its_own_key(policy: PolicyModel, tmp_path: Path) -> None:
    config = load_config(None, [f"learner.reference={tmp_path / 'nothing-here'}"], {})
    with pytest.raises(ConfigError, match=r"^learner\.reference .*nothing-here"):
        load_reference(config, frozenset({"ref_logprobs"}), policy)


def moved(policy: PolicyModel) -> tuple[Provision, list[Minibatch]]:
    """One batch after the start: the preceding weights are not the policy's."""
    minibatches = minibatches_of(policy)
    provision = Provision(policy, frozenset({"preceding_logprobs"}), None)
    provision.begin_batch(minibatches)
    train(policy, minibatches[0], {})
    return provision, minibatches


def state(policy: PolicyModel) -> tuple[Tensor, list[int]]:
    """The weights, and where they are kept."""
    return stale.weights_of(policy), [p.data_ptr() for p in policy.named_parameters().values()]


def test_the_policy_has_its_own_weights_again_bit_for_bit(policy: PolicyModel) -> None:
    provision, minibatches = moved(policy)
    weights, addresses = state(policy)
    provision.begin_batch(minibatches)
    assert torch.equal(state(policy)[0], weights)
    assert state(policy)[1] == addresses


def test_the_policy_has_its_own_weights_again_when_the_forward_pass_fails(policy: PolicyModel) -> None:
    provision, minibatches = moved(policy)
    weights, addresses = state(policy)
    seen: list[Tensor] = []

    def fail(*_: Any) -> None:
        seen.append(stale.weights_of(policy))
        raise MemoryError("no room")

    hook = policy.module.base_model.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="no room"):
        provision.begin_batch(minibatches)
    hook.remove()
    assert not torch.equal(seen[0], weights), "it failed under the preceding weights"
    assert torch.equal(state(policy)[0], weights)
    assert state(policy)[1] == addresses


def test_tokens_of_a_later_pass_are_replayed(policy: PolicyModel) -> None:
    minibatches = minibatches_of(policy)
    provision = Provision(policy, frozenset({"replayed"}), None)
    provision.begin_batch(minibatches)
    for m in minibatches:
        tokens = m.step_batch.trained_tokens
        assert [provision.of_pass(m, n)["replayed"].tolist() for n in (0, 1, 2)] == [
            [False] * tokens,
            [True] * tokens,
            [True] * tokens,
        ]


def test_an_experts_tokens_are_told_in_the_order_of_the_micro_batches(policy: PolicyModel) -> None:
    groups: list[Group] = [builders.with_experts(builders.group(0), 2)]
    minibatch = Minibatch([], stale.cut_into(groups, stale.EACH_ALONE))
    provision = Provision(policy, frozenset({"expert"}), None)
    provision.begin_batch([minibatch])
    sequences = torch.cat([m.sequence_of for m in minibatch.step_batch.micro_batches])
    assert provision.of_pass(minibatch, 0)["expert"].tolist() == (sequences >= 4).tolist()
    assert (sequences >= 4).any()


def test_nothing_is_computed_that_nobody_needs(policy: PolicyModel) -> None:
    minibatches = minibatches_of(policy)
    policy.module.base_model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass"))
    provision = Provision(policy, frozenset(), None)
    provision.begin_batch(minibatches)
    assert provision.of_pass(minibatches[0], 1) == {}


def test_a_rank_without_groups_is_given_empty_fields(policy: PolicyModel) -> None:
    needs = frozenset({"proximal_logprobs", "preceding_logprobs", "ref_logprobs", "replayed", "expert"})
    minibatch = Minibatch([], stale.cut_into([], stale.ALL_IN_ONE))
    provision = Provision(policy, needs, policy)
    provision.begin_batch([minibatch])
    found = provision.of_pass(minibatch, 0)
    assert found.keys() == needs
    for name, values in found.items():
        assert values.shape == (0,)
        assert values.dtype == (torch.float32 if name.endswith("logprobs") else torch.bool)
