"""`trustbatch dead-letters`: what could not be trained on, why, and putting it back once that is mended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.run_folder import CONFIG
from shared.codec import decode_group
from shared.config import Config, load_config
from shared.errors import ConfigError, DecodeError, StreamError
from shared.keys import Keys
from shared.letters import REQUEUED, DeadLetter, letter, letters, requeue, totals
from shared.redis_client import Client, connect
from shared.types import Group

HEAD_BYTES = 256
HEAD_TOKENS = 16
_LINE_BYTES = 16


def config_of(run: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a run folder, or of a YAML file. Raises ConfigError."""
    file = run / CONFIG if run.is_dir() else run
    if not file.is_file():
        raise ConfigError(f"{run} is neither a run folder nor a YAML file")
    return load_config(file, overrides)


def show_list(config: Config, console: Console) -> None:
    """Totals by reason since the run began, then every dead letter that is kept, oldest first."""
    client, keys = connect(config), Keys(config.run.id)
    by_reason = totals(client, keys)
    if not by_reason:
        console.print(f"run {config.run.id} has no dead letters")
        return
    table = _table("reason", "count", "bytes", "requeued", "dropped", "dropped bytes")
    for reason, t in by_reason.items():
        table.add_row(plain(reason), *(f"{n:,}" for n in (t.count, t.bytes, t.requeued, t.dropped, t.dropped_bytes)))
    console.print(table)
    kept = _table("id", "group_id", "prompt", "reason", "bytes", "when", "server", "what is wrong")
    for found in letters(client, keys):
        index = str(found.prompt_index) if found.prompt_index >= 0 else ""
        row = (
            found.id,
            found.group_id,
            index,
            found.reason,
            f"{found.size:,}",
            _when(found),
            found.server,
            found.error,
        )
        kept.add_row(*map(plain, row))
    console.print(kept)


def show_one(config: Config, letter_id: str, out: Path | None, console: Console) -> None:
    """One dead letter: what is known of it, and what is in it. Raises StreamError where there is none of this id."""
    found = letter(connect(config), Keys(config.run.id), letter_id)
    if found is None:
        raise StreamError(
            f"there is no dead letter {plain(letter_id)}; `trustbatch dead-letters list` shows those that are kept"
        )
    for line in [*_header(found), "", *content(found)]:
        console.print(Text(line), soft_wrap=True)
    if out is not None:
        out.write_bytes(found.payload)
        console.print(Text(f"\n{len(found.payload):,} bytes of payload in {out}"), soft_wrap=True)


def requeue_some(config: Config, ids: Sequence[str], reason: str | None, console: Console) -> bool:
    """Requeues dead letters by id, or all of a reason; says what became of each. True if all of them went back."""
    client, keys = connect(config), Keys(config.run.id)
    wanted = [*ids, *(_of_reason(client, keys, reason) if reason is not None else ())]
    if not wanted:
        raise StreamError(f"no dead letter of reason {plain(str(reason))} is kept")
    said = {letter_id: requeue(client, keys, letter_id) for letter_id in wanted}
    for letter_id, answer in said.items():
        console.print(Text(f"{plain(letter_id)}: {plain(answer)}"), soft_wrap=True)
    return all(answer == REQUEUED for answer in said.values())


def plain(text: str) -> str:
    """Text that a server may have chosen, without what a terminal would act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def hexdump(data: bytes, most: int = HEAD_BYTES) -> list[str]:
    """The first bytes: offset, hexadecimal, characters."""
    lines = []
    for start in range(0, min(len(data), most), _LINE_BYTES):
        part = data[start : min(start + _LINE_BYTES, most)]
        characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{3 * _LINE_BYTES}} {characters}")
    if len(data) > most:
        lines.append(f"... {len(data) - most:,} more bytes; --out FILE writes them all")
    return lines


def _of_reason(client: Client, keys: Keys, reason: str) -> Iterable[str]:
    return [found.id for found in letters(client, keys) if found.reason == reason]


def _header(found: DeadLetter) -> list[str]:
    index = str(found.prompt_index) if found.prompt_index >= 0 else "none of this run"
    known = {
        "id": found.id,
        "group_id": found.group_id,
        "prompt": index,
        "reason": found.reason,
        "what is wrong": found.error,
        "server": found.server or "not known",
        "when": _when(found),
        "stream entry": found.entry_id,
        "bytes": f"{found.size:,}",
    }
    return [f"{name:<15}{plain(value)}" for name, value in known.items()]


def content(found: DeadLetter) -> list[str]:
    """What is in it, in lines of text: a group where it is one, else its first bytes."""
    if not found.payload and found.size:
        return ["its payload alone was larger than admission.dead_letter_bytes and was not kept"]
    try:
        return _described(decode_group(found.payload))
    except DecodeError as error:
        return [f"it is no group ({plain(str(error))}); its bytes:", *hexdump(found.payload)]


def _described(group: Group) -> list[str]:
    lines = [
        f"a group of {group.group_size} completions of {plain(group.environment)}, lag {group.lag}, "
        f"trace {plain(group.trace_id)}",
        f"prompt         {_head(group.prompt_ids.tolist())}",
    ]
    for i, t in enumerate(group.trajectories):
        versions = ", ".join(f"{s.policy_version} [{s.start}:{s.end}]" for s in t.versions)
        lines += [
            f"trajectory {i}   {t.length} tokens ({int(t.loss_mask.sum())} trained), reward {t.reward:g}, "
            f"{t.finish_reason}, temperature {t.sampling.temperature:g}",
            f"  versions     {versions}",
            f"  token_ids    {_head(t.token_ids.tolist())}",
            f"  logprobs     {_head([float(f'{value:.4g}') for value in t.behavior_logprobs])}",
        ]
    return lines


def _head(values: Sequence[float]) -> str:
    return " ".join(map(str, values[:HEAD_TOKENS])) + (" ..." if len(values) > HEAD_TOKENS else "")


def _when(found: DeadLetter) -> str:
    return datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if "bytes" in column or column == "count" else "left", overflow="fold")
    return table
