package stock

import (
	"context"
	"errors"
	"fmt"

	"flashgate/internal/sale"
)

const (
	// loadOrders and loadBatches are how many go into one call of load: enough to make
	// the round trip small beside the work, few enough to keep Redis for 2 ms.
	loadOrders  = 500
	loadBatches = 16
)

// The answers of load.
const (
	loadRefused = 0 // the stock key is there
	loadDone    = 1
	loadOther   = 2 // another epoch is loading, or was loaded since
	loadMissing = 3 // Redis lost steps of this load
)

// errLoadRefused ends a load that is not, or no longer, this one's to do.
var errLoadRefused = errors.New("stock: another load has the sale")

// ErrLoadLost says that Redis lost a part of the load under way, as in a failover. Load again
// under the next epoch.
var ErrLoadLost = errors.New("stock: Redis lost a part of the load")

// Load fills a sale whose stock key is absent, under s.Epoch, from orders (active
// and cancelled ones, streamed in slices) and undelivered batches, and opens it.
// false: the stock key was there, or a later epoch is loading; nothing changed. After
// an error the sale stays not ready: load again under the next epoch, since a step of
// this one may still be on its way.
func (s *Store) Load(ctx context.Context, sl *sale.Sale, source LoadSource) (bool, error) {
	l := loader{store: s, saleID: sl.ID, epoch: formatInt(sl.Epoch)}
	err := l.load(ctx, sl, source)
	if errors.Is(err, errLoadRefused) {
		return false, nil
	}
	return err == nil, err
}

// loader is one load under way.
type loader struct {
	store  *Store
	saleID string
	epoch  string
	steps  int64 // taken so far
}

func (l *loader) load(ctx context.Context, sl *sale.Sale, source LoadSource) error {
	if err := l.call(ctx, "begin", 0); err != nil {
		return err
	}
	orders := func(orders []LoadedOrder) error { return l.orders(ctx, orders) }
	if source.Orders != nil {
		if err := source.Orders(ctx, orders); err != nil {
			return err
		}
	}
	if source.Batches != nil {
		if err := source.Batches(ctx, func(batches []sale.Batch) error { return l.batches(ctx, batches) }); err != nil {
			return err
		}
	}
	if source.Owed != nil {
		if err := source.Owed(ctx, orders); err != nil {
			return err
		}
	}
	return l.call(ctx, "finish", l.steps, formatInt(sl.Total), formatInt(sl.Version))
}

func (l *loader) orders(ctx context.Context, orders []LoadedOrder) error {
	for slice := range slices(orders, loadOrders) {
		var rows []byte
		for i := range slice {
			var err error
			if rows, err = appendRow(rows, &slice[i]); err != nil {
				return fmt.Errorf("stock: load: %w", err)
			}
		}
		if err := l.step(ctx, "orders", "", string(rows)); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) batches(ctx context.Context, batches []sale.Batch) error {
	for slice := range slices(batches, loadBatches) {
		args := make([]string, 0, 2*len(slice))
		for i := range slice {
			orders, err := packOrders(slice[i].Orders)
			if err != nil {
				return fmt.Errorf("stock: load: batch %v: %w", slice[i].ID, err)
			}
			args = append(args, packID(slice[i].ID), orders)
		}
		if err := l.step(ctx, "batches", args...); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) step(ctx context.Context, name string, args ...string) error {
	l.steps++
	return l.call(ctx, name, l.steps, args...)
}

func (l *loader) call(ctx context.Context, step string, number int64, args ...string) error {
	args = append([]string{step, l.epoch, formatInt(number)}, args...)
	code, err := l.store.runCode(ctx, upkeepTimeout, loadScript, l.saleID, args...)
	switch {
	case err != nil:
		return err
	case code == loadDone:
		return nil
	case code == loadRefused, code == loadOther:
		return errLoadRefused
	case code == loadMissing:
		return ErrLoadLost
	}
	return malformed("load", code)
}
