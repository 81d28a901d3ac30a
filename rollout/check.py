"""Whether a reasoning-gym task can be served: `python -m rollout.check < {"name", "params", "experts"}`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rollout.environments.questions import open_dataset
from rollout.experts import no_experts
from shared.errors import TrustbatchError


def check(name: str, params: Mapping[str, Any], experts: int) -> None:
    """Raises ConfigError where a rollout server would refuse the task."""
    _, item = open_dataset(name, params)
    if experts and item(0).answer is None:
        raise no_experts(experts, name)


def main() -> int:
    """Reads one task as JSON; says on stderr why it cannot be served, and returns 2 then."""
    try:
        check(**json.load(sys.stdin))
    except TrustbatchError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
