package reconciler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// setMeta changes a field of a sale's meta by hand.
func setMeta(s *storetest.Stores, saleID, field string, by int64) {
	s.T.Helper()
	require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hincrby().Key("fg:{"+saleID+"}:meta").Field(field).Increment(by).Build()).Error())
}

// TestATotalRaisedInRedisAloneSellsNothing: a raise is written in the ledger first, so what
// Redis says above it at the same version is nobody's promise.
func TestATotalRaisedInRedisAloneSellsNothing(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(1000, 2)
		s.Sell(sl, s.Batch(sl, old, "a"))
		setMeta(s, sl.ID, "total", 50)
		s.MoveStock(sl.ID, 50)
		r := newReconciler(s)
		r.Round(ctx)
		report, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, report.Left, "%+v", report.Sales[0])
		inv, err := s.Ledger.Inventory(ctx, sl.ID)
		require.NoError(t, err)
		require.Equal(t, int64(1000), inv.Total, "invariant 1")
		require.Equal(t, int64(1000), s.Snapshot(sl.ID).Total)
		require.Equal(t, int64(999), s.Snapshot(sl.ID).Stock)
		audited(t, s, sl.ID)
	})
}

// TestTheFuseSeesWhatARecountMoves: by the sums one unit is missing, by the records 500 are.
func TestTheFuseSeesWhatARecountMoves(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(1000, 2)
	s.Sell(sl, s.Batch(sl, old, "a"))
	s.MoveStock(sl.ID, -500)
	setMeta(s, sl.ID, "held", 499)
	report, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(500), kindOf(&report.Sales[0], audit.StockDrift).Units)
	require.Equal(t, int64(1), report.Left, "%+v", report.Sales[0])
	require.Equal(t, int64(499), s.Snapshot(sl.ID).Stock)
}

// TestAFailedLoadIsForgottenOnceTheSaleIsThere: another process loaded it since.
func TestAFailedLoadIsForgottenOnceTheSaleIsThere(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.Sale(10, 2)
	r := newReconciler(s, func(o *Options) { o.Lister = brokenBus })
	_, err := r.Load(ctx, sl.ID)
	require.ErrorIs(t, err, errBusAway)
	loadNow(t, newReconciler(s), sl.ID)
	report, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Zero(t, report.Found, "%+v", report.Sales[0])
}

// TestARunGivesBackAllThatItCancelled: however much another sale has to give back.
func TestARunGivesBackAllThatItCancelled(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		gone, sl := s.Sale(10, 2), s.LoadedSale(plantTotal, 2)
		due := func(of *sale.Sale, n int) {
			rows := make([]string, n)
			for i := range rows {
				b := s.Batch(of, old, "u")
				rows[i] = fmt.Sprintf("(%d, %d, '%s', 'u%d', 'k', 1, 100, '2026-01-01 00:00:00.000', 'OPEN', '2026-01-01 00:00:00.000')",
					b.Orders[0].ID, b.ID, of.ID, i)
			}
			s.Exec("INSERT INTO stock_sync_tasks (order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, next_try, state, created_at) VALUES " +
				strings.Join(rows, ", "))
		}
		due(gone, maxTasks)
		due(sl, maxTasks+1)
		_, err := newReconciler(s, func(o *Options) { o.Lister = brokenBus }).Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		var open int64
		require.NoError(t, s.SQL.QueryRow("SELECT COUNT(*) FROM stock_sync_tasks WHERE sale_id = ? AND state <> 'DONE'", sl.ID).Scan(&open))
		require.Zero(t, open)
	})
}

// TestALoadedSaleEndsInRedisToo: nobody looks after a sale whose retention is over.
func TestALoadedSaleEndsInRedisToo(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.Sale(10, 2)
	b := s.Batch(sl, old, "a")
	s.Apply(b)
	loadNow(t, newReconciler(s), sl.ID)
	for _, key := range []string{"stock", "buyers", "meta"} {
		at, err := s.Redis.Do(ctx, s.Redis.B().Pexpiretime().Key("fg:{"+sl.ID+"}:"+key).Build()).AsInt64()
		require.NoError(t, err)
		// The embedded Redis keeps a time to live, and not the moment: some milliseconds are lost.
		require.WithinDuration(t, sl.EndsAt.Add(sale.Retention), time.UnixMilli(at), time.Second, key)
	}
}

// TestARunThatIsStoppedLeavesTheOtherSales : they get no report either.
func TestARunThatIsStoppedLeavesTheOtherSales(t *testing.T) {
	s := storetest.Embedded(t)
	for range 3 {
		s.Sale(10, 2)
	}
	ctx, stop := context.WithCancel(context.Background())
	_, err := newReconciler(s, func(o *Options) {
		o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error {
			stop() // as the first of them is worked on
			return errBusAway
		})
	}).Reconcile(ctx, Query{})
	require.ErrorIs(t, err, context.Canceled)
	reports, err := s.Ledger.ReconcileReports(context.Background(), "", 10)
	require.NoError(t, err)
	require.Len(t, reports, 1)
}

// TestWhatRedisCannotHoldStopsNoOtherRepair: a quantity that no purchase can have.
func TestWhatRedisCannotHoldStopsNoOtherRepair(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(100_000, sale.MaxQuantity)
	b := s.Batch(sl, old, "a", "b", "c")
	s.Sell(sl, b)
	s.Exec("UPDATE orders SET quantity = ?, status = 'PAID' WHERE id = ?", sale.MaxQuantity+1, int64(b.Orders[0].ID))
	s.Exec("UPDATE inventory SET locked = locked - 1, sold = sold + 1 WHERE sale_id = ?", sl.ID)
	s.Exec("UPDATE inventory SET sold = sold + ?, available = available - ? WHERE sale_id = ?", sale.MaxQuantity, sale.MaxQuantity, sl.ID)
	s.Exec("UPDATE orders SET quantity = 3 WHERE id = ?", int64(b.Orders[1].ID))
	s.Exec("UPDATE inventory SET locked = locked + 2, available = available - 2 WHERE sale_id = ?", sl.ID)
	_, err := s.Stock.Restore(ctx, &b.Orders[2], b.ID)
	require.NoError(t, err)
	report, err := newReconciler(s, anyFuse).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	part := &report.Sales[0]
	require.False(t, part.Unfinished, "%+v", part)
	require.Equal(t, int64(1), kindOf(part, audit.QuantityDiffers).Repaired, "%+v", part)
	require.Equal(t, int64(1), kindOf(part, audit.QuantityDiffers).Left)
	require.Equal(t, int64(1), kindOf(part, audit.ReturnedButActive).Repaired)
	var why string
	for i := range part.Items {
		why += part.Items[i].Why
	}
	require.Contains(t, why, "quantity 10001")
}

// TestALongRepairKeepsItsLease: a repair that waits for the sale's lock does not keep its
// own run from renewing the lease.
func TestALongRepairKeepsItsLease(t *testing.T) {
	ctx := context.Background()
	s := storetest.Real(t)
	sl := s.LoadedSale(10, 2)
	s.Exec("UPDATE inventory SET locked = locked + 1, available = available - 1 WHERE sale_id = ?", sl.ID)
	tx, err := s.SQL.Begin() // a worker that takes its time
	require.NoError(t, err)
	defer func() { _ = tx.Rollback() }() // nothing, once it is committed
	_, err = tx.Exec("UPDATE inventory SET version = version WHERE sale_id = ?", sl.ID)
	require.NoError(t, err)

	r := newReconciler(s, func(o *Options) { o.LeaseTTL = time.Hour })
	held, err := r.enclose(ctx, sl.ID, r.runHolder())
	require.NoError(t, err)
	defer held.release()
	run := newRun(r, sl, Query{})
	run.fence = held.fence
	done := make(chan error, 1)
	go func() {
		_, err := run.recountLedger(held.ctx, []audit.Finding{{Kind: audit.LedgerCountsDrift}})
		done <- err
	}()
	// The repair is under way once it waits for the row.
	require.Eventually(t, func() bool {
		var waits int
		require.NoError(t, s.SQL.QueryRow("SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'SELECT sale_id%FOR UPDATE'").Scan(&waits))
		return waits > 0
	}, 10*time.Second, 10*time.Millisecond)
	soon, cancel := context.WithTimeout(ctx, 3*time.Second) // less than the repair waits at most
	defer cancel()
	token, ok, err := s.Ledger.Acquire(soon, held.fence.Lease, held.fence.Holder, time.Minute)
	require.NoError(t, err, "the lease can be renewed meanwhile")
	require.True(t, ok)
	require.Equal(t, held.fence.Token, token)
	require.NoError(t, tx.Commit())
	require.NoError(t, <-done)
	inv, err := s.Ledger.Inventory(ctx, sl.ID)
	require.NoError(t, err)
	require.Equal(t, ledger.Inventory{SaleID: sl.ID, Total: 10, Available: 10, Version: inv.Version}, inv)
}

// TestTheFuseSeesWholeOrders: of a user above the limit by one unit, an order of five may
// have to go.
func TestTheFuseSeesWholeOrders(t *testing.T) {
	s := storetest.Embedded(t)
	sl := s.LoadedSale(1000, 5)
	b := s.Batch(sl, old, "a")
	b.Orders[0].Quantity, b.Orders[0].AmountCents = 5, 5*sl.PriceCents
	s.Sell(sl, b)
	s.Exec("UPDATE sales SET per_user_limit = 4 WHERE id = ?", sl.ID)
	report, err := newReconciler(s, func(o *Options) { o.FuseUnits, o.FusePercent = 4, 0.001 }).Reconcile(t.Context(), Query{SaleID: sl.ID})
	require.NoError(t, err)
	kind := kindOf(&report.Sales[0], audit.LimitExceeded)
	require.Equal(t, int64(1), kind.Left, "%+v", report.Sales[0])
	require.Zero(t, kind.Repaired)
}
