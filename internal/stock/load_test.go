package stock

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// forget does to the sale what a Redis does that loses its stock key.
func (f *fixture) forget(t *testing.T) {
	t.Helper()
	stockKey := keysOf(f.sale.ID, wholeSale, keyStock)[0]
	require.NoError(t, f.client.Do(t.Context(), f.client.B().Del().Key(stockKey).Build()).Error())
}

func loadOrdersOf(orders ...LoadedOrder) func(context.Context, func([]LoadedOrder) error) error {
	return func(_ context.Context, each func([]LoadedOrder) error) error { return each(orders) }
}

func loadBatchesOf(batches ...sale.Batch) func(context.Context, func([]sale.Batch) error) error {
	return func(_ context.Context, each func([]sale.Batch) error) error { return each(batches) }
}

var loadCases = []testCase{
	{"a loaded sale is left alone", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 1)
		f.sale.Epoch++
		f.sale.Total = 50
		loaded, err := f.Load(t.Context(), &f.sale, LoadSource{})
		require.NoError(t, err)
		require.False(t, loaded)
		require.Equal(t, int64(testEpoch), f.counts(t, 9, 1).Epoch)
	}},
	{"orders and undelivered batches come back, and what was left over is wiped", func(t *testing.T, f *fixture) {
		f.win(t, "left over", "k", 1)
		f.forget(t)
		f.sale.Epoch, f.sale.Total, f.sale.Version = testEpoch+1, 20, 5

		settled, undelivered, both := f.batch(f.order("ann", "k", 2)), f.batch(f.order("bob", "k", 3)), f.batch(f.order("cy", "k", 1), f.order("dee", "k", 1))
		cancelled := f.order("ann", "old", 1)
		f.mustLoad(t, LoadSource{
			Batches: loadBatchesOf(*undelivered, *both),
			Orders: loadOrdersOf(
				LoadedOrder{Order: settled.Orders[0], BatchID: settled.ID},
				LoadedOrder{Order: cancelled, BatchID: 99, Returned: true},
				// Persisted, and not acknowledged yet: one stands, the other was refused.
				LoadedOrder{Order: both.Orders[0], BatchID: both.ID},
				LoadedOrder{Order: both.Orders[1], BatchID: both.ID, Returned: true},
			),
		})
		snapshot := f.counts(t, 14, 6)
		require.Equal(t, int64(testEpoch+1), snapshot.Epoch)
		require.Equal(t, int64(5), snapshot.Version)
		require.Equal(t, int64(20), snapshot.Total)
		require.Equal(t, int64(4), snapshot.Buyers)
		require.Zero(t, snapshot.Pending)
		require.Equal(t, map[sale.ID]BatchRecord{
			undelivered.ID: {ID: undelivered.ID, State: StateConfirmed, Orders: undelivered.Orders},
			both.ID:        {ID: both.ID, State: StateConfirmed, Orders: both.Orders},
		}, f.batches(t))
		require.Empty(t, f.lookup(t, "left over"))
		require.Equal(t, []Record{
			{OrderID: settled.Orders[0].ID, BatchID: settled.ID, UserID: "ann", RequestKey: "k", Quantity: 2, Batch: StateSettled},
			{OrderID: cancelled.ID, BatchID: 99, UserID: "ann", RequestKey: "old", Quantity: 1, Returned: true, Batch: StateAbsent},
		}, f.lookup(t, "ann"))
		require.True(t, f.lookup(t, "dee")[0].Returned)
		f.mustConfirm(t, settled, StateSettled)
		f.win(t, "ann", "new", 1)
	}},
	{"the ledger's orders and a batch may come in any order, and twice", func(t *testing.T, f *fixture) {
		f.forget(t)
		f.sale.Epoch++
		b := f.batch(f.order("ann", "k", 2), f.order("ann", "k2", 1))
		rows := []LoadedOrder{{Order: b.Orders[0], BatchID: b.ID}, {Order: b.Orders[1], BatchID: b.ID, Returned: true}}
		l := loader{store: f.Store, saleID: f.sale.ID, epoch: formatInt(f.sale.Epoch)}
		require.NoError(t, l.call(t.Context(), "begin", 0))
		for range 2 {
			require.NoError(t, l.orders(t.Context(), rows))
			require.NoError(t, l.batches(t.Context(), []sale.Batch{*b}))
		}
		require.NoError(t, l.call(t.Context(), "finish", l.steps, "10", "1"))
		f.counts(t, 8, 2)
	}},
	{"in slices", func(t *testing.T, f *fixture) {
		f.forget(t)
		f.sale.Epoch++
		f.sale.Total = 5_000
		var rows []LoadedOrder
		for i := range 2_000 {
			rows = append(rows, LoadedOrder{Order: f.order(fmt.Sprint("u", i), "", 1), BatchID: 1})
		}
		var batches []sale.Batch
		for i := range 100 {
			batches = append(batches, *f.batch(f.order(fmt.Sprint("b", i), "", 2)))
		}
		f.mustLoad(t, LoadSource{Orders: loadOrdersOf(rows...), Batches: loadBatchesOf(batches...)})
		require.Equal(t, int64(100), f.counts(t, 2_800, 2_200).Batches)
	}},
	{"until it is done the sale is not ready", func(t *testing.T, f *fixture) {
		f.forget(t)
		f.sale.Epoch++
		f.mustLoad(t, LoadSource{Orders: func(ctx context.Context, each func([]LoadedOrder) error) error {
			require.NoError(t, each([]LoadedOrder{{Order: f.order("ann", "k", 1), BatchID: 1}}))
			b := f.batch(f.order("bob", "k", 1))
			_, err := f.Reserve(ctx, b, f.terms, time.Hour, make([]Outcome, 1))
			require.ErrorIs(t, err, ErrNotReady)
			require.ErrorIs(t, f.Buyers(ctx, f.sale.ID, func([]Record) error { return nil }), ErrNotReady)
			return nil
		}})
		f.counts(t, 9, 1)
	}},
	{"of two loaders the later epoch wins, and the earlier one changes nothing more", func(t *testing.T, f *fixture) {
		f.forget(t)
		earlier, later := f.sale, f.sale
		earlier.Epoch, later.Epoch = testEpoch+1, testEpoch+2
		order := LoadedOrder{Order: f.order("ann", "k", 2), BatchID: 1}
		stale := LoadedOrder{Order: f.order("bob", "k", 3), BatchID: 1}
		loaded, err := f.Load(t.Context(), &earlier, LoadSource{Orders: func(ctx context.Context, each func([]LoadedOrder) error) error {
			require.NoError(t, each([]LoadedOrder{stale}))
			loaded, err := f.Load(ctx, &later, LoadSource{Orders: loadOrdersOf(order)})
			require.NoError(t, err)
			require.True(t, loaded)
			return each([]LoadedOrder{stale})
		}})
		require.NoError(t, err)
		require.False(t, loaded)
		require.Equal(t, later.Epoch, f.counts(t, 8, 2).Epoch)
	}},
	{"a late step of an earlier epoch does not reach into the load under way", func(t *testing.T, f *fixture) {
		f.forget(t)
		earlier := loader{store: f.Store, saleID: f.sale.ID, epoch: formatInt(testEpoch + 1)}
		later := loader{store: f.Store, saleID: f.sale.ID, epoch: formatInt(testEpoch + 2)}
		row := []LoadedOrder{{Order: f.order("ann", "k", 1), BatchID: 1}}
		require.NoError(t, earlier.call(t.Context(), "begin", 0))
		require.NoError(t, later.call(t.Context(), "begin", 0))
		require.ErrorIs(t, earlier.orders(t.Context(), row), errLoadRefused)
		require.ErrorIs(t, earlier.call(t.Context(), "finish", 0, "10", "1"), errLoadRefused)
		require.ErrorIs(t, earlier.call(t.Context(), "begin", 0), errLoadRefused)
		require.NoError(t, later.call(t.Context(), "finish", 0, "10", "1"))
		f.counts(t, 10, 0)
	}},
	{"an earlier epoch, or the same again, does not begin", func(t *testing.T, f *fixture) {
		f.forget(t)
		for _, epoch := range []int64{testEpoch - 1, testEpoch} {
			f.sale.Epoch = epoch
			loaded, err := f.Load(t.Context(), &f.sale, LoadSource{})
			require.NoError(t, err)
			require.False(t, loaded)
		}
		f.sale.Epoch = testEpoch + 1
		failed := errors.New("the ledger is away")
		_, err := f.Load(t.Context(), &f.sale, LoadSource{Orders: func(context.Context, func([]LoadedOrder) error) error { return failed }})
		require.ErrorIs(t, err, failed)
		loaded, err := f.Load(t.Context(), &f.sale, LoadSource{})
		require.NoError(t, err)
		require.False(t, loaded, "a step of the failed one may still be on its way")
		f.sale.Epoch++
		f.mustLoad(t, LoadSource{})
	}},
	{"a load that lost steps does not open the sale", func(t *testing.T, f *fixture) {
		f.forget(t)
		f.sale.Epoch++
		row := []LoadedOrder{{Order: f.order("ann", "k", 1), BatchID: 1}}
		for _, loss := range []func(l *loader){
			func(*loader) { // the failed-over node has not seen the last step
				metaKey := keysOf(f.sale.ID, wholeSale, keyMeta)[0]
				require.NoError(t, f.client.Do(t.Context(), f.client.B().Hincrby().Key(metaKey).Field("steps").Increment(-1).Build()).Error())
			},
			func(*loader) { // nor any
				metaKey := keysOf(f.sale.ID, wholeSale, keyMeta)[0]
				require.NoError(t, f.client.Do(t.Context(), f.client.B().Del().Key(metaKey).Build()).Error())
			},
		} {
			for name, next := range map[string]func(l *loader) error{
				"orders":  func(l *loader) error { return l.orders(t.Context(), row) },
				"batches": func(l *loader) error { return l.batches(t.Context(), []sale.Batch{*f.batch(f.order("bob", "k", 1))}) },
				"finish":  func(l *loader) error { return l.call(t.Context(), "finish", l.steps, "10", "1") },
			} {
				l := &loader{store: f.Store, saleID: f.sale.ID, epoch: formatInt(f.sale.Epoch)}
				require.NoError(t, l.call(t.Context(), "begin", 0))
				require.NoError(t, l.orders(t.Context(), row))
				loss(l)
				require.ErrorIs(t, next(l), ErrLoadLost, name)
				f.sale.Epoch++
			}
		}
	}},
	{"more units are held than there are", func(t *testing.T, f *fixture) {
		f.forget(t)
		f.sale.Epoch++
		f.mustLoad(t, LoadSource{Orders: loadOrdersOf(LoadedOrder{Order: f.order("ann", "k", 12), BatchID: 1})})
		f.counts(t, -2, 12)
	}},
}
