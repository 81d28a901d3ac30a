"""One machine, one command: every process of a run, standing and falling together.

    Redis -> (the small model, if it is to be made) -> control plane, learner, rollout servers
    stop:  learner (it checkpoints) -> rollout servers -> control plane -> Redis

The supervisor carries no data. It starts the entry points that compose and Kubernetes use too, shows what their
heartbeats say, and ends the run when the learner has finished, when somebody asks, or when a child dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from services import launch, run_folder, tiny_model
from services.children import Child, start, stop_in_order
from services.facts import RedisFacts, ask_facts
from services.outcome import ChildDied, Outcome, stopped
from services.redis_server import RedisServer, shown, start_redis, with_url
from services.report import Life, lived, write_report
from services.terminal import Screen
from services.tokens import with_token
from services.watch import Watch
from shared.config import Config
from shared.control import ControlState
from shared.errors import TrustbatchError
from shared.keys import Keys
from shared.process import StopFlag
from shared.redis_client import connect

LOOK_S = 1.0
NAP_S = 0.1
STAGE_S = 2.5  # what each stage has for itself before the next is asked to stop too
STOP_S = 7.0  # from the first request to the last resort
REDIS_STOP_S = 1.5
LEARNER_END_S = 10.0  # a learner that has failed says so before its process ends
AGAIN_S = 0.7  # a second request to stop, this much later than the first, means at once


class _Stopped(Exception):
    """The operator asked to stop while something was waited for."""


class Supervisor:
    """Runs one run on this machine, from start to summary. Install the stop flag before."""

    def __init__(
        self,
        config: Config,
        screen: Screen,
        stop: StopFlag,
        resumed: bool = False,
        programs: launch.Programs = launch.PROGRAMS,
    ) -> None:
        self._programs = programs
        self._config = config
        self._screen = screen
        self._stop = stop
        self._resumed = resumed
        self._began = time.monotonic()
        self._children: list[Child] = []
        self._redis: RedisServer | None = None
        self._asked_at: float | None = None
        self._hurry = False
        self._proof_max_nats: float | None = None  # rollout servers that have left in order cannot be asked any more
        self._lived_s = 0.0  # what earlier starts of this run took
        stop.on_stop(self._asked_to_stop)

    def run(self) -> Outcome:
        """Start, watch, stop, report."""
        lock = run_folder.hold(self._config.run.folder)
        try:
            try:
                self._start(() if lock is None else (lock,))
                outcome = self._watch()
            except _Stopped:
                outcome = stopped(self._stop.reason, self._config)
            except ChildDied as error:
                outcome = Outcome(1, str(error), short=error.short)
            except TrustbatchError as error:
                outcome = Outcome(1, str(error))
            finally:
                facts = self._shut_down()
        finally:
            self._screen.close()
            if lock is not None:
                os.close(lock)
        return self._reported(outcome, facts)

    # -- start ----------------------------------------------------------------------------------
    def _start(self, keep_open: Sequence[int]) -> None:
        if self._resumed:
            self._lived_s = lived(self._config.run.folder)
        config, made = with_token(self._with_redis(keep_open))
        self._config = config
        if made:
            self._screen.say(f"token     in {config.control_plane.operate_token_file}: the dashboard asks for it")
        config_file = run_folder.write_config(config)
        self._reset_state()
        if config.model.tiny is not None and not tiny_model.is_current(config):
            tiny_model.make(config, config_file, lambda name, arguments: self._run_to_end(name, arguments, keep_open))
        count, why = launch.threads(config)
        self._screen.say(f"threads   {count} for each process ({why})")
        for spec in launch.processes(config, config_file, keep_open, self._programs):
            self._check_stop()
            self._children.append(start(spec))

    def _with_redis(self, keep_open: Sequence[int]) -> Config:
        """Starts a Redis of the run's own unless it uses another's; returns the configuration with its address."""
        port = run_folder.own_redis_port(self._config)
        if port is None:
            self._screen.say(f"redis     {shown(str(self._config.redis.url))}")
            return self._config
        self._redis = start_redis(self._config, keep_open, prefer_port=port, stopping=lambda: bool(self._stop))
        self._check_stop()
        self._screen.say(f"redis     {self._redis.url} (of this run, data in {self._config.run.folder / 'redis'})")
        return with_url(self._config, self._redis.url)

    def _reset_state(self) -> None:
        """The phase and the heartbeats that an earlier life of this run left behind are not this one's."""
        client = connect(self._config)
        try:
            control = ControlState(client, Keys(self._config.run.id))
            for component, status in control.members().items():
                if status is None:
                    control.leave(component)
            control.set_phase("starting", "resumed" if self._resumed else "")
            control.add_event("started", "trustbatch up" + (" --resume" if self._resumed else ""), by="supervisor")
        finally:
            client.close()

    def _run_to_end(self, name: str, arguments: Sequence[str], keep_open: Sequence[int]) -> None:
        """Runs a program that prepares something, its newest log line shown, until it has succeeded."""
        child = start(launch.preparation(self._config, name, arguments, keep_open))
        self._children.append(child)
        self._screen.say(f"model     making {self._config.model.path}: {name}")
        shown = ""
        while child.exit_code() is None:
            self._check_stop()
            newest = (child.tail(1) or [""])[0]
            if newest != shown:
                shown = newest
                self._screen.say(f"          {newest}")
            time.sleep(NAP_S)
        if child.exit_code() != 0:
            raise ChildDied.of([child])
        self._children.remove(child)

    # -- watch ----------------------------------------------------------------------------------
    def _watch(self) -> Outcome:
        watch = Watch(self._config, self._children, self._began)
        try:
            next_look = 0.0
            while True:
                self._check_stop()
                outcome = self._left(watch)
                if outcome is not None:
                    self._screen.show(watch.look())
                    return outcome
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_S
                    self._screen.show(watch.look())
                time.sleep(NAP_S)
        finally:
            self._proof_max_nats = watch.proof_max_nats
            watch.close()

    def _left(self, watch: Watch) -> Outcome | None:
        """Looks at who has ended; None while the run goes on."""
        ended = [child for child in self._all() if child.exit_code() is not None]
        if not ended:
            return None
        phase, reason = watch.phase()
        if phase == "failed":
            raise self._learner_failed(reason)
        dead = [child for child in ended if child.exit_code() != 0 or child.name in (launch.CONTROL_PLANE, "redis")]
        if dead:
            raise ChildDied.of(dead)
        if any(child.name == launch.LEARNER for child in ended):
            if phase == "finished":
                return Outcome(0, f"finished: {reason}" if reason else "finished")
            return Outcome(1, f"the learner left in order, but the run is not finished ({phase}: {reason})")
        for child in ended:
            self._children.remove(child)
            self._screen.say(f"{child.name} left in order")
        if phase != "finished" and not self._has_rollouts(watch):
            return Outcome(1, "the last rollout server has left: nobody draws groups any more")
        return None

    def _learner_failed(self, reason: str) -> ChildDied:
        """The others leave as soon as the learner has failed, which may be before its own process ends."""
        learner = [child for child in self._children if child.name == launch.LEARNER]
        ends = time.monotonic() + LEARNER_END_S
        while any(child.exit_code() is None for child in learner) and time.monotonic() < ends:
            self._check_stop()
            time.sleep(NAP_S)
        return ChildDied.of(learner, f"the learner has failed: {reason}")

    def _has_rollouts(self, watch: Watch) -> bool:
        return any(child.name.startswith("rollout:") for child in self._children) or watch.living_rollouts() > 0

    def _all(self) -> list[Child]:
        return [*([self._redis.child] if self._redis else []), *self._children]

    def _check_stop(self) -> None:
        if self._stop:
            raise _Stopped

    # -- stop -----------------------------------------------------------------------------------
    def _asked_to_stop(self) -> None:
        """A signal handler. Who asks a second time will not wait; some programs send their signal twice at once."""
        now = time.monotonic()
        self._asked_at = self._asked_at or now
        self._hurry = now - self._asked_at > AGAIN_S

    def _shut_down(self) -> RedisFacts | None:
        """Ends every child in order; returns what Redis knew last."""
        self._screen.close()
        if self._children:
            self._screen.say("stopping  learner, rollout servers, control plane" + (", Redis" if self._redis else ""))
        try:
            for name in stop_in_order(self._stages(), STAGE_S, STOP_S, hurry=lambda: self._hurry):
                self._screen.say(f"{name} did not stop in time and was killed")
            return ask_facts(self._config, timeout_s=1.0)
        finally:
            if self._redis is not None:
                self._redis.stop(REDIS_STOP_S)

    def _stages(self) -> list[list[Child]]:
        first = [child for child in self._children if child.name == launch.LEARNER]
        last = [child for child in self._children if child.name == launch.CONTROL_PLANE]
        return [first, [child for child in self._children if child not in first + last], last]

    def _reported(self, outcome: Outcome, facts: RedisFacts | None) -> Outcome:
        """Adds summary and plot, if there is anything to report."""
        folder = self._config.run.folder
        if not (folder / "history.jsonl").exists():
            return outcome
        life = Life(
            wall_seconds=self._lived_s + time.monotonic() - self._began,
            reason=outcome.short or outcome.reason.splitlines()[0],
            proof_max_nats=self._proof_max_nats,
        )
        try:
            summary = write_report(folder, self._config.run.id, facts, life)
        except TrustbatchError as error:
            self._screen.say(f"report    {error}")
            return outcome
        return replace(outcome, summary=summary)
