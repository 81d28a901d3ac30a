"""`trustbatch dead-letters` on a real Redis: what it lists, shows, and puts back."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from services.cli import app
from services.dead_letters import config_of, hexdump, plain, requeue_some, show_list, show_one
from services.status import read_status
from shared.admission import Admission
from shared.codec import encode_group
from shared.config import Config
from shared.config.load import dump_config
from shared.control import ControlState, Latest
from shared.errors import ConfigError, StreamError
from shared.intervals import Intervals
from shared.keys import Keys
from shared.letters import Letter, letters
from shared.redis_client import Client
from shared.stream import GroupReader, GroupWriter, backlog
from shared.types import group_id_for
from tests import builders
from tests.shared.test_stream import CREDIT


class Cemetery:
    """Buries payloads as a learner does."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self.client, self.keys = client, keys
        control = ControlState(client, keys)
        epoch = control.take_epoch()
        control.announce(epoch, Latest(0, -1, 0), 0, [])
        self.admission = Admission(client, keys, "s0", CREDIT)
        self.writer = GroupWriter(client, keys, "s0")
        self.reader = GroupReader(client, keys, epoch)
        self.reader.open(Intervals())

    def bury(self, payload: bytes | None, reason: str, error: str = "group: not a msgpack frame") -> str:
        """None buries a good group. Returns the dead letter's id."""
        (index,) = self.admission.lease(1, 0).indices
        if payload is None:
            payload = encode_group(builders.group(index, self.keys.run_id, 2))
        self.writer.append(index, group_id_for(self.keys.run_id, index), payload)
        [entry] = self.reader.read(1)
        self.reader.dead_letter(entry, Letter(entry.group_id, index, reason, error, "s0", 1_800_000_000.0), 2**20)
        return [kept.id for kept in letters(self.client, self.keys)][-1]


@pytest.fixture
def cemetery(client: Client, keys: Keys) -> Cemetery:
    return Cemetery(client, keys)


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_list_counts_by_reason_and_names_every_one(cemetery: Cemetery, config: Config, console: Console) -> None:
    first, second = cemetery.bury(b"rubbish", "undecodable"), cemetery.bury(None, "bad_reward", "reward: nan")
    show_list(config, console)
    lines = [line.split() for line in printed(console).splitlines()]
    assert lines[1][:2] == ["bad_reward", "1"]
    assert lines[2] == ["undecodable", "1", "7", "0", "0", "0"]
    assert [line[0] for line in lines[4:]] == [first, second]
    assert lines[4][1:5] == [f"{config.run.id}:0", "0", "undecodable", "7"]
    assert " ".join(lines[5][5:]) == "2027-01-15 08:00:00 UTC s0 reward: nan"


def test_a_run_without_any_says_so(config: Config, console: Console) -> None:
    show_list(config, console)
    assert printed(console) == f"run {config.run.id} has no dead letters\n"


def test_a_group_that_decodes_is_shown_decoded(cemetery: Cemetery, config: Config, console: Console) -> None:
    letter_id = cemetery.bury(None, "newer_version", "versions: 7 is newer than the learner's 0")
    show_one(config, letter_id, None, console)
    text = printed(console)
    assert "what is wrong  versions: 7 is newer than the learner's 0" in text
    assert "a group of 2 completions" in text
    assert "trajectory 1   " in text


def test_bytes_that_are_no_group_are_shown_in_hexadecimal_and_written_whole(
    cemetery: Cemetery, config: Config, console: Console, tmp_path: Path
) -> None:
    payload = b"\x93rubbish\x00" * 100
    letter_id = cemetery.bury(payload, "undecodable")
    show_one(config, letter_id, tmp_path / "payload", console)
    text = printed(console)
    assert "00000000  93 72 75 62 62 69 73 68 00 93 72 75 62 62 69 73  .rubbish..rubbis" in text
    assert "... 644 more bytes" in text
    assert (tmp_path / "payload").read_bytes() == payload
    with pytest.raises(StreamError, match="there is no dead letter 1-1"):
        show_one(config, "1-1", None, console)


def test_requeueing_says_what_became_of_each(cemetery: Cemetery, config: Config, console: Console) -> None:
    ids = [cemetery.bury(b"rubbish", "undecodable"), cemetery.bury(None, "bad_reward")]
    assert not requeue_some(config, [ids[0], "1-1"], None, console)
    assert printed(console).splitlines() == [f"{ids[0]}: requeued", "1-1: there is no such dead letter"]
    assert requeue_some(config, [], "bad_reward", console)
    assert backlog(cemetery.client, cemetery.keys).groups == 2
    with pytest.raises(StreamError, match="no dead letter of reason bad_reward is kept"):
        requeue_some(config, [], "bad_reward", console)


def test_the_commands_take_a_run_folder_or_a_file(cemetery: Cemetery, config: Config, tmp_path: Path) -> None:
    letter_id = cemetery.bury(b"rubbish", "undecodable")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    runner = CliRunner()
    for run in (tmp_path, tmp_path / "config.yaml"):
        shown = runner.invoke(app, ["dead-letters", "show", str(run), letter_id])
        assert (shown.exit_code, "undecodable" in shown.output) == (0, True)
    done = runner.invoke(app, ["dead-letters", "requeue", str(tmp_path), letter_id])
    assert (done.exit_code, done.output) == (0, f"{letter_id}: requeued\n")
    again = runner.invoke(app, ["dead-letters", "requeue", str(tmp_path), letter_id])
    assert again.exit_code == 1
    assert isinstance(runner.invoke(app, ["dead-letters", "requeue", str(tmp_path)]).exception, ConfigError)
    with pytest.raises(ConfigError, match="neither a run folder nor a YAML file"):
        config_of(tmp_path / "none", [])


def test_the_status_counts_them_by_reason(cemetery: Cemetery) -> None:
    cemetery.bury(b"rubbish", "undecodable")
    found = read_status(cemetery.client, cemetery.keys).dead_letters["undecodable"]
    assert (found.count, found.bytes, found.dropped) == (1, 7, 0)


def test_what_a_server_chose_cannot_steer_the_terminal() -> None:
    assert plain("reward: \x1b[2Jnan\n") == "reward: \\x1b[2Jnan\\n"
    assert hexdump(b"\x1b") == ["00000000  1b                                               ."]


def test_a_payload_that_was_not_kept_is_said(cemetery: Cemetery, config: Config, console: Console) -> None:
    cemetery.bury(b"x" * 10, "undecodable")
    [kept] = letters(cemetery.client, cemetery.keys)
    cemetery.client.xdel(cemetery.keys.dead_letters, kept.id)
    fields = {
        "group_id": kept.group_id,
        "prompt_index": 0,
        "reason": "undecodable",
        "size": 10,
        "cost": 1,
        "payload": "",
    }
    letter_id = cemetery.client.xadd(cemetery.keys.dead_letters, fields).decode()
    show_one(config, letter_id, None, console)
    assert "larger than admission.dead_letter_bytes and was not kept" in printed(console)
