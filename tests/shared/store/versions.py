"""Small versions of random bytes, whole or as patches, for the tests of the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared.checksums import Checksum
from shared.manifest import Manifest, Probe, StoredFile, StoredPatch
from shared.patch import encode
from shared.store import PolicyStore

PROBE = Probe([[1, 2, 3]], [[-0.5, -1.25]])
WEIGHTS = "model.safetensors"


def checksum(data: bytes) -> str:
    found = Checksum()
    found.update(data)
    return found.text


@dataclass
class Weights:
    """What a learner has: a buffer that changes a little with every step."""

    size: int = 4096  # bytes
    seed: int = 0
    data: dict[int, bytes] = field(default_factory=dict)  # by version

    def at(self, version: int) -> bytes:
        """The weights of a version; every one differs in 2 % of its elements from the one before."""
        random = np.random.default_rng((self.seed, version))
        if version not in self.data:
            if version == 0:
                self.data[0] = random.bytes(self.size)
            else:
                values = np.frombuffer(self.at(version - 1), np.uint16).copy()
                values[random.integers(0, len(values), max(1, len(values) // 50))] += 1
                self.data[version] = values.tobytes()
        return self.data[version]


def publish(store: PolicyStore, weights: Weights, version: int, parent: int | None = None) -> Path:
    """Publishes a version whole."""
    folder = store.begin(version)
    (folder / WEIGHTS).write_bytes(weights.at(version))
    (folder / "config.json").write_text("{}")
    store.commit(version, version - 1 if parent is None else parent, version, PROBE, 1.0)
    return folder


def publish_patch(store: PolicyStore, weights: Weights, version: int, base: int) -> Manifest:
    """Publishes a version as a patch of another one."""
    folder, new = store.begin(version), weights.at(version)
    patch = encode(memoryview(weights.at(base)), memoryview(new), 2)
    (folder / "model.patch").write_bytes(patch)
    (folder / "config.json").write_text("{}")
    stored = StoredPatch("model.patch", len(patch), checksum(patch))
    known = {WEIGHTS: StoredFile(WEIGHTS, len(new), checksum(new), stored)}
    return store.commit(version, base, version, PROBE, 1.0, known, base)
