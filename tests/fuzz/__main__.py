"""Coverage-guided fuzzing: `python -m tests.fuzz codec|manifest|control|recording|patch [--runs N] [--seconds S]`.

Ends with an error at the first input that breaks a promise, takes more than five seconds or more than a gigabyte,
and leaves that input in .cache/fuzz.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

MEMORY = 2**31  # bytes of address space for everything, the interpreter and its libraries included
MAX_LEN = 64 * 1024
FOLDER = Path(".cache/fuzz")  # what was found to reach new code stays for the next time


def main() -> int:
    """Fuzzes one target; the fuzzer ends the process itself when it is done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=("codec", "manifest", "control", "recording", "patch"))
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs; -1: no limit")
    parser.add_argument("--seconds", type=int, default=0, help="0: no limit")
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print(
            "atheris is not installed: it has wheels for Python 3.11; see deploy/requirements/dev.in", file=sys.stderr
        )
        return 2
    with atheris.instrument_imports(include=["shared", "learner.recording"]):
        from tests.fuzz import targets
    corpus = FOLDER / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(arguments.target)):
        (corpus / str(number)).write_bytes(seed)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    options = [f"-runs={arguments.runs}", f"-max_total_time={arguments.seconds}", f"-max_len={MAX_LEN}"]
    options += ["-timeout=5", "-rss_limit_mb=1024", "-print_final_stats=1", "-seed=1", f"-artifact_prefix={FOLDER}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], targets.TARGETS[arguments.target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
