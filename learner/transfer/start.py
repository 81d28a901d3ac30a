"""Wiring: the channel that the configuration asks for."""

from __future__ import annotations

from learner.transfer.channel import Channel
from learner.transfer.publisher import WirePublisher
from learner.transfer.senders import make_sender
from shared.config import Config
from shared.control import ControlState
from shared.keys import Keys
from shared.log import Logger
from shared.redis_client import Client
from shared.transfer import Transfers


def connect_wire(publisher: WirePublisher, config: Config, client: Client, epoch: int, log: Logger) -> None:
    """Gives the publisher its channel. Raises ConfigError where store.transfer cannot work here."""
    keys = Keys(config.run.id)
    transfer, transfers = config.store.transfer, Transfers(client, keys)
    channel = Channel(transfer, ControlState(client, keys), transfers, make_sender(transfer.kind), epoch, log)
    publisher.connect(channel, transfers, config.store.whole_every, log)
