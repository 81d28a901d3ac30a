"""Whether the learner can serve a configuration's objectives: `python -m learner.check < configuration as JSON`."""

from __future__ import annotations

import sys

from learner.objectives import servable_objectives
from shared.config import Config
from shared.errors import ConfigError


def main() -> int:
    """Reads a configuration that is valid otherwise; says on stderr what cannot be served, and returns 2 then."""
    try:
        servable_objectives(Config.model_validate_json(sys.stdin.read()))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
