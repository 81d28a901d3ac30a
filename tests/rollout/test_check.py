from __future__ import annotations

import pytest

from rollout.check import check
from shared.errors import ConfigError


def test_a_task_that_names_no_solution_is_refused_only_where_experts_are_wanted() -> None:
    check("graph_color", {}, experts=0)
    check("chain_sum", {}, experts=1)
    with pytest.raises(ConfigError, match=r"rollout\.experts is 1, but graph_color gives no expert answers"):
        check("graph_color", {}, experts=1)
