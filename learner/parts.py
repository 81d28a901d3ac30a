"""What training works with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.adjust import Adjusted
from learner.checkpoint import CheckpointStore
from learner.files import RunFiles
from learner.model import PolicyModel
from learner.objectives import Objectives
from learner.patience import Patience
from learner.provision import Provision
from learner.publish import Publisher
from learner.recorder import Recorder
from learner.trackers.follower import Follower
from shared.config import Config
from shared.control import ControlState
from shared.heartbeat import Heartbeat
from shared.history import History
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.stream import GroupReader


@dataclass(frozen=True)
class Parts:
    """What training works with."""

    config: Config
    epoch: int
    control: ControlState
    reader: GroupReader
    files: RunFiles
    checkpoints: CheckpointStore
    publisher: Publisher
    policy: PolicyModel
    optimizer: torch.optim.Optimizer
    objectives: Objectives
    provision: Provision
    recorder: Recorder
    patience: Patience
    heartbeat: Heartbeat
    metrics: LearnerMetrics
    log: Logger
    history: History
    adjusted: Adjusted
    tracking: Follower | None = None
