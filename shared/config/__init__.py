"""One typed configuration for every process; importable without torch, vLLM or FastAPI."""

from shared.config.load import load_config, parse_overrides
from shared.config.models import Config

__all__ = ["Config", "load_config", "parse_overrides"]
