#!/bin/sh
# Makes .secrets/ beside docker-compose.yml: passwords of the Redis users, tokens of the control plane, Grafana's admin.
#   deploy/compose/secrets.sh          what is missing; what is there stays
#   deploy/compose/secrets.sh --tls    a certificate for Redis too, signed by an authority of its own, for a year
# The folder is for its owner alone. The files in it are readable, because in the containers another user reads them.
set -eu
umask 077
cd "$(dirname "$0")/../.."
folder="${SECRETS:-.secrets}"
mkdir -p "$folder" && chmod 0700 "$folder"
for name in learner_password rollout_password control_plane_password operator_password \
  read_token operate_token grafana_admin_password; do
  [ -s "$folder/$name" ] || { openssl rand -hex 32 | tr -d '\n' >"$folder/$name.new" && mv "$folder/$name.new" "$folder/$name"; }
done
if [ "${1:-}" = --tls ] && [ ! -s "$folder/redis_certificate" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj "/CN=trustbatch Redis authority" \
    -keyout "$folder/redis_ca_key" -out "$folder/redis_ca" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=redis" -addext "subjectAltName=DNS:redis" \
    -keyout "$folder/redis_key" -out "$folder/redis_request" 2>/dev/null
  printf 'subjectAltName=DNS:redis\nextendedKeyUsage=serverAuth\n' >"$folder/redis_extensions"
  openssl x509 -req -days 365 -in "$folder/redis_request" -CA "$folder/redis_ca" -CAkey "$folder/redis_ca_key" \
    -CAcreateserial -extfile "$folder/redis_extensions" -out "$folder/redis_certificate" 2>/dev/null
  rm -f "$folder/redis_request" "$folder/redis_extensions" "$folder/redis_ca.srl"
  chmod 0444 "$folder/redis_certificate" "$folder/redis_key" "$folder/redis_ca"
fi
chmod 0444 "$folder"/*_password "$folder"/*_token
