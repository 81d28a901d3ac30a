"""The NetworkPolicies of deploy/kubernetes, evaluated: who gets through to whom, compared with the security page."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.deploy.rendered import OVERLAYS, Object, labels_of, name_of, of_kind, ports_of, selects, workload

pytestmark = pytest.mark.system  # each overlay is rendered once


def allowed(overlay: str, source: dict[str, Any], target: str, port: str | int) -> bool:
    """Whether the NetworkPolicies let a peer through to a port of a component; None of a peer's policies: outside."""
    found = workload(overlay, target)
    number = ports_of(found)[port] if isinstance(port, str) else port
    into = [
        policy["spec"] for policy in of_kind(overlay, "NetworkPolicy") if "Ingress" in policy["spec"]["policyTypes"]
    ]
    into = [spec for spec in into if selects(spec["podSelector"], labels_of(found))]
    rules = [rule for spec in into for rule in spec.get("ingress", [])]
    enters = not into or any(_lets(rule.get("from"), rule.get("ports"), source, port, number) for rule in rules)
    if source["pod"] is None:
        return enters
    out = [policy["spec"] for policy in of_kind(overlay, "NetworkPolicy") if "Egress" in policy["spec"]["policyTypes"]]
    out = [spec for spec in out if selects(spec["podSelector"], source["pod"])]
    there = {"pod": labels_of(found), "namespace": source["namespace"]}
    rules = [rule for spec in out for rule in spec.get("egress", [])]
    return enters and (not out or any(_lets(r.get("to"), r.get("ports"), there, port, number) for r in rules))


def _lets(peers: Any, ports: Any, who: dict[str, Any], port: str | int, number: int) -> bool:
    return any(_is(peer, who) for peer in peers) and any(item["port"] in (port, number) for item in ports)


def _is(peer: Object, who: dict[str, Any]) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        return selects(peer["namespaceSelector"], who["namespace"]) and "podSelector" not in peer
    return who["pod"] is not None and selects(peer["podSelector"], who["pod"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_lets_through_what_the_security_page_says_and_nothing_else(overlay: str) -> None:
    home = {"kubernetes.io/metadata.name": "trustbatch"}
    people: dict[str, dict[str, Any]] = {
        name: {"pod": labels_of(workload(overlay, name)), "namespace": home}
        for name in ("learner", "rollout", "control-plane", "redis")
    }
    people["scraper"] = {"pod": None, "namespace": {"trustbatch/scrapes": "true"}}
    people["looker"] = {"pod": None, "namespace": {"trustbatch/looks": "true"}}
    people["stranger"] = {"pod": None, "namespace": {"kubernetes.io/metadata.name": "default"}}
    doors = [("redis", "redis"), ("control-plane", "http"), ("learner", "metrics"), ("rollout", "metrics")]
    open_to = {
        f"{target}:{port}": {who for who, peer in people.items() if allowed(overlay, peer, target, port)}
        for target, port in doors
    }
    assert open_to == {
        "redis:redis": {"learner", "rollout", "control-plane"},
        "control-plane:http": {"scraper", "looker"},
        "learner:metrics": {"scraper"},
        "rollout:metrics": {"scraper"},
    }
    outside = [name_of(p) for p in of_kind(overlay, "NetworkPolicy") if "ipBlock" in yaml.safe_dump(p)]
    assert outside == ([] if overlay == "cpu-demo" else ["NetworkPolicy/model-hub"])
