"""What the parts of one rollout server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollout.busy import Busy
from rollout.patience import Patience
from rollout.status import Status
from shared.admission import Admission
from shared.budgets import credit
from shared.config import Config
from shared.control import ControlState
from shared.errors import OutOfMemoryError
from shared.keys import Keys
from shared.log import Logger
from shared.metrics import RolloutMetrics
from shared.redis_client import connect
from shared.stream import GroupWriter
from shared.transfer import Transfers
from shared.wishes import Wishes


@dataclass(frozen=True)
class Parts:
    """Configuration, ways to Redis, and what the server says of itself."""

    config: Config
    server_id: str
    control: ControlState
    admission: Admission
    writer: GroupWriter
    status: Status
    metrics: RolloutMetrics
    log: Logger
    patience: Patience
    transfers: Transfers
    wishes: Wishes
    busy: Busy
    stages: dict[str, float] = field(default_factory=dict)  # what the parts of the newest sync took, seconds

    @classmethod
    def connect(
        cls, config: Config, server_id: str, metrics: RolloutMetrics, metrics_address: str, log: Logger
    ) -> Parts:
        """The parts of one server; Redis is reached at first use."""
        client, keys = connect(config), Keys(config.run.id)
        control = ControlState(client, keys)
        status = Status(config, control, server_id, metrics_address)
        return cls(
            config=config,
            server_id=server_id,
            control=control,
            admission=Admission(client, keys, server_id, credit(config)),
            writer=GroupWriter(client, keys, server_id),
            status=status,
            metrics=metrics,
            log=log,
            patience=Patience(status, log, metrics.redis),
            transfers=Transfers(client, keys),
            wishes=Wishes(client, keys),
            busy=Busy(metrics),
        )

    async def record(self, kind: str, text: str) -> None:
        """Records that something happened; what Redis has no room for is in the log only. Raises StreamError."""
        try:
            await self.patience("record an event", lambda: self.control.add_event(kind, text, self.server_id))
        except OutOfMemoryError as error:
            self.metrics.redis.left_out.inc()
            self.log.warning("an event is left out", event_kind=kind, text=text, error=str(error))
