"""Staleness buckets against their names."""

import torch

from learner.objective.staleness import bucket_name, staleness_bucket


def test_a_staleness_falls_into_the_bucket_that_names_it() -> None:
    staleness = torch.tensor([-1, 0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 1000])
    names = [bucket_name(bucket) for bucket in staleness_bucket(staleness).tolist()]
    assert names == ["0", "0", "1", "2", "3-4", "3-4", "5-8", "5-8", "9-16", "9-16", "17-32", "513-1024"]


def test_names_follow_each_other_without_a_gap() -> None:
    for bucket in range(1, 40):
        first, last = bucket_name(bucket).split("-")[0], bucket_name(bucket - 1).split("-")[-1]
        assert int(first) == int(last) + 1


def test_an_older_token_never_has_a_smaller_bucket() -> None:
    buckets = staleness_bucket(torch.arange(5000))
    assert (buckets.diff() >= 0).all()
