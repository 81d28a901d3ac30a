"""The small model that `trustbatch up` makes itself: is the one on disk still the configured one?

    rollout.examples (questions with solutions) -> learner.warm_start (tokenizer, weights, supervised steps)

The fingerprint of all that the model depends on is written into its folder last, so a half-made model, or one
made from other settings, is made again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.config import Config
from shared.errors import ConfigError
from shared.store import write_durably

FINGERPRINT = "trustbatch.json"
FORMAT = 1  # raised when the same settings would make another model

RunToEnd = Callable[[str, Sequence[str]], None]  # (name, arguments of the interpreter); raises where it fails


def fingerprint(config: Config) -> str:
    """Of everything that the model's weights and tokenizer follow from."""
    assert config.model.tiny is not None
    settings = {
        "format": FORMAT,
        "tiny": config.model.tiny.model_dump(mode="json"),
        "environment": config.environment.model_dump(mode="json"),
        "heldout_prompts": config.evaluation.prompts,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def is_current(config: Config) -> bool:
    """True if the model folder holds what the configuration asks for."""
    try:
        stored = json.loads((Path(config.model.path) / FINGERPRINT).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and stored.get("fingerprint") == fingerprint(config)


def make(config: Config, config_file: Path, run_to_end: RunToEnd) -> None:
    """Makes the model in model.path. Raises ConfigError where something else of the operator's is there."""
    assert config.model.tiny is not None
    folder = Path(config.model.path)
    if folder.exists() and any(folder.iterdir()) and not (folder / FINGERPRINT).exists():
        raise ConfigError(
            f"model.path {folder} holds a model that trustbatch did not make: "
            "choose another path for model.tiny, or remove model.tiny to train that model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / FINGERPRINT, json.dumps({"fingerprint": "in the making"}).encode())
    with tempfile.TemporaryDirectory(prefix="trustbatch-examples-") as scratch:
        examples = Path(scratch) / "examples.jsonl"
        common = ["--config", str(config_file)]
        count = str(config.model.tiny.warm_start_examples)
        run_to_end("examples", ["-m", "rollout.examples", *common, "--count", count, "--out", str(examples)])
        run_to_end("warm-start", ["-m", "learner.warm_start", *common, "--examples", str(examples)])
    write_durably(folder / FINGERPRINT, json.dumps({"fingerprint": fingerprint(config)}).encode())
