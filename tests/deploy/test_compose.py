"""docker-compose.yml: what compose itself would say of it, and what we promise of it."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli import app
from shared.config import load_config
from shared.config.models import Config
from tests.deploy.composed import FILE, ROOT, TLS, composition, mistakes, services, size

OURS = ("prepare", "learner", "rollout", "learner-gpu", "rollout-gpu", "control-plane", "control-plane-gpu")
EVERY = sorted(services())
SECRETS_OF = {
    "learner": {"learner_password"},
    "rollout": {"rollout_password"},
    "control-plane": {"control_plane_password", "read_token", "operate_token"},
    "prometheus": {"read_token"},
    "grafana": {"grafana_admin_password"},
    "prepare": set(),
    "redis": {"learner_password", "rollout_password", "control_plane_password", "operator_password"},
}


def configuration_of(service: dict[str, Any]) -> Config:
    """The service's own configuration: the mounted file and its environment."""
    [file] = [volume.split(":")[0] for volume in service["volumes"] if ":/etc/trustbatch/run.yaml:ro" in volume]
    environ = {name: str(value) for name, value in service.get("environment", {}).items()}
    return load_config(ROOT / file, (), environ)


@pytest.mark.parametrize("file", [FILE, TLS], ids=lambda path: path.name)
def test_it_is_what_the_compose_specification_allows(file: Path) -> None:
    assert mistakes(composition(file), "compose-spec.json") == []


def test_the_specification_would_object() -> None:
    broken = composition()
    broken["services"]["redis"]["restart_policy"] = "always"
    assert "restart_policy" in str(mistakes(broken, "compose-spec.json"))


@pytest.mark.system
@pytest.mark.parametrize("files", [[FILE], [FILE, TLS]], ids=["plain", "tls"])
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_itself_accepts_it(profile: str, files: list[Path]) -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("no docker-compose (deploy/compose/fetch.sh installs it as root on Debian)")
    named = [word for file in files for word in ("-f", str(file))]
    done = subprocess.run(
        [program, *named, "--profile", profile, "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_container_is_hardened_and_bounded(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["init"] is True
    assert not service.get("privileged")
    assert int(service["user"].split(":")[0]) > 0
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["pids_limit"] > 0
    assert service["logging"]["options"]["max-size"]
    tag = service["image"].rpartition(":")[2]
    assert tag not in ("", "latest")
    assert "/" not in tag, "an image without a tag"


@pytest.mark.parametrize("name", [name for name in EVERY if name != "prepare"])
def test_every_service_says_when_it_is_ready(name: str) -> None:
    check = services()[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_dependencies_are_there_and_waited_for_by_their_health(profile: str) -> None:
    here = services(profile)
    for name, service in here.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in here, f"{name} waits for {other}, which is not in profile {profile}"
            wanted = "service_completed_successfully" if other == "prepare" else "service_healthy"
            assert how == {"condition": wanted}
    assert "redis" in here[f"learner{'-gpu' * (profile == 'gpu')}"]["depends_on"]


def test_restarts_are_those_that_the_delivery_promise_bears() -> None:
    found = {name: service["restart"] for name, service in services().items()}
    assert found["prepare"] == "no"
    assert found["learner"] == found["learner-gpu"] == "on-failure:10"  # it goes on from its checkpoint
    assert found["rollout"] == found["rollout-gpu"] == "on-failure"  # 0 means that the run is over
    for name in ("redis", "control-plane", "control-plane-gpu", "prometheus", "grafana"):
        assert found[name] == "unless-stopped"


@pytest.mark.parametrize("name", EVERY)
def test_a_service_holds_the_secrets_of_its_role_alone_and_only_as_files(name: str) -> None:
    service, role = services()[name], name.removesuffix("-gpu")
    assert set(service.get("secrets", [])) == SECRETS_OF[role]
    for key, value in service.get("environment", {}).items():
        if any(word in key for word in ("PASSWORD", "TOKEN", "SECRET")):
            assert key.endswith("_FILE")
            assert str(value).startswith("/run/secrets/")
            assert str(value).removeprefix("/run/secrets/") in SECRETS_OF[role]


def test_every_secret_is_a_file_that_git_and_images_leave_out() -> None:
    for name, secret in {**composition()["secrets"], **composition(TLS)["secrets"]}.items():
        assert secret == {"file": f".secrets/{name}"}
    assert ".secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.mark.parametrize("name", OURS)
def test_its_command_is_one_of_ours_and_its_configuration_can_work(name: str) -> None:
    service = services()[name]
    command, *rest = service["command"]
    assert command in {registered.name or registered.callback.__name__ for registered in app.registered_commands}  # type: ignore[union-attr]
    comes_back = (
        ["--again"] if command in ("learner", "rollout") else []
    )  # after a reboot, but not once the run is over
    assert rest == ["--config", "/etc/trustbatch/run.yaml", *comes_back]
    config = configuration_of(service)
    role = name.removesuffix("-gpu")
    assert config.redis.url == "redis://redis:6379"
    if role != "prepare":
        assert config.redis.username == role
    port = config.control_plane.port if role == "control-plane" else config.metrics.port
    if role != "prepare":
        assert service["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/readyz"
    assert service.get("stop_grace_period", "") or role == "prepare"


@pytest.mark.parametrize("name", OURS)
def test_what_it_writes_is_a_volume_and_what_it_only_reads_is_read_only(name: str) -> None:
    service, role = services()[name], name.removesuffix("-gpu")
    mounts = {volume.split(":")[1]: volume.endswith(":ro") for volume in service["volumes"]}
    config = configuration_of(service)
    if role == "learner":
        assert mounts["/data/runs"] is False
        assert str(config.run.folder).startswith("/data/runs/")
    if role == "rollout":
        assert mounts["/data/runs"] is True
        memory = {mount.split(":")[0]: mount for mount in service["tmpfs"]}[str(config.store.cache)]
        assert f"uid={service['user'].split(':')[0]}" in memory, "it may only read the store"
    if config.model.path.startswith("/") and role in ("learner", "rollout", "prepare"):
        assert mounts["/data/model"] is (role != "prepare")
        assert Path(config.model.path).parent == Path("/data/model"), (
            "made beside it and moved: the mount is its parent"
        )


@pytest.mark.parametrize("name", EVERY)
def test_every_file_that_is_mounted_is_there(name: str) -> None:
    volumes = composition()["volumes"].keys()
    for volume in services()[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert volume.endswith(":ro")
        else:
            assert source in volumes


@pytest.mark.parametrize("name", ["learner", "learner-gpu"])
def test_redis_can_hold_what_the_run_may_put_into_it_twice_over(name: str) -> None:
    redis = services()["redis"]
    most, config = size(redis["environment"]["REDIS_MAXMEMORY"]), configuration_of(services()[name])
    kept = config.admission.dead_letter_bytes + config.control_plane.history_bytes
    assert most >= 2 * config.admission.max_bytes + kept
    assert size(redis["deploy"]["resources"]["limits"]["memory"]) >= 2 * most, (
        "a rewrite of the file copies what it holds"
    )


def test_only_the_pages_are_published_and_only_to_this_machine() -> None:
    for name, service in services().items():
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert bool(ports) is name.startswith(("control-plane", "prometheus", "grafana"))
    assert composition()["networks"]["run"] == {"internal": True}
    assert all("run" in services()[name]["networks"] for name in ("redis", "learner", "rollout"))


def test_images_carry_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in OURS:
        assert services()[name]["image"].endswith(f":{version}")
    assert f"\nARG VERSION={version}\n" in (ROOT / "deploy" / "docker" / "Dockerfile").read_text()


def test_prometheus_scrapes_every_process_under_the_name_that_it_has() -> None:
    found = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in found["scrape_configs"]}
    for role in ("learner", "rollout"):
        [discovery] = jobs[role]["dns_sd_configs"]
        assert discovery["port"] == configuration_of(services()[role]).metrics.port
        assert discovery["names"] == [role]
        assert services()[f"{role}-gpu"]["networks"]["run"]["aliases"] == [role]
    [target] = jobs["control-plane"]["static_configs"]
    assert target["targets"] == [f"control-plane:{configuration_of(services()['control-plane']).control_plane.port}"]
    token = jobs["control-plane"]["authorization"]["credentials_file"]
    assert token.removeprefix("/run/secrets/") in services()["prometheus"]["secrets"]


def test_grafana_finds_prometheus_and_lets_nobody_change_where() -> None:
    [source] = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert (source["type"], source["editable"], source["isDefault"]) == ("prometheus", False, True)
    assert "front" in services()["prometheus"]["networks"]
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in services()["grafana"]["volumes"]
