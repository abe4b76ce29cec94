package reconciler

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// plants are the differences that a reconcile repairs by itself.
var plants = []struct {
	kind  audit.Kind
	plant func(s *storetest.Stores, sl *sale.Sale)
}{
	{audit.ConfirmedNotPersisted, func(s *storetest.Stores, sl *sale.Sale) { s.Confirm(sl, s.Batch(sl, old, "x", "y")) }},
	{audit.PersistedUnknownToRedis, func(s *storetest.Stores, sl *sale.Sale) {
		b := s.Batch(sl, old, "x")
		s.Apply(b)
		require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), []sale.ID{b.ID}))
	}},
	{audit.CancelledStillHeld, func(s *storetest.Stores, sl *sale.Sale) {
		b := s.Batch(sl, old, "x")
		s.Sell(sl, b)
		s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id = ?", int64(b.Orders[0].ID))
		s.Exec("UPDATE inventory SET locked = locked - 1, available = available + 1 WHERE sale_id = ?", sl.ID)
	}},
	{audit.ConsumedNotSettled, func(s *storetest.Stores, sl *sale.Sale) {
		b := s.Batch(sl, old, "x")
		s.Confirm(sl, b)
		s.Apply(b)
		require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), []sale.ID{b.ID}))
	}},
	{audit.StockDrift, func(s *storetest.Stores, sl *sale.Sale) { s.MoveStock(sl.ID, -2) }},
}

func TestOnceRepairs(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, c := range plants {
			t.Run(string(c.kind), func(t *testing.T) {
				sl := s.LoadedSale(10, 2)
				s.Sell(sl, s.Batch(sl, old, "a"))
				c.plant(s, sl)
				r := newReconciler(s)

				dry, err := r.Once(ctx, Query{SaleID: sl.ID, DryRun: true})
				require.NoError(t, err)
				require.Equal(t, 1, dry.Left, "%+v", dry)
				require.Equal(t, c.kind, dry.Sales[0].Items[0].Kind)

				report, err := r.Once(ctx, Query{SaleID: sl.ID})
				require.NoError(t, err)
				require.Equal(t, 1, report.Repaired, "a dry run repairs nothing, a run does: %+v", report)
				require.Zero(t, report.Left)

				again, err := r.Once(ctx, Query{SaleID: sl.ID})
				require.NoError(t, err)
				require.Zero(t, again.Found, "%+v", again)
				audited(t, s, sl.ID)
			})
		}
	})
}

func TestThePromisedBatchReachesTheLedgerWithItsAmounts(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	b := s.Batch(sl, old, "x")
	s.Confirm(sl, b)
	_, err := newReconciler(s).Once(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	o, err := s.Ledger.Order(ctx, b.Orders[0].ID)
	require.NoError(t, err)
	require.Equal(t, b.Orders[0], o.Order)
	require.Equal(t, b.ID, o.BatchID)
}

func TestTheFuseLeavesLargeRepairsToAPerson(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(1000, 2)
	s.MoveStock(sl.ID, 150)
	promised := s.Batch(sl, old, "p")
	s.Confirm(sl, promised)
	report, err := newReconciler(s).Once(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, 1, report.Left)
	require.Equal(t, 1, report.Repaired, "what is owed is paid all the same")
	require.Contains(t, fmt.Sprintf("%+v", report), "above the fuse")
	require.Equal(t, int64(1149), s.Snapshot(sl.ID).Stock)

	_, err = newReconciler(s, func(o *Options) { o.FuseUnits = 150 }).Once(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(999), s.Snapshot(sl.ID).Stock)
}

func TestOnceSaysWhatItCouldNotDo(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.Sale(10, 2) // published, and not in Redis
	report, err := newReconciler(s, func(o *Options) { o.Lister = brokenBus }).Once(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Positive(t, report.Left, "%+v", report)
	require.Contains(t, fmt.Sprintf("%+v", report), errBusAway.Error())
}

func TestOnceLeavesDeadBatchesAlone(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	b := s.Batch(sl, old, "x")
	s.Confirm(sl, b)
	require.NoError(t, s.Ledger.AddDeadBatch(ctx, &ledger.DeadBatch{MessageID: "m", BatchID: b.ID, SaleID: sl.ID, Body: []byte("{}"), Error: "spoiled"}))
	report, err := newReconciler(s).Once(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, 1, report.Left)
	consumed, err := s.Ledger.Consumed(ctx, []sale.ID{b.ID})
	require.NoError(t, err)
	require.False(t, consumed[b.ID])
}

func TestOnceOfAnUnknownSale(t *testing.T) {
	_, err := newReconciler(storetest.Embedded(t)).Once(context.Background(), Query{SaleID: "nothing"})
	require.Equal(t, sale.CodeSaleNotFound, sale.CodeOf(err))
}
