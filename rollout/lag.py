"""What lag this server is asked for now: the operator's wish, else the configuration's, at the newest version."""

from __future__ import annotations

from dataclasses import replace

from rollout.parts import Parts
from shared.config.lag import LagSetting, from_wish
from shared.lag import Asked, Moment, resolve


class Dial:
    """Follows the setting. `asked` is what the next group is drawn for; a lease that it no longer holds for is refused.

    One writer (the follower); readers on other threads take `asked` once and work with that.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._configured = parts.config.rollout.lag
        self._wish = b""
        self._setting = self._configured
        self.asked = Asked()

    def turn(self, wish: bytes, moment: Moment) -> Asked:
        """Looks again. `wish` is the operator's, as stored; empty for none."""
        if wish != self._wish:
            self._wish, self._setting = wish, self._read(wish)
        found = resolve(self._setting, self._parts.server_id, self._parts.config.run.seed, moment)
        found = replace(found, wish=wish)
        if (found.lag, found.arm) != (self.asked.lag, self.asked.arm):
            self._parts.log.info(
                "another lag is asked for", lag=found.lag, arm=found.arm, policy_version=moment.version
            )
        self.asked = found
        return found

    def _read(self, wish: bytes) -> LagSetting:
        setting = from_wish(wish) if wish else self._configured
        if setting is None:
            self._parts.log.error("the lag that is asked for cannot be read: the configured one counts", lag=wish[:200])
        return setting or self._configured
