#!/bin/sh
# Fills in deploy/redis/users.acl: users.sh TEMPLATE OUTPUT
# The passwords come from LEARNER_PASSWORD, ROLLOUT_PASSWORD, CONTROL_PLANE_PASSWORD and OPERATOR_PASSWORD, or from
# the files that LEARNER_PASSWORD_FILE and so on name (mounted secrets); RUN_ID confines the users to one run (default: all).
# In a container: users.sh /etc/trustbatch/users.acl /run/users.acl && exec redis-server --aclfile /run/users.acl
set -eu
umask 077
template="$1" output="$2"

run="${RUN_ID:-*}"
case "$run" in
  "*") ;;
  *[!A-Za-z0-9._-]*) echo "users.sh: RUN_ID may hold letters, digits, dot, underscore and dash only" >&2 && exit 2 ;;
esac

rules="s/@RUN@/$run/g"
for name in LEARNER ROLLOUT CONTROL_PLANE OPERATOR; do
  eval "password=\${${name}_PASSWORD:-} file=\${${name}_PASSWORD_FILE:-}"
  if [ -z "$password" ] && [ -n "$file" ]; then password=$(cat "$file"); fi
  [ "${#password}" -ge 16 ] || { echo "users.sh: ${name}_PASSWORD or ${name}_PASSWORD_FILE must give at least 16 characters" >&2 && exit 2; }
  digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
  rules="$rules;s/@$name@/$digest/g"
done

# One user a line and nothing else, as Redis wants it.
grep -v -e '^#' -e '^$' "$template" | sed "$rules" |
  awk '/^ /{sub(/^ +/, " "); printf "%s", $0; next} NR > 1{print ""} {printf "%s", $0} END{print ""}' >"$output.partial"
mv "$output.partial" "$output"
