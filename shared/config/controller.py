"""Keys of the controller, which narrows what makes data stale while they cannot be trusted."""

from __future__ import annotations

from pydantic import Field

from shared.config.section import Section


class ControllerConfig(Section):
    """Closes the loop from the ESS to admission and lag, inside the control plane; deploy/docs/controller.md."""

    enabled: bool = False
    """Let it act. Off, nobody but the operator changes anything."""
    token_ess: float = Field(0.9, gt=0, lt=1)
    """Token ESS that the batches are to keep; what the numerics floor takes is allowed besides. A run that learns may
    fall below it for a step or two (the demo's lowest is .88): `patience` is for that."""
    pause_token_ess: float = Field(0.5, ge=0, lt=1)
    """Token ESS below which narrowing goes straight to the synchronous run, and below which that is paused: more than
    half of the batch's weight is lost. 0: it never pauses. At most `token_ess`."""
    top_1_percent_mass: float = Field(0.1, gt=0.01, le=1)
    """Share of the weight that the largest hundredth of the tokens may carry, ten times their due; binds where
    `token_ess` is below .55."""
    patience: int = Field(6, ge=1, le=1000)
    """Steps in a row that must say the same before it narrows; it widens after twice as many, more after a relapse."""
    actions_per_hour: int = Field(12, ge=4, le=240)
    """The most that it does within an hour; the last three are kept for narrowing, syncing and pausing."""
