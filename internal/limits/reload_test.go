package limits

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/alibaba/sentinel-golang/core/circuitbreaker"
	"github.com/alibaba/sentinel-golang/core/flow"
	"github.com/alibaba/sentinel-golang/core/hotspot"
	"github.com/alibaba/sentinel-golang/core/stat"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// sentinelSize is how much Sentinel keeps for the process.
func sentinelSize() string {
	return fmt.Sprint("rules ", len(flow.GetRules()), " ", len(hotspot.GetRules()), " ", len(circuitbreaker.GetRules()),
		", nodes ", len(stat.ResourceNodeList()))
}

// requestsAReload are under way while the limits are swapped: bounded, so that a machine
// with little to give spends it on the reloads.
const requestsAReload = 100

// A thousand reloads under load, good and bad: not one request fails that the limits let
// in, and nothing is left behind.
func TestAThousandReloads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limits.yaml")
	text := edit(t) + "\nsales:\n  SALE:\n    purchase: {rate: 1e11, burst: 1e11}\n    read: {rate: 1e11, burst: 1e11}\n    purchase_qps: 1e11\n    read_qps: 1e11\n"
	for _, p := range []string{"gateway", "address", "user", "sale"} {
		text = editText(t, text, p+".purchase.rate", "1e11", p+".purchase.burst", "1e11")
	}
	for _, key := range []string{"flow.purchase_qps", "hotspot.purchase_qps", "system.inbound_qps"} {
		text = editText(t, text, key, "1e11")
	}
	put := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	version := func(i int) string {
		s := editText(t, text, "user.read.rate", strconv.Itoa(20+i%7), "breakers.redis.min_requests", strconv.Itoa(2+i%3))
		return strings.Replace(s, "  SALE:", "  sale-"+strconv.Itoa(i%2)+":", 1)
	}
	put(version(0))
	rules, err := Load(path)
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	l := newLimiter(t, rules, Options{Registerer: registry, Log: slog.New(slog.DiscardHandler)})
	f := &follower{limiter: l, path: path}

	requests := make(chan struct{})
	var load sync.WaitGroup
	for range 2 {
		load.Go(func() {
			for range requests {
				pass, _, limit, ok := l.Enter(Purchase, l.now())
				if _, by, fine := l.AllowUser(Purchase, []byte("alice"), l.now()); !fine {
					ok, limit = false, by
				}
				if _, by, fine := l.AllowSale(Purchase, "sale-1", l.now()); !fine {
					ok, limit = false, by
				}
				if !ok {
					t.Error(limit)
				}
				pass.Exit()
			}
		})
	}
	reload := func(from, to int) {
		for i := from; i < to; i++ {
			if i%10 == 9 {
				put(strings.Replace(version(i), "cold_factor: 3", "cold_factor: "+strconv.Itoa(-i), 1))
			} else {
				put(version(i))
			}
			looked := make(chan struct{})
			go func() { f.look(); close(looked) }()
			for range requestsAReload {
				requests <- struct{}{}
			}
			<-looked
		}
	}
	reload(1, 100)
	size, routines := sentinelSize(), runtime.NumGoroutine()
	reload(100, 1000)
	require.Equal(t, size, sentinelSize())
	require.LessOrEqual(t, runtime.NumGoroutine(), routines+2)
	close(requests)
	load.Wait()
	require.Equal(t, 100.0, value(t, registry, "flashgate_limits_reload_failures_total"))
	require.Equal(t, 899.0, value(t, registry, "flashgate_limits_reloads_total"))
	v := l.View()
	require.NotNil(t, v.Refused)
	require.Len(t, v.Refused.Problems, 1)
	require.Regexp(t, `limits.yaml:\d+: flow.cold_factor: -999 is out of range`, v.Refused.Problems[0])
	require.Contains(t, v.Limits, "sale-0:", "those of the last good file")

	require.NoError(t, l.Close())
	require.NotContains(t, fmt.Sprint(flow.GetRules()), "sale-")
}

// What is shown is a limits file that says the same.
func TestViewIsALimitsFile(t *testing.T) {
	r := shipped(t)
	wide := Bucket{1e11, 1e11}
	r.Sales = map[string]NamedSale{"hot": {Purchase: wide, Read: wide, PurchaseQPS: 0.5e11, ReadQPS: 7}}
	r.Block.Users, r.Allow.Addresses = []string{"mallory", "1e3", "yes"}, []string{"2001:db8::/32"}
	l := newLimiter(t, r, Options{})
	v := l.View()
	shown, err := Parse("shown", []byte(v.Limits))
	require.NoError(t, err, v.Limits)
	again := newLimiter(t, shown, Options{})
	require.Equal(t, v.Limits, again.View().Limits)
	require.Equal(t, r.Sales, shown.Sales)
	require.Equal(t, r.Block.Users, shown.Block.Users)
	require.Equal(t, r.Breakers, shown.Breakers)
}

func TestTicketsWithoutAKey(t *testing.T) {
	r := shipped(t)
	r.Ticket.Required = true
	_, err := New(r, Options{})
	require.ErrorContains(t, err, "ticket.secret")
	l := newLimiter(t, shipped(t), Options{})
	require.ErrorContains(t, l.Swap(r), "ticket.secret")
	required, _ := l.TicketRules()
	require.False(t, required, "the rules before are in force")
	with := newLimiter(t, r, Options{Tickets: true})
	required, ttl := with.TicketRules()
	require.True(t, required)
	require.Equal(t, r.Ticket.TTL, ttl)
}
