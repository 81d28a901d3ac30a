"""The lag dial as an operator turns it, from the command line or over HTTP: what is asked for, by whom, and of whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from services.controller.loop import remembered
from services.controller.wishes import operators_lag
from shared.config import Config
from shared.config.lag import MAX_SERVERS, LagSetting, ServerLag, to_wish
from shared.control import ControlState
from shared.errors import ConfigError, StreamError
from shared.steering import CONTROLLER

KIND = "rollout"


class LagRefusedError(StreamError):
    """The run's state does not let anybody change the lag now."""


@dataclass(frozen=True)
class Dialled:
    """What is asked for now."""

    setting: LagSetting
    operators: LagSetting  # the same, or what the operator had wanted where the controller wants less for now
    wish: bytes  # as stored; empty for none
    by: str  # who wants it; '' where the configuration says so
    at: float | None  # unix seconds
    max_lag: int
    servers: Mapping[str, Mapping[str, Any]]  # server id -> heartbeat of every living rollout server


def read_lag(config: Config, control: ControlState) -> Dialled:
    """What is asked for: the operator's wish where it can be followed, else the configuration's. Raises StreamError."""
    wish = control.lag_wish()
    wished = config.wished_lag(wish.text) if wish.text else None
    setting = config.rollout.lag if wished is None else wished
    by, at = ("", None) if wished is None else (wish.by, wish.at)
    operators = _beneath(config, control) if by == CONTROLLER else None
    return Dialled(setting, operators or setting, wish.text, by, at, config.rollout.largest_lag, _servers(control))


def set_lag(
    config: Config, control: ControlState, setting: LagSetting, by: str, instead_of: bytes | None = None
) -> bool:
    """Asks for a setting, from every server's next group on; returns False where it is asked for already.

    Args:
        config: of the run.
        control: of the run.
        setting: what is asked for.
        by: who asks.
        instead_of: the wish that it was made from; None: whatever there is.

    Raises:
        ConfigError: it goes beyond what the run keeps versions for.
        LagRefusedError: the run has not begun, or is over.
        StreamError: Redis does not answer, or another wish came in between.

    """
    most = config.rollout.largest_lag
    if setting.largest > most:
        raise ConfigError(
            f"lag {setting} asks for up to {setting.largest} versions; this run keeps versions for at most {most} "
            f"(rollout.max_lag): ask for less, or go on with it after --set rollout.max_lag={setting.largest}"
        )
    _check_open(config, control)
    return control.wish_lag(to_wish(setting).encode(), by, instead_of, f"servers are to lag by {setting}")


def clear_lag(config: Config, control: ControlState, by: str) -> bool:
    """Asks for the configuration's lag again; returns False where nothing else was asked for. Raises as `set_lag`."""
    _check_open(config, control)
    return control.wish_lag(b"", by, event=f"servers are to lag as configured: {config.rollout.lag}")


def with_server(setting: LagSetting, server_id: str, own: ServerLag | None) -> LagSetting:
    """The same setting with another one for a single server; None: that of all. Raises ConfigError."""
    servers = {name: lag for name, lag in setting.servers.items() if name != server_id}
    servers.update({server_id: own} if own is not None else {})
    whole = {"lag": setting.lag, "dwell": setting.dwell, "control_share": setting.control_share, "servers": servers}
    try:
        return LagSetting.model_validate(whole)
    except ValidationError:
        raise ConfigError(f"{server_id!r} cannot be a server's id, or {MAX_SERVERS} have a lag of their own") from None


def _beneath(config: Config, control: ControlState) -> LagSetting | None:
    """What the operator wants beneath the controller's cap; None where nothing is remembered of it."""
    memory = remembered(control.steering.state())
    return None if memory.lag_wish is None else operators_lag(config, memory)


def _check_open(config: Config, control: ControlState) -> None:
    phase, _ = control.phase()
    if phase == "finished":
        raise LagRefusedError(f"run {config.run.id} is finished: there is no next group that could lag")
    if control.latest() is None and not control.members():
        raise LagRefusedError(
            f"run {config.run.id} has not begun: give rollout.lag in its configuration, or start it first"
        )


def _servers(control: ControlState) -> dict[str, Mapping[str, Any]]:
    members = control.members().items()
    return {name.partition(":")[2]: values for name, values in members if values and values.get("kind") == KIND}
