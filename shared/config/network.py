"""Keys of what is reached over the network: Redis, the control plane, the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ByteSize, Field, SecretStr, model_validator

from shared.config.access import check_token
from shared.config.credentials import without_credentials
from shared.config.section import Seconds, Section
from shared.config.tracker import TrackerConfig

Port = Annotated[int, Field(ge=0, le=65_535)]


def _good_token(token: SecretStr) -> SecretStr:
    check_token(token.get_secret_value())
    return token


Token = Annotated[SecretStr, AfterValidator(_good_token)]


class RedisConfig(Section):
    """Where the stream and the control state live."""

    url: str | None = Field(None, pattern=r"^(redis|rediss|unix)://.+")
    """Address of a Redis >= 6.2. Empty: `trustbatch up` starts one of its own in the run folder.
    A user and a password in it are moved to `username` and `password`."""
    username: str | None = None
    """ACL user, if Redis asks for one."""
    password: SecretStr | None = None
    """Password, if Redis asks for one; better given by the environment than by the file."""
    password_file: Path | None = None
    """Instead of `password`: a file that holds it, such as a mounted secret."""
    tls_ca: Path | None = None
    """Certificates (PEM) that Redis's own must be signed by, for a rediss:// url. Empty: those of the system."""
    tls_certificate: Path | None = None
    """Certificate (PEM) to show to Redis, if it asks clients for one."""
    tls_key: Path | None = None
    """Key (PEM) of `tls_certificate`."""
    max_memory: ByteSize = Field(ByteSize(512 * 2**20), ge=16 * 2**20)
    """`maxmemory` of the Redis that `trustbatch up` starts. Policy noeviction."""
    appendfsync: Literal["always", "everysec"] = "everysec"
    """How often the Redis that `trustbatch up` starts makes its append-only file durable."""

    @model_validator(mode="before")
    @classmethod
    def _move_credentials(cls, given: Any) -> Any:
        return without_credentials(given) if isinstance(given, dict) else given


class ControlPlaneConfig(Section):
    """The HTTP control plane and dashboard."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0 takes a free port and prints it."""
    auth: Literal["token", "none"] = "token"
    """Who may ask: holders of a token, or (on a loopback host only) everybody on this machine.
    `trustbatch up` makes a token in the run folder where none is given."""
    read_token: Token | None = None
    """Bearer token that may look."""
    read_token_file: Path | None = None
    """Instead of `read_token`: a file that holds it."""
    operate_token: Token | None = None
    """Bearer token that may look, pause, resume and set the lag."""
    operate_token_file: Path | None = None
    """Instead of `operate_token`: a file that holds it."""
    tls_certificate: Path | None = None
    """Certificate chain (PEM); with it and `tls_key` the control plane speaks https."""
    tls_key: Path | None = None
    """Key (PEM) of `tls_certificate`, without a passphrase."""
    requests_per_minute: int = Field(600, ge=10, le=1_000_000)
    """What one client may ask for, a tenth of it at once; liveness probes do not count."""
    least_servers: int = Field(1, ge=1, le=1024)
    """Fewest rollout servers that trustbatch_desired_rollout_servers asks for while the run goes on."""
    most_servers: int = Field(16, ge=1, le=1024)
    """Most rollout servers that it asks for."""


class MetricsConfig(Section):
    """Prometheus endpoints of the learner and the rollout servers."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0 takes a free port; it is shown by the control plane. /livez and /readyz answer there too."""
    tracker: TrackerConfig = TrackerConfig()
    """TensorBoard, Weights & Biases, MLflow or trackio beside Prometheus: one line, `tracker: {kind: tensorboard}`."""
    stalled_after_s: Seconds = Field(900.0, ge=30)
    """Longest silence, or the same piece of work, of a process that /livez still calls live. Waits end by deadlines
    of their own and do not count."""
