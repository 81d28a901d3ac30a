"""Keys of the tracker: where else the numbers of every step go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from shared.config.credentials import holds_credentials
from shared.config.section import Section


def _good_url(url: str) -> str:
    if holds_credentials(url):
        raise ValueError(
            "it holds a user or a password, which logs would show: give keys by the environment, as the tracker's own "
            "documentation says (MLFLOW_TRACKING_USERNAME, WANDB_API_KEY, HF_TOKEN)"
        )
    return url.rstrip("/")


class TrackerConfig(Section):
    """A tracker that gets the numbers of every step with the checkpoint that makes them final."""

    kind: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = "none"
    """Its package is installed by whoever asks for it; without it the learner says how."""
    project: str = Field("trustbatch", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """The project, or experiment, that the run is filed under. The run's name there is run.id."""
    folder: Path | None = None
    """Where a tracker that writes files puts them. Empty: <run.folder>/<kind>."""
    url: Annotated[str, Field(max_length=1024), AfterValidator(_good_url)] = ""
    """Server of mlflow or wandb, Space of trackio (user/name). Empty: mlflow and trackio write to the folder, wandb
    goes where the environment says (WANDB_BASE_URL, WANDB_MODE=offline)."""

    @model_validator(mode="after")
    def _fits(self) -> TrackerConfig:
        if self.url and self.kind in ("none", "tensorboard"):
            raise ValueError(f"url is given, but kind {self.kind!r} has no server: leave it away, or set kind")
        return self
