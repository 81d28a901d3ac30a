"""How a run ends: the trained model as an ordinary folder, and the evaluation of the last version."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from learner.evaluations import Evaluations
from learner.lineage import Lineage
from learner.model import PolicyModel
from shared.errors import StoreError
from shared.process import Deadline, StopFlag

POLL_S = 0.1


def save_model(policy: PolicyModel, source: str, folder: Path) -> None:
    """Writes the model, with the tokenizer of the model that it began as, so that either all of it is there or none.

    Raises:
        StoreError: the disk refused, or the tokenizer cannot be read again.

    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        policy.save(partial)
        save_tokenizer(source, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write the trained model to {folder}: {error}") from error


def save_tokenizer(source: str, folder: Path) -> None:
    """Copies the tokenizer of a model folder or hub name, if it has one."""
    from transformers import AutoTokenizer

    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").exists():
        return
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def await_evaluation(
    evaluations: Evaluations,
    lineage: Lineage,
    deadline: Deadline,
    stop: StopFlag,
    say: Callable[[str], None],
    serve: Callable[[], None],
) -> str:
    """Waits for the latest version's evaluation. Returns what is missing if it does not come in time.

    `serve` does, over and over, what the server that evaluates may have to wait for.
    """
    version = lineage.latest
    while True:
        evaluations.collect(lineage)
        if evaluations.answered(version) or stop:
            return ""
        if deadline.remaining == 0.0:
            return f"the evaluation of version {version} did not come within {deadline.seconds:g} s"
        say(f"waiting for the evaluation of version {version}")
        serve()
        time.sleep(POLL_S)
