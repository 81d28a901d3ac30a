"""Keys of the policy store: where published versions lie, and how they get there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ByteSize, Field, SecretStr

from shared.config.access import check_token
from shared.config.credentials import holds_credentials
from shared.config.section import Seconds, Section
from shared.config.transfer import TransferConfig


def _good_token(token: SecretStr) -> SecretStr:
    check_token(token.get_secret_value())
    return token


def _good_url(url: str) -> str:
    if holds_credentials(url):
        raise ValueError(
            "it holds a user or a password, which logs would show: give keys by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or store.token"
        )
    return url.rstrip("/")


class StoreConfig(Section):
    """Where published versions lie. Nothing given: a folder of the run, on a disk that all processes share."""

    url: Annotated[str, Field(max_length=1024), AfterValidator(_good_url)] = ""
    """A folder, or an address that fsspec knows: s3://bucket/runs/r1, http://host:8090. Empty: <run.folder>/policy."""
    endpoint: str = Field("", max_length=1024, pattern=r"^(https?://.+)?$")
    """Address of an S3-compatible service other than Amazon's, for an s3:// url."""
    token: Annotated[SecretStr, AfterValidator(_good_token)] | None = None
    """Bearer token for an http(s):// url, such as the control plane's read_token; better given by the environment."""
    token_file: Path | None = None
    """Instead of `token`: a file that holds it, such as a mounted secret."""
    cache: Path | None = None
    """Where a rollout server keeps what it downloads: two versions, and the one that is coming. Empty:
    <run.folder>/policy-cache. Given for a folder: the server copies, and needs only read access to it."""
    bandwidth_bytes_per_s: ByteSize = Field(ByteSize(0), ge=0)
    """The most bytes a second that one process sends to or takes from a store elsewhere; 0: no limit."""
    parallel: int = Field(4, ge=1, le=64)
    """Files or parts of files that one process moves, checks or rebuilds at once."""
    part_bytes: ByteSize = Field(ByteSize(8 * 2**20), ge=64 * 2**10, le=2**30)
    """Bytes that one request downloads; a download that breaks goes on after the parts it has."""
    timeout_s: Seconds = 30.0
    """Longest wait for one answer of a store elsewhere, beside the time that its bytes take at the bandwidth limit."""
    full_every: int | None = Field(None, ge=1, le=256)
    """Every so many versions one is stored whole; the others may be patches of the one before. 1: all whole.
    Empty: 16 for a url, where patches save a link, and with weights over the wire; else 1: in the run's own folder
    patches would save nothing."""
    patch_share: float = Field(0.5, gt=0, le=1)
    """A patch is stored if it takes at most this share of the whole file; else the version is stored whole, and the
    next patch is tried after full_every versions."""
    transfer: TransferConfig = TransferConfig()
    """Weights over the wire, beside the files."""

    @property
    def whole_every(self) -> int:
        """`full_every`, or what it is where it is not given."""
        return self.full_every or (16 if self.url or self.transfer.kind != "files" else 1)
