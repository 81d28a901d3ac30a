#!/bin/sh
# Health of the Redis that start.sh started: 0 once it answers a user of the run, its append-only file loaded.
set -eu
REDISCLI_AUTH=$(cat "$OPERATOR_PASSWORD_FILE")
export REDISCLI_AUTH
set -- --user operator -h 127.0.0.1 -p "${REDIS_PORT:-6379}"
# The certificate is for the name that the others use, not for 127.0.0.1: whoever asks here asks itself.
[ -z "${REDIS_TLS_CERTIFICATE:-}" ] || set -- "$@" --tls --insecure
[ "$(redis-cli "$@" ping)" = PONG ]
