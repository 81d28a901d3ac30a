"""Configuration: layers, units, and every kind of bad input with its message."""

from pathlib import Path

import pytest
import yaml

from shared.config import load_config
from shared.config.load import dump_config
from shared.errors import ConfigError


def test_the_later_layer_is_the_stronger(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("learner: {steps: 10, groups_per_batch: 4}\nrun: {seed: 1}\n")
    environ = {"TRUSTBATCH__LEARNER__STEPS": "20", "TRUSTBATCH__RUN__SEED": "2", "HOME": "/root"}
    config = load_config(file, ["learner.steps=30"], environ)
    assert (config.learner.steps, config.run.seed, config.learner.groups_per_batch) == (30, 2, 4)


def test_units_are_understood() -> None:
    config = load_config(None, ["admission.max_bytes=64MiB", "redis.max_memory=1GiB", "learner.learning_rate=3e-4"], {})
    assert config.admission.max_bytes == 64 * 2**20
    assert config.redis.max_memory == 2**30
    assert config.learner.learning_rate == 3e-4


def test_what_is_shown_can_be_read_back_and_holds_no_secret(tmp_path: Path) -> None:
    config = load_config(None, ["redis.password=hunter2", "rollout.engine.kind=transformers", "run.seed=9"], {})
    text = dump_config(config)
    assert "hunter2" not in text
    assert "hunter2" not in repr(config)
    file = tmp_path / "c.yaml"
    file.write_text(text)
    again = load_config(file, ["redis.password=hunter2"], {})
    assert again == config


def test_a_password_in_the_stores_address_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["store.url=s3://ann:hunter2@host/x"], {})
    assert "hunter2" not in str(caught.value)
    config = load_config(None, ["store.url=https://host/x/", "store.token=only-for-looking-0123"], {})
    assert config.store.url == "https://host/x"
    assert "only-for-looking" not in dump_config(config) + repr(config)


def test_what_is_derived_from_the_configuration() -> None:
    config = load_config(
        None, ["learner.publish_every=8", "learner.minibatches=2", "learner.passes=2", "learner.checkpoint_every=8"], {}
    )
    assert (config.learner.steps_per_batch, config.learner.groups_per_publish) == (4, 64)


def test_a_group_s_bytes_are_reckoned_with_its_experts() -> None:
    sizes = [load_config(None, [f"rollout.experts={n}"], {}).group_bytes_bound for n in (0, 1, 8)]
    alone = load_config(None, ["rollout.group_size=16"], {}).group_bytes_bound
    assert sizes[1] - sizes[0] > 16 * 10
    assert sizes[2] == alone, "8 completions and 8 experts take what 16 completions take"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("store.url=s3://ann:hunter2@host/x", r"store\.url: it holds a user or a password"),
        ("store.endpoint=http://127.0.0.1:9000", r"store\.endpoint is for a store\.url that begins with s3://"),
        ("store.token=only-for-looking-0123", r"store\.token is for a store\.url that begins with http"),
        ("store.full_every=0", r"store\.full_every: .*greater than or equal to 1"),
        ("store.part_bytes=1KiB", r"store\.part_bytes: .*65536"),
        ("learner.stepz=3", r"learner\.stepz: unknown key; known here: .*steps"),
        ("lerner.steps=3", r"lerner: unknown key; known here: .*learner"),
        ("rollout.engine.kind=sglang", r"rollout\.engine: .*'vllm', 'transformers'"),
        ("learner.steps=0", r"learner\.steps: .*greater than or equal to 1, not 0"),
        ("learner.steps=many", r"learner\.steps: .*valid integer.*, not 'many'"),
        ("learner.learning_rate=.nan", r"learner\.learning_rate: .*finite number"),
        ("admission.max_bytes=1 parsec", r"admission\.max_bytes: .*parsec"),
        ("run.id=a/b", r"run\.id: .*pattern.*, not 'a/b'"),
        ("redis.url=http://x", r"redis\.url: .*redis\|rediss\|unix"),
        ("environment={kind: python, path: os.system}", r"environment\.path: .*pattern"),
        ("learner.betas=[0.9, 1.0]", r"learner\.betas\.1: .*less than 1, not 1\.0"),
        ("learner.betas=[-0.1, 0.9]", r"learner\.betas\.0: .*greater than or equal to 0, not -0\.1"),
        ("rollout.servers=two", r"rollout\.servers: .*valid integer.* \(>= 0, <= 64\), not 'two'"),
        ("rollout.reward_deadline_s=soon", r"reward_deadline_s: .*valid number.* \(> 0, <= 86,400\), not 'soon'"),
        ("rollout.engine.max_len=3", r"rollout\.engine\.max_len: unknown key; known here: .*max_model_len"),
        ("environment.data=3", r"environment\.data: unknown key; known here: .*dataset"),
        ("model.tiny.layers=3", r"model\.tiny\.layers: unknown key; known here: .*num_hidden_layers"),
        ("learner.keep_checkpoints=1", r"learner\.keep_checkpoints: .*greater than or equal to 2"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override], {})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.minibatches=5"], r"groups_per_batch is 32; it must be a multiple of learner\.minibatches \(5\)"),
        (["rollout.engine.quantization=fp8_per_channel"], r"set rollout\.engine\.dtype to bfloat16, not float32"),
        (
            ["rollout.engine={quantization: fp8_per_channel, dtype: bfloat16}", "store.transfer.kind=gloo"],
            r"weights over the wire would not be quantized anew",
        ),
        (["learner.minibatches=2"], r"learner\.publish_every is 1; it must be a multiple of .* \(2\)"),
        (["admission.max_staleness=0", "learner.publish_every=2"], r"publish_every must be 1, not 2"),
        (["admission.max_bytes=1MiB", "rollout.sampling.max_tokens=4096"], r"raise it, or lower learner\.groups_per"),
        (["rollout.sampling.top_p=0.9"], r"rollout\.sampling\.top_p is 0\.9; only 1\.0 is allowed, because .*left out"),
        (["rollout.sampling.top_k=5"], r"rollout\.sampling\.top_k is 5; only -1 or 0 is allowed"),
        (["rollout.sampling.min_p=0.1"], r"rollout\.sampling\.min_p is 0\.1; only 0\.0"),
        (["rollout.sampling.presence_penalty=1"], r"rollout\.sampling\.presence_penalty is 1\.0; only 0\.0"),
        (["rollout.sampling.frequency_penalty=1"], r"rollout\.sampling\.frequency_penalty is 1\.0; only 0\.0"),
        (["rollout.sampling.repetition_penalty=2"], r"rollout\.sampling\.repetition_penalty is 2\.0; only 1\.0"),
        (
            ["rollout.sampling.temperature=0"],
            r"rollout\.sampling\.temperature is 0\.0; training needs .* at least 0\.01",
        ),
        (["rollout.engine.max_model_len=16"], r"max_tokens is 16; it must be below .*max_model_len \(16\)"),
        (["learner.micro_batch_tokens=16"], r"max_tokens is 16; it must be below learner\.micro_batch_tokens \(16\)"),
        (["rollout.group_size=1"], r"rollout\.group_size is 1; it must be at least 2, because learner\.advantage"),
        (["learner.steps=5", "learner.warmup_steps=6"], r"warmup_steps is 6; it must be at most learner\.steps \(5\)"),
        (["model.tiny.num_key_value_heads=3"], r"num_attention_heads is 4; it must be a multiple of .*heads \(3\)"),
        (["model.tiny.max_position_embeddings=64"], r"max_position_embeddings is 64; it must be at least .* \(2048\)"),
        (
            ["store.transfer.kind=gloo", "rollout.engine.kind=transformers"],
            r"transfer\.kind is gloo, which only vLLM can take: set it to files or rollout\.engine\.kind to vllm",
        ),
        (["store.transfer.kind=gloo", "rollout.lag=2"], r"rollout\.lag lets servers lag by up to 2 versions: a server"),
        (
            ["store.transfer.kind=gloo", "rollout.max_lag=4"],
            r"rollout\.max_lag lets servers lag .*, or rollout\.max_lag to",
        ),
        (["store.transfer.kind=gloo", "rollout.sync=drain"], r"rollout\.sync is drain: .*; set it to in_flight"),
        (
            ["store.transfer.kind=nccl", "store.url=s3://bucket/run"],
            r"store\.url is given: .* a folder that learner and",
        ),
        (
            ["store.transfer.kind=gloo", "store.cache=/var/cache"],
            r"store\.cache is given: .* a folder that learner and",
        ),
        (["store.transfer.kind=gloo", "learner.device=cuda"], r"gloo, which does not go with learner\.device cuda"),
        (["store.transfer.kind=nccl", "rollout.engine.device=cpu"], r"not go with rollout\.engine\.device cpu"),
        (["store.transfer.kind=gloo", "rollout.engine.tensor_parallel_size=2"], r"tensor_parallel_size must be 1"),
        (
            ["controller.token_ess=0.4"],
            r"controller\.pause_token_ess is 0\.5; it must be at most controller\.token_ess \(0\.4",
        ),
        (["controller.enabled=true", "admission.admit=ess"], r"admit: ess would both steer .* switch one of them off"),
        (["redis.max_memory=64MiB"], r"redis\.max_memory is 67,108,864; it must be at least twice"),
    ],
)
def test_combinations_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides, {})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["learner.steps=0", "run.seed=-1", "evaluation.every=0"], {})
    assert all(key in str(caught.value) for key in ("learner.steps", "run.seed", "evaluation.every"))


def test_combinations_too_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["rollout.sampling.top_p=0.9", "rollout.group_size=1", "learner.minibatches=3"], {})
    assert all(key in str(caught.value) for key in ("sampling.top_p", "group_size", "learner.minibatches (3)"))


def test_keys_of_another_kind_are_said_to_be_such() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["rollout.engine={max_model_len: 64, nonsense: 1}", "rollout.engine.kind=transformers"], {})
    assert "engine.max_model_len: does not belong to kind transformers, whose keys are device, dtype, kind" in str(
        caught.value
    )
    assert "engine.nonsense: unknown key; known here: device, dtype, kind" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "bare", "username", "password"),
    [
        ("redis://ann:hunter2@host:7/3", "redis://host:7/3", "ann", "hunter2"),
        ("rediss://:hunter%2F2@host?ssl_cert_reqs=none", "rediss://host?ssl_cert_reqs=none", None, "hunter/2"),
        ("redis://host/0?password=hunter2&db=4", "redis://host/0?db=4", None, "hunter2"),
        ("unix://ann:hunter2@/run/redis.sock", "unix:///run/redis.sock", "ann", "hunter2"),
        ("unix:///run/re@dis.sock?db=1", "unix:///run/re@dis.sock?db=1", None, None),
    ],
)
def test_credentials_leave_the_address(address: str, bare: str, username: str | None, password: str | None) -> None:
    config = load_config(None, [f"redis.url={address}"], {})
    found = config.redis.password.get_secret_value() if config.redis.password else None
    assert (config.redis.url, config.redis.username, found) == (bare, username, password)
    assert "hunter" not in dump_config(config) + repr(config) + str(config.model_dump())


@pytest.mark.parametrize(
    "overrides",
    [
        ["redis.url=redis://:hunt/er2@host"],
        ["redis.url=redis://:hunt#er2@host"],
        ["redis.url=redis://[:hunter2@host"],
        ["redis.url=http://:hunter2@host"],
        ["redis.url=redis://:hunter2@host", "redis.password=hunter3"],
        ["redis=redis://:hunter2@host"],
        ["redis.password=[hunter2]"],
        ["redis.password=[hunter2"],
    ],
)
def test_a_refusal_never_shows_a_password(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="redis") as caught:
        load_config(None, overrides, {})
    assert "hunt" not in str(caught.value)
    assert "er2" not in str(caught.value)


@pytest.mark.parametrize("text", ["private line: [\n", "x" * 300 + ": 1\n", "learner: {steps: " + "y" * 300 + "}\n"])
def test_a_file_that_is_no_configuration_is_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, [], {})
    message = str(caught.value).replace(str(file), "")
    assert "private line" not in message
    assert "x" * 81 not in message
    assert "y" * 81 not in message


def test_no_more_than_twenty_mistakes_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("".join(f"key{n}: 1\n" for n in range(50)))
    with pytest.raises(ConfigError, match=r"\.\.\. and 30 more") as caught:
        load_config(file, [], {})
    assert len(str(caught.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1\n", "expected keys and values"), ("learner: 3\n", "learner: .*not 3")],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)bad\.yaml: .*{message}"):
        load_config(file, [], {})


def test_a_missing_file_and_a_bad_override_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; ready-made ones are in deploy/configs/"):
        load_config(tmp_path / "none.yaml", [], {})
    with pytest.raises(ConfigError, match=r"write it as key\.subkey=value"):
        load_config(None, ["learner.steps"], {})
    with pytest.raises(ConfigError, match=r"learner\.steps\.more: steps is a value here"):
        load_config(None, ["learner.steps=1", "learner.steps.more=2"], {})


def test_every_ready_made_file_is_valid() -> None:
    files = sorted((Path(__file__).parents[2] / "deploy" / "configs").glob("*.yaml"))
    assert {f.name for f in files} >= {"demo.yaml", "one-gpu-node.yaml", "several-nodes.yaml"}
    for file in files:
        load_config(file, [], {})
        assert yaml.safe_load(file.read_text())
