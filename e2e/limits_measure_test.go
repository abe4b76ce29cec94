//go:build measure

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/limits"
)

// TestMeasureAThousandReloads: under load, a thousand changes of limits.yaml, every tenth
// of them wrong, fail no request and leave nothing behind.
//
//	go test -tags measure -v -timeout 30m -run TestMeasure ./e2e
func TestMeasureAThousandReloads(t *testing.T) {
	const reloads, warm = 1000, 100
	f := newFolder(t).realEngines()
	f.must("migrate")
	sale := fmt.Sprintf("reloads-%d", time.Now().UnixNano())
	version := func(i int) func(*limits.Rules) {
		return func(r *limits.Rules) {
			r.User.Purchase, r.Gateway.Purchase = wide, limits.Bucket{Rate: float64(1000 + i), Burst: 1000}
			r.Sales = map[string]limits.NamedSale{fmt.Sprint("sale-", i%2): {Purchase: wide, Read: wide, PurchaseQPS: 1e11, ReadQPS: 1e11}}
			r.Breakers.Redis.MinRequests = 2 + i%3
		}
	}
	f.tune(version(0))
	d := f.start("gateway").ready()
	f.openSale(sale, "--total", "1000", "--ends-at", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	tokens := f.tokens(8)
	r := newRush(t, len(tokens), 5*time.Millisecond, func(s, _ int) purchase {
		return purchase{gateway: d, sale: sale, token: tokens[s], who: "all"}
	})
	var good, bad float64
	var slowest time.Duration
	reload := func(from, to int) {
		for i := from; i < to; i++ {
			f.tune(version(i))
			series, want := "flashgate_limits_reloads_total", &good
			if i%10 == 9 {
				text, err := os.ReadFile(f.limitsFile())
				require.NoError(t, err)
				f.putLimits(strings.Replace(string(text), "cold_factor: 3", fmt.Sprint("cold_factor: -", i), 1))
				series, want = "flashgate_limits_reload_failures_total", &bad
			}
			*want++
			began := time.Now()
			eventually(t, waitTimeout, fmt.Sprint("change ", i, " is seen"), func() bool { return f.metric(d, series) >= *want })
			slowest = max(slowest, time.Since(began))
		}
	}
	reload(1, warm)
	goroutines, heap := f.metric(d, "go_goroutines"), f.metric(d, "go_memstats_heap_inuse_bytes")
	reload(warm, reloads)
	r.stop()
	t.Logf("%d good and %d bad files; the slowest was seen after %d ms; goroutines %g, then %g; heap %.1f MiB, then %.1f MiB",
		int(good), int(bad), slowest.Milliseconds(), goroutines, f.metric(d, "go_goroutines"), heap/(1<<20), f.metric(d, "go_memstats_heap_inuse_bytes")/(1<<20))
	eventually(t, waitTimeout, "no goroutine is left behind", func() bool { return f.metric(d, "go_goroutines") <= goroutines })
}
