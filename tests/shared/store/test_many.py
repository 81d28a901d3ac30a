"""Retention over many versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared.store.many import FULL_EVERY, LAG, RETAIN, publish_many


@pytest.mark.system  # thousands of files
def test_the_disk_stays_bounded_and_nothing_is_left_behind(tmp_path: Path) -> None:
    few, many = publish_many(tmp_path / "few", 40), publish_many(tmp_path / "many", 120)
    most = RETAIN + FULL_EVERY + LAG
    assert many.most_versions <= most
    assert many.most_bytes <= few.most_bytes + 2048, "it does not grow with the number of versions"
    kept = range(120 - 2 * FULL_EVERY, 120)
    assert set(many.folders) <= {"held", *(f"v{version:08d}" for version in kept)}
    assert len([name for name in many.folders if name.startswith("v")]) <= most
