"""Whether a reasoning-gym task can be served: `python -m rollout.check < {"name": ..., "params": {...}}`."""

from __future__ import annotations

import json
import sys

from rollout.environments.questions import open_dataset
from shared.errors import TrustbatchError


def main() -> int:
    """Reads one task as JSON; says on stderr why it cannot be served, and returns 2 then."""
    try:
        open_dataset(**json.load(sys.stdin))
    except TrustbatchError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
