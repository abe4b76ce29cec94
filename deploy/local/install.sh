#!/usr/bin/env bash
# Installs what the real engines and the tests need on this machine and is missing.
# Says nothing when everything is there.
set -euo pipefail

# Daemons live in sbin, which is not on everyone's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# command package
needed='
redis-server redis-server
redis-cli redis-tools
mariadbd mariadb-server
mariadb-install-db mariadb-server
mysql mariadb-client
java default-jre-headless
mvn maven
promtool prometheus
'

missing_packages() {
  while read -r command package; do
    if [ -n "$command" ] && ! command -v "$command" >/dev/null; then
      echo "$package"
    fi
  done <<<"$needed" | sort -u
}

mapfile -t packages < <(missing_packages)
if [ "${#packages[@]}" -eq 0 ]; then
  exit 0
fi

fail() {
  echo "install.sh: $1" >&2
  echo "install.sh: needed and missing, by their names in Debian: ${packages[*]}" >&2
  exit 1
}

command -v apt-get >/dev/null || fail "this machine has no apt-get: install these yourself"
if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
  as_root=(sudo)
else
  fail "not root, and sudo can't be used: have someone run 'apt-get install ${packages[*]}'"
fi

echo "installing ${packages[*]}"
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
own_policy=
cleanup() {
  rm -f "$log"
  if [ -n "$own_policy" ]; then
    "${as_root[@]}" rm -f "$policy"
  fi
}
trap cleanup EXIT

# Debian starts a service as soon as it is installed. Here only its program is
# wanted; a policy of the machine's own is left as it is.
if [ ! -e "$policy" ]; then
  own_policy=yes
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi

apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
    -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@" >>"$log" 2>&1
}
install() {
  apt install --no-install-recommends "$@" || {
    tail -n 30 "$log" >&2
    fail "apt-get could not install them"
  }
}

# The lists may be old or absent. Should that fail, the install says what is wrong.
apt update || true
install "${packages[@]}"
# Newer releases have the name 'mysql' in a package of its own.
if ! command -v mysql >/dev/null; then
  install mariadb-client-compat
fi

# Nor shall the services come up at the next boot. Only those just installed are
# touched: one that was there before is in use.
if command -v systemctl >/dev/null; then
  for package in "${packages[@]}"; do
    case $package in
    redis-server) "${as_root[@]}" systemctl disable redis-server.service >>"$log" 2>&1 || true ;;
    mariadb-server) "${as_root[@]}" systemctl disable mariadb.service >>"$log" 2>&1 || true ;;
    prometheus) "${as_root[@]}" systemctl disable prometheus.service >>"$log" 2>&1 || true ;;
    esac
  done
fi

mapfile -t packages < <(missing_packages)
if [ "${#packages[@]}" -ne 0 ]; then
  fail "apt-get installed everything, and still something is not found"
fi
