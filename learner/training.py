"""What a running learner holds, and the stages of an iteration, each of which a crash may follow.

    collect -> train -> publish -> record -> write_checkpoint -> delete_finished
                           |                        |                  |
                   credit of the groups      ledger of finished   what the checkpoint
                   is free                   prompt indices       before had finished

Between any two of them every group is either in a durable checkpoint's ledger or in the stream.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from learner.announce import Announcer
from learner.book import Book
from learner.checkpoint import TrainingState, collect_tensors
from learner.evaluations import Evaluations
from learner.examples import Decoder, examples_of
from learner.intake import Held, Intake
from learner.losses import Losses
from learner.minibatches import Minibatch, next_steps, split
from learner.pace import Clock
from learner.parts import Parts
from learner.records import step_record
from learner.screening import Rules
from learner.split import Splitter
from learner.staleness import parts_of_staleness
from learner.startup import Begin, config_row
from learner.step import take_step
from shared.control import LEARNER
from shared.errors import FencedError, TrainingError
from shared.stream import Backlog


class Training:
    """The state of training and its stages."""

    def __init__(self, parts: Parts, begin: Begin) -> None:
        self.parts = parts
        learner = parts.config.learner
        self.step = begin.step
        self.batches = begin.batches
        self.ledger = begin.ledger
        self.lineage = begin.lineage
        self.policy = parts.config.admission.policy
        self.intake = Intake(
            parts.reader,
            begin.ledger,
            parts.files,
            parts.patience,
            parts.metrics,
            parts.log,
            learner.groups_per_batch,
            parts.config.group_bytes_bound,
            int(parts.config.admission.dead_letter_bytes),
            self.policy.select,
            learner.groups_per_batch * parts.config.admission.batches_held,
        )
        self.announcer = Announcer(parts, begin.ledger, self.intake)
        self.losses = Losses(parts.files.lost, parts.metrics, parts.log)
        self.book = Book(
            parts.files,
            parts.control,
            parts.history,
            parts.epoch,
            parts.patience,
            parts.metrics,
            int(learner.examples_bytes),
        )
        self._splitter = Splitter(parts.config, parts.policy, parts.metrics, parts.log, parts.heartbeat.progress)
        self._decoder = Decoder(parts.config.model.path, parts.log)
        self._skipped_in_a_row = 0
        self._steps_unpublished = 0  # that changed the weights
        self._batches_unpublished = 0
        self._batches_unsaved = 0
        self.clock = Clock()
        self._waited_for = False  # there were groups to train on when the backlog was read last
        self._read_nothing = False

    # -- collect --------------------------------------------------------------------------------
    @property
    def rules(self) -> Rules:
        """What a group has to satisfy now."""
        config = self.parts.config
        return Rules(
            run_id=config.run.id,
            vocab_size=self.parts.policy.vocab_size,
            max_tokens=config.learner.micro_batch_tokens,
            max_staleness=config.admission.max_staleness,
            lineage=self.lineage,
            experts="expert" in self.parts.objectives.trained.needs,
            evict=self.policy.evict,
        )

    def collect(self) -> bool:
        """Reads the stream once, at most a second. Returns True when a batch is complete.

        Raises:
            FencedError: before anything is read that another learner would then wait for.

        """
        self._check_epoch()
        self._hear_claims()
        self._read_nothing = self.intake.read(self.rules) == 0
        return self.intake.full

    def is_blind(self, backlog: Backlog) -> bool:
        """True if the newest read came back empty, although there were groups to train on before it.

        They were delivered and never received, or somebody took their entries out of the stream.
        """
        waiting = backlog.unapplied > len(self._in_hand)
        blind = self._waited_for and waiting and self._read_nothing
        self._waited_for = waiting
        return blind

    @property
    def _in_hand(self) -> set[int]:
        """Prompt indices that hold credit and whose groups the learner has."""
        return {held.group.prompt_index for held in self.intake.held} | set(self.ledger.unannounced)

    def _hear_claims(self) -> None:
        """Names the groups that somebody misses and that are not here either."""
        parts = self.parts
        claims = parts.patience("hear what is missed", parts.reader.claims)
        if not claims:
            return
        here = {c.prompt_index for c in claims if c.prompt_index in self.ledger.finished} | self._in_hand
        for told in self.losses.name([claim for claim in claims if claim.prompt_index not in here]):
            parts.patience.tell("tell a loss", partial(parts.control.add_event, "loss", told, LEARNER))
        parts.patience("settle claims", lambda: parts.reader.settle(len(claims), sorted(here)))
        parts.patience("count what was acknowledged", self.reopen)

    # -- train ----------------------------------------------------------------------------------
    def train(self, batch: Sequence[Held]) -> None:
        """All optimizer steps of one batch. Raises TrainingError after too many skipped ones in a row."""
        learner = self.parts.config.learner
        self.clock.waited()
        minibatches = split(batch, learner, self.parts.config.run.seed, self.batches)
        self.parts.provision.begin_batch(minibatches)
        self.parts.recorder.follow(self.parts.patience("see what to record", self.parts.control.record_bytes))
        for minibatch, number in next_steps(minibatches, learner.passes):
            if not minibatch.ended:
                self._one_step(minibatch, number)
        self.batches += 1
        self._batches_unpublished += 1
        self._batches_unsaved += 1
        self.clock.ready()

    def _one_step(self, minibatch: Minibatch, number: int) -> None:
        """The optimizer step of a minibatch in its pass `number`, from 0."""
        parts, batch = self.parts, minibatch.step_batch
        last_pass = number == parts.config.learner.passes - 1
        self.step += 1
        parts.heartbeat.set_state(f"training step {self.step}", step=self.step)
        drawn_by = self.lineage.latest if self._steps_unpublished == 0 else None
        outcome = take_step(
            parts.policy,
            parts.optimizer,
            batch,
            parts.adjusted.objectives,
            parts.adjusted.learner,
            self.step,
            beyond=parts.provision.of_pass(minibatch, number),
            drawn_by=drawn_by,
        )
        knobs = parts.adjusted.objectives.trained.knobs
        parts.recorder.keep(self.step, self.batches, minibatch, number, self.lineage, outcome, knobs)
        staleness = parts_of_staleness(batch, [h.latest for h in minibatch.held], self.lineage)
        applied = [] if outcome.skipped or not last_pass else [h.group.prompt_index for h in minibatch.held]
        version = self.lineage.latest
        pace = self.clock.stepped(outcome.seconds, len(applied))
        sample = self._splitter.of_step(self.step, batch, outcome.own, self.lineage)
        settings = parts.adjusted.settings
        record = step_record(self.step, version, batch, staleness, outcome, applied, pace, settings, sample)
        shown = parts.config.learner.examples_bytes > 0
        self.announcer.stepped(record)
        self.book.add(record, examples_of(self.step, batch, outcome.own, self._decoder) if shown else ())
        if outcome.skipped:
            self._skip(minibatch, outcome.skipped)
            return
        parts.metrics.count_staleness(staleness.total, asdict(staleness))
        if last_pass:
            parts.metrics.count_trained(batch.means)
        self._skipped_in_a_row = 0
        self._steps_unpublished += 1
        for held in minibatch.held if last_pass else ():
            self.ledger.apply(held.group.prompt_index, held.entry_id)

    def _skip(self, minibatch: Minibatch, reason: str) -> None:
        """Ends the groups of a step that was not finite."""
        minibatch.ended = True
        self.parts.log.error("step skipped", step=self.step, reason=reason)
        for held in minibatch.held:
            self.intake.end_without_step(held, reason, self.lineage)
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.parts.config.learner.max_nonfinite_steps:
            self.record()
            raise TrainingError(
                f"{self._skipped_in_a_row} steps in a row were skipped, the last one for a {reason}: look at "
                f"dropped.jsonl, at the learning rate and, with `trustbatch replay {self.parts.config.run.folder} "
                f"--step {self.step}`, at the groups; a new start goes on from the newest checkpoint"
            )

    # -- publish --------------------------------------------------------------------------------
    @property
    def publish_due(self) -> bool:
        """True at the end of a publishing interval in which the weights changed."""
        learner = self.parts.config.learner
        interval = learner.publish_every // learner.steps_per_batch
        return self.unpublished and self._batches_unpublished >= interval

    @property
    def unpublished(self) -> bool:
        """True if the weights have changed since the last version."""
        return self._steps_unpublished > 0

    def publish(self, evaluations: Evaluations) -> None:
        """Publishes the weights, which frees the credit of the groups that they were made of."""
        started = time.monotonic()
        parent = self.lineage.latest
        self.lineage = self.lineage.advanced()
        self.publish_version(parent)
        if self.lineage.depth(self.lineage.latest) % self.parts.config.evaluation.every == 0:
            evaluations.request(self.lineage.latest)
        self.book.published(time.monotonic() - started)

    def publish_version(self, parent: int) -> None:
        """Writes and announces the weights as the lineage's latest version."""
        self.announcer.publish_version(self.lineage, parent, self.step)
        self._batches_unpublished = self._steps_unpublished = 0

    def reopen(self) -> bool:
        """Opens the stream, and tells Redis again what it may have lost. Returns whether it had lost anything.

        Raises:
            FencedError: another learner has begun, even where Redis does not remember it any more.
            StreamError: Redis cannot be reached.

        """
        parts = self.parts
        if parts.checkpoints.newest_epoch() > parts.epoch:
            raise FencedError("another learner has taken over this run; this one stops without writing")
        forgot = parts.reader.open(self.ledger.credited, self._in_hand, self.losses.count)
        if forgot:
            parts.log.error("redis had lost data of this run: what the learner knows was restored", epoch=parts.epoch)
        return self.announcer.announce_again(self.lineage) or forgot

    # -- record ---------------------------------------------------------------------------------
    def record(self) -> None:
        """Writes down the steps of the batch. Raises FencedError where the run is another learner's."""
        self._check_epoch()
        self.book.write()

    def _check_epoch(self) -> None:
        self.parts.patience("look at the epoch", lambda: self.parts.control.check_epoch(self.parts.epoch))

    # -- checkpoint -----------------------------------------------------------------------------
    @property
    def checkpoint_due(self) -> bool:
        """True at the end of a checkpoint interval."""
        learner = self.parts.config.learner
        return self._batches_unsaved >= learner.checkpoint_every // learner.steps_per_batch

    @property
    def unsaved(self) -> bool:
        """True if a batch was consumed since the last checkpoint."""
        return self._batches_unsaved > 0

    def is_pressed(self, backlog: Backlog, waiting: bool) -> bool:
        """True if the stream's bytes call for a checkpoint, and checkpoints can free any.

        Args:
            backlog: what the stream holds.
            waiting: for groups: then only servers that cannot get byte credit count, not a stream half full.

        """
        config, most = self.parts.config, self.parts.adjusted.budgets.max_bytes
        free = most - backlog.bytes
        starved = free // config.group_bytes_bound <= backlog.leased
        half_full = backlog.bytes > most // 2
        return self.ledger.waiting_entries > 0 and (starved or (half_full and not waiting))

    def write_checkpoint(self) -> None:
        """Makes all that happened durable. Raises CheckpointError, FencedError."""
        parts = self.parts
        parts.heartbeat.set_state(f"writing the checkpoint of step {self.step}")
        self._check_epoch()
        parts.files.sync()
        state = TrainingState(
            step=self.step,
            batches=self.batches,
            policy_version=self.lineage.latest,
            segments=self.lineage.segments,
            finished=self.ledger.finished,
            counts=self.ledger.counts(),
            config=config_row(parts.config),
        )
        name = parts.checkpoints.write(parts.epoch, state, collect_tensors(parts.policy, parts.optimizer))
        self.ledger.checkpointed()
        self._batches_unsaved = 0
        parts.metrics.checkpoints.inc()
        if parts.tracking is not None:
            parts.tracking.follow(self.step)
        parts.log.info("checkpoint", name=name, policy_version=self.lineage.latest)

    def delete_finished(self) -> None:
        """Deletes the entries of groups that the checkpoint before the newest one had finished."""
        entry_ids = list(self.ledger.deletable)
        deleted = self.parts.patience("delete finished groups", lambda: self.parts.reader.delete(entry_ids))
        self.ledger.deleted(entry_ids)
        if deleted.missing:
            self.parts.log.warning("somebody else has taken entries out of the stream", entries=deleted.missing)
            self.parts.patience("look for what else is gone", self.reopen)
