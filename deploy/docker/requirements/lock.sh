#!/usr/bin/env bash
# Locks what each image holds, with hashes, at the versions that the tests run with (deploy/requirements/dev.txt).
# Needs uv; UV_FIND_LINKS may name a folder with a CPU build of torch (the CUDA images never look there).
set -euo pipefail
cd "$(dirname "$0")"
pins=$(mktemp) direct=$(mktemp)
trap 'rm -f "$pins" "$direct"' EXIT
cat ../../requirements/dev.txt >"$pins"
# vLLM's CUDA build has pins of its own beyond these.
grep -E '^(transformers|safetensors|tokenizers|redis|hiredis|msgpack|numpy|prometheus-client|pydantic|pyyaml|reasoning-gym|structlog|typer|fsspec|xxhash|s3fs|aiobotocore|botocore|python-dateutil)==' \
  "$pins" >"$direct"
locked() { # locked NAME CONSTRAINTS [OPTION...]
  uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --constraint "$2" "${@:3}" "$1.in" --output-file "$1.txt"
}
locked build "$pins"
locked control-plane "$pins"
locked learner-cpu "$pins"
locked rollout-cpu "$pins" --override ../../requirements/overrides.txt
unset UV_FIND_LINKS
locked learner-cuda "$direct"
locked rollout-cuda "$direct"
