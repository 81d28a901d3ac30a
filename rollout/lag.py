"""What lag this server is asked for now: the operator's wish, else the configuration's, at the newest version."""

from __future__ import annotations

import threading
from dataclasses import replace

from rollout.parts import Parts
from shared.config.lag import LagSetting
from shared.lag import Asked, Moment, resolve


class Dial:
    """Follows the setting. `asked` is what the next group is drawn for; a lease that it no longer holds for is refused.

    The follower turns it at every look, and says in `served_lag` what the weights were loaded for; whoever asks for a
    lease turns it where it may have changed since.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._configured = parts.config.rollout.lag
        self._wish = b""
        self._setting = self._configured
        self._turning = threading.Lock()
        self.asked = Asked()
        self.served_lag = -1  # none yet

    def turn(self, wish: bytes, moment: Moment) -> Asked:
        """Looks again. `wish` is the operator's, as stored; empty for none."""
        parts = self._parts
        with self._turning:
            if wish != self._wish:
                self._wish, self._setting = wish, self._read(wish)
            found = replace(resolve(self._setting, parts.server_id, parts.config.run.seed, moment), wish=wish)
            if (found.lag, found.arm) != (self.asked.lag, self.asked.arm):
                parts.log.info("another lag is asked for", lag=found.lag, arm=found.arm, policy_version=moment.version)
            self.asked = found
        return found

    def for_lease(self) -> Asked | None:
        """What is asked for now; None while the weights are those of another lag. May ask Redis.

        At the newest version there is, also while one before it is being loaded.
        """
        asked = self._look() if self._moves else self.asked
        return asked if asked.lag == self.served_lag else None

    @property
    def _moves(self) -> bool:
        """True where the lag changes without anybody turning the dial."""
        own = self._setting.servers.get(self._parts.server_id, self._setting)
        return own.form.by_step or own.dwelling is not None

    def _look(self) -> Asked:
        latest, wish = self._parts.control.latest(), self._parts.control.lag_wish().text
        if latest is None:
            return self.asked
        return self.turn(wish, Moment(latest.policy_version, latest.step, self._parts.writer.counted()))

    def _read(self, wish: bytes) -> LagSetting:
        setting = self._parts.config.wished_lag(wish) if wish else self._configured
        if setting is None:
            self._parts.log.error(
                "the lag asked for cannot be read, or cannot be served over the wire: the configured one counts",
                lag=wish[:200],
            )
        return setting or self._configured
