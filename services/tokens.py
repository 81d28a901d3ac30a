"""The token that `trustbatch up` makes for its control plane where the operator has given none."""

from __future__ import annotations

import os
import secrets

from shared.config import Config

NAME = "operate-token"


def with_token(config: Config) -> tuple[Config, bool]:
    """The configuration with a token file in the run folder, and whether it is ours; unchanged where one is given."""
    plane = config.control_plane
    path = config.run.folder.resolve() / NAME
    given = plane.read_token or plane.read_token_file or plane.operate_token or plane.operate_token_file
    if plane.auth == "none" or given:
        return config, plane.operate_token_file == path
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    named = plane.model_copy(update={"operate_token_file": path})
    return config.model_copy(update={"control_plane": named}), True
