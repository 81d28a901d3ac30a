"""When an entry may go, and whose credit is free."""

from learner.ledger import Ledger


def test_an_entry_may_go_when_the_second_checkpoint_after_it_is_durable() -> None:
    ledger = Ledger()
    ledger.apply(0, "1-0")
    ledger.checkpointed()
    assert ledger.deletable == []
    ledger.apply(1, "2-0")
    ledger.checkpointed()
    assert ledger.deletable == ["1-0"]
    assert ledger.waiting_entries == 2
    assert ledger.is_scheduled("1-0")
    ledger.deleted(["1-0"])
    assert not ledger.is_scheduled("1-0")
    ledger.checkpointed()
    assert ledger.deletable == ["2-0"]


def test_an_entry_that_is_seen_twice_is_scheduled_once() -> None:
    ledger = Ledger()
    ledger.apply(0, "1-0")
    ledger.checkpointed()
    ledger.schedule("1-0")
    ledger.checkpointed()
    assert ledger.deletable == ["1-0"]
    assert ledger.waiting_entries == 1


def test_applied_groups_hold_their_credit_until_they_are_announced() -> None:
    ledger = Ledger()
    for index in (0, 1, 2, 4):
        ledger.apply(index, f"{index}-0")
    ledger.end(3, "too_stale")
    assert list(ledger.finished.pairs()) == [(0, 4)]
    assert list(ledger.credited.pairs()) == [(3, 3)]
    ledger.announced()
    assert ledger.credited == ledger.finished


def test_counts_survive_a_checkpoint() -> None:
    ledger = Ledger()
    ledger.apply(0, "1-0")
    ledger.end(1, "failure")
    ledger.end(-1, "wrong_run")
    again = Ledger(ledger.finished, ledger.counts())
    assert (again.applied, again.duplicates, dict(again.dropped)) == (1, 0, {"failure": 1, "wrong_run": 1})
    assert again.waiting_entries == 0
