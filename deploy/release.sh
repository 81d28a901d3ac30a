#!/usr/bin/env bash
# What a release consists of, in dist/: the wheel, and a bill of materials (CycloneDX) of the environment that was tested.
# Versions and licences of every third-party package are in it. The tool has an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=".cache/sbom"
[ -x "$tool/bin/cyclonedx-py" ] || { .venv/bin/python -m venv "$tool" && "$tool/bin/python" -m pip install --quiet cyclonedx-bom==7.5.0; }
mkdir -p dist
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
"$tool/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
  --output-file dist/sbom.cdx.json .venv/bin/python
ls -l dist
