package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"strconv"
	"sync"
	"testing"
	"time"

	"flashgate/internal/sale"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

type agg struct {
	slog.Handler
	mu  sync.Mutex
	sum map[string]time.Duration
	n   map[string]int
}

func (a *agg) Enabled(context.Context, slog.Level) bool { return true }
func (a *agg) Handle(_ context.Context, r slog.Record) error {
	var d time.Duration
	var s string
	r.Attrs(func(at slog.Attr) bool {
		if at.Key == "took" {
			d = at.Value.Duration()
		}
		if at.Key == "statement" {
			s = at.Value.String()
		}
		return true
	})
	a.mu.Lock()
	if len(s) > 40 {
		s = s[:40]
	}
	a.sum[s] += d
	a.n[s]++
	a.mu.Unlock()
	return nil
}

func BenchmarkZZ(b *testing.B) {
	w, _ := strconv.Atoi(os.Getenv("W"))
	a := &agg{sum: map[string]time.Duration{}, n: map[string]int{}}
	o := mariadbOptions(b)
	o.SlowQuery = 1
	o.Logger = slog.New(a)
	r := newRig(b, o)
	calls := benchCalls(r.newSale(b, sale.MaxTotal, 2), b.N)
	a.sum = map[string]time.Duration{}
	a.n = map[string]int{}
	inParallel(b, w, func(i int) error { _, err := r.Apply(context.Background(), calls[i]); return err })
	var ks []string
	for k := range a.sum {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	for _, k := range ks {
		fmt.Printf("%-42s n=%4d mean=%v\n", k, a.n[k], a.sum[k]/time.Duration(a.n[k]))
	}
	for _, c := range []string{retryKnownBatch, retryUncommon, retryContention} {
		fmt.Println(c, testutil.ToFloat64(r.metrics.retries.WithLabelValues(c)))
	}
}
