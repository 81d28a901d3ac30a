"""What lies in a model folder: names and shapes of its tensors, and an untied copy of it.

Bytes only: no tensor is built here. A safetensors file is an 8-byte little-endian length, a JSON header
of that length ({name: {dtype, shape, data_offsets}}), then the data.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shared.errors import EngineError

LM_HEAD = "lm_head.weight"
LM_HEAD_FILE = "lm_head.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
COPY_BYTES = 16 * 1024 * 1024


class HasShape(Protocol):
    """A tensor, wherever it is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: bytes [start, end) of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the folder's safetensors files.

    Raises:
        EngineError: no such file, a file that is cut short, or a header that cannot be read.

    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineError(f"{folder} has no *.safetensors file")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(_read_header(file))
    return tensors


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 0 < length <= MAX_HEADER_BYTES:
                raise EngineError(f"{file}: header length {length} is not that of a safetensors file")
            header: dict[str, Any] = json.loads(f.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _entry(file, 8 + length, fields) for name, fields in header.items()}
        size = file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{file} is not a readable safetensors file: {error}") from error
    expected = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size < expected:
        raise EngineError(f"{file} is cut short: {size} bytes of {expected}")
    return tensors


def _entry(file: Path, data_start: int, fields: Mapping[str, Any]) -> StoredTensor:
    start, end = fields["data_offsets"]
    return StoredTensor(file, fields["dtype"], tuple(fields["shape"]), data_start + start, data_start + end)


def check_same_layout(served: Mapping[str, HasShape], offered: Mapping[str, HasShape]) -> None:
    """Refuse weights that would replace only a part of what is served, before anything is touched.

    Raises:
        EngineError: names the first tensors that are missing, unknown or of another shape.

    """
    missing = sorted(served.keys() - offered.keys())
    unknown = sorted(offered.keys() - served.keys())
    reshaped = sorted(n for n in served.keys() & offered.keys() if served[n].shape != offered[n].shape)
    problems = [
        f"{what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise EngineError(
            f"the new weights do not have the served model's tensors ({'; '.join(problems)}); "
            "the served weights stay as they are"
        )


def is_tied(folder: Path) -> bool:
    """True when the output layer uses the embedding's weights, by config or for want of its own."""
    config = read_config(folder)
    for part in (config, config.get("text_config") or {}):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    return LM_HEAD not in list_tensors(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder} is not a model folder: config.json: {error}") from error
    return config


def write_untied_copy(folder: Path, target: Path) -> None:
    """Make `target` the same model with an output layer of its own, a copy of the embedding.

    Weight files are linked, not copied; only config, index and the output layer are written.
    """
    tensors = list_tensors(folder)
    embedding = _embedding(folder, tensors)
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name not in ("config.json", INDEX_FILE):
            (target / _linked_name(file)).symlink_to(file.resolve())
    _write_config(folder, target)
    weight_map = {name: _linked_name(tensor.file) for name, tensor in tensors.items()}
    if LM_HEAD not in tensors:
        weight_map[LM_HEAD] = LM_HEAD_FILE
        _write_lm_head(embedding, target / LM_HEAD_FILE)
    elif not np.array_equal(_bytes_of(tensors[LM_HEAD]), _bytes_of(embedding)):
        raise EngineError(f"{folder}: config.json ties {LM_HEAD} to the embedding, the files do not")
    (target / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _linked_name(file: Path) -> str:
    """Readers take a lone model.safetensors for the whole model and skip the index: it gets another name."""
    return f"body-{file.name}" if file.suffix == ".safetensors" else file.name


def _embedding(folder: Path, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
    found = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if len(found) != 1:
        raise EngineError(f"{folder}: expected one embed_tokens.weight to untie, found {found or 'none'}")
    return tensors[found[0]]


def _bytes_of(tensor: StoredTensor) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    return np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.end - tensor.start,))


def _write_config(folder: Path, target: Path) -> None:
    config = read_config(folder)
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    (target / "config.json").write_text(json.dumps(config, indent=2))


def _write_lm_head(embedding: StoredTensor, file: Path) -> None:
    size = embedding.end - embedding.start
    entry = {"dtype": embedding.dtype, "shape": embedding.shape, "data_offsets": [0, size]}
    header = json.dumps({LM_HEAD: entry}).encode()
    header += b" " * (-len(header) % 8)  # keeps the data aligned
    with embedding.file.open("rb") as source, file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        source.seek(embedding.start)
        while size > 0:
            chunk = source.read(min(size, COPY_BYTES))
            if not chunk:
                raise EngineError(f"{embedding.file} is cut short")
            out.write(chunk)
            size -= len(chunk)


class ServedWeights:
    """The folder an engine serves from: the one it was given, or an untied private copy of it."""

    def __init__(self, first: Path, copies: Path, *, untie: bool) -> None:
        """`copies` is a folder to write copies in, should `untie` ask for them and the model be tied."""
        self._layout = list_tensors(first)
        self._copies = copies
        self._untie = untie and is_tied(first)
        self._count = itertools.count()
        self._copy: Path | None = None  # the one being served

    def prepare(self, folder: Path) -> Path:
        """Check that the folder can take the place of what is served; return the folder to load.

        Raises:
            EngineError: nothing has changed then.
        """
        check_same_layout(self._layout, list_tensors(folder))
        if not self._untie:
            return folder.resolve()
        copy = self._copies / f"untied-{next(self._count)}"
        write_untied_copy(folder, copy)
        return copy

    @property
    def unties(self) -> bool:
        """True where the engine has an output layer of its own and the files have none."""
        return self._untie and LM_HEAD not in self._layout

    def check(self, offered: Mapping[str, HasShape]) -> None:
        """Raises EngineError where tensors that come without files cannot take the place of what is served."""
        check_same_layout(self._layout, offered)

    def loaded(self, prepared: Path) -> None:
        """Note that a prepared folder is served now; the copy before it is removed (its links, not their targets)."""
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)
        self._copy = prepared if self._untie else None
