"""Nothing in the source turns bytes of others into code or objects: no pickle in any of its disguises, no eval.

Every rule is shown to catch a bad sample, and to let its harmless neighbour pass.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("shared", "rollout", "learner", "services", "tests", "deploy")
MODULES = (
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "copyreg",
)
BUILT_IN = ("eval", "exec", "compile", "__import__")
REMOTE = ("connection.Listener", "connection.Client")  # they pickle; `wait` of the same module only waits
OBJECT_COLLECTIVES = (
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
    "broadcast_object_list",
    "send_object_list",
    "recv_object_list",
)
ACROSS_HOSTS = ("multiprocessing.managers", "xmlrpc", "Pyro4", "rpyc")
SAFE_YAML = ("safe_load", "safe_load_all", "SafeLoader", "CSafeLoader")
NUMPY_LOADS = ("load", "loadtxt", "fromfile", "memmap")


def problems(source: str) -> list[str]:
    """What in a file would run or build whatever its input says, with line numbers."""
    return [f"{node.lineno}: {problem}" for node in ast.walk(ast.parse(source)) for problem in _of(node)]  # type: ignore[attr-defined]


def _of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (p for alias in node.names for p in _import(alias.name))
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        yield from _import(module)
        yield from (p for alias in node.names for p in _name(alias.name, f"{module}.{alias.name}"))
    elif isinstance(node, ast.Call):
        yield from _call(node, ast.unparse(node.func))
    elif isinstance(node, ast.Attribute):
        yield from _name(node.attr, ast.unparse(node))


def _import(module: str) -> Iterator[str]:
    top = module.partition(".")[0]
    if top in MODULES or top in ACROSS_HOSTS or module in ACROSS_HOSTS:
        yield f"imports {module}"


def _name(name: str, path: str) -> Iterator[str]:
    if name in OBJECT_COLLECTIVES:
        yield f"{path} pickles what it sends"
    if path.startswith("yaml.") and ("unsafe" in name or "full" in name.lower() or name in ("Loader", "UnsafeLoader")):
        yield f"{path} builds objects"
    if path in {f"multiprocessing.{part}" for part in ("Manager", "managers", *REMOTE)}:
        yield f"{path} pickles between hosts"


def _call(node: ast.Call, function: str) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if function in BUILT_IN or function in {f"builtins.{name}" for name in BUILT_IN}:
        yield f"calls {function}"
    if function in ("importlib.import_module", "import_module") and not _from_the_operator(node):
        yield "imports a module by a name that is not the operator's own"
    if function in ("torch.load", "th.load") and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if function in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        if loader is None or ast.unparse(loader).split(".")[-1] not in SAFE_YAML:
            yield f"{function} without SafeLoader"
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        yield f"{function} with allow_pickle"
    if function.rsplit(".", maxsplit=1)[-1] == "from_pretrained" and "trust_remote_code" in given:
        yield "from_pretrained with trust_remote_code"
    if function.startswith("subprocess.") and "shell" in given and not _is(given["shell"], False):
        yield f"{function} with a shell"
    if function in ("os.system", "os.popen"):
        yield f"calls {function}"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _from_the_operator(node: ast.Call) -> bool:
    """`module_name` is what rollout/environments/loader.py takes out of the operator's own configuration."""
    return (
        bool(node.args)
        and isinstance(node.args[0], ast.Constant | ast.Name)
        and (isinstance(node.args[0], ast.Constant) or node.args[0].id in ("module_name",))
    )


CAUGHT = [
    "import pickle",
    "import _pickle as p",
    "from pickle import loads",
    "import torch.x, cloudpickle",
    "def f():\n    import dill",
    "import marshal",
    "from shelve import open",
    "import joblib",
    "eval(text)",
    "exec(text)",
    "builtins.eval(text)",
    "compile(text, 'x', 'exec')",
    "__import__(name)",
    "importlib.import_module(message['module'])",
    "import_module(header.name)",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=flag)",
    "yaml.load(text)",
    "yaml.load(text, yaml.Loader)",
    "yaml.load(text, Loader=yaml.FullLoader)",
    "yaml.full_load(text)",
    "yaml.unsafe_load(text)",
    "from yaml import unsafe_load",
    "from yaml import UnsafeLoader",
    "np.load(path, allow_pickle=True)",
    "numpy.load(path, allow_pickle=flag)",
    "dist.all_gather_object(out, x)",
    "torch.distributed.broadcast_object_list(x)",
    "from torch.distributed import scatter_object_list",
    "gather = dist.gather_object",
    "from multiprocessing.connection import Listener",
    "multiprocessing.connection.Client(address)",
    "from multiprocessing.managers import BaseManager",
    "multiprocessing.Manager()",
    "import xmlrpc.server",
    "AutoModel.from_pretrained(path, trust_remote_code=True)",
    "subprocess.run(text, shell=True)",
    "os.system(text)",
]
HARMLESS = [
    "import json, msgpack",
    "model.eval()",
    "re.compile(text)",
    "torch.compile(model)",
    "torch.load(path, weights_only=True)",
    "yaml.safe_load(text)",
    "yaml.load(text, Loader=yaml.SafeLoader)",
    "yaml.safe_dump(x)",
    "np.load(path, allow_pickle=False)",
    "dist.all_gather(out, x)",
    "dist.all_reduce(x)",
    "json.load(file)",
    "importlib.import_module('torch')",
    "subprocess.run([a, b])",
    "from multiprocessing import cpu_count",
    "from multiprocessing.connection import wait",
    "AutoModel.from_pretrained(path)",
]


@pytest.mark.parametrize("sample", CAUGHT)
def test_a_bad_sample_is_caught(sample: str) -> None:
    assert problems(sample)


@pytest.mark.parametrize("sample", HARMLESS)
def test_its_harmless_neighbour_passes(sample: str) -> None:
    assert problems(sample) == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_source_turns_bytes_into_code_or_objects(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for problem in problems(path.read_text())
    ]
    assert found == []


def test_only_the_operators_configuration_names_what_is_imported() -> None:
    """The one import by name: environments, from a file that no other process writes."""
    importing = [
        str(path.relative_to(ROOT))
        for room in ROOMS[:4]
        for path in sorted((ROOT / room).rglob("*.py"))
        if "import_module" in path.read_text()
    ]
    assert importing == ["rollout/environments/loader.py"]
    loader = (ROOT / importing[0]).read_text()
    assert "_import(config.path)" in loader
    for word in ("redis", "codec", "stream", "control", "json"):
        assert f"import {word}" not in loader, word
        assert f"shared.{word}" not in loader, word
