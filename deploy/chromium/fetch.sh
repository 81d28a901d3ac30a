#!/usr/bin/env bash
# Installs the distribution's Chromium for the tests of the page, where it is missing, this is root, and apt has it.
# Elsewhere those tests are skipped and say so.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi
echo "chromium: installing it for the tests of the page" >&2
if ! apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; then
  echo "chromium: apt cannot install it (apt-get update?); the tests of the page are skipped" >&2
fi
