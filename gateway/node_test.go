package gateway

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// nodes is a ledger that leases the numbers of a list, in turn.
type nodes struct {
	mu       sync.Mutex
	away     bool
	free     []int
	lost     bool // the lease is found to be another's
	renewals int
	released []int
}

func (n *nodes) AcquireNode(context.Context, string, time.Duration) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.away || len(n.free) == 0 {
		return 0, errAway
	}
	node := n.free[0]
	n.free = n.free[1:]
	n.lost = false
	return node, nil
}

func (n *nodes) RenewNode(context.Context, int, string, time.Duration) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.renewals++
	if n.away {
		return false, errAway
	}
	return !n.lost, nil
}

func (n *nodes) ReleaseNode(_ context.Context, node int, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.released = append(n.released, node)
	return nil
}

func (n *nodes) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func TestNodeLease(t *testing.T) {
	n := &nodes{away: true, free: []int{5}}
	ids := sale.NewIDs(0, time.Now)
	l := &NodeLease{Ledger: n, IDs: ids, Holder: "test", TTL: 30 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.keep(ctx); close(done) }()
	eventually := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return ok()
		}, 10*time.Second, time.Millisecond, what)
	}
	require.False(t, l.Held(), "no number while the ledger is away")

	n.set(func() { n.away = false })
	eventually("a number is leased and renewed", func() bool { return l.Held() && n.renewals > 0 })
	require.Equal(t, 5, ids.Next(0).Node())

	n.set(func() { n.away, n.renewals = true, 0 })
	eventually("the ledger is asked in vain", func() bool { return n.renewals > 1 })
	require.True(t, l.Held(), "nobody else can take it while the ledger is away")
	require.Equal(t, 5, ids.Next(0).Node())

	n.set(func() { n.away, n.lost = false, true })
	eventually("a lost number makes no more ids", func() bool { return !l.Held() })
	n.set(func() { n.free = []int{9} })
	eventually("and is replaced", func() bool { return l.Held() && ids.Next(0).Node() == 9 })

	stop()
	<-done
	require.Equal(t, []int{9}, n.released)
}

func TestNothingIsSoldWithoutANodeNumber(t *testing.T) {
	lease := &NodeLease{Ledger: &nodes{free: []int{3}}, Holder: "test", TTL: time.Minute, Log: slog.New(slog.DiscardHandler)}
	x := newEdge(t, accept, func(o *Options) { lease.IDs, o.Lease = o.IDs, lease })
	require.Equal(t, 202, x.buy().status)
	lease.held.Store(false)
	x.problem(x.buy(), 503, sale.CodeUnavailable)
	require.ErrorContains(t, x.g.Ready(), "node number")
}
