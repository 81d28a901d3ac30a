"""A rollout server's end of weights over the wire: it answers the learner's call, or asks for files.

A server takes part once it serves something. Whatever goes wrong on the wire ends at the files: the version is
asked for, and loaded when the learner has written it; what is served meanwhile is served on, if it is whole.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from rollout.engines.renewable import RenewableEngine
from rollout.engines.transfer import Meeting
from rollout.parts import Parts
from shared.errors import StoreError, TransferError, WireOnlyError
from shared.manifest import Manifest
from shared.tensor_table import has_weights, read_table
from shared.transfer import Answer, Call, Said

POLL_S = 0.02
ASK_AGAIN_S = 0.2
CALLED_S = 1.0  # the learner calls at once after it has announced; longer only where there is no other way


class Receiver:
    """What one server says and does about transfers."""

    def __init__(self, parts: Parts, engine: RenewableEngine) -> None:
        config = parts.config
        self._config = config.store.transfer
        self._parts = parts
        self._engine = engine if self._config.kind != "files" and engine.receives else None
        self._followed = (0, 0)  # epoch and number of the call that was followed last, to whatever end
        self._tried = -1  # the version of that call: the learner sends each once
        self._waiting_since: float | None = None
        self._patience_s = config.learner.idle_deadline_s
        if self._engine is not None:
            workers = getattr(config.rollout.engine, "tensor_parallel_size", 1)
            parts.status.heartbeat.update(transfer=self._config.kind, ranks=workers)

    # -- over the wire --------------------------------------------------------------------------
    async def meet(self, manifest: Manifest, *, serving: bool) -> Call | None:
        """The learner's call to receive this version now, with a rank for this server; None: take the files.

        Raises:
            WireOnlyError: there are no files (yet).

        """
        files = has_weights(manifest)
        call = None
        if self._engine is not None and serving and manifest.policy_version != self._tried:
            with self._parts.status.during("sync", f"waiting for version {manifest.policy_version} over the wire"):
                call = await self._called(manifest.policy_version, CALLED_S if files else self._config.ready_s)
        if call is None and not files:
            raise WireOnlyError(f"version {manifest.policy_version} went over the wire, and not to this server")
        self._waiting_since = None
        return call

    async def _called(self, version: int, patience_s: float) -> Call | None:
        ends = time.monotonic() + min(patience_s, self._config.ready_s)
        invited = -1
        while time.monotonic() < ends:
            call = await self._parts.patience("see what is sent", self._parts.transfers.current)
            if call is None or call.policy_version < version or (call.epoch, call.number) <= self._followed:
                await asyncio.sleep(POLL_S)
                continue
            if call.policy_version > version:
                return None
            if call.stage == "go":
                self._followed = call.epoch, call.number
                if self._parts.server_id not in call.ranks:
                    return None
                self._tried = version
                return call
            if self._parts.server_id not in call.invited:
                return None
            if call.number != invited:
                invited = call.number
                ends = time.monotonic() + 2 * self._config.ready_s  # for the others to answer
                await self._answer(call, "here")
            await asyncio.sleep(POLL_S)
        return None

    async def receive(self, call: Call, folder: Path) -> float:
        """Receives what was called for; returns the seconds that generation paused.

        Raises:
            TransferError: it did not arrive; what the engine has is whole only where `untouched`.
            EngineError: the engine is dead.

        """
        assert self._engine is not None
        meeting = Meeting(
            kind=self._config.kind,
            epoch=call.epoch,
            group=call.group,
            host=call.host,
            port=call.port,
            rank=call.ranks[self._parts.server_id],
            world_size=call.world_size,
            deadline_s=self._config.deadline_s,
        )
        try:
            table = await asyncio.to_thread(read_table, folder)
            paused = await self._engine.receive(
                meeting, table, call.policy_version, lambda: self._answer(call, "receiving")
            )
        except (TransferError, StoreError) as error:
            failed = error if isinstance(error, TransferError) else TransferError(str(error))
            self._parts.log.warning("a transfer failed", policy_version=call.policy_version, error=str(failed))
            await self._answer(call, "failed", str(failed), touched=not failed.untouched)
            raise failed from error
        await self._answer(call, "received")
        return paused

    async def _answer(self, call: Call, said: Said, why: str = "", *, touched: bool = False) -> None:
        answer = Answer(call.epoch, call.number, said, why, touched)
        say = self._parts.transfers.answer
        await self._parts.patience("answer the learner", lambda: say(self._parts.server_id, answer))

    # -- by files after all ---------------------------------------------------------------------
    async def wait_for_files(self, version: int, error: WireOnlyError, *, serving: bool) -> None:
        """Asks for a version's files and waits a little. Raises StoreError where a server without weights waits on.

        Args:
            version: that is to be served.
            error: why it is not.
            serving: proven weights are served meanwhile, so there is no hurry.

        """
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
            self._parts.log.info("waiting for files", policy_version=version, reason=str(error))
        if serving:
            self._waiting_since = now
        elif now - self._waiting_since > self._patience_s:
            raise StoreError(f"for {self._patience_s:g} s the learner wrote no files: {error}") from error
        with self._parts.status.during("sync", f"waiting for the files of version {version}"):
            await self._parts.patience("ask for files", lambda: self._parts.transfers.want(version))
            await asyncio.sleep(ASK_AGAIN_S)
