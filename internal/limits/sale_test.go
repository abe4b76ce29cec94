package limits

import (
	"math"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// letIn counts how many of n requests of a sale are let in, and names the limit that
// refused the last of the others.
func letIn(l *Limiter, c Class, id string, n int) (in int, by string, after time.Duration) {
	for range n {
		if retry, limit, ok := l.AllowSale(c, id, l.now()); ok {
			in++
		} else {
			by, after = limit, retry
		}
	}
	return in, by, after
}

func TestSaleBucket(t *testing.T) {
	c, r := newClock(), generous(t)
	r.Sale.Purchase = Bucket{10, 20}
	wide := Bucket{1e11, 1e11}
	r.Sales = map[string]NamedSale{"hot": {Purchase: Bucket{10, 50}, Read: wide, PurchaseQPS: 1e11, ReadQPS: 1e11}}
	registry := prometheus.NewRegistry()
	l := newLimiter(t, r, Options{Now: c.Now, Registerer: registry})
	in, by, after := letIn(l, Purchase, "spring", 100)
	require.Equal(t, 20, in)
	require.Equal(t, "sale_purchase", by)
	require.Equal(t, 100*time.Millisecond, after)
	in, _, _ = letIn(l, Purchase, "autumn", 100)
	require.Equal(t, 20, in, "another sale")
	in, _, _ = letIn(l, Purchase, "hot", 100)
	require.Equal(t, 50, in, "one with limits of its own")
	in, _, _ = letIn(l, Read, "spring", 100)
	require.Equal(t, 100, in, "another class")
	require.Equal(t, 80.0+80+50, value(t, registry, "flashgate_limits_refusals_total", "limit", "sale_purchase"))

	// Named and unnamed while it runs: what was spent stays spent.
	named := *r
	named.Sales = map[string]NamedSale{"spring": {Purchase: Bucket{10, 25}, Read: wide, PurchaseQPS: 1e11, ReadQPS: 1e11}}
	require.NoError(t, l.Swap(&named))
	in, _, _ = letIn(l, Purchase, "spring", 100)
	require.Equal(t, 5, in)
	in, _, _ = letIn(l, Purchase, "hot", 100)
	require.Equal(t, 0, in, "named no more: 50 were spent of what is now 20")
}

func TestSaleFlowAndHotspot(t *testing.T) {
	c, r := sentinelClock(t), generous(t)
	r.Hotspot.PurchaseQPS = 100
	wide := Bucket{1e11, 1e11}
	r.Sales = map[string]NamedSale{"hot": {Purchase: wide, Read: wide, PurchaseQPS: 30, ReadQPS: 1e11}}
	l := newLimiter(t, r, Options{Now: c.Now})
	for _, tc := range []struct {
		id, by string
		in     int
	}{{"spring", "hotspot_purchase", 100}, {"autumn", "hotspot_purchase", 100}, {"hot", "sale_flow_purchase", 30}} {
		for second := range 3 {
			in, by, after := letIn(l, Purchase, tc.id, 300)
			// The second of one rule may turn within the second of the other.
			require.Equal(t, tc.in, in, "%s in second %d", tc.id, second)
			require.Equal(t, tc.by, by)
			require.Equal(t, trafficRetryAfter, after)
			c.advance(2 * time.Second)
		}
	}
	in, _, _ := letIn(l, Read, "hot", 300)
	require.Equal(t, 300, in)
}

// One user at 1,000 requests a second, and an address with 10,000 users, are held to
// their limits within 5 % while others are served.
func TestOneUserAndOneAddressAreHeld(t *testing.T) {
	c, r := newClock(), shipped(t)
	l := newLimiter(t, r, Options{Now: c.Now})
	const seconds = 10
	shared := netip.MustParseAddr("192.0.2.1")
	var greedy, crowd, crowdRefused, others int
	for i := range seconds * 1000 {
		c.advance(time.Millisecond)
		if _, _, ok := l.AllowUser(Purchase, []byte("greedy"), l.now()); ok {
			greedy++
		}
		// 10,000 users, each once, from one address.
		if _, _, ok := l.AllowAddress(Purchase, shared, l.now()); !ok {
			crowdRefused++
		} else if _, _, ok := l.AllowUser(Purchase, []byte("crowd-"+strconv.Itoa(i)), l.now()); ok {
			crowd++
		}
		// Others come from elsewhere.
		if _, _, ok := l.AllowAddress(Purchase, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), l.now()); ok {
			if _, _, ok := l.AllowUser(Purchase, []byte("other-"+strconv.Itoa(i%1000)), l.now()); ok {
				others++
			}
		}
	}
	within := func(got int, b Bucket) {
		t.Helper()
		want := float64(b.Burst) + b.Rate*seconds
		require.InDelta(t, want, got, math.Max(1, 0.05*b.Rate*seconds))
	}
	within(greedy, r.User.Purchase)
	within(crowd, r.Address.Purchase)
	require.Equal(t, seconds*1000, crowd+crowdRefused)
	require.Equal(t, seconds*1000, others, "nobody else feels it")
}

// An attacker who cycles through a million addresses, each once, displaces nobody who
// comes again, and a newcomer gets a bucket of his own all the same: a bucket that is
// full again makes room, and one token comes back in a moment.
func TestCyclingThroughAddressesHarmsNobody(t *testing.T) {
	size, now := Bucket{Rate: 200, Burst: 400}, time.Unix(1_800_000_000, 0)
	table := newTable(now)
	const maxKeys, requests = 16_384, 60_000
	for range size.Burst {
		_, ok := table.takeUser([]byte("debtor"), size, maxKeys, now)
		require.True(t, ok)
	}
	debtor := 0
	for i := range requests { // 100,000 a second
		now = now.Add(10 * time.Microsecond)
		_, ok := table.takeUser([]byte("cycled-"+strconv.Itoa(i)), size, maxKeys, now)
		require.True(t, ok, "each address once: within its limit")
		if i%100 == 0 {
			_, ok := table.takeUser([]byte("new-"+strconv.Itoa(i)), size, maxKeys, now)
			require.True(t, ok)
		}
		if _, ok := table.takeUser([]byte("debtor"), size, maxKeys, now); ok {
			debtor++
		}
	}
	keys, shared := table.counts(now)
	require.LessOrEqual(t, keys, maxKeys)
	require.Zero(t, shared)
	require.InDelta(t, size.Rate*requests/100_000, debtor, 2, "no more than comes back")
}

// The whole chain that a purchase passes, with every kind of limit on.
func chain(t testing.TB) (*Limiter, func()) {
	r := generous(t)
	wide := Bucket{1e11, 1e11}
	r.Sales = map[string]NamedSale{"spring": {Purchase: wide, Read: wide, PurchaseQPS: 1e11, ReadQPS: 1e11}}
	r.Block.Addresses, r.Block.Users = []string{"203.0.113.0/24", "2001:db8:bad::/48"}, []string{"mallory"}
	r.Proxies.Trusted = []string{"10.0.0.0/8"}
	r.Cluster.Enabled, r.Cluster.Purchase = true, wide
	l := newLimiter(t, r, Options{})
	peer, id := netip.MustParseAddr("10.0.0.1"), "spring"
	values := [][]byte{[]byte("198.51.100.7, 10.0.0.2")}
	return l, func() {
		client := peer
		if l.ForwardedHeader(peer) != "" {
			client = l.Client(peer, values)
		}
		_, _, ok := l.AllowAddress(Purchase, client, l.now())
		pass, _, limit, entered := l.Enter(Purchase, l.now())
		_, _, user := l.AllowUser(Purchase, []byte("alice"), l.now())
		required, _ := l.TicketRules()
		_, _, sold := l.AllowSale(Purchase, id, l.now())
		pass.Exit()
		if !ok || !entered || !user || !sold || required {
			t.Error("refused", limit)
		}
	}
}

func TestChainDoesNotAllocate(t *testing.T) {
	_, pass := chain(t)
	require.Zero(t, testing.AllocsPerRun(1000, pass))
}

func BenchmarkChain(b *testing.B) {
	_, pass := chain(b)
	b.ReportAllocs()
	for b.Loop() {
		pass()
	}
}

func BenchmarkChainParallel(b *testing.B) {
	_, pass := chain(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			pass()
		}
	})
}
