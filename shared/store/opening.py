"""Which store a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.config import Config, secrets
from shared.config.store import StoreConfig
from shared.errors import ConfigError
from shared.store.mirror import MirroredStore
from shared.store.pace import Pace
from shared.store.policy import PolicyStore
from shared.store.remote import Remote

LOCAL = ("", "file", "local")
PACKAGES = {"s3": "'trustbatch[s3]'", "s3a": "'trustbatch[s3]'", "http": "aiohttp", "https": "aiohttp"}


def open_store(config: Config, holder: str = "") -> PolicyStore:
    """The store of a run, for a rollout server (`holder`, its id) or for the learner (none).

    Raises:
        ConfigError: the address cannot be one, a package is missing, or a learner could not write there.
        StoreError: nobody answers there, or nobody may come in.

    """
    store = config.store
    scheme, separator, rest = store.url.partition("://")
    if not separator or scheme in LOCAL:
        folder = Path(rest if separator else store.url) if store.url else config.run.folder / "policy"
        if not (holder and store.cache):
            return PolicyStore(folder, store.parallel)
        remote = _only_read(folder, store)
        return MirroredStore(_cache(config, holder), remote, store.parallel, store.part_bytes)
    if not holder and scheme in ("http", "https"):
        raise ConfigError(
            f"store.url is {store.url}, which can only be read: leave it away for the learner, run `trustbatch store "
            "serve` beside it, and give this address to the rollout servers"
        )
    remote = open_remote(config)
    remote.look()
    root = _cache(config, holder) if holder else config.run.folder / "policy-spool"
    return MirroredStore(root, remote, store.parallel, store.part_bytes)


def _cache(config: Config, holder: str) -> Path:
    return (config.store.cache or config.run.folder / "policy-cache") / config.run.id / holder


def _only_read(folder: Path, store: StoreConfig) -> Remote:
    """A folder that a server may read but not write: it copies versions, as from elsewhere."""
    from fsspec.implementations.local import LocalFileSystem

    files = LocalFileSystem(skip_instance_cache=True)
    return Remote(files, str(folder.absolute()), str(folder), Pace(store.bandwidth_bytes_per_s))


def open_remote(config: Config) -> Remote:
    """The place elsewhere that `store.url` names; nobody is asked yet. Raises ConfigError."""
    import fsspec

    store = config.store
    scheme = store.url.partition("://")[0]
    token = secrets.read(config, "store.token")
    try:
        files, root = fsspec.url_to_fs(store.url, skip_instance_cache=True, **_options(scheme, store, token))
    except ImportError as error:
        needed = PACKAGES.get(scheme, "the package that fsspec names")
        raise ConfigError(f"store.url {store.url}: pip install {needed} ({str(error)[:120]})") from None
    except ValueError as error:
        raise ConfigError(f"store.url {store.url}: {str(error)[:200]}; a folder, s3:// or http:// can be one") from None
    return Remote(files, str(root), store.url, Pace(store.bandwidth_bytes_per_s), lists=scheme not in ("http", "https"))


def _options(scheme: str, store: StoreConfig, token: str | None) -> dict[str, Any]:
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=store.timeout_s, sock_read=store.timeout_s)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {"client_kwargs": {"timeout": timeout, "headers": headers}}
    if scheme in ("s3", "s3a"):
        limits = {"connect_timeout": store.timeout_s, "read_timeout": store.timeout_s, "retries": {"max_attempts": 1}}
        client = {"endpoint_url": store.endpoint} if store.endpoint else {}
        return {"client_kwargs": client, "config_kwargs": limits, "use_listings_cache": False}
    return {}
