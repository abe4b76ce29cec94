#!/bin/sh
# Joins the six nodes to a cluster of three masters with a replica each, and ends once
# every slot is served and every replica is in step. On a cluster that is there it only
# waits. REDISCLI_AUTH is the password.
set -eu
nodes='172.30.77.11:6379 172.30.77.12:6379 172.30.77.13:6379 172.30.77.14:6379 172.30.77.15:6379 172.30.77.16:6379'
ask() { # node, command
  address=$1
  shift
  redis-cli -e -h "${address%:*}" -p "${address#*:}" "$@"
}

# A node keeps what it knows in nodes.conf, so a cluster is made once.
known=
begun=
for node in $nodes; do
  info=$(ask "$node" cluster info | tr -d '\r')
  case $info in *cluster_slots_assigned:16384*) known=yes ;; esac
  case "$info " in *cluster_known_nodes:1[!0-9]*) ;; *) begun=yes ;; esac
done
if [ -z "$known" ]; then
  if [ -n "$begun" ]; then
    # An earlier attempt was cut short. No node knows of a whole cluster, so none has ever
    # held data.
    for node in $nodes; do
      ask "$node" cluster reset hard
    done
  fi
  # shellcheck disable=SC2086 # one argument a node
  redis-cli --cluster create $nodes --cluster-replicas 1 --cluster-yes
fi

ready() {
  for node in $nodes; do
    ask "$node" cluster info | grep -q '^cluster_state:ok' || return 1
    replication=$(ask "$node" info replication | tr -d '\r')
    case $replication in
    *role:master*) case $replication in *state=online*) ;; *) return 1 ;; esac ;;
    *) case $replication in *master_link_status:up*) ;; *) return 1 ;; esac ;;
    esac
  done
}
for _ in $(seq 60); do
  if ready; then
    echo 'the cluster is ready'
    exit 0
  fi
  sleep 1
done
echo 'the cluster did not come up within a minute' >&2
exit 1
