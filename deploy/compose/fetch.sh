#!/usr/bin/env bash
# Installs docker-compose where that is root's to do on Debian; needs no daemon. Without it one test is skipped.
set -euo pipefail
command -v docker-compose >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi
apt-get install -y -qq --no-install-recommends docker-compose >/dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends docker-compose >/dev/null 2>&1; } ||
  echo "compose: the package lists offer no docker-compose; the test that asks it is skipped" >&2
