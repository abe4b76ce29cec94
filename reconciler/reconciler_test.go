package reconciler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// old is an age past the watermark of these tests.
const old = time.Hour

// undelivered is a bus that can be listed.
type undelivered []sale.Batch

func (u undelivered) Undelivered(_ context.Context, saleID string, each func([]sale.Batch) error) error {
	for _, b := range u {
		if b.SaleID == saleID {
			if err := each([]sale.Batch{b}); err != nil {
				return err
			}
		}
	}
	return nil
}

func newReconciler(s *storetest.Stores, change ...func(*Options)) *Reconciler {
	o := Options{
		Ledger: s.Ledger, Stock: s.Stock, Lister: undelivered{},
		Auditor: &audit.Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Minute},
		Holder:  "test", LeaseTTL: time.Minute, Interval: time.Second, StepTimeout: 10 * time.Second, LoadTimeout: time.Minute,
		VoidAge: time.Hour, SettleAge: 0, TaskTries: 3, TaskBackoff: time.Millisecond, FusePercent: 1, FuseUnits: 100,
	}
	for _, f := range change {
		f(&o)
	}
	return New(o)
}

func audited(t *testing.T, s *storetest.Stores, saleID string) {
	t.Helper()
	r, err := (&audit.Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Minute}).Audit(context.Background(), saleID)
	require.NoError(t, err)
	require.True(t, r.OK, "%+v", r.Breaches)
}

func TestRound(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		t.Run("releases a dead reservation, and no other", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			dead, alive := s.Batch(sl, 0, "a", "b"), s.Batch(sl, 0, "c")
			s.Reserve(sl, dead, time.Millisecond)
			s.Reserve(sl, alive, time.Minute)
			r := newReconciler(s)
			require.Eventually(t, func() bool {
				r.Round(ctx)
				return s.Snapshot(sl.ID).Stock == 9
			}, 10*time.Second, 10*time.Millisecond, "invariant 7")
			require.Equal(t, int64(1), s.Snapshot(sl.ID).Pending)
			state, err := s.Stock.Confirm(ctx, dead)
			require.NoError(t, err)
			require.Equal(t, stock.StateVoid, state, "invariant 5: a late confirm finds it gone")
		})
		t.Run("settles what a worker left", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a")
			s.Confirm(sl, b)
			s.Apply(b)
			newReconciler(s).Round(ctx)
			require.Zero(t, s.Snapshot(sl.ID).Batches)
			owed, err := s.Ledger.Owed(ctx, sl.ID, time.Now().Add(time.Hour), 100)
			require.NoError(t, err)
			require.Empty(t, owed)
		})
		t.Run("adopts an order that Redis forgot when it settles", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			s.Apply(s.Batch(sl, 0, "a", "b"))
			newReconciler(s).Round(ctx)
			snap := s.Snapshot(sl.ID)
			require.Equal(t, int64(8), snap.Stock)
			require.Equal(t, int64(2), snap.Held)
		})
		t.Run("gives back the units of an order that the ledger refused", func(t *testing.T) {
			sl := s.LoadedSale(10, 1)
			// Redis took an order too many of one user: its record of the first was lost.
			first, second := s.Batch(sl, 0, "a"), s.Batch(sl, 0, "a")
			second.Orders[0].RequestKey = "other"
			s.Apply(first)
			s.Confirm(sl, second)
			require.Equal(t, 1, s.Apply(second).Cancelled)
			newReconciler(s).Round(ctx)
			snap := s.Snapshot(sl.ID)
			require.Equal(t, int64(9), snap.Stock)
			require.Equal(t, int64(1), snap.Held)
			newReconciler(s).Round(ctx)
			require.Equal(t, int64(9), s.Snapshot(sl.ID).Stock, "invariant 6: once")
			audited(t, s, sl.ID)
		})
		t.Run("levels a total, whichever side is behind", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			inv, err := s.Ledger.Inventory(ctx, sl.ID)
			require.NoError(t, err)
			_, err = s.Ledger.SetTotal(ctx, sl.ID, 15, inv.Version+1, "a raise that Redis missed")
			require.NoError(t, err)
			newReconciler(s).Round(ctx)
			require.Equal(t, int64(15), s.Snapshot(sl.ID).Stock)
			cut, err := s.Stock.Adjust(ctx, sl.ID, 12, inv.Version+2)
			require.NoError(t, err)
			require.True(t, cut)
			newReconciler(s).Round(ctx)
			after, err := s.Ledger.Inventory(ctx, sl.ID)
			require.NoError(t, err)
			require.Equal(t, ledger.Inventory{SaleID: sl.ID, Total: 12, Available: 12, Version: inv.Version + 2}, after)
			newReconciler(s).Round(ctx)
			require.Equal(t, int64(12), s.Snapshot(sl.ID).Stock, "once")
		})
		t.Run("levels a cut and a raise that took one version", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			inv, err := s.Ledger.Inventory(ctx, sl.ID)
			require.NoError(t, err)
			_, err = s.Stock.Adjust(ctx, sl.ID, 8, inv.Version+1)
			require.NoError(t, err)
			_, err = s.Ledger.SetTotal(ctx, sl.ID, 15, inv.Version+1, "raise")
			require.NoError(t, err)
			newReconciler(s).Round(ctx)
			require.Equal(t, int64(15), s.Snapshot(sl.ID).Total, "the raise was promised")
			audited(t, s, sl.ID)
		})
		t.Run("takes back a cut that the ledger cannot take", func(t *testing.T) {
			sl := s.LoadedSale(3, 3)
			s.Apply(s.Batch(sl, 0, "a", "b", "c")) // Redis does not know: it thinks 3 are free
			inv, err := s.Ledger.Inventory(ctx, sl.ID)
			require.NoError(t, err)
			cut, err := s.Stock.Adjust(ctx, sl.ID, 1, inv.Version+1)
			require.NoError(t, err)
			require.True(t, cut)
			r := newReconciler(s)
			r.Round(ctx)
			r.Round(ctx)
			after, err := s.Ledger.Inventory(ctx, sl.ID)
			require.NoError(t, err)
			require.Equal(t, int64(3), after.Total)
			snap := s.Snapshot(sl.ID)
			require.Equal(t, int64(3), snap.Total)
			require.Equal(t, after.Version, snap.Version)
			audited(t, s, sl.ID)
		})
	})
}

func TestOnlyTheLeaderDoesTheLedgersWork(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	leader, other := newReconciler(s), newReconciler(s, func(o *Options) { o.Holder = "other" })
	leader.Round(ctx)
	require.True(t, leader.Leading())
	b := s.Batch(sl, 0, "a")
	s.Confirm(sl, b)
	s.Apply(b)
	dead := s.Batch(sl, 0, "b")
	s.Reserve(sl, dead, time.Nanosecond)
	require.Eventually(t, func() bool {
		other.Round(ctx)
		return s.Snapshot(sl.ID).Pending == 0
	}, 10*time.Second, 10*time.Millisecond, "everyone sweeps")
	require.False(t, other.Leading())
	require.Equal(t, int64(2), s.Snapshot(sl.ID).Batches, "the persisted batch and a tombstone")

	done, stop := context.WithCancel(ctx)
	stop()
	require.NoError(t, leader.Run(done), "a leader that stops gives its lease back")
	other.Round(ctx)
	require.True(t, other.Leading())
	require.Equal(t, int64(1), s.Snapshot(sl.ID).Batches)
}

func TestLoad(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		t.Run("rebuilds from the bus and the ledger", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			persisted, cancelled, onBus, both := s.Batch(sl, 0, "a"), s.Batch(sl, 0, "b"), s.Batch(sl, 0, "c", "d"), s.Batch(sl, 0, "e")
			s.Sell(sl, persisted)
			s.Sell(sl, cancelled)
			s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id = ?", int64(cancelled.Orders[0].ID))
			s.Exec("UPDATE inventory SET locked = locked - 1, available = available + 1 WHERE sale_id = ?", sl.ID)
			s.Confirm(sl, onBus)
			s.Confirm(sl, both)
			s.Apply(both)
			s.LoseRedis(sl.ID)

			r := newReconciler(s, func(o *Options) { o.Lister = undelivered{*onBus, *both} })
			loaded, err := r.Load(ctx, sl.ID)
			require.NoError(t, err)
			require.True(t, loaded)
			snap := s.Snapshot(sl.ID)
			require.Equal(t, int64(6), snap.Stock, "a, c, d and e hold one each")
			require.Equal(t, int64(4), snap.Held)
			require.Greater(t, snap.Epoch, sl.Epoch, "the epoch grew before the load")
			state, err := s.Stock.Confirm(ctx, onBus)
			require.NoError(t, err)
			require.Equal(t, stock.StateConfirmed, state, "what is on the bus is promised")
			records, err := s.Stock.Lookup(ctx, sl.ID, "b")
			require.NoError(t, err)
			require.True(t, records[0].Returned, "a cancelled order is known, and holds nothing")

			loaded, err = r.Load(ctx, sl.ID)
			require.NoError(t, err)
			require.False(t, loaded, "a loaded sale is left alone")
			s.Apply(onBus)
			s.Settle(onBus)
			r.Round(ctx)
			audited(t, s, sl.ID)
		})
		t.Run("two at once do no harm", func(t *testing.T) {
			sl := s.LoadedSale(50, 2)
			for i := range 20 {
				s.Sell(sl, s.Batch(sl, 0, fmt.Sprintf("u%d", i)))
			}
			s.LoseRedis(sl.ID)
			var wg sync.WaitGroup
			for range 2 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					// One of the two may lose to the other; what counts is the outcome.
					_, _ = newReconciler(s).Load(ctx, sl.ID)
				}()
			}
			wg.Wait()
			newReconciler(s).Round(ctx)
			snap := s.Snapshot(sl.ID)
			require.True(t, snap.Loaded)
			require.Equal(t, int64(30), snap.Stock)
			require.Equal(t, int64(20), snap.Held)
		})
	})
}

// TestConservationIsAMetric: both equations of invariant 4 that one store can tell, term
// by term, and gone with the sale.
func TestConservationIsAMetric(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	s.Sell(sl, s.Batch(sl, 0, "a", "b"))
	s.Confirm(sl, s.Batch(sl, 0, "c"))
	s.MoveStock(sl.ID, 4)
	r := newReconciler(s)
	r.Round(ctx)
	for name, want := range map[string]float64{"stock": 11, "held": 3, "total": 10} {
		require.Equal(t, want, testutil.ToFloat64(r.metrics.units.WithLabelValues(sl.ID, name)), name)
	}
	for name, want := range map[string]float64{"available": 8, "locked": 2, "sold": 0, "total": 10} {
		require.Equal(t, want, testutil.ToFloat64(r.metrics.ledgerUnits.WithLabelValues(sl.ID, name)), name)
	}
	require.Equal(t, -4.0, testutil.ToFloat64(r.metrics.drift.WithLabelValues(sl.ID)), "a breach shows")
	require.Zero(t, testutil.ToFloat64(r.metrics.ledgerDrift.WithLabelValues(sl.ID)))

	s.Exec("UPDATE sales SET starts_at = '2020-01-01 00:00:00.000', ends_at = '2020-01-02 00:00:00.000' WHERE id = ?", sl.ID)
	r.Round(ctx)
	require.Zero(t, testutil.CollectAndCount(r.metrics.units)+testutil.CollectAndCount(r.metrics.ledgerUnits))
}
