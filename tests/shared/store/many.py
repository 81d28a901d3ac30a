"""Many versions with retention on: `python -m tests.shared.store.many --versions 10000` says what is left of them."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.store import PolicyStore
from tests.shared.store.versions import WEIGHTS, Weights, publish, publish_patch

FULL_EVERY, RETAIN, LAG = 8, 4, 3


@dataclass(frozen=True)
class Left:
    """What was seen while and after they were published."""

    versions: int
    seconds: float
    most_bytes: int  # on the disk, after any publish that was looked at
    most_versions: int
    folders: list[str]  # in the end


def publish_many(root: Path, count: int) -> Left:
    """Publishes whole versions and patches, while one server picks up the newest and one follows LAG behind."""
    store, weights, started = PolicyStore(root), Weights(size=2048), time.monotonic()
    most_bytes = most_versions = 0
    for version in range(count):
        if version % FULL_EVERY:
            publish_patch(store, weights, version, version - 1)
        else:
            publish(store, weights, version)
        store.retain(range(version - RETAIN + 1, version + 1), version)
        if version % 5 == 0:
            for server, wanted in (("newest", version), ("lagging", max(0, version - LAG))):
                _, folder = store.hold(wanted, server)
                assert (folder / WEIGHTS).read_bytes() == weights.at(wanted)
                store.let_go(server)
        if version % 50 == 0 or version > count - 10:
            most_bytes = max(most_bytes, sum(path.stat().st_size for path in root.rglob("*") if path.is_file()))
            most_versions = max(most_versions, len(store.begun()))
        for old in [known for known in weights.data if known < version - 50]:
            del weights.data[old]
    for server in ("newest", "lagging"):
        store.forget(server)
    folders = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())
    return Left(count, time.monotonic() - started, most_bytes, most_versions, folders)


def main() -> None:
    """Prints what is left, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(publish_many(Path(folder) / "policy", parser.parse_args().versions))))


if __name__ == "__main__":
    main()
