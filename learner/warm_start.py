"""Makes the tiny model: a short supervised start on solved questions, so that sampling finds rewards at all.

    python -m learner.warm_start --config FILE --examples FILE.jsonl [--out FOLDER]

It learns from a small pool of examples, seen again and again, which gives a sharp policy: one that samples nearly
as well as it decodes greedily. While its accuracy on other examples is below the wanted one the pool grows.
Deterministic on one machine: one thread, one seed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.tiny_model import build_model, build_tokenizer
from shared.config import load_config
from shared.config.run import TinyModelConfig
from shared.errors import ConfigError, TrainingError

MEASURING = 256  # examples at the end of the file that are never learned from
MEASURE_EVERY = 20  # steps
FIRST_MEASURE = 100  # steps
GROWTH = 20  # examples that join the pool when it is not yet enough
RAMP = 20  # steps of rising, and at the end of falling, learning rate
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of a question through the chat template, and of its answer with the end token."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Report:
    """What the warm start did."""

    steps: int
    pool: int  # examples learned from
    accuracy: float  # greedy, on the measuring examples


def make_model(tiny: TinyModelConfig, rows: list[dict[str, Any]], progress: Callable[[str], None]) -> tuple[Any, Any]:
    """Tokenizer and model for solved questions [{"messages": [...], "answer": "..."}]. Raises TrainingError."""
    texts = [text for row in rows for text in (row["messages"][-1]["content"], row["answer"])]
    tokenizer = build_tokenizer(texts, tiny.vocab_size)
    examples = [_encode(tokenizer, row) for row in rows]
    model = build_model(tiny, tokenizer)
    report = learn(model, tiny, examples[:-MEASURING], examples[-MEASURING:], progress)
    progress(f"accuracy {report.accuracy:.3f} after {report.steps} steps on {report.pool} examples")
    if report.accuracy < tiny.warm_start_accuracy / 2:
        raise TrainingError(
            f"the warm start reached accuracy {report.accuracy:.3f} in {report.steps} steps, wanted was "
            f"{tiny.warm_start_accuracy}: raise model.tiny.warm_start_steps or choose an easier environment"
        )
    return tokenizer, model


def learn(
    model: Any,
    tiny: TinyModelConfig,
    examples: list[Example],
    measuring: list[Example],
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Trains in place until the accuracy is reached, then for RAMP steps with a falling learning rate."""
    order = random.Random(tiny.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=tiny.warm_start_learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    pool, queue, end, step = min(tiny.warm_start_pool, len(examples)), list[int](), tiny.warm_start_steps, 0
    reached = False
    while step < end:
        step += 1
        falling = max(0.0, (end - step) / RAMP) if reached else 1.0
        optimizer.param_groups[0]["lr"] = tiny.warm_start_learning_rate * min(1.0, step / RAMP, falling)
        if len(queue) < tiny.warm_start_batch:
            queue = [i for _ in range(1 + tiny.warm_start_batch // pool) for i in range(pool)]
            order.shuffle(queue)
        _learn_batch(model, optimizer, [examples[queue.pop()] for _ in range(tiny.warm_start_batch)])
        if reached or step < FIRST_MEASURE or step % MEASURE_EVERY:
            continue
        accuracy = greedy_accuracy(model, measuring)
        progress(f"step {step}: accuracy {accuracy:.3f} on {pool} examples")
        if accuracy >= tiny.warm_start_accuracy:
            reached, end = True, min(end, step + RAMP)
        else:
            pool = min(pool + GROWTH, len(examples))
    return Report(step, pool, greedy_accuracy(model, measuring))


def _learn_batch(model: Any, optimizer: torch.optim.Optimizer, batch: list[Example]) -> None:
    ids, labels = _padded(batch)
    loss = torch.nn.functional.cross_entropy(_logits(model, ids), labels.flatten(), ignore_index=IGNORED)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def greedy_accuracy(model: Any, examples: list[Example]) -> float:
    """Share of examples whose answer greedy decoding would give, end token included.

    No decoding is needed: it gives the answer exactly if every answer token is the most likely one after those
    before it.
    """
    right = 0
    for start in range(0, len(examples), 64):
        ids, labels = _padded(examples[start : start + 64])
        best = _logits(model, ids).argmax(-1).view_as(labels)
        right += int(((best == labels) | (labels == IGNORED)).all(1).sum())
    return right / max(1, len(examples))


def _logits(model: Any, ids: Tensor) -> Tensor:
    """[B * (T - 1), V]; padding is on the right, so causal attention needs no mask."""
    logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits
    return logits.flatten(0, 1)


def _padded(batch: list[Example]) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and labels [B, T - 1], IGNORED outside the answers."""
    longest = max(len(e.prompt) + len(e.answer) for e in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest - 1), IGNORED)
    for row, e in enumerate(batch):
        end = len(e.prompt) + len(e.answer)
        ids[row, :end] = torch.tensor(e.prompt + e.answer)
        labels[row, len(e.prompt) - 1 : end - 1] = torch.tensor(e.answer)
    return ids, labels


def _encode(tokenizer: Any, row: dict[str, Any]) -> Example:
    prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
    return Example(list(prompt), [*answer, tokenizer.eos_token_id])


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes an ordinary Hugging Face folder, made beside it and put in place whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        file.replace(folder / file.name)
    partial.rmdir()


def read_examples(path: Path) -> list[dict[str, Any]]:
    """The solved questions of a JSON lines file. Raises ConfigError where there are too few or they are not that."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        whole = all(row["messages"][-1]["content"] and isinstance(row["answer"], str) for row in rows)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of solved questions: {error}") from None
    if not whole or len(rows) <= MEASURING:
        raise ConfigError(f"{path}: {len(rows)} solved questions; more than {MEASURING} are needed")
    return rows


def main() -> int:
    """The command. Returns 2 for bad input, 1 where the warm start did not get there."""
    parser = argparse.ArgumentParser(prog="python -m learner.warm_start", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    parser.add_argument("--examples", type=Path, required=True, help="JSON lines written by rollout.examples")
    parser.add_argument("--out", type=Path, help="folder of the model; model.path if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        config = load_config(arguments.config, arguments.set)
        if config.model.tiny is None:
            raise ConfigError("model.tiny is not set: there is no model to make")
        tokenizer, model = make_model(config.model.tiny, read_examples(arguments.examples), print)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    save(model, tokenizer, arguments.out or Path(config.model.path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
