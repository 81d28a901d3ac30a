#!/bin/sh
# Starts the Redis of a deployment: its users from users.acl and the passwords' files, append-only, never evicting.
#   REDIS_MAXMEMORY    what it may hold; at least 2 x admission.max_bytes + admission.dead_letter_bytes + control_plane.history_bytes
#   REDIS_APPENDFSYNC  everysec (default: a power loss may take a second) or always
#   REDIS_DATA         where its files are (default /data); REDIS_PORT (default 6379)
#   REDIS_RUN          private, in memory, for the users' file (default /run/trustbatch)
#   REDIS_TLS_CERTIFICATE, REDIS_TLS_KEY, REDIS_TLS_CA   PEM files: with them it speaks TLS only
set -eu
here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
users="${REDIS_RUN:-/run/trustbatch}/users.acl"
sh "$here/users.sh" "$here/users.acl" "$users"

port="${REDIS_PORT:-6379}"
if [ -n "${REDIS_TLS_CERTIFICATE:-}" ]; then
  set -- --port 0 --tls-port "$port" --tls-cert-file "$REDIS_TLS_CERTIFICATE" --tls-key-file "$REDIS_TLS_KEY" \
    --tls-ca-cert-file "$REDIS_TLS_CA" --tls-auth-clients no "$@"
else
  set -- --port "$port" "$@"
fi
# Nobody gets in without a user of the file (the default user is off), so protected mode has nothing to add.
exec redis-server "$@" --aclfile "$users" --protected-mode no --bind '*' '-::*' --dir "${REDIS_DATA:-/data}" \
  --appendonly yes --appendfsync "${REDIS_APPENDFSYNC:-everysec}" --save '' \
  --maxmemory "${REDIS_MAXMEMORY:?how much it may hold, for example 512mb}" --maxmemory-policy noeviction
