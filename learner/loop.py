"""The learner's life: start, iterate until training is over or somebody asks it to stop, end in order."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from learner.assembly import assemble
from learner.checkpoint import CheckpointStore
from learner.ending import await_evaluation, save_model
from learner.evaluations import Evaluations
from learner.patience import Patience
from learner.refusals import Refusals, refusals
from learner.startup import await_predecessor, take_epoch
from learner.trackers.base import place_of
from learner.training import Training
from learner.transfer.publisher import WirePublisher
from shared.config import Config
from shared.control import LEARNER, ControlState, Phase
from shared.errors import AccessError, DeadlineError, FencedError, StreamError
from shared.heartbeat import Heartbeat
from shared.keys import RUNS, Keys
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.process import Deadline, StopFlag
from shared.redis_client import Client, load_scripts
from shared.runs import register
from shared.store import open_store
from shared.stream import Backlog, backlog

PAUSE_POLL_S = 0.2
TRACKER_END_S = 30.0  # at the end of a run
TRACKER_STOP_S = 2.0  # when told to stop; what it did not take comes with the next start


class Learner:
    """One learner of one run: `run` is its whole life; tests drive `start`, `iterate` and the stages."""

    training: Training
    evaluations: Evaluations

    def __init__(
        self,
        config: Config,
        client: Client,
        log: Logger,
        stop: StopFlag,
        metrics: LearnerMetrics,
        metrics_address: str = "",
    ) -> None:
        self.config = config
        self.log = log
        self.metrics = metrics
        self._client = client
        self._stop = stop
        self._keys = Keys(config.run.id)
        self.control = ControlState(client, self._keys)
        self.heartbeat = Heartbeat(
            self.control,
            LEARNER,
            config.admission.lease_s,
            kind="learner",
            pid=os.getpid(),
            host=socket.gethostname(),
            metrics=metrics_address,
            step=0,
            policy_version=-1,
            epoch=0,
        )
        self._refusals = Refusals(self.control, log)
        self._patiently = Patience(self._reopen, self.heartbeat.set_state, stop, log, metrics.redis)
        self._phase: tuple[Phase, str] | None = None
        self._epoch = 0  # none yet
        self._place = place_of(config)  # refused before anything is loaded
        self._idle: Deadline | None = None

    def run(self) -> None:
        """From start to end. Raises what ended it early; the run's phase then says so."""
        try:
            self._work()
        except FencedError as error:
            self.log.error("fenced", reason=str(error))
            self.heartbeat.stop(leave=False)  # the name belongs to the other learner now
            raise
        except Exception as error:
            self._fail(error)
            if self._is_fenced():
                raise FencedError(f"another learner has taken over this run; this one had failed: {error}") from error
            raise
        self.heartbeat.stop()

    def _work(self) -> None:
        try:
            self.start()
            while self.iterate():
                pass
            if not self._stop:
                self.finish()
            if self._stop:
                self.halt()
        except StreamError as error:
            if not self._stop:
                raise
            self.log.warning("stopped during an outage of Redis: the newest checkpoint counts", error=str(error))

    # -- start ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Takes the run over: afterwards there is a version to serve and the stream is open."""
        config = self.config
        lease_s = config.admission.lease_s
        self._patiently("load the scripts", lambda: load_scripts(self._client))
        self._patiently("see whether another learner lives", lambda: await_predecessor(self.control, lease_s))
        self.heartbeat.start()
        self._tell_phase("starting")
        self.training = self._begin()
        self._patiently("open the stream", self._reopen)
        files = self.training.parts.files
        self.evaluations = Evaluations(self.control, files, self._patiently, config.learner.target_heldout_accuracy)
        self.evaluations.request(self.training.lineage.latest)
        self._register()
        self._tell_phase("running")
        self.log.info("started", step=self.training.step, policy_version=self.training.lineage.latest)

    def _register(self) -> None:
        """On the list of runs, where the user of Redis may: one that was made for an older release may not."""
        steps = self.config.learner.steps
        try:
            self._patiently.tell("put the run on the list", lambda: register(self._client, self._keys, steps))
        except AccessError as error:
            said = (
                f"the run is not on the list of runs: make the users of Redis anew, so that the learner may use {RUNS}"
            )
            self.log.warning(said, key=RUNS, error=str(error.__cause__))

    def _begin(self) -> Training:
        """Restores the newest good checkpoint, if any, and publishes the weights to begin with."""
        config = self.config
        checkpoints = CheckpointStore(config.run.folder / "checkpoints", config.learner.keep_checkpoints, self._warn)
        store = open_store(config)
        self._epoch = self._patiently("take an epoch", lambda: take_epoch(self.control, checkpoints))
        self.heartbeat.set_state("loading the model", epoch=self._epoch)
        parts, begin = assemble(
            config,
            self._client,
            self.control,
            store,
            checkpoints,
            self._epoch,
            self._patiently,
            self.heartbeat,
            self.metrics,
            self.log,
            self._place,
        )
        training = Training(parts, begin)
        training.publish_version(begin.parent)
        return training

    # -- iterate --------------------------------------------------------------------------------
    def iterate(self) -> bool:
        """One unit of work: a read of the stream and, where that fills a batch, all that follows.

        Returns:
            False when training is over or the process was asked to stop.

        """
        if self._stop or self.over:
            return False
        self._look_at_evaluations()
        self._answer_wish_for_files()
        self.training.parts.adjusted.hear(self.training.step)
        if self._paused() or not self._collected():
            return True
        training, now = self.training, self._backlog()
        training.train(training.intake.take(training.lineage))
        if training.publish_due or self._wanted_at_once():
            training.publish(self.evaluations)
        training.record()
        if training.checkpoint_due or training.is_pressed(now, waiting=False):
            training.write_checkpoint()
            training.delete_finished()
        return True

    @property
    def over(self) -> str:
        """Why training is over; '' while it is not."""
        learner, reached = self.config.learner, self.evaluations.reached
        if reached is not None:
            found = f"held-out accuracy {reached.accuracy:.3f} of version {reached.policy_version}"
            return f"{found} reached the target {learner.target_heldout_accuracy}"
        return f"all {learner.steps} steps are done" if self.training.step >= learner.steps else ""

    @property
    def finished(self) -> bool:
        """True once the run is over and everybody was told."""
        return self._phase_is("finished")

    def _collected(self) -> bool:
        """True when a batch is complete. Raises DeadlineError where no usable group came for too long."""
        training, wanted = self.training, self.config.learner.groups_per_batch
        held = len(training.intake.held)
        refused = self._patiently("hear of refused versions", self._refusals.hear)
        self.heartbeat.set_state(f"waiting for groups ({held} of {wanted})" + (f"; {refused}" if refused else ""))
        if self._idle is None:
            self._idle = Deadline("groups", self.config.learner.idle_deadline_s)
        if training.collect():
            self._idle = None
            return True
        now = self._backlog()
        if len(training.intake.held) > held:
            self._idle = None
        elif self._idle.remaining == 0.0:
            raise DeadlineError(self._what_is_missing(now))
        elif training.is_blind(now):
            self._patiently("read delivered groups again", self._reopen)
        if training.is_pressed(now, waiting=True):
            training.write_checkpoint()
            training.delete_finished()
        return False

    def _paused(self) -> bool:
        who = self._patiently("see whether the run is paused", self.control.paused_by)
        if not who:
            if self._phase_is("paused"):
                self._tell_phase("running")
            return False
        if not self._phase_is("paused"):
            self._tell_phase("paused", f"by the {who}")
        self.heartbeat.set_state(f"paused by the {who}")
        self._idle = None
        time.sleep(PAUSE_POLL_S)
        self.training.clock.ready()
        return True

    def _wanted_at_once(self) -> bool:
        """True where somebody wants a version above the newest, and there is one to publish."""
        if not self.training.unpublished:
            return False
        above = self._patiently("see whether a version is wanted", self.control.publish_above)
        return above >= self.training.lineage.latest

    def _look_at_evaluations(self) -> None:
        for result in self.evaluations.collect(self.training.lineage):
            self.log.info("evaluation", policy_version=result.policy_version, accuracy=result.accuracy)

    def _answer_wish_for_files(self) -> None:
        """A server that got nothing over the wire waits for files: of the weights as they are now."""
        wire = self.training.parts.publisher
        if not isinstance(wire, WirePublisher) or not self._patiently("see who wants files", lambda: wire.wanted):
            return
        if wire.lacks_files and self.training.unpublished:  # the latest version's weights are no longer here
            self.training.publish(self.evaluations)
            self.training.record()
        self._patiently("write files", wire.answer)

    def _backlog(self) -> Backlog:
        now = self._patiently("read the backlog", lambda: backlog(self._client, self._keys))
        oldest_s = self._patiently("look at the oldest group", self.training.parts.reader.oldest_s)
        self.training.clock.sees(now, oldest_s)
        self.metrics.observe_backlog(now.unapplied, now.bytes, oldest_s, self.training.clock.drain_s)
        return now

    def _what_is_missing(self, now: Backlog) -> str:
        """The message of an idle deadline: what was waited for, and who might have brought it."""
        learner, training = self.config.learner, self.training
        members = self._patiently("see who is there", self.control.members)
        servers = [name for name, status in members.items() if status and status.get("kind") == "rollout"]
        refused = "; ".join(f"{name} {text}" for name, _, text in refusals(members))
        dropped = ", ".join(f"{reason} {n}" for reason, n in sorted(training.ledger.dropped.items()))
        return (
            f"waited {learner.idle_deadline_s:g} s for groups ({len(training.intake.held)} of "
            f"{learner.groups_per_batch} are here, {now.leased} are asked for); living rollout servers: "
            f"{', '.join(servers) or 'none, start one'}; {refused + '; ' if refused else ''}"
            f"dropped so far: {dropped or 'none'}"
        )

    # -- end ------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Publishes, checkpoints and saves the last weights, waits for their evaluation, ends the run."""
        reason = self.over
        self._save_all()
        lineage = self.training.lineage
        self.evaluations.request(lineage.latest)
        self.heartbeat.set_state("saving the trained model")
        save_model(self.training.parts.policy, self.config.model.path, self.config.run.folder / "model")
        deadline = Deadline("the last evaluation", self.config.evaluation.deadline_s)
        say, serve = self.heartbeat.set_state, self._answer_wish_for_files
        missing = await_evaluation(self.evaluations, lineage, deadline, self._stop, say, serve)
        if not self._stop:
            self._end_tracking(TRACKER_END_S)
            self._tell_phase("finished", f"{reason}; {missing}" if missing else reason)
            self.heartbeat.set_state("finished")
            self.log.info("finished", reason=reason, missing=missing, step=self.training.step)

    def halt(self) -> None:
        """An orderly stop: what was trained is published and saved, and the next start goes on from there."""
        self.heartbeat.set_state("stopping")
        self._save_all()
        self._end_tracking(TRACKER_STOP_S)
        self._tell_phase("stopped", self._stop.reason)
        self.log.info("stopped", reason=self._stop.reason, step=self.training.step)

    def _save_all(self) -> None:
        training = self.training
        if training.unpublished:
            training.publish(self.evaluations)
        training.record()
        if training.unsaved:
            training.write_checkpoint()
            training.delete_finished()

    def _end_tracking(self, deadline_s: float) -> None:
        tracking = self.training.parts.tracking
        if tracking is not None:
            self.heartbeat.set_state("handing the last steps to the tracker")
            tracking.close(deadline_s)

    def _is_fenced(self) -> bool:
        """True if another learner has the run: what failed here may be its doing."""
        try:
            self.control.check_epoch(self._epoch)
        except FencedError:
            return True
        except StreamError:
            return False
        return False

    def _fail(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        self.heartbeat.set_state("failed")
        with suppress(StreamError, FencedError):
            self.control.set_phase("failed", reason, self._epoch)
        self.heartbeat.stop()

    # -- Redis ----------------------------------------------------------------------------------
    def _tell_phase(self, phase: Phase, reason: str = "") -> None:
        self._phase = phase, reason
        self._patiently("tell the phase", lambda: self.control.set_phase(phase, reason, self._epoch))

    def _phase_is(self, phase: Phase) -> bool:
        return self._phase is not None and self._phase[0] == phase

    def _reopen(self) -> None:
        """After an outage; before the learner has begun there is nothing to open."""
        if not hasattr(self, "training"):
            return
        forgot = self.training.reopen()
        if self._phase is not None:
            self.control.set_phase(*self._phase, self._epoch)
        if forgot and hasattr(self, "evaluations"):
            self.evaluations.ask_again()

    def _warn(self, text: str) -> None:
        self.log.warning(text)
