from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StoreError
from shared.manifest import Manifest, Probe
from shared.store import PolicyStore
from shared.tensor_table import TABLE, TensorRow, bytes_of, has_weights, read_table, weight_files, write_table

ROWS = [TensorRow("a.weight", "bfloat16", (3, 4), 2**64 - 1), TensorRow("b", "float32", (), 0)]
GOOD = {"name": "a", "dtype": "float32", "shape": [2], "checksum": 1}


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_table(tmp_path, ROWS)
    assert read_table(tmp_path) == ROWS
    assert (bytes_of((3, 4), "bfloat16"), bytes_of((), "float32")) == (24, 4)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        {},
        [1],
        [{}],
        [{**GOOD, "name": ""}],
        [{**GOOD, "name": "x" * 513}],
        [{**GOOD, "dtype": "object"}],
        [{**GOOD, "shape": [-1]}],
        [{**GOOD, "shape": [2**20, 2**20, 2**20]}],
        [{**GOOD, "shape": [1.5]}],
        [{**GOOD, "checksum": 2**64}],
        [{**GOOD, "checksum": True}],
        [GOOD, GOOD],
    ],
)
def test_a_table_that_cannot_be_one_is_refused(tmp_path: Path, rows: Any) -> None:
    (tmp_path / TABLE).write_text(json.dumps(rows))
    with pytest.raises(StoreError, match=TABLE):
        read_table(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_no_table_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / TABLE).write_bytes(raw)
    with pytest.raises(StoreError, match="no table of tensors"):
        read_table(tmp_path)


def test_a_version_has_weights_where_a_file_holds_them(tmp_path: Path) -> None:
    store, probe = PolicyStore(tmp_path), Probe([[1, 2]], [[-1.0]])
    found: list[Manifest] = []
    for version, names in enumerate(([TABLE, "config.json"], [TABLE, "model.safetensors"])):
        folder = store.begin(version)
        for name in names:
            (folder / name).write_bytes(b"x")
        found.append(store.commit(version, version - 1, 0, probe, 1.0))
    assert [has_weights(manifest) for manifest in found] == [False, True]
    assert [file.name for file in weight_files(found[1])] == ["model.safetensors"]
