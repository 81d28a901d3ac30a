#!/usr/bin/env bash
# Puts the distribution's prometheus and promtool (2.42 on Debian 12) into .cache/prometheus without installing anything.
# The tests that need them look there and on PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder="$PWD/.cache/prometheus"
[ ! -x "$folder/promtool" ] || exit 0
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! (cd "$work" && apt-get download -qq prometheus 2>/dev/null >&2); then
  echo "prometheus: the package lists offer none (apt-get update?); tests that need it are skipped" >&2
  exit 0
fi
for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
mkdir -p "$folder"
for name in prometheus promtool; do cp "$work/root/usr/bin/$name" "$folder/$name"; done # promtool last: see above
