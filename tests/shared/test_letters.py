"""Dead letters on a real Redis: moved in one step, bounded in bytes, counted for ever, put back when somebody asks."""

from __future__ import annotations

import pytest

from shared.admission import Admission
from shared.errors import FencedError, StreamError
from shared.intervals import Intervals
from shared.keys import Keys
from shared.letters import LETTER_BYTES, Letter, ReasonTotals, letter, letters, requeue, totals
from shared.redis_client import Client
from shared.stream import Appended, Entry, backlog
from shared.types import group_id_for
from tests.shared.test_stream import CREDIT, Bench

WIDE = 2**20


class Graveyard(Bench):
    """A bench whose entries are all bad."""

    def __init__(self, client: Client, keys: Keys) -> None:
        super().__init__(client, keys)
        self.open = self.reader()

    def append_own(self, *bodies: bytes) -> list[Entry]:
        for body in bodies:
            (index,) = self.admission.lease(1, 0).indices
            assert self.writer.append(index, group_id_for(self.keys.run_id, index), body) is Appended.STORED
        return self.open.read(len(bodies))

    def bury(self, entry: Entry, reason: str = "undecodable", bound: int = WIDE) -> None:
        told = Letter(entry.group_id, entry.prompt_index, reason, "group: not a msgpack frame", "s0", 7.0)
        self.open.dead_letter(entry, told, bound)

    def ids(self) -> list[str]:
        return [found.id for found in letters(self.client, self.keys)]


@pytest.fixture
def yard(client: Client, keys: Keys) -> Graveyard:
    return Graveyard(client, keys)


def test_an_entry_is_moved_whole_with_why_and_its_credits_are_free(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"rubbish")
    yard.bury(entry)
    [kept] = letters(yard.client, yard.keys)
    assert (kept.payload, kept.size, kept.reason, kept.error) == (
        b"rubbish",
        7,
        "undecodable",
        "group: not a msgpack frame",
    )
    assert (kept.prompt_index, kept.server, kept.at, kept.entry_id) == (0, "s0", 7.0, entry.entry_id)
    now = backlog(yard.client, yard.keys)
    assert (now.groups, now.bytes, now.unapplied, now.dead_letters) == (0, 0, 0, 1)
    assert yard.open.buried() == {0: "undecodable"}
    assert yard.client.xpending(yard.keys.groups, "learner")["pending"] == 0
    assert totals(yard.client, yard.keys) == {"undecodable": ReasonTotals(count=1, bytes=7)}


def test_a_repeated_move_whose_answer_was_lost_counts_once(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"rubbish")
    yard.bury(entry)
    yard.bury(entry)
    assert len(yard.ids()) == 1
    assert totals(yard.client, yard.keys)["undecodable"].count == 1
    assert backlog(yard.client, yard.keys).bytes == 0


def test_a_fenced_learner_moves_nothing(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"rubbish")
    yard.control.take_epoch()
    with pytest.raises(FencedError):
        yard.bury(entry)
    assert yard.ids() == []
    assert backlog(yard.client, yard.keys).groups == 1


def test_the_oldest_are_dropped_beyond_the_bound_and_stay_counted(yard: Graveyard) -> None:
    bound = 3 * (1000 + LETTER_BYTES)
    for i, entry in enumerate(yard.append_own(*[bytes([65 + i]) * 1000 for i in range(5)])):
        yard.bury(entry, "bad_reward" if i % 2 else "undecodable", bound)
    assert [kept.payload[:1] for kept in letters(yard.client, yard.keys)] == [b"C", b"D", b"E"]
    assert yard.open.buried() == {2: "undecodable", 3: "bad_reward", 4: "undecodable"}
    assert totals(yard.client, yard.keys) == {
        "bad_reward": ReasonTotals(2, 2000, 1, 1000, 0),
        "undecodable": ReasonTotals(3, 3000, 1, 1000, 0),
    }


def test_a_payload_larger_than_the_bound_leaves_its_header(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"x" * 5000)
    yard.bury(entry, bound=4000)
    [kept] = letters(yard.client, yard.keys)
    assert (kept.payload, kept.size) == (b"", 5000)
    assert totals(yard.client, yard.keys)["undecodable"].dropped_bytes == 5000
    assert requeue(yard.client, yard.keys, kept.id) == "refused: its payload was not kept"


def test_many_small_ones_are_bounded_too(yard: Graveyard) -> None:
    for entry in yard.append_own(*[b""] * 20):
        yard.bury(entry, bound=4 * LETTER_BYTES)
    assert len(yard.ids()) == 4
    assert totals(yard.client, yard.keys)["undecodable"] == ReasonTotals(20, 0, 16, 0, 0)


def test_a_requeued_letter_is_in_the_stream_as_its_server_had_appended_it(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"rubbish")
    yard.bury(entry)
    [letter_id] = yard.ids()
    assert requeue(yard.client, yard.keys, letter_id) == "requeued"
    [again] = yard.open.read(9)
    assert (again.group_id, again.prompt_index, again.payload) == (entry.group_id, 0, b"rubbish")
    assert again.latest == entry.latest == 0
    now = backlog(yard.client, yard.keys)
    assert (now.groups, now.bytes, now.unapplied, now.dead_letters, now.appended) == (1, 7, 1, 0, 1)
    assert yard.open.buried() == {}
    assert totals(yard.client, yard.keys)["undecodable"].requeued == 1
    assert requeue(yard.client, yard.keys, letter_id) == "there is no such dead letter"


def test_a_letter_is_refused_where_its_prompt_lives_on(yard: Graveyard, client: Client, keys: Keys) -> None:
    waiting, drawn, other = yard.append_own(b"a", b"b", b"c")
    for entry in (waiting, drawn, other):
        yard.bury(entry)
    client.sadd(keys.unapplied, "0")
    client.hset(keys.owners, "1", "s9")
    client.hset(keys.buried, "2", "9-9 undecodable")
    said = [requeue(client, keys, letter_id) for letter_id in yard.ids()]
    assert said == [
        "refused: a group of prompt 0 is waiting",
        "refused: prompt 1 is being drawn again",
        "refused: prompt 2 has ended in another way",
    ]
    assert backlog(client, keys).groups == 0
    assert len(yard.ids()) == 3


def test_a_letter_of_another_run_is_never_requeued(yard: Graveyard, client: Client, keys: Keys) -> None:
    client.xadd(keys.groups, {"group_id": "other:7", "prompt_index": "7", "payload": "x"})
    [stranger] = yard.open.read(1)
    yard.bury(stranger, "wrong_run")
    [letter_id] = yard.ids()
    assert requeue(client, keys, letter_id) == "refused: it is no group of this run"
    assert yard.open.buried() == {}


def test_a_prompt_that_was_to_be_drawn_again_is_not_once_its_letter_is_requeued(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"rubbish")
    yard.bury(entry)
    yard.open.open(Intervals())  # a learner that does not know of it, as after a crash before any checkpoint
    [letter_id] = yard.ids()
    assert requeue(yard.client, yard.keys, letter_id) == "requeued"
    fresh = Admission(yard.client, yard.keys, "s1", CREDIT)
    assert fresh.lease(1, 0).indices == (1,)


def test_one_letter_is_found_by_its_id_and_what_is_no_id_is_an_error(yard: Graveyard) -> None:
    [entry] = yard.append_own(b"rubbish")
    yard.bury(entry)
    [letter_id] = yard.ids()
    found = letter(yard.client, yard.keys, letter_id)
    assert found is not None
    assert found.payload == b"rubbish"
    assert letter(yard.client, yard.keys, "1-1") is None
    with pytest.raises(StreamError, match="Invalid stream ID"):
        letter(yard.client, yard.keys, "nonsense")


def test_letters_come_page_by_page_and_all_of_them(yard: Graveyard) -> None:
    for entry in yard.append_own(*[b"x"] * 40):
        yard.bury(entry)
    assert [kept.prompt_index for kept in letters(yard.client, yard.keys)] == list(range(40))
