"""The Dockerfile as its stages, and a builder without Docker that carries out their lines below a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.composed import ROOT

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"


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
