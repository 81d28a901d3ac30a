"""4. The producer's connection is cut right after the append."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from services.redis_server import with_url
from tests.chaos.processes import wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack


def run(short: bool, workdir: Path) -> ScenarioResult:
    """The producers reach Redis through a proxy that swallows the answer; what they do not know they send again."""
    result = ScenarioResult(4, "producer's connection cut right after the append", short)
    cuts = 100 if short else 1000
    steps = cuts * 4 // 32
    with Stack(workdir, steps) as stack:
        port = urlsplit(str(stack.config.redis.url)).port
        state = workdir / "proxy.json"
        stack.start_other("proxy", "tests.chaos.proxy", "--to", str(port), "--cuts", str(cuts), "--state", str(state))
        wait_for("the proxy's port", 10, state.exists)
        url = f"redis://127.0.0.1:{json.loads(state.read_text())['port']}"
        config = stack.write_config(with_url(stack.config, url), "through-proxy.yaml")
        stack.start_load("--rate", "800", config=config)
        stack.start_learner()
        stack.until_phase("finished", 60 if short else 600)
        result.faults = int(json.loads(state.read_text())["cuts"])
        judged = stack.fill_in(result)
        sent_again = Counter(row["result"] for row in stack.appends() if row["sent"] > 1)
        result.check("as many appends were cut as asked for", result.faults == cuts, result.faults)
        result.check("cut appends were sent again", sum(sent_again.values()) >= cuts, dict(sent_again))
        result.check("the stream holds no index twice", len(judged.in_stream) == stack.client.xlen(stack.keys.groups))
    return result
