"""`python -m deploy.generate`: writes what is made of code: Grafana's dashboards and Kubernetes' PrometheusRule."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import dashboard

HERE = Path(__file__).parent
RULES = HERE / "prometheus" / "rules.yml"
HEAD = """# Made by `python -m deploy.generate` of deploy/prometheus/rules.yml: do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: { name: trustbatch, labels: { app.kubernetes.io/name: trustbatch } }
spec:
"""


def files() -> Mapping[Path, str]:
    """What each file is to hold."""
    made = {
        HERE / "grafana" / "dashboards" / f"{board.uid}.json": JSONEncoder(indent=1, sort_keys=True).encode(
            dashboard(board)
        )
        + "\n"
        for board in BOARDS
    }
    return made | {HERE / "kubernetes" / "components" / "monitoring" / "rules.yaml": prometheus_rule(RULES.read_text())}


def prometheus_rule(rules: str) -> str:
    """The same groups as an object of the Prometheus operator."""
    _, groups, rest = rules.partition("groups:\n")
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in (groups + rest).splitlines())


def main() -> int:
    """Writes them all."""
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(HERE.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
