"""The policy against transformers' own answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from learner.batch import MicroBatch, batch_rewards, build_step
from learner.model import PolicyModel, choose_device, matrix_dtype
from shared.errors import ConfigError
from shared.types import Group, SamplingSettings
from tests import builders
from tests.learner.one_by_one import logits_one_by_one, make_wide


def load(folder: Path) -> PolicyModel:
    return PolicyModel.load(str(folder), "float32", torch.device("cpu"))


def of_two_temperatures() -> tuple[Group, MicroBatch]:
    cold = [builders.trajectory(4, seed=i, sampling=SamplingSettings(temperature=0.5)) for i in range(2)]
    group = builders.group(0, trajectories=(*builders.group(0).trajectories, *cold))
    [m] = build_step([group], batch_rewards([group]), "group_std", 10_000).micro_batches
    return group, m


def test_log_probs_are_those_of_the_whole_model_at_the_behaviors_temperature(tiny_folder: Path) -> None:
    group, m = of_two_temperatures()
    found = load(tiny_folder).logprobs(m).detach()
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for i, t in enumerate(group.trajectories):
        ids = torch.from_numpy(np.concatenate((group.prompt_ids, t.token_ids))).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0] / t.sampling.temperature
        start = len(group.prompt_ids)
        expected = torch.log_softmax(logits, -1)[range(start - 1, len(ids) - 1), ids[start:]]
        assert found[m.sequence_of == i].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_log_probs_entropies_and_gradients_are_those_of_each_completion_by_itself(
    tiny_folder: Path, dtype: torch.dtype, tolerance: float, checkpointed: bool
) -> None:
    policy, (_, m) = load(tiny_folder), of_two_temperatures()
    if dtype == torch.float64:
        make_wide(policy)
    weight = torch.linspace(-1, 1, m.trained_tokens, dtype=dtype)

    logits = logits_one_by_one(policy, m)
    log_p = torch.log_softmax(logits, -1)
    sampled = log_p.gather(1, m.tokens[:, None])[:, 0]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    parameters = list(policy.named_parameters().values())
    expected = torch.autograd.grad((weight * entropy).sum() + sampled.square().sum(), parameters)

    if checkpointed:
        policy.checkpoint_activations()
    found = policy.outputs(m, entropy=True)
    assert found.entropy is not None
    assert (found.logprobs - sampled).abs().max() < tolerance
    assert (found.entropy - entropy).abs().max() < tolerance
    gradients = torch.autograd.grad((weight * found.entropy).sum() + found.logprobs.square().sum(), parameters)
    for gradient, of in zip(gradients, expected, strict=True):
        assert (gradient - of).norm() < tolerance * of.norm()


def test_bfloat16_is_for_matrix_products_alone(tiny_folder: Path) -> None:
    _, m = of_two_temperatures()
    exact = load(tiny_folder)
    policy = PolicyModel.load(str(tiny_folder), "float32", torch.device("cpu"), matrices="bfloat16")
    outputs = policy.outputs(m, entropy=True)
    assert {outputs.logprobs.dtype, *(p.dtype for p in policy.named_parameters().values())} == {torch.float32}
    assert 1e-4 < (outputs.logprobs - exact.logprobs(m)).abs().max() < 0.5
    outputs.logprobs.sum().backward()
    exact.logprobs(m).sum().backward()
    pairs = zip(policy.named_parameters().values(), exact.named_parameters().values(), strict=True)
    for one, other in ((p.grad, q.grad) for p, q in pairs if q.grad is not None and q.grad.norm() > 0):
        assert one is not None
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.98


def test_matrix_products_have_the_published_precision_on_cuda_unless_told_otherwise() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [matrix_dtype("auto", "bfloat16", device) for device in (cpu, cuda)] == ["float32", "bfloat16"]
    assert [matrix_dtype("bfloat16", "float32", device) for device in (cpu, cuda)] == ["bfloat16"] * 2


def test_the_probe_answers_as_the_whole_model_does(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    sequences = [[0, policy.vocab_size - 1, 5], [7, 8], [1, 2, 3, 4, 5, 6]]
    answers = policy.sequence_logprobs(sequences)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for sequence, answer in zip(sequences, answers, strict=True):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0], -1)
        expected = logprobs[range(len(sequence) - 1), sequence[1:]]
        assert answer == pytest.approx(expected.tolist(), abs=1e-5)


def test_files_are_exactly_those_of_save_pretrained(tiny_folder: Path, tmp_path: Path) -> None:
    load(tiny_folder).save(tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).save_pretrained(tmp_path / "theirs")
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("ours", "theirs"))
    assert ours == theirs


def test_published_precision_is_in_the_weights_and_in_the_config(tiny_folder: Path, tmp_path: Path) -> None:
    PolicyModel.load(str(tiny_folder), "bfloat16", torch.device("cpu")).save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored, "tied weights are written once"
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_loaded_or_recomputed_is_refused_by_key(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path .*nothing-here"):
        PolicyModel.load(str(tmp_path / "nothing-here"), "float32", torch.device("cpu"))
    module = load(tiny_folder).module
    module.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        PolicyModel(module)


def test_a_model_that_carries_a_state_from_one_trajectory_into_the_next_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=64)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.path.*packed trajectories"):
        load(tmp_path)


def test_a_device_that_is_not_there_is_refused_by_key() -> None:
    if torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
        return
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"learner\.device"):
        choose_device("cuda")
