package limits

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alibaba/sentinel-golang/util"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// noHome is a HOME that is not there, and must not be made.
var noHome = filepath.Join(os.TempDir(), "flashgate-no-home-"+strconv.Itoa(os.Getpid()))

func TestMain(m *testing.M) {
	if err := os.Setenv("HOME", noHome); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// Sentinel makes a log folder in HOME and starts collectors, unless told otherwise;
// TestMain sees that nothing runs on.
func TestSentinelKeepsToItself(t *testing.T) {
	l := newLimiter(t, shipped(t), Options{})
	pass, _, _, ok := l.Enter(Purchase, l.now())
	require.True(t, ok)
	pass.Exit()
	require.NoError(t, l.Breaker(Redis, isDown).Do(t.Context(), func(context.Context) error { return nil }))
	require.NoDirExists(t, noHome)
}

// clock is a time that only a test moves. It is Sentinel's too, once set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_800_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) CurrentTimeMillis() uint64 { return uint64(c.Now().UnixMilli()) }
func (c *clock) CurrentTimeNano() uint64   { return uint64(c.Now().UnixNano()) }
func (c *clock) Sleep(time.Duration)       { panic("BUG: a limit slept") }

// sentinelClock makes Sentinel run on a test's clock until the test ends.
func sentinelClock(t *testing.T) *clock {
	t.Helper()
	require.NoError(t, startSentinel())
	c := newClock()
	// Sentinel's windows are never moved back: go on from where the last test was, and
	// let the next go on from here.
	c.now = time.UnixMilli(int64(util.CurrentTimeMillis())).Add(time.Hour)
	util.SetClock(c)
	t.Cleanup(func() { util.SetClock(ahead{time.Until(c.Now())}) })
	return c
}

// ahead is a clock that goes, so much ahead of the time.
type ahead struct{ by time.Duration }

func (a ahead) Now() time.Time            { return time.Now().Add(a.by) }
func (a ahead) CurrentTimeMillis() uint64 { return uint64(a.Now().UnixMilli()) }
func (a ahead) CurrentTimeNano() uint64   { return uint64(a.Now().UnixNano()) }
func (ahead) Sleep(time.Duration)         { panic("BUG: a limit slept") }

// value reads a metric; its labels are those given, in pairs.
func value(t *testing.T, from prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := from.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if has(m, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s%v", name, labels)
	return 0
}

func has(m *dto.Metric, labels []string) bool {
	for i := 0; i < len(labels); i += 2 {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}
