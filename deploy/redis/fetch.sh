#!/usr/bin/env bash
# Puts the distribution's redis-server (7.0 on Debian 12: ACL selectors and TLS, which the wheel of 6.2 has not) into
# .cache/redis, with its libraries and without installing anything. The tests that need it look there and on PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder="$PWD/.cache/redis"
[ ! -x "$folder/redis-cli" ] || exit 0
if redis-server --version 2>/dev/null | grep -qE ' v=([7-9]|[1-9][0-9])\.' || ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! (cd "$work" && apt-get download -qq redis-server redis-tools liblzf1 libjemalloc2 2>/dev/null >&2); then
  echo "redis: the package lists offer no redis-server (apt-get update?); tests that need Redis 7 are skipped" >&2
  exit 0
fi
for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
mkdir -p "$folder/lib"
cp "$work"/root/usr/lib/*/lib*.so* "$folder/lib/"
for name in redis-server redis-cli; do
  cp -L "$work/root/usr/bin/$name" "$folder/$name.real"
  printf '#!/bin/sh\nLD_LIBRARY_PATH="%s/lib" exec "%s/%s.real" "$@"\n' "$folder" "$folder" "$name" >"$folder/$name"
  chmod +x "$folder/$name"
done
