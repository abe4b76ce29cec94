package gateway

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"flashgate/internal/sale"
)

// NodeLedger leases node numbers; it is part of ledger.Ledger.
type NodeLedger interface {
	AcquireNode(ctx context.Context, holder string, ttl time.Duration) (int, error)
	RenewNode(ctx context.Context, node int, holder string, ttl time.Duration) (bool, error)
	ReleaseNode(ctx context.Context, node int, holder string) error
}

// NodeLease keeps this gateway's node number, by which its ids differ from all
// others': without one it sells nothing. While the ledger is away the number stays good: nobody else can take it
// then, and the ledger gives an expired number to another only long after.
type NodeLease struct {
	Ledger NodeLedger
	IDs    *sale.IDs
	Holder string        // this process
	TTL    time.Duration // of the lease; renewed at a third of it
	Log    *slog.Logger

	held    atomic.Bool
	renewed time.Time // when the ledger last said that the number is ours
}

// nodeGoodHours is how long a number stays good while the ledger cannot be asked: half
// of ledger.NodeQuarantine, after which it may be another's.
const nodeGoodHours = 12

// Pauses between tries to get a first node number.
const (
	nodeRetryMinMillis = 100
	nodeRetryMaxMillis = 5000
	nodeCallSeconds    = 5
)

// acquire waits until the ledger has given a node number, or ctx ends.
func (l *NodeLease) acquire(ctx context.Context) (int, error) {
	pause := nodeRetryMinMillis * time.Millisecond
	for {
		node, err := l.take(ctx)
		if err == nil {
			return node, nil
		}
		l.Log.Warn("no node number yet; trying again", "in", pause, "err", err)
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, nodeRetryMaxMillis*time.Millisecond)
	}
}

func (l *NodeLease) take(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeCallSeconds*time.Second)
	defer cancel()
	node, err := l.Ledger.AcquireNode(ctx, l.Holder, l.TTL)
	if err == nil {
		l.IDs.SetNode(node)
		l.renewed = time.Now()
		l.held.Store(true)
		l.Log.Info("leased a node number", "node", node)
	}
	return node, err
}

// Held reports whether a node number has been leased.
func (l *NodeLease) Held() bool { return l.held.Load() }

// keep takes a number, renews its lease until ctx ends, and then gives it back. A
// lease that was lost (this process stood still for longer than its time) is replaced
// by another number.
func (l *NodeLease) keep(ctx context.Context) {
	node, err := l.acquire(ctx)
	if err != nil {
		return // told to stop before there was one
	}
	tick := time.NewTicker(l.TTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodeCallSeconds*time.Second)
			defer cancel()
			if err := l.Ledger.ReleaseNode(release, node, l.Holder); err != nil {
				l.Log.Warn("the node number was not given back; its lease will end", "node", node, "err", err)
			}
			return
		case <-tick.C:
			node = l.renew(ctx, node)
		}
	}
}

func (l *NodeLease) renew(ctx context.Context, node int) int {
	call, cancel := context.WithTimeout(ctx, nodeCallSeconds*time.Second)
	defer cancel()
	kept, err := l.Ledger.RenewNode(call, node, l.Holder, l.TTL)
	switch {
	case err == nil && kept:
		l.renewed = time.Now()
		return node
	case err != nil && time.Since(l.renewed) < nodeGoodHours*time.Hour:
		l.Log.Warn("the node number's lease was not renewed; the number stays good", "node", node, "err", err)
		return node
	}
	// From here on another gateway may have the number.
	l.held.Store(false)
	l.Log.Warn("the node number was lost; taking another", "node", node, "err", err)
	if other, err := l.take(ctx); err == nil {
		return other
	}
	return node
}
