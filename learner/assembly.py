"""Puts a learner's parts together: model, newest good checkpoint, ways out, all that training works with."""

from __future__ import annotations

from learner.adjust import Adjusted
from learner.checkpoint import CheckpointStore
from learner.files import RunFiles
from learner.model import load_policy
from learner.objectives import servable_objectives
from learner.parts import Parts
from learner.patience import Patience
from learner.provision import Provision, load_reference
from learner.publish import Publisher
from learner.recorder import Recorder
from learner.startup import Begin, abandon_lines, remember_buried, report_changes, restore
from learner.step import make_optimizer
from learner.trackers.base import Place
from learner.trackers.follower import Follower
from learner.transfer.publisher import WirePublisher
from learner.transfer.start import connect_wire
from shared.config import Config
from shared.control import ControlState
from shared.heartbeat import Heartbeat
from shared.history import History
from shared.keys import Keys
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.redis_client import Client
from shared.store import PolicyStore
from shared.stream import GroupReader

LONGEST_PROBE = 32  # tokens


def assemble(
    config: Config,
    client: Client,
    control: ControlState,
    store: PolicyStore,
    checkpoints: CheckpointStore,
    epoch: int,
    patiently: Patience,
    heartbeat: Heartbeat,
    metrics: LearnerMetrics,
    log: Logger,
    place: Place | None,
) -> tuple[Parts, Begin]:
    """The parts of a learner that has this epoch, and where it begins: at the newest good checkpoint, if any."""
    files = RunFiles(config.run.folder)
    objectives = servable_objectives(config)  # refused before anything is loaded
    policy = load_policy(config)
    reference = load_reference(config, objectives.needs, policy)
    optimizer = make_optimizer(policy, config.learner)
    begin, checkpoint = patiently(
        "read the published versions", lambda: restore(checkpoints, store, control, policy, optimizer)
    )
    reader = GroupReader(client, Keys(config.run.id), epoch)
    remember_buried(begin.ledger, patiently("read what is buried", reader.buried))
    abandoned = abandon_lines(files, begin)
    history = History(client, Keys(config.run.id), int(config.control_plane.history_bytes))
    patiently("take back abandoned steps", lambda: history.rewind(begin.step, epoch))
    recorder = Recorder(config, epoch, log)
    recorder.begin(begin.step)
    if checkpoint is not None:
        report_changes(checkpoint.state.config, config, log)
        log.info("restored", checkpoint=checkpoint.name, step=begin.step, abandoned_steps=abandoned)
    tracking = Follower(place, config.run.folder, metrics, log) if place else None
    if tracking is not None:
        tracking.follow(begin.step)
    longest = min(LONGEST_PROBE, getattr(config.rollout.engine, "max_model_len", LONGEST_PROBE))
    kind = WirePublisher if config.store.transfer.kind != "files" else Publisher
    publisher = kind(store, control, reader, epoch, policy, longest, config.store, metrics, heartbeat.progress)
    if isinstance(publisher, WirePublisher):
        connect_wire(publisher, config, client, epoch, log)
    parts = Parts(
        config,
        epoch,
        control,
        reader,
        files,
        checkpoints,
        publisher,
        policy,
        optimizer,
        objectives,
        Provision(policy, objectives.needs, reference),
        recorder,
        patiently,
        heartbeat,
        metrics,
        log,
        history,
        Adjusted(config, client, objectives, patiently, heartbeat, log),
        tracking,
    )
    return parts, begin
