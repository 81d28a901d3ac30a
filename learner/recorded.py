"""`python -m learner.recorded RUN_FOLDER [--max-bytes SIZE | --off]`: what is recorded, and how much may be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from learner.recording import FOLDER, RecordedFile, read, recorded_files
from shared.config import Config, load_config
from shared.control import LEARNER, ControlState
from shared.errors import ConfigError, DecodeError, StreamError, TrustbatchError
from shared.keys import Keys
from shared.redis_client import connect

ANSWER_S = 2.0  # how long Redis may take to answer


def main(arguments: Sequence[str] | None = None) -> int:
    """The process. 0: done; 1: it cannot be; 2: wrong arguments."""
    parser = argparse.ArgumentParser(prog="trustbatch record", description="What is recorded of a run.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--max-bytes", metavar="SIZE", help="e.g. 1GiB")
    bound.add_argument("--off", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.off or given.max_bytes:
            text = set_bound(given.folder, 0 if given.off else _size(given.max_bytes))
            print(text)
        else:
            show(given.folder, Console(highlight=False, markup=False, emoji=False))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (TrustbatchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def set_bound(folder: Path, max_bytes: int) -> str:
    """Tells the run's learner how many bytes it may record from its next batch on; says what then happens."""
    config = _config(folder)
    control = ControlState(connect(config, ANSWER_S), Keys(config.run.id))
    try:
        control.set_record_bytes(max_bytes)
        alive = control.status_of(LEARNER) is not None
    except StreamError as error:
        text = f"the run is not running ({error}); its next start takes learner.record_bytes from its settings"
        raise StreamError(text) from None
    control.add_event("record", f"at most {max_bytes} bytes of recorded steps", "trustbatch record")
    when = "from its next batch on" if alive else "when it runs again; none is alive now"
    what = (
        f"keeps at most {_shown(max_bytes)} of recorded steps" if max_bytes else "records no more; what is there stays"
    )
    return f"The learner of {config.run.id} {what}, {when}."


def show(folder: Path, console: Console) -> None:
    """Prints what is recorded. Raises ConfigError where nothing is."""
    files = recorded_files(folder / FOLDER)
    if not files:
        raise ConfigError(
            f"{folder / FOLDER}: no recorded step. A learner records each step while learner.record_bytes is above 0"
        )
    table = Table("epoch", "steps", "files", "size", "", box=None, header_style="bold", pad_edge=False)
    for _, group in groupby(files, _kind):
        same = list(group)
        steps = f"{same[0].step}..{same[-1].step}" if len(same) > 1 else str(same[0].step)
        size = _shown(sum(f.bytes for f in same))
        table.add_row(str(same[0].epoch), steps, str(len(same)), size, _remark(folder, same[0]))
    console.print(table)
    console.print(f"{_shown(sum(f.bytes for f in files))} in {folder / FOLDER}; {_bound(folder)}", soft_wrap=True)


def _kind(file: RecordedFile) -> tuple[object, ...]:
    """Equal for files that one line stands for; a skipped step has its own."""
    return file.epoch, file.abandoned, file.step if file.skipped else None


def _remark(folder: Path, file: RecordedFile) -> str:
    remarks = ["abandoned by a restore"] if file.abandoned else []
    if file.skipped:
        try:
            recording = read(folder / FOLDER / file.name)
            found = recording.offending_groups()
            groups = "all groups" if len(found) == len(recording.groups) else ", ".join(found)
            remarks.append(f"skipped: {recording.skipped}" + (f" in {groups}" if found else ""))
        except (DecodeError, OSError) as error:
            remarks.append(f"skipped; {file.name} cannot be read: {error}")
    return "; ".join(remarks)


def _bound(folder: Path) -> str:
    """How much may be there, as far as this can be found out."""
    try:
        config = _config(folder)
    except ConfigError:
        return "its bound is learner.record_bytes of the run's settings"
    try:
        wish = ControlState(connect(config, ANSWER_S), Keys(config.run.id)).record_bytes()
    except (ConfigError, StreamError):
        wish = None  # a run that is over has no Redis
    max_bytes = config.learner.record_bytes if wish is None else wish
    source = "learner.record_bytes" if wish is None else "by `trustbatch record`"
    return f"at most {_shown(max_bytes)} ({source})" if max_bytes else f"recording is off ({source})"


def _config(folder: Path) -> Config:
    return load_config(folder / "config.yaml")


def _size(text: str) -> int:
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigError(f"--max-bytes: {text!r} is no size; give for example 256MiB or 1GiB") from None
    if size <= 0:
        raise ConfigError("--max-bytes must be above 0; --off records no more")
    return size


def _shown(size: int) -> str:
    return ByteSize(size).human_readable()


if __name__ == "__main__":
    sys.exit(main())
