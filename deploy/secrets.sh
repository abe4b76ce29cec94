#!/bin/sh
# Writes .env beside compose.yaml, readable by its owner alone, with random secrets. Compose
# reads it by itself. A file that is there is left as it is: the engines' data is locked
# with what it says.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "deploy/.env is there already"
  exit 0
fi
umask 077
random() { head -c 36 /dev/urandom | base64 | tr -d '\n' | tr '+/' '-_'; }
# Written aside and linked: a file that is there is whole, and never replaced.
aside=$(mktemp .env.XXXXXX)
trap 'rm -f "$aside"' EXIT
for name in FLASHGATE_JWT_SECRET FLASHGATE_ADMIN_TOKEN REDIS_PASSWORD MYSQL_PASSWORD MYSQL_ROOT_PASSWORD GRAFANA_PASSWORD; do
  printf '%s=%s\n' "$name" "$(random)"
done >"$aside"
ln "$aside" .env
echo "deploy/.env is written"
