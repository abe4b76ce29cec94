package limits

import (
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

func TestUser(t *testing.T) {
	c, r := newClock(), shipped(t)
	r.User = PerClass{Purchase: Bucket{10, 20}, Read: Bucket{1, 1}}
	registry := prometheus.NewRegistry()
	l := newLimiter(t, r, Options{Now: c.Now, Registerer: registry})
	for range 20 {
		_, limit, ok := l.AllowUser(Purchase, []byte("alice"), l.now())
		require.True(t, ok)
		require.Empty(t, limit)
	}
	after, limit, ok := l.AllowUser(Purchase, []byte("alice"), l.now())
	require.False(t, ok)
	require.Equal(t, "user_purchase", limit)
	require.Equal(t, 100*time.Millisecond, after)
	_, _, ok = l.AllowUser(Purchase, []byte("bob"), l.now())
	require.True(t, ok, "another user")
	tracked := func() float64 {
		return value(t, registry, "flashgate_limits_tracked_buckets", "limit", "user_purchase")
	}
	require.Equal(t, 2.0, tracked())
	_, _, ok = l.AllowUser(Read, []byte("alice"), l.now())
	require.True(t, ok, "another class")
	after, limit, ok = l.AllowUser(Read, []byte("alice"), l.now())
	require.False(t, ok)
	require.Equal(t, "user_read", limit)
	require.Equal(t, time.Second, after)
	c.advance(100 * time.Millisecond)
	_, _, ok = l.AllowUser(Purchase, []byte("alice"), l.now())
	require.True(t, ok)
	_, _, ok = l.AllowUser(Purchase, []byte("alice"), l.now())
	require.False(t, ok)

	require.Equal(t, 2.0, value(t, registry, "flashgate_limits_refusals_total", "limit", "user_purchase"))
	require.Equal(t, 1.0, tracked(), "bob's bucket is full again")
	require.Equal(t, 0.0, value(t, registry, "flashgate_limits_shared_bucket_requests_total", "limit", "user_read"))
}

// A server hands over strings that it will use again.
func TestUserIsCopied(t *testing.T) {
	c, r := newClock(), shipped(t)
	r.User.Purchase = Bucket{1, 1}
	l := newLimiter(t, r, Options{Now: c.Now})
	buffer := []byte("alice")
	for _, name := range []string{"alice", "carol"} {
		copy(buffer, name)
		_, _, ok := l.AllowUser(Purchase, buffer, l.now())
		require.True(t, ok)
		_, _, ok = l.AllowUser(Purchase, []byte(name), l.now())
		require.False(t, ok)
	}
	_, _, ok := l.AllowUser(Purchase, []byte("alice"), l.now())
	require.False(t, ok, "known under its own name still")
}

func TestAddress(t *testing.T) {
	r := shipped(t)
	r.Address.Purchase = Bucket{1, 1}
	for _, tc := range []struct {
		name, first, second string
		same                bool
	}{
		{"IPv4", "192.0.2.1", "192.0.2.1", true},
		{"other IPv4", "192.0.2.1", "192.0.2.2", false},
		{"IPv4 in IPv6", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"other IPv4 in IPv6", "::ffff:192.0.2.1", "::ffff:192.0.2.2", false},
		{"a /64", "2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"its neighbour", "2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"zones", "fe80::1%eth0", "fe80::2%eth1", true},
	} {
		c := newClock()
		l := newLimiter(t, r, Options{Now: c.Now})
		_, _, ok := l.AllowAddress(Purchase, netip.MustParseAddr(tc.first), l.now())
		require.True(t, ok, tc.name)
		after, limit, ok := l.AllowAddress(Purchase, netip.MustParseAddr(tc.second), l.now())
		require.Equal(t, !tc.same, ok, tc.name)
		if tc.same {
			require.Equal(t, "address_purchase", limit)
			require.Equal(t, time.Second, after)
		}
		_, _, ok = l.AllowAddress(Read, netip.MustParseAddr(tc.first), l.now())
		require.True(t, ok, tc.name)
	}
	l := newLimiter(t, r, Options{})
	_, _, ok := l.AllowAddress(Purchase, netip.Addr{}, l.now())
	require.True(t, ok, "an unknown address is one client")
	_, _, ok = l.AllowAddress(Purchase, netip.Addr{}, l.now())
	require.False(t, ok)
}

func TestGateway(t *testing.T) {
	c, r := newClock(), generous(t)
	r.Gateway.Purchase = Bucket{2, 3}
	l := newLimiter(t, r, Options{Now: c.Now})
	for range 3 {
		pass, _, _, ok := l.Enter(Purchase, l.now())
		require.True(t, ok)
		pass.Exit()
	}
	pass, after, limit, ok := l.Enter(Purchase, l.now())
	require.False(t, ok)
	require.Equal(t, "gateway_purchase", limit)
	require.Equal(t, 500*time.Millisecond, after)
	pass.Exit() // harmless
	_, _, _, ok = l.Enter(Read, l.now())
	require.True(t, ok)
	require.EqualValues(t, 0, l.underWay[Purchase].Load())
}

func TestFlow(t *testing.T) {
	c, r := sentinelClock(t), generous(t)
	r.Flow.PurchaseQPS = 10
	registry := prometheus.NewRegistry()
	l := newLimiter(t, r, Options{Registerer: registry})
	burst := func() (n int) {
		for range 50 {
			pass, after, limit, ok := l.Enter(Purchase, l.now())
			pass.Exit()
			if ok {
				n++
				continue
			}
			require.Equal(t, "flow_purchase", limit)
			require.Equal(t, time.Second, after)
		}
		return n
	}
	require.Equal(t, 10, burst())
	require.Equal(t, 0, burst())
	pass, _, _, ok := l.Enter(Read, l.now())
	require.True(t, ok)
	pass.Exit()
	c.advance(time.Second)
	require.Equal(t, 10, burst(), "nothing is saved up, nothing is owed")

	// A raised limit counts what the second has seen.
	r.Flow.PurchaseQPS = 25
	require.NoError(t, l.Swap(r))
	require.Equal(t, 15, burst())
	require.Equal(t, 165.0, value(t, registry, "flashgate_limits_refusals_total", "limit", "flow_purchase"))
}

func TestConcurrency(t *testing.T) {
	r := generous(t)
	r.Concurrency.Purchase = 3
	l := newLimiter(t, r, Options{})
	var under, most atomic.Int64
	var entered, refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				pass, _, limit, ok := l.Enter(Purchase, l.now())
				if !ok {
					refused.Add(1)
					if limit != "concurrency_purchase" {
						t.Error(limit)
					}
					continue
				}
				entered.Add(1)
				n := under.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				under.Add(-1)
				pass.Exit()
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, most.Load(), int64(3))
	require.EqualValues(t, 1600, entered.Load()+refused.Load())
	require.EqualValues(t, 0, l.underWay[Purchase].Load())

	held := make([]Pass, 3)
	for i := range held {
		var ok bool
		held[i], _, _, ok = l.Enter(Purchase, l.now())
		require.True(t, ok)
	}
	_, after, limit, ok := l.Enter(Purchase, l.now())
	require.False(t, ok)
	require.Equal(t, "concurrency_purchase", limit)
	require.Equal(t, time.Second, after)
	_, _, _, ok = l.Enter(Read, l.now())
	require.True(t, ok)
	held[0].Exit()
	_, _, _, ok = l.Enter(Purchase, l.now())
	require.True(t, ok)
}

func TestSwap(t *testing.T) {
	c, r := newClock(), generous(t)
	r.User.Purchase, r.Address.Purchase, r.Gateway.Purchase = Bucket{1, 5}, Bucket{1, 5}, Bucket{1, 5}
	l := newLimiter(t, r, Options{Now: c.Now})
	ip := netip.MustParseAddr("192.0.2.1")
	spend := func() (user, address, gateway int) {
		for range 100 {
			if _, _, ok := l.AllowUser(Purchase, []byte("alice"), l.now()); ok {
				user++
			}
			if _, _, ok := l.AllowAddress(Purchase, ip, l.now()); ok {
				address++
			}
			if pass, _, _, ok := l.Enter(Purchase, l.now()); ok {
				gateway++
				pass.Exit()
			}
		}
		return user, address, gateway
	}
	three := func(user, address, gateway int) [3]int { return [3]int{user, address, gateway} }
	require.Equal(t, [3]int{5, 5, 5}, three(spend()))

	same := *r
	require.NoError(t, l.Swap(&same))
	require.Equal(t, [3]int{0, 0, 0}, three(spend()), "the same limits: what was spent stays spent")

	more := *r
	more.User.Purchase.Burst, more.Gateway.Purchase.Burst = 15, 9
	require.NoError(t, l.Swap(&more))
	require.Equal(t, [3]int{10, 0, 4}, three(spend()), "only what was raised")

	less := more
	less.User.Purchase.Burst, less.Address.Purchase.Rate = 2, 50
	require.NoError(t, l.Swap(&less))
	require.Equal(t, [3]int{0, 0, 0}, three(spend()))
	c.advance(100 * time.Millisecond)
	require.Equal(t, [3]int{0, 5, 0}, three(spend()))
}

// Limits are swapped under load; every answer is that of one file or the other.
func TestSwapUnderLoad(t *testing.T) {
	tight, wide := generous(t), generous(t)
	tight.User.Purchase = Bucket{1, 1}
	l := newLimiter(t, wide, Options{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				l.AllowUser(Purchase, []byte(strconv.Itoa(i*100+n%50)), l.now())
				l.AllowAddress(Read, netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), l.now())
				pass, _, limit, ok := l.Enter(Purchase, l.now())
				if !ok {
					t.Error(limit)
				}
				pass.Exit()
			}
		})
	}
	for range 50 {
		require.NoError(t, l.Swap(tight))
		require.NoError(t, l.Swap(wide))
	}
	close(stop)
	wg.Wait()
	require.NoError(t, l.Swap(tight))
	l.AllowUser(Purchase, []byte("zoe"), l.now())
	_, _, ok := l.AllowUser(Purchase, []byte("zoe"), l.now())
	require.False(t, ok)
}

func TestLargestValues(t *testing.T) {
	l := newLimiter(t, generous(t), Options{})
	for range 10_000 {
		_, _, ok := l.AllowUser(Purchase, []byte("alice"), l.now())
		require.True(t, ok)
		pass, _, _, ok := l.Enter(Purchase, l.now())
		require.True(t, ok)
		pass.Exit()
	}
}

func TestAllowPathDoesNotAllocate(t *testing.T) {
	l, ip := newLimiter(t, generous(t), Options{}), netip.MustParseAddr("2001:db8::1")
	require.Zero(t, testing.AllocsPerRun(1000, func() { l.AllowAddress(Purchase, ip, l.now()) }))
	require.Zero(t, testing.AllocsPerRun(1000, func() { l.AllowUser(Purchase, []byte("alice"), l.now()) }))
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		pass, _, _, _ := l.Enter(Purchase, l.now())
		pass.Exit()
	}))
}

func TestMetricsCannotBeRegisteredTwice(t *testing.T) {
	registry := prometheus.NewRegistry()
	newLimiter(t, shipped(t), Options{Registerer: registry})
	_, err := New(shipped(t), Options{Registerer: registry})
	require.ErrorContains(t, err, "metrics of limits")
}
