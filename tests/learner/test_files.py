"""Line files that hold the surviving lineage only."""

from pathlib import Path

from learner.files import LineFile


def test_lines_that_do_not_survive_are_moved_and_torn_ones_with_them(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "history.jsonl")
    for step in (1, 2, 3):
        file.append({"step": step})
    with file.path.open("a") as raw:
        raw.write('{"step": 4, "los')
    assert file.take_over(lambda row: row["step"] <= 2) == 2
    assert file.rows() == [{"step": 1}, {"step": 2}]
    assert (tmp_path / "history.abandoned.jsonl").read_text() == '{"step": 3}\n{"step": 4, "los\n'
    file.append({"step": 3})
    assert file.rows()[-1] == {"step": 3}


def test_where_all_survive_nothing_is_written(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "history.jsonl")
    assert file.take_over(lambda row: True) == 0
    file.append({"step": 1})
    assert file.take_over(lambda row: True) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
