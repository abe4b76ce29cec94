package reconciler

import (
	"context"
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

const (
	// loadSliceOrders is how many orders are read from the ledger at once: few enough to
	// keep none of its other readers waiting.
	loadSliceOrders = 2_000
	// loadAheadSlices is how many of these slices may wait for Redis.
	loadAheadSlices = 2
	// loadSliceBatches is how many owed or dead batches are.
	loadSliceBatches = 500
	// loadKeptMinutes is how long a sale stays in Redis at least that was over when it was loaded.
	loadKeptMinutes = 60
	// loadSkewSeconds is by how much the clock of a worker that notes a settle may be behind.
	loadSkewSeconds = 10
	// loadNewsOrders is how often a long load says in the log how far it is.
	loadNewsOrders = 100_000
)

// load is one load of a sale into Redis.
//
// What was promised stands on the bus or in the ledger, and goes from one to the other
// meanwhile. The ledger's orders are read first, then what the bus has not delivered, then
// the orders of batches that are owed to Redis. Nothing falls between: a batch that is
// consumed after its place in the ledger's orders has been passed is owed, since the sale is
// not loaded and cannot settle it; and one that is consumed after that was still on the bus
// when the bus was read. A master that was cut off may settle all the same, for a moment, what
// the new one has never heard of: what was settled since the load began counts as owed.
type load struct {
	*Reconciler
	sale  *sale.Sale
	began time.Time

	orders, undelivered, dead, owed int // counted as they are read
}

// load fills Redis with a sale whose stock key is absent. false: it was loaded already, or
// another load has it.
func (r *Reconciler) load(ctx context.Context, saleID string) (bool, error) {
	began := time.Now()
	snap, err := r.o.Stock.Snapshot(ctx, saleID)
	if err != nil || snap.Loaded {
		return false, err
	}
	s, err := r.o.Ledger.Sale(ctx, saleID)
	if err != nil {
		return false, err
	}
	// The epoch grows before anything is read: what was reserved under the old one
	// can be told apart from then on.
	if s.Epoch, err = r.o.Ledger.NextEpoch(ctx, saleID); err != nil {
		return false, err
	}
	l := &load{Reconciler: r, sale: &s, began: began}
	source := stock.LoadSource{Orders: l.eachOrder}
	// A draft has sold nothing, so nothing of it can be on the bus.
	if s.Status != sale.Draft {
		failpoint.Hit(failpoint.AfterEpoch)
		source.Batches, source.Owed = l.eachUndelivered, l.eachOwed
		r.o.Log.Warn("Redis has not the data of a published sale: rebuilding it; till then it answers 503", "sale", saleID, "epoch", s.Epoch)
	}
	loaded, err := r.o.Stock.Load(ctx, &s, source)
	if err != nil || !loaded {
		return false, err
	}
	// Set at once: a sale that is loaded as its retention ends is looked after no more. One
	// of long ago is there for whoever asked for it.
	expires := s.EndsAt.Add(sale.Retention)
	if least := time.Now().Add(loadKeptMinutes * time.Minute); expires.Before(least) {
		expires = least
	}
	if err := r.o.Stock.ExpireAt(ctx, saleID, expires); err != nil {
		r.o.Log.Warn("a loaded sale has no expiry in Redis yet; it is given one after its end", "sale", saleID, "err", err)
	}
	took := time.Since(began)
	r.metrics.loads.Inc()
	r.metrics.loadSeconds.Observe(took.Seconds())
	r.o.Log.Info("loaded a sale into Redis", "sale", saleID, "epoch", s.Epoch, "orders", l.orders,
		"undelivered_batches", l.undelivered, "dead_batches", l.dead, "owed_batches", l.owed, "took", took.Round(time.Millisecond))
	return true, nil
}

// eachOrder reads the ledger ahead of what Redis takes: each has the other's time to work in.
func (l *load) eachOrder(ctx context.Context, each func([]stock.LoadedOrder) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slices := make(chan []ledger.Order, loadAheadSlices)
	var failed error // read once slices is closed
	go func() {
		defer close(slices)
		failed = l.o.Ledger.EachOrder(ctx, l.sale.ID, 0, loadSliceOrders, func(orders []ledger.Order) error {
			select {
			case slices <- orders:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	for orders := range slices {
		if err := l.takeOrders(orders, each); err != nil {
			cancel()
			for range slices { // until the reader has ended
			}
			return err
		}
	}
	return failed
}

func (l *load) takeOrders(orders []ledger.Order, each func([]stock.LoadedOrder) error) error {
	slice := make([]stock.LoadedOrder, len(orders))
	for i := range orders {
		o := &orders[i]
		slice[i] = stock.LoadedOrder{Order: o.Order, BatchID: o.BatchID, Returned: !o.Status.Active()}
	}
	if err := each(slice); err != nil {
		return err
	}
	before := l.orders
	l.orders += len(slice)
	l.metrics.loadOrders.Add(float64(len(slice)))
	if before/loadNewsOrders != l.orders/loadNewsOrders {
		l.o.Log.Info("loading a sale into Redis", "sale", l.sale.ID, "orders", l.orders)
	}
	return nil
}

// eachUndelivered gives what the bus holds and the ledger has not consumed, and then the
// dead batches: promised as well, and an operator's to mend.
func (l *load) eachUndelivered(ctx context.Context, each func([]sale.Batch) error) error {
	failpoint.Hit(failpoint.AfterOrders)
	if err := l.awaitHalves(ctx); err != nil {
		return err
	}
	if err := l.o.Lister.Undelivered(ctx, l.sale.ID, func(batches []sale.Batch) error {
		return l.unconsumed(ctx, batches, &l.undelivered, each)
	}); err != nil {
		return err
	}
	for after := int64(0); ; {
		dead, err := l.o.Ledger.DeadBatchesOf(ctx, l.sale.ID, after, loadSliceBatches)
		if err != nil || len(dead) == 0 {
			return err
		}
		after = dead[len(dead)-1].ID
		var batches []sale.Batch
		for i := range dead {
			if b, err := bus.Decode(dead[i].Body); err == nil && b.SaleID == l.sale.ID {
				batches = append(batches, *b)
			}
		}
		if err := l.unconsumed(ctx, batches, &l.dead, each); err != nil {
			return err
		}
	}
}

// awaitHalves waits until no gateway that is alive has still a half message to send, or an
// end on its way, for what it reserved before the load began.
func (l *load) awaitHalves(ctx context.Context) error {
	left := l.o.RebuildWait - time.Since(l.began)
	if left <= 0 {
		return nil
	}
	l.o.Log.Info("waiting for half messages that gateways have in hand", "sale", l.sale.ID, "orders", l.orders, "wait", left.Round(time.Millisecond))
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (l *load) unconsumed(ctx context.Context, batches []sale.Batch, count *int, each func([]sale.Batch) error) error {
	ids := make([]sale.ID, len(batches))
	for i := range batches {
		ids[i] = batches[i].ID
	}
	consumed, err := l.o.Ledger.Consumed(ctx, ids)
	if err != nil {
		return err
	}
	rest := batches[:0]
	for _, b := range batches {
		if !consumed[b.ID] {
			rest = append(rest, b)
		}
	}
	*count += len(rest)
	l.metrics.loadBatches.Add(float64(len(rest)))
	if len(rest) == 0 {
		return nil
	}
	return each(rest)
}

func (l *load) eachOwed(ctx context.Context, each func([]stock.LoadedOrder) error) error {
	failpoint.Hit(failpoint.AfterBus)
	since := l.began.Add(-loadSkewSeconds * time.Second)
	for after := sale.ID(0); ; {
		ids, err := l.o.Ledger.OwedOf(ctx, l.sale.ID, since, after, loadSliceBatches)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		active, err := l.o.Ledger.ActiveOrders(ctx, ids)
		if err != nil {
			return err
		}
		l.owed += len(ids)
		var slice []stock.LoadedOrder
		for batch, orders := range active {
			for i := range orders {
				slice = append(slice, stock.LoadedOrder{Order: orders[i], BatchID: batch})
			}
		}
		if err := each(slice); err != nil {
			return err
		}
	}
}
