//go:build measure

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"flashgate/internal/rig"
)

const (
	replicaRuns     = 5 // of each setting, by turns: the machine's moods meet all alike
	replicaShoppers = "20000"
)

// replicaSettings are what is held side by side.
var replicaSettings = []struct {
	name     string
	replicas int
	fsync    string // appendfsync of every node
}{
	{"wait_replicas 0, appendfsync everysec", 0, "everysec"},
	{"wait_replicas 1, appendfsync everysec", 1, "everysec"},
	{"wait_replicas 1, appendfsync always", 1, "always"},
}

// TestMeasureReplicas: what waiting for a replica costs, and what syncing every write does.
func TestMeasureReplicas(t *testing.T) {
	ctx := interruptible(t)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	ports, home, err := rig.FaultPorts(ctx, filepath.Join(root, ".run", "faults"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rig.Discard(context.Background(), home, nil)) })
	_, err = rig.Up(ctx, rig.Options{
		Dir: home, Cache: filepath.Join(root, ".run", "cache"), POM: filepath.Join(root, "deploy", "local", "rocketmq", "pom.xml"),
		Ports: ports, Fresh: true, Log: testLog{t},
	})
	require.NoError(t, err)
	dir := t.TempDir()
	for _, pkg := range []string{"flashgate", "flashgate/bench"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", dir, pkg)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	shipped, err := os.ReadFile(filepath.Join(root, "configs", "local.yaml"))
	require.NoError(t, err)
	figures := make([]map[string][]float64, len(replicaSettings))
	for range replicaRuns {
		for i, s := range replicaSettings {
			for node := range redisNodes {
				err := withNode(ctx, fmt.Sprintf("127.0.0.1:%d", ports.Redis+node), func(ctx context.Context, c rueidis.Client) error {
					return c.Do(ctx, c.B().ConfigSet().ParameterValue().ParameterValue("appendfsync", s.fsync).Build()).Error()
				})
				require.NoError(t, err)
			}
			config := filepath.Join(dir, "flashgate.yaml")
			text := string(shipped)
			for was, is := range map[string]string{
				"wait_replicas: auto": "wait_replicas: " + strconv.Itoa(s.replicas),
				"env_file: .run/env":  "env_file: " + filepath.Join(home, "env"),
				"configs/limits.yaml": filepath.Join(root, "configs", "limits.yaml"),
				"127.0.0.1:9876":      fmt.Sprintf("127.0.0.1:%d", ports.Namesrv),
				"    - 127.0.0.1:700": fmt.Sprintf("    - 127.0.0.1:%d", ports.Redis/10),
			} {
				require.Contains(t, text, was)
				text = strings.ReplaceAll(text, was, is)
			}
			require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
			report := filepath.Join(dir, "report.json")
			cmd := exec.CommandContext(ctx, filepath.Join(dir, "bench"), "accept", "--start", "daemons", "--config", config,
				"--flashgate", filepath.Join(dir, "flashgate"), "--shoppers", replicaShoppers, "--json", report)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			raw, err := os.ReadFile(report)
			require.NoError(t, err)
			var got struct {
				Figures []struct {
					Name  string
					Value float64
				}
			}
			require.NoError(t, json.Unmarshal(raw, &got))
			if figures[i] == nil {
				figures[i] = make(map[string][]float64)
			}
			for _, f := range got.Figures {
				figures[i][f.Name] = append(figures[i][f.Name], f.Value)
			}
		}
	}
	for i, s := range replicaSettings {
		for _, name := range []string{"accepted", "202 P50", "202 P99"} {
			values := figures[i][name]
			require.Len(t, values, replicaRuns, "%s: %v", name, figures[i])
			slices.Sort(values)
			t.Logf("%-40s %-14s median %10.1f of %.1f", s.name, name, values[len(values)/2], values)
		}
	}
}
