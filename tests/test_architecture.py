"""The arrows of the house: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("shared", "rollout", "learner", "services", "deploy")
FORBIDDEN = {
    "shared": {"rollout", "learner", "services", "tests"},
    "rollout": {"learner", "services", "tests"},
    "learner": {"rollout", "services", "tests", "vllm"},
    "services": {"rollout", "learner", "tests", "vllm"},
    "deploy": {"shared", "rollout", "learner", "services", "tests"},
}
EXCEPTIONS = {"learner/transfer/nccl.py": {"vllm"}}  # the other end of its own transfer engine, loaded where it is used


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or "", node.lineno


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no source in {folder}"
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_what_it_may_not(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(room)
        for name, line in imported_names(path)
        if name.split(".")[0] in FORBIDDEN[room] - EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
    ]
    assert not wrong, wrong


def test_the_objective_knows_only_torch_and_the_standard_library() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    wrong = [
        f"{path.name}:{line} imports {name}"
        for path in sources("learner/objective")
        for name, line in imported_names(path)
        if name.split(".")[0] not in allowed and not name.startswith("learner.objective")
    ]
    assert not wrong, wrong
    used = {name for path in sources("learner/objective") for name, _ in imported_names(path)}
    assert "torch.distributed" not in used


def test_the_contract_loads_without_torch_vllm_or_fastapi() -> None:
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sources("shared")]
    modules = [name.removesuffix(".__init__") for name in modules]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'vllm', 'fastapi', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'shared loads {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
