#!/usr/bin/env bash
# Sets up .venv from a lock file; does nothing when it is up to date.
#   deploy/setup.sh cpu   what `make demo` needs
#   deploy/setup.sh dev   what `make test` needs
set -euo pipefail
cd "$(dirname "$0")/.."
lock="deploy/requirements/$1.txt"
torch_cpu_index="https://download.pytorch.org/whl/cpu" # asked only where pip finds no CPU build of its own

wanted=$(cat deploy/requirements/*.txt pyproject.toml deploy/setup.sh | sha256sum | cut -d' ' -f1)
for stamp in ".venv/$1.stamp" .venv/dev.stamp; do
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
done

python=""
for candidate in "${PYTHON:-}" python3.11 python3 python3.12; do
  if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
    python="$candidate" && break
  fi
done
[ -n "$python" ] || { echo "setup: Python 3.11 or 3.12 is needed; install it, or set PYTHON=/path/to/python3.11" >&2; exit 1; }
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  { echo "setup: $python has no venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }

headers='import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
if ! command -v cc >/dev/null || ! "$python" -c "$headers"; then # two small dependencies come as source
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev python3-dev
  else
    echo "setup: a C compiler and Python.h are needed; on Debian: apt-get install gcc libc6-dev python3-dev" >&2 && exit 1
  fi
fi

echo "setup: installing $(grep -c '==' "$lock") pinned packages into .venv (a few minutes the first time, about 3.5 GB)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
torch=$(grep '^torch==' "$lock")
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet --quiet "$@"; }
.venv/bin/python -c "import sys, importlib.metadata as m; sys.exit(m.version('torch') != '${torch#torch==}')" 2>/dev/null ||
  pip install --no-deps "$torch" 2>/dev/null ||
  pip install --no-deps --index-url "$torch_cpu_index" "$torch"
pip install --no-deps -r "$lock"
pip install --no-deps --no-build-isolation -e .
echo "$wanted" >".venv/$1.stamp"
