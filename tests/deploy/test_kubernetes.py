"""deploy/kubernetes: what the API server would say, what no server checks, and our own rules."""

from __future__ import annotations

import copy
import json
import re

import kubernetes_validate
import pytest
from prometheus_client import generate_latest

from rollout.__main__ import LAST_RESORT_S
from services.cli import app
from shared.config import Config, load_config
from shared.metrics import ControlPlaneMetrics
from shared.process import UNFINISHED
from tests.deploy.composed import ROOT, SCHEMAS, mistakes, size
from tests.deploy.rendered import (
    CUSTOM,
    OVERLAYS,
    Object,
    containers,
    labels_of,
    name_of,
    named,
    objects,
    of_kind,
    pod_of,
    ports_of,
    quantity,
    selects,
    unknown_fields,
    workload,
    workloads,
)

pytestmark = pytest.mark.system  # each overlay is rendered once; validating takes seconds
NEWEST = ("1.36", "1.37")
SECRET_FILES = set(re.findall(r"\b\w+_(?:password|token)\b", (ROOT / "deploy/compose/secrets.sh").read_text()))
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def is_custom(found: Object) -> bool:
    return bool(found["apiVersion"].startswith(CUSTOM))


def of_custom(found: Object) -> list[str]:
    """What the schema of a custom resource has against it, unknown fields included."""
    group, version = found["apiVersion"].split("/")
    name = f"{group}_{version}_{found['kind']}.json"
    schema = json.loads((SCHEMAS / name).read_text())
    return mistakes(found, name) + list(unknown_fields(schema, found))


@overlays
@pytest.mark.parametrize("version", NEWEST)
def test_every_object_is_strictly_valid(overlay: str, version: str) -> None:
    checked = [found for found in objects(overlay) if not is_custom(found)]
    assert len(checked) >= 25
    for found in checked:
        kubernetes_validate.validate(found, version, strict=True)


@overlays
def test_every_custom_resource_fits_its_schema_and_has_no_field_that_it_does_not_know(overlay: str) -> None:
    custom = [found for found in objects(overlay) if is_custom(found)]
    assert {found["kind"] for found in custom} == (
        {"PodMonitor", "ServiceMonitor", "ScaledObject"} if overlay == "multi-node" else set()
    )
    for found in custom:
        assert of_custom(found) == [], name_of(found)


def test_the_checks_would_object() -> None:
    assert kubernetes_validate.latest_version().startswith(NEWEST[-1]), "newer schemas are at hand"
    broken = copy.deepcopy(workload("multi-node", "rollout"))
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST[-1], strict=True)
    scaled = copy.deepcopy(named("multi-node", "ScaledObject", "rollout"))
    scaled["spec"]["coolDownPeriod"] = 3
    assert of_custom(scaled) == [".spec.coolDownPeriod"]
    scaled["spec"]["triggers"] = "prometheus"
    assert any("is not of type 'array'" in text for text in of_custom(scaled))
    with pytest.raises(ValueError, match="no quantity"):
        quantity("64Gb")


@overlays
def test_selectors_match_what_they_are_for(overlay: str) -> None:
    pods = [(name_of(found), labels_of(found), ports_of(found)) for found in workloads(overlay)]
    for found in workloads(overlay):
        if found["kind"] != "Job":
            assert selects(found["spec"]["selector"], labels_of(found))
            taken = [name for name, labels, _ in pods if selects(found["spec"]["selector"], labels)]
            assert taken == [name_of(found)], "takes another's pods"
    for service in of_kind(overlay, "Service"):
        offers = [ports for _, labels, ports in pods if selects({"matchLabels": service["spec"]["selector"]}, labels)]
        assert len(offers) == 1
        assert all(port["targetPort"] in offers[0] for port in service["spec"]["ports"])
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        taken_by = [name for name, labels, _ in pods if selects(budget["spec"]["selector"], labels)]
        assert [name.partition("/")[2] for name in taken_by] == [budget["metadata"]["name"]]
    for policy in of_kind(overlay, "NetworkPolicy"):
        assert any(selects(policy["spec"]["podSelector"], labels) for _, labels, _ in pods), name_of(policy)
    for monitor in of_kind(overlay, "PodMonitor"):
        offers = [ports for _, labels, ports in pods if selects(monitor["spec"]["selector"], labels)]
        assert len(offers) == 2
        assert all(end["port"] in ports for end in monitor["spec"]["podMetricsEndpoints"] for ports in offers)
    for monitor in of_kind(overlay, "ServiceMonitor"):
        [service] = [
            s for s in of_kind(overlay, "Service") if selects(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        names = {port["name"] for port in service["spec"]["ports"]}
        assert all(end["port"] in names for end in monitor["spec"]["endpoints"])


@overlays
def test_every_container_is_locked_down_and_bounded(overlay: str) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for found in workloads(overlay):
        pod = pod_of(found)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
        person = pod["securityContext"]
        assert person["runAsNonRoot"] is True
        assert person["runAsUser"] > 0
        assert person["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(found):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert requests.keys() == limits.keys() >= {"cpu", "memory", "ephemeral-storage"}
            assert all(quantity(requests[name]) <= quantity(limits[name]) for name in limits)
            repository, _, tag = container["image"].rpartition(":")
            assert tag not in ("", "latest")
            if repository.startswith("trustbatch/"):
                assert tag == version[1]
                assert repository.endswith(("-cpu", "-cuda", "control-plane")), "an image that no target makes"
        for volume in pod["volumes"]:
            assert volume.keys() & {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, "nothing of the node's"
            if "emptyDir" in volume:
                assert quantity(volume["emptyDir"]["sizeLimit"]) > 0


@overlays
def test_gpus_are_asked_for_where_cuda_is_and_nowhere_else(overlay: str) -> None:
    for found in workloads(overlay):
        for container in containers(found):
            wants = container["resources"]["limits"].get("nvidia.com/gpu")
            assert (wants == "1") is container["image"].partition(":")[0].endswith("-cuda")


@overlays
def test_whatever_is_referred_to_is_there(overlay: str) -> None:
    there = {name_of(found) for found in objects(overlay)}
    for found in workloads(overlay):
        pod = pod_of(found)
        assert f"ServiceAccount/{pod['serviceAccountName']}" in there
        assert f"PriorityClass/{pod['priorityClassName']}" in there
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])}
        for container in containers(found):
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= volumes
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert f"ConfigMap/{volume['configMap']['name']}" in there
            if "persistentVolumeClaim" in volume:
                assert f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}" in there
            if "secret" in volume:
                assert volume["secret"]["secretName"] == "trustbatch"
                assert {item["key"] for item in volume["secret"]["items"]} <= SECRET_FILES


@overlays
def test_no_secret_is_in_the_files_and_each_role_is_given_its_own_alone(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []
    given = {}
    for found in workloads(overlay):
        [secret] = [volume["secret"] for volume in pod_of(found)["volumes"] if "secret" in volume]
        given[found["metadata"]["name"]] = {item["key"] for item in secret["items"]}
        for container in containers(found):
            for variable in container.get("env", []):
                if re.search("PASSWORD|TOKEN", variable["name"]):
                    assert variable["name"].endswith("_FILE")
                    assert variable["value"].rpartition("/")[2] in given[found["metadata"]["name"]]
    assert given == {
        "learner": {"learner_password"},
        "rollout": {"rollout_password"},
        "control-plane": {"control_plane_password", "read_token", "operate_token"},
        "redis": {"learner_password", "rollout_password", "control_plane_password", "operator_password"},
    }


def configuration_of(overlay: str, found: Object) -> Config:
    """The configuration of a workload's process: its ConfigMap and its environment."""
    [source] = [volume["configMap"]["name"] for volume in pod_of(found)["volumes"] if volume["name"] == "config"]
    path = ROOT / "deploy" / "kubernetes" / "overlays" / overlay / "run.yaml"
    assert named(overlay, "ConfigMap", source)["data"] == {"run.yaml": path.read_text()}
    [container] = pod_of(found)["containers"]
    return load_config(path, (), {item["name"]: item["value"] for item in container["env"] if "value" in item})


@overlays
@pytest.mark.parametrize("component", ["learner", "rollout", "control-plane"])
def test_a_process_gets_a_command_of_ours_a_configuration_that_works_and_its_own_user(
    overlay: str, component: str
) -> None:
    found = workload(overlay, component)
    config = configuration_of(overlay, found)
    known = {registered.name or registered.callback.__name__ for registered in app.registered_commands}  # type: ignore[union-attr]
    for container in containers(found):
        assert container["args"][0] in known
        assert container["args"][1:3] == ["--config", "/etc/trustbatch/run.yaml"]
    assert config.redis.url == "redis://redis:6379"
    assert config.redis.username == component
    [container] = pod_of(found)["containers"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert "/tmp" in mounts
    if component == "control-plane":
        assert ports_of(found) == {"http": config.control_plane.port}
        return
    assert ports_of(found) == {"metrics": config.metrics.port}
    assert config.metrics.host == config.control_plane.host == "0.0.0.0"
    assert str(config.run.folder).startswith("/data/runs/")
    assert mounts["/data/runs"] is (component == "rollout")
    assert mounts["/data/model"] is True
    assert config.store.cache, "a rollout server may only read the store"
    assert mounts[str(config.store.cache.parent)] is False
    assert not config.model.path.startswith("/") or config.model.path.startswith("/data/model/")


@overlays
def test_probes_mean_progress_and_a_proven_version(overlay: str) -> None:
    for component, port, alive in (("learner", "metrics", "/livez"), ("rollout", "metrics", "/livez")):
        [container] = pod_of(workload(overlay, component))["containers"]
        assert container["livenessProbe"]["httpGet"] == container["startupProbe"]["httpGet"]
        assert container["livenessProbe"]["httpGet"] == {"path": alive, "port": port}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port}
    [container] = pod_of(workload(overlay, "control-plane"))["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@overlays
def test_the_end_of_a_pod_leaves_time_for_its_own(overlay: str) -> None:
    assert pod_of(workload(overlay, "rollout"))["terminationGracePeriodSeconds"] > LAST_RESORT_S
    assert pod_of(workload(overlay, "learner"))["terminationGracePeriodSeconds"] >= 120
    job = workload(overlay, "learner")["spec"]
    assert job["podReplacementPolicy"] == "Failed", "never two learners at once"
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 1, 1)
    refuse, stopped, ignore = job["podFailurePolicy"]["rules"]
    [container] = pod_of(workload(overlay, "learner"))["containers"]
    assert "--again" in container["args"], "else an evicted learner would leave with 0, and the Job be complete"
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [UNFINISHED])
    assert refuse == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "learner", "operator": "In", "values": [2]},
    }
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


@overlays
def test_redis_can_hold_what_the_run_may_put_into_it_twice_over(overlay: str) -> None:
    config = configuration_of(overlay, workload(overlay, "learner"))
    [container] = pod_of(workload(overlay, "redis"))["containers"]
    [most] = [size(item["value"]) for item in container["env"] if item["name"] == "REDIS_MAXMEMORY"]
    kept = config.admission.dead_letter_bytes + config.control_plane.history_bytes
    assert most >= 2 * config.admission.max_bytes + kept
    assert quantity(container["resources"]["limits"]["memory"]) >= 2 * most
    files = [found for found in of_kind(overlay, "ConfigMap") if "users.acl" in found["data"]]
    assert files[0]["data"] == {
        path.name: path.read_text() for path in (ROOT / "deploy/redis").iterdir() if path.name in files[0]["data"]
    }


def test_the_namespace_enforces_the_strictest_standard_and_accounts_have_no_rights() -> None:
    for overlay in OVERLAYS:
        labels = named(overlay, "Namespace", "trustbatch")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        assert of_kind(overlay, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding") == []
        assert all(account["automountServiceAccountToken"] is False for account in of_kind(overlay, "ServiceAccount"))


def test_rollout_servers_are_scaled_by_one_thing_only() -> None:
    assert workload("cpu-demo", "rollout")["spec"]["replicas"] == 1
    assert "replicas" not in workload("multi-node", "rollout")["spec"], "an apply would undo what KEDA has done"
    assert of_kind("multi-node", "HorizontalPodAutoscaler") == []
    scaled = named("multi-node", "ScaledObject", "rollout")["spec"]
    target = scaled["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "rollout")
    [trigger] = scaled["triggers"]
    exported = generate_latest(ControlPlaneMetrics().registry).decode()
    assert f"\n{re.findall(r'trustbatch_[a-z_]+', trigger['metadata']['query'])[0]} " in exported
    assert (
        scaled["maxReplicaCount"]
        >= configuration_of("multi-node", workload("multi-node", "control-plane")).control_plane.most_servers
    )
