"""The control plane's image, built and started without Docker: its own lines, in a clean folder, as another user."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.probe import ask
from tests.conftest import RedisServer, free_port
from tests.deploy.dockerfile import Builder, interpreter, stages

USER = 10001


@pytest.fixture
def prefix() -> Iterator[Path]:
    """A folder that the image's user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="trustbatch-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


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
