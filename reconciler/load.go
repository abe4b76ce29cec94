package reconciler

import (
	"context"
	"errors"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// ErrCannotRebuild says that the sale was published, so it has been loaded before; its Redis
// data is gone, and the bus cannot list what it has not delivered.
var ErrCannotRebuild = errors.New("the sale's Redis data is gone and this bus cannot be read back: its undelivered orders would be forgotten")

// loadSliceOrders is how many orders one slice of a load carries.
const loadSliceOrders = 500

// Load fills Redis with a sale whose stock key is absent: from the undelivered
// batches of the bus first, then from the ledger, so that a batch persisted in
// between is in one of the two. false: it was loaded already.
func (r *Reconciler) Load(ctx context.Context, saleID string) (bool, error) {
	r.loading.Lock()
	defer r.loading.Unlock()
	snap, err := r.o.Stock.Snapshot(ctx, saleID)
	if err != nil || snap.Loaded {
		return false, err
	}
	s, err := r.o.Ledger.Sale(ctx, saleID)
	if err != nil {
		return false, err
	}
	// A draft has sold nothing, so nothing of it can be on the bus.
	if s.Status != sale.Draft && r.o.Lister == nil {
		return false, ErrCannotRebuild
	}
	began := time.Now()
	// The epoch grows before anything is read: what was reserved under the old one
	// can be told apart from then on.
	if s.Epoch, err = r.o.Ledger.NextEpoch(ctx, saleID); err != nil {
		return false, err
	}
	undelivered, err := r.undelivered(ctx, saleID)
	if err != nil {
		return false, err
	}
	orders := 0
	loaded, err := r.o.Stock.Load(ctx, &s, stock.LoadSource{
		Orders: func(ctx context.Context, each func([]stock.LoadedOrder) error) error {
			return r.o.Ledger.EachOrder(ctx, saleID, 0, loadSliceOrders, func(stored []ledger.Order) error {
				slice := make([]stock.LoadedOrder, len(stored))
				for i := range stored {
					o := &stored[i]
					slice[i] = stock.LoadedOrder{Order: o.Order, BatchID: o.BatchID, Returned: !o.Status.Active()}
				}
				orders += len(slice)
				return each(slice)
			})
		},
		Batches: func(_ context.Context, each func([]sale.Batch) error) error {
			if len(undelivered) == 0 {
				return nil
			}
			return each(undelivered)
		},
	})
	if err != nil {
		return false, err
	}
	if loaded {
		r.metrics.loads.Inc()
		r.o.Log.Info("loaded a sale into Redis", "sale", saleID, "epoch", s.Epoch, "orders", orders,
			"undelivered_batches", len(undelivered), "took", time.Since(began).Round(time.Millisecond))
	}
	return loaded, nil
}

// undelivered is what the bus holds and the ledger has not consumed. A batch that
// is consumed after this look is in the orders that are read next, too, and a load
// takes each order once.
func (r *Reconciler) undelivered(ctx context.Context, saleID string) ([]sale.Batch, error) {
	if r.o.Lister == nil {
		return nil, nil
	}
	var batches []sale.Batch
	err := r.o.Lister.Undelivered(ctx, saleID, func(slice []sale.Batch) error {
		ids := make([]sale.ID, len(slice))
		for i := range slice {
			ids[i] = slice[i].ID
		}
		consumed, err := r.o.Ledger.Consumed(ctx, ids)
		if err != nil {
			return err
		}
		for _, b := range slice {
			if !consumed[b.ID] {
				batches = append(batches, b)
			}
		}
		return nil
	})
	return batches, err
}
