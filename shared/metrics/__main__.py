"""`python -m shared.metrics [--write PAGE]`: every metric as tables, or deploy/docs/metrics.md made anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared.metrics.page import generated, write


def main(arguments: list[str] | None = None) -> int:
    """Prints, or writes."""
    parser = argparse.ArgumentParser(prog="python -m shared.metrics", description="Every metric: unit and meaning.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="makes the tables of this page anew")
    page = parser.parse_args(arguments).write
    if page is None:
        sys.stdout.write(generated())
        return 0
    try:
        write(page)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{page}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
