#!/usr/bin/env bash
# Builds the five images, tagged with the project's version and labelled with the commit. Needs Docker with BuildKit.
#   deploy/docker/build.sh [TARGET...]      REGISTRY=registry.example.com/trustbatch to name them for one
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ $# -gt 0 ] || set -- control-plane learner-cpu learner-cuda rollout-cpu rollout-cuda
for target in "$@"; do
  docker build --file deploy/docker/Dockerfile --target "$target" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$revision" --tag "${REGISTRY:-trustbatch}/$target:$version" .
done
