package reconciler

import (
	"context"
	"sync"
	"time"
)

const (
	// maxLoads bounds the loads that read and write side by side: with a sale each, they
	// keep the ledger and Redis busy without taking either from the shoppers.
	maxLoads = 4
	// rebuildRestSeconds is how long a rebuild that failed rests before a round begins it
	// again: each try reads the whole sale.
	rebuildRestSeconds = 5
)

// rebuilds are the loads of sales, one at a time a sale, each in a goroutine of its own: a
// load that waits for the bus, or reads a million orders, must not keep a round from the
// other sales. What a load has come to stands in Redis and the ledger alone, so that whoever
// leads next begins anew, and two that load one sale do no harm.
type rebuilds struct {
	mu     sync.Mutex
	bySale map[string]*rebuild // the latest of each sale
	slots  chan struct{}
	under  sync.WaitGroup
}

// rebuild is one of them. Its fields are set once done is closed.
type rebuild struct {
	done   chan struct{}
	loaded bool
	err    error
	ended  time.Time
}

func newRebuilds() *rebuilds {
	return &rebuilds{bySale: make(map[string]*rebuild), slots: make(chan struct{}, maxLoads)}
}

// Load fills Redis with a sale whose stock key is absent, from the ledger and from what the
// bus has not delivered. false: it was loaded already, or another process is at it. A load of
// the sale that is under way here is waited for.
func (r *Reconciler) Load(ctx context.Context, saleID string) (bool, error) {
	b := r.beginLoad(ctx, saleID, 0)
	select {
	case <-b.done:
		return b.loaded, b.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// rebuild begins a load in the background, unless one is under way or has just failed.
func (r *Reconciler) rebuild(ctx context.Context, saleID string) {
	r.beginLoad(ctx, saleID, rebuildRestSeconds*time.Second)
}

// forget lets go of a load that has ended, once the sale is there: what came of it is no
// news any more, least of all if another process loaded the sale.
func (b *rebuilds) forget(saleID string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if of := b.bySale[saleID]; of != nil {
		select {
		case <-of.done:
			delete(b.bySale, saleID)
		default:
		}
	}
}

// rebuilt waits for the sale's load, if there is one, and returns its error.
func (r *Reconciler) rebuilt(ctx context.Context, saleID string) error {
	r.rebuilds.mu.Lock()
	b := r.rebuilds.bySale[saleID]
	r.rebuilds.mu.Unlock()
	if b == nil {
		return nil
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beginLoad returns the sale's load: the one under way, one that failed less than rest ago,
// or a new one, which ends with ctx.
func (r *Reconciler) beginLoad(ctx context.Context, saleID string, rest time.Duration) *rebuild {
	r.rebuilds.mu.Lock()
	defer r.rebuilds.mu.Unlock()
	if b := r.rebuilds.bySale[saleID]; b != nil {
		select {
		case <-b.done:
			if b.err != nil && time.Since(b.ended) < rest {
				return b
			}
		default:
			return b
		}
	}
	b := &rebuild{done: make(chan struct{})}
	r.rebuilds.bySale[saleID] = b
	r.rebuilds.under.Go(func() {
		b.loaded, b.err = r.loadInTurn(ctx, saleID)
		b.ended = time.Now()
		close(b.done)
	})
	return b
}

func (r *Reconciler) loadInTurn(ctx context.Context, saleID string) (loaded bool, err error) {
	r.metrics.loading.Inc()
	defer r.metrics.loading.Dec()
	select {
	case r.rebuilds.slots <- struct{}{}:
		defer func() { <-r.rebuilds.slots }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	err = r.stepWithin(ctx, "load", r.o.LoadTimeout, func(ctx context.Context) error {
		loaded, err = r.load(ctx, saleID)
		return err
	})
	return loaded, err
}
