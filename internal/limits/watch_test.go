package limits

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// within bounds a wait. Watch promises a second, on a machine that is not starved.
const within = 20 * time.Second

type log struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

func (l *log) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.String()
}

type watched struct {
	*Limiter
	t        *testing.T
	path     string
	log      *log
	registry *prometheus.Registry
}

// watch follows a copy of the shipped file at path until the test ends.
func watch(t *testing.T, path string) *watched {
	t.Helper()
	w := &watched{t: t, path: path, log: &log{}, registry: prometheus.NewRegistry()}
	rules, err := Load(path)
	require.NoError(t, err)
	w.Limiter = newLimiter(t, rules, Options{Registerer: w.registry, Log: slog.New(slog.NewTextHandler(w.log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Watch(ctx, path) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return w
}

func (w *watched) rate() float64 { return w.rules.Load().User.Purchase.Rate }
func (w *watched) failures() float64 {
	return value(w.t, w.registry, "flashgate_limits_reload_failures_total")
}
func (w *watched) reloads() float64 { return value(w.t, w.registry, "flashgate_limits_reloads_total") }

func (w *watched) becomes(rate float64) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.rate() == rate }, within, 5*time.Millisecond)
}

// replace puts a file in place of another as an editor does: by a rename.
func replace(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", []byte(content), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limits.yaml")
	write(t, path, edit(t))
	w := watch(t, path)

	replace(t, path, edit(t, "user.purchase.rate", "7"))
	w.becomes(7)
	write(t, path, edit(t, "user.purchase.rate", "8"))
	w.becomes(8)
	replace(t, path, edit(t, "user.purchase.rate", "9"))
	w.becomes(9)
	require.Eventually(t, func() bool { return w.reloads() == 3 }, within, 5*time.Millisecond)
	require.Zero(t, w.failures())
	require.InDelta(t, time.Now().Unix(), value(t, w.registry, "flashgate_limits_reload_timestamp_seconds"), 10)

	// The whole file or nothing of it.
	replace(t, path, edit(t, "user.purchase.rate", "11", "user.purchase.burst", "-1"))
	require.Eventually(t, func() bool { return w.failures() == 1 }, within, 5*time.Millisecond)
	require.Equal(t, 9.0, w.rate())
	require.Regexp(t, `level=ERROR msg="limits file refused: the limits before stay in force" file=\S+/limits.yaml line=\d+ key=user.purchase.burst error="-1 is out of range`, w.log.text())

	require.NoError(t, os.Remove(path))
	require.Eventually(t, func() bool { return w.failures() == 2 }, within, 5*time.Millisecond)
	require.Equal(t, 9.0, w.rate())
	write(t, path, edit(t, "user.purchase.rate", "12"))
	w.becomes(12)
	require.Equal(t, 2.0, w.failures())
}

// A config map is a folder of links, of which the one in the middle is turned.
func TestWatchConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, rate string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		write(t, filepath.Join(dir, name, "limits.yaml"), edit(t, "user.purchase.rate", rate))
		require.NoError(t, os.Symlink(name, filepath.Join(dir, "..tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", "5")
	path := filepath.Join(dir, "limits.yaml")
	require.NoError(t, os.Symlink("..data/limits.yaml", path))
	w := watch(t, path)
	require.Equal(t, 5.0, w.rate())
	version("..2", "6")
	w.becomes(6)
	require.Zero(t, w.failures())
}

// A link to elsewhere sends no event to this folder when what it leads to changes.
func TestWatchThroughALink(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target.yaml")
	write(t, target, edit(t))
	path := filepath.Join(t.TempDir(), "limits.yaml")
	require.NoError(t, os.Symlink(target, path))
	w := watch(t, path)
	write(t, target, edit(t, "user.purchase.rate", "6"))
	w.becomes(6)
}

// What is changed between loading and watching is not missed.
func TestWatchSeesWhatChangedBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limits.yaml")
	write(t, path, edit(t))
	rules, err := Load(path)
	require.NoError(t, err)
	write(t, path, edit(t, "user.purchase.rate", "6"))
	w := &watched{Limiter: newLimiter(t, rules, Options{}), t: t}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Watch(ctx, path) }()
	w.becomes(6)
	cancel()
	require.NoError(t, <-done)
}

func TestWatchWithoutAFolder(t *testing.T) {
	l := newLimiter(t, shipped(t), Options{})
	require.ErrorContains(t, l.Watch(t.Context(), filepath.Join(t.TempDir(), "none", "limits.yaml")), "watching")
}
