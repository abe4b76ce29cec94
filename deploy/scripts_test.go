package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSecretsScript: it writes what compose.yaml wants, for its owner's eyes, and never
// a second time.
func TestSecretsScript(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "secrets.sh")
	require.NoError(t, os.WriteFile(script, []byte(read(t, "secrets.sh")), 0o700))
	run := func() string {
		out, err := exec.Command("sh", script).CombinedOutput()
		require.NoError(t, err, string(out))
		text := read(t, filepath.Join(dir, ".env"))
		info, err := os.Stat(filepath.Join(dir, ".env"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		return text
	}
	first := run()
	seen := map[string]bool{}
	var names []string
	for line := range strings.Lines(first) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		require.True(t, ok, line)
		names = append(names, name)
		require.Regexp(t, `^[A-Za-z0-9_-]{48}$`, value, "as it stands in a DSN and on a command line")
		require.False(t, seen[value], "one secret twice")
		seen[value] = true
	}
	require.Equal(t, secretVariables(t), names)
	require.Equal(t, first, run())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 2, "the script and what it wrote")
}

// fakeRedisCLI answers as nodes in a state would, and writes down what changes them.
const fakeRedisCLI = `#!/bin/sh
case "$*" in
*--cluster*) echo "$*" >>"$CALLS"; echo whole >"$STATE" ;;
*"cluster reset hard"*) echo "$*" >>"$CALLS"; echo fresh >"$STATE" ;;
*"cluster info"*)
  case $(cat "$STATE") in
  fresh) printf 'cluster_state:fail\r\ncluster_slots_assigned:0\r\ncluster_known_nodes:1\r\n' ;;
  begun) printf 'cluster_state:fail\r\ncluster_slots_assigned:5461\r\ncluster_known_nodes:3\r\n' ;;
  whole) printf 'cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_known_nodes:6\r\n' ;;
  esac ;;
*"info replication"*) printf 'role:master\r\nslave0:ip=x,port=1,state=online\r\n' ;;
esac
`

// TestRedisCreateScript: it makes a cluster of fresh nodes, leaves one that is there alone,
// and begins again after an attempt that was cut short.
func TestRedisCreateScript(t *testing.T) {
	for state, want := range map[string]struct{ resets, creates int }{
		"fresh": {0, 1}, "begun": {6, 1}, "whole": {0, 0},
	} {
		t.Run(state, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "redis-cli"), []byte(fakeRedisCLI), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "state"), []byte(state), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "calls"), nil, 0o600))
			cmd := exec.Command("sh", "compose/redis-create.sh")
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "STATE="+dir+"/state", "CALLS="+dir+"/calls")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
			require.Contains(t, string(out), "the cluster is ready")
			calls := read(t, filepath.Join(dir, "calls"))
			require.Equal(t, want.resets, strings.Count(calls, "cluster reset hard"), calls)
			require.Equal(t, want.creates, strings.Count(calls, "--cluster create 172.30.77.11:6379 "), calls)
			require.Equal(t, want.creates, strings.Count(calls, ":6379 --cluster-replicas 1 --cluster-yes"), calls)
		})
	}
}
