"""The lag setting: one shape for the configuration, the command line, HTTP and Redis."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from shared.config.section import Section
from shared.lag import Dwell, parse_dwell
from shared.lag_forms import EXAMPLES, Form, parse

MAX_SERVERS = 64  # that have a lag of their own
MAX_TEXT = 2000  # characters


def _lag(value: Any) -> int | str:
    """The canonical text of a lag, a number where it is one."""
    if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > MAX_TEXT:
        raise ValueError(f"a lag is a number or a text such as {EXAMPLES}")
    text = str(parse(str(value)))
    return int(text) if text.isdigit() else text


def _dwell(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and len(value) <= MAX_TEXT):
        raise ValueError("a dwell is a text such as `8 versions` or `32 groups`")
    return None if value is None else str(parse_dwell(value))


_Natural = Annotated[int, Field(ge=0, le=1024)]
_Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
ServerId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]


class ServerLag(Section):
    """What one server is asked for. A number or a text alone stands for its `lag`."""

    lag: Annotated[_Natural | _Text, BeforeValidator(_lag)] = 0
    """Versions behind the newest: a number, a distribution or a schedule over optimizer steps, for example 8,
    uniform:0:16, choice:0,4*2,16, geometric:.25:16, 0@0,8@100 or linear:0@0,16@200."""
    dwell: Annotated[_Text | None, BeforeValidator(_dwell)] = None
    """Draw again after so many published versions (`8 versions`) or groups of the server (`32 groups`).
    Empty: every server draws once."""
    control_share: float = Field(0.0, ge=0, lt=1)
    """Share of dwells (without a dwell: of servers) at lag 0 on purpose: the control arm."""

    @cached_property
    def form(self) -> Form:
        """The lag, read."""
        return parse(str(self.lag))

    @cached_property
    def dwelling(self) -> Dwell | None:
        """The dwell, read."""
        return None if self.dwell is None else parse_dwell(self.dwell)

    @model_validator(mode="before")
    @classmethod
    def _lag_alone(cls, given: Any) -> Any:
        return given if isinstance(given, dict | Section) else {"lag": given}

    @model_validator(mode="after")
    def _dwell_has_a_draw(self) -> ServerLag:
        if self.dwell is not None and not self.form.drawn and not self.control_share:
            raise ValueError(
                f"dwell is {self.dwell}, but there is nothing to draw: give a distribution or control_share"
            )
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        set_beside = {name: value for name, value in handler(self).items() if value not in (None, 0.0, {})}
        return self.lag if set_beside.keys() <= {"lag"} else {"lag": self.lag, **set_beside}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number, text = {"type": "integer", "minimum": 0, "maximum": 1024}, {"type": "string", "maxLength": MAX_TEXT}
        return {"anyOf": [number, text, handler(core_schema)]}

    def __str__(self) -> str:
        dwell = f", drawn again every {self.dwell}" if self.dwell and self.form.drawn else ""
        of = "servers" if self.dwell is None else f"dwells of {self.dwell}"
        share = f", control arm {self.control_share:g} of {of}" if self.control_share else ""
        return f"{self.lag}{dwell}{share}"


class LagSetting(ServerLag):
    """What all servers are asked for, and single ones instead."""

    servers: dict[ServerId, ServerLag] = Field(default={}, max_length=MAX_SERVERS)
    """Servers with a setting of their own, by server id."""

    @property
    def largest(self) -> int:
        """The largest lag that any server can be asked for, versions."""
        return max(own.form.largest for own in (self, *self.servers.values()))

    def capped(self, most: int) -> LagSetting:
        """The same setting with no lag above `most`."""
        servers = {name: _capped(own, most) for name, own in self.servers.items()}
        return LagSetting.model_validate({**_capped(self, most), "servers": servers})

    def __str__(self) -> str:
        return "; ".join([super().__str__(), *(f"{name}: {own}" for name, own in sorted(self.servers.items()))])


def _capped(own: ServerLag, most: int) -> dict[str, Any]:
    return {"lag": str(own.form.capped(most)), "dwell": own.dwell, "control_share": own.control_share}


def to_wish(setting: LagSetting) -> str:
    """The canonical JSON of a setting: equal settings have equal texts."""
    return json.dumps(setting.model_dump(mode="json"), sort_keys=True)


def from_wish(wish: str | bytes) -> LagSetting | None:
    """The setting that a text of `to_wish` stands for; None where it stands for none."""
    try:
        return LagSetting.model_validate(json.loads(wish))
    except (ValueError, RecursionError, ValidationError):
        return None
