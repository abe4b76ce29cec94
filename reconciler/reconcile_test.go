package reconciler

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// anyFuse lets every repair through.
func anyFuse(o *Options) { o.FuseUnits = 1 << 40 }

func kindOf(r *ledger.ReconcileReport, kind audit.Kind) ledger.KindCount {
	i := slices.IndexFunc(r.Kinds, func(k ledger.KindCount) bool { return k.Kind == string(kind) })
	if i < 0 {
		return ledger.KindCount{Kind: string(kind)}
	}
	return r.Kinds[i]
}

// TestReconcileRepairs plants each kind from outside, beside orders that are as they should
// be: a dry run names it and changes nothing, a run repairs it and logs that, the audit is
// clean and a second run finds nothing.
func TestReconcileRepairs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, p := range plants {
			for _, n := range []int{1, 120} {
				t.Run(fmt.Sprintf("%s/%d", p.name, n), func(t *testing.T) { repairs(ctx, t, s, p, n) })
			}
		}
	})
}

func repairs(ctx context.Context, t *testing.T, s *storetest.Stores, p plant, n int) {
	sl := s.LoadedSale(plantTotal, 2)
	s.Sell(sl, s.Batch(sl, old, "a", "b"))
	s.Sell(sl, s.Batch(sl, 0, "c"))
	p.make(s, sl, "u", n)
	r := newReconciler(s, anyFuse)
	want := int64(n)
	switch {
	case p.once:
		want = 1
	case p.kind == audit.ConfirmedNotPersisted, p.kind == audit.ConsumedNotSettled:
		want = int64(len(crowd("u", n)))
	}

	if p.kind != audit.TotalDiffers { // which every round levels, a run's own too
		dry, err := r.Reconcile(ctx, Query{SaleID: sl.ID, DryRun: true})
		require.NoError(t, err)
		k := kindOf(&dry.Sales[0], p.kind)
		if p.helps {
			require.Equal(t, want, k.Helped, "%+v", dry)
			require.Zero(t, dry.Found)
		} else {
			require.Equal(t, want, k.Found, "%+v", dry.Sales[0].Kinds)
			require.Equal(t, want, dry.Left, "nothing else, and nothing repaired: %+v", dry.Sales[0].Kinds)
		}

		report, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, report.Left, "%+v", report.Sales[0])
		part := &report.Sales[0]
		if p.helps {
			require.Equal(t, want, report.Helped)
			require.Zero(t, report.Found)
		} else {
			require.Equal(t, want, report.Repaired, "%+v", part.Kinds)
			require.Equal(t, want, kindOf(part, p.kind).Repaired)
		}
		// The plan that was shown is the plan that was carried out.
		require.Equal(t, len(dry.Sales[0].Items), len(part.Items))
		plans := map[string]int{}
		for i := range part.Items {
			plans[dry.Sales[0].Items[i].Plan]++
			plans[part.Items[i].Plan]--
		}
		for plan, n := range plans {
			require.Zero(t, n, plan)
		}
		if !p.helps {
			var logged int64
			require.NoError(t, s.SQL.QueryRow("SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = ? AND reason LIKE '%once%'", sl.ID, string(p.kind)).Scan(&logged))
			require.GreaterOrEqual(t, logged, want)
		}
		stored, err := s.Ledger.ReconcileReport(ctx, part.ID)
		require.NoError(t, err)
		require.Equal(t, *part, stored)
	}

	again, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Zero(t, again.Found+again.Helped, "%+v", again.Sales[0])
	audited(t, s, sl.ID)
}

// TestReconcileRepairsThousands: 5,000 orders of the kinds that are about orders, and on
// the embedded engines, whose Lua is the slower one, more than one slice of each reading.
func TestReconcileRepairsThousands(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct {
		open   func(testing.TB) *storetest.Stores
		orders int
	}{"embedded": {storetest.Embedded, 1200}, "real": {storetest.Real, 5000}} {
		t.Run(name, func(t *testing.T) {
			s := of.open(t)
			for _, p := range plants {
				if !p.once {
					t.Run(p.name, func(t *testing.T) { repairs(context.Background(), t, s, p, of.orders) })
				}
			}
		})
	}
}

func TestAStuckReservationIsReleased(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(10, 2)
		s.Reserve(sl, s.Batch(sl, old, "x"), time.Minute)
		pending := "fg:{" + sl.ID + "}:pending"
		r := newReconciler(s)
		found, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, found.Found, "its id is old, and its deadline has not passed: a gateway's clock is behind")
		// Nobody sweeps what is not on the sweeper's list.
		require.NoError(t, s.Redis.Do(ctx, s.Redis.B().Del().Key(pending).Build()).Error())
		found, err = r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Equal(t, int64(1), kindOf(&found.Sales[0], audit.StuckReservation).Repaired, "%+v", found)
		require.Equal(t, int64(10), s.Snapshot(sl.ID).Stock)
		audited(t, s, sl.ID)
	})
}

func TestThePromisedBatchReachesTheLedgerWithItsAmounts(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	for name, lose := range map[string]func(b *sale.Batch){
		"lost message": func(*sale.Batch) {},
		"lost rows":    func(b *sale.Batch) { mustSettle(s, b) },
	} {
		t.Run(name, func(t *testing.T) {
			b := s.Batch(sl, old, "x"+name)
			s.Confirm(sl, b)
			lose(b)
			_, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
			require.NoError(t, err)
			o, err := s.Ledger.Order(ctx, b.Orders[0].ID)
			require.NoError(t, err)
			require.Equal(t, b.Orders[0], o.Order)
			require.Equal(t, b.ID, o.BatchID)
			var created string
			require.NoError(t, s.SQL.QueryRow("SELECT CAST(created_at AS CHAR) FROM orders WHERE id = ?", int64(o.ID)).Scan(&created))
			require.Contains(t, created, o.ID.Time().Format("15:04:05"))
		})
	}
}

// TestALostOrderThatDoesNotFitIsCancelled: the ledger's guards decide, and Redis gets its
// unit back.
func TestALostOrderThatDoesNotFitIsCancelled(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(10, 1)
		// Redis holds two orders of one user, since it had forgotten the first for a while.
		first, second := s.Batch(sl, old, "a"), s.Batch(sl, old, "a")
		second.Orders[0].RequestKey = "other"
		s.Confirm(sl, second)
		mustSettle(s, second)
		s.Apply(first)
		s.Settle(first)
		report, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, report.Left, "%+v", report)
		o, err := s.Ledger.Order(ctx, second.Orders[0].ID)
		require.NoError(t, err)
		require.Equal(t, sale.Cancelled, o.Status)
		require.Equal(t, sale.ReasonLimitExceeded, o.Reason)
		require.Equal(t, int64(9), s.Snapshot(sl.ID).Stock)
		audited(t, s, sl.ID)
	})
}

func TestPaidOrdersAboveTheLimitWaitForAPerson(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	for i := range 3 {
		loose := *sl
		loose.PerUserLimit = 9
		b := s.Batch(sl, old, "a")
		b.Orders[0].RequestKey = fmt.Sprint(i)
		s.Exec("UPDATE sales SET per_user_limit = 9 WHERE id = ?", sl.ID)
		s.Sell(&loose, b)
	}
	s.Exec("UPDATE sales SET per_user_limit = 1 WHERE id = ?", sl.ID)
	s.Exec("UPDATE orders SET status = 'PAID' WHERE sale_id = ? AND request_key <> '1'", sl.ID)
	s.Exec("UPDATE inventory SET locked = 1, sold = 2 WHERE sale_id = ?", sl.ID)
	report, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(1), report.Left)
	require.Contains(t, report.Sales[0].Items[0].Why, "1 units above the limit are paid for")
	units, err := s.Ledger.UserUnits(ctx, sl.ID, "a")
	require.NoError(t, err)
	require.Equal(t, int64(2), units.Units, "the unpaid one is cancelled")
}

func TestTheFuseLeavesLargeRepairsToAPerson(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(1000, 2)
	s.MoveStock(sl.ID, 150)
	s.Confirm(sl, s.Batch(sl, old, "p"))
	owed := s.Batch(sl, old, "q")
	s.Confirm(sl, owed)
	s.Apply(owed)
	require.NoError(t, s.Ledger.MarkSettled(ctx, []sale.ID{owed.ID}))
	report, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(1), report.Left)
	require.Equal(t, int64(1), report.Helped, "help is given all the same,")
	require.Equal(t, int64(1), report.Repaired, "and what is owed is paid")
	require.Contains(t, report.Sales[0].Note, "above the fuse")
	require.Equal(t, int64(1148), s.Snapshot(sl.ID).Stock)

	_, err = newReconciler(s, func(o *Options) { o.FuseUnits = 150 }).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(998), s.Snapshot(sl.ID).Stock)
}

func TestWhatOnlyAPersonCanDecide(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(2, 1)
	s.Sell(sl, s.Batch(sl, old, "a"))
	for i, user := range []string{"a", "b"} {
		s.Exec(`INSERT INTO orders (id, sale_id, user_id, request_key, quantity, amount_cents, status, batch_id, created_at, persisted_at)
			VALUES (?, ?, ?, 'k', 1, 100, 'PAID', 9, '2026-01-01 00:00:00.000', '2026-01-01 00:00:00.000')`, i+1, sl.ID, user)
	}
	report, err := newReconciler(s, anyFuse).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	for kind, advice := range map[audit.Kind]string{
		audit.Oversold: "raise the total", audit.DoubleOrder: "unique key", audit.LedgerCountsDrift: "the orders hold 3 units of 2",
	} {
		i := slices.IndexFunc(report.Sales[0].Items, func(it ledger.ReconcileItem) bool { return it.Kind == string(kind) })
		require.GreaterOrEqual(t, i, 0, "%s in %+v", kind, report.Sales[0].Items)
		require.Equal(t, ledger.ItemLeft, report.Sales[0].Items[i].Outcome)
		require.Contains(t, report.Sales[0].Items[i].Why, advice)
	}
}

func TestReconcileSaysWhatItCouldNotDo(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.Sale(10, 2) // published, and not in Redis
	report, err := newReconciler(s, func(o *Options) { o.Lister = brokenBus }).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Positive(t, report.Left, "%+v", report)
	require.Equal(t, int64(1), kindOf(&report.Sales[0], audit.NotLoaded).Left)
}

func TestReconcileLeavesDeadBatchesAlone(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	b, alive := s.Batch(sl, old, "x"), s.Batch(sl, old, "y")
	s.Confirm(sl, b)
	s.Confirm(sl, alive)
	require.NoError(t, s.Ledger.AddDeadBatch(ctx, &ledger.DeadBatch{MessageID: "m", BatchID: b.ID, SaleID: sl.ID, Body: []byte("{}"), Error: "spoiled"}))
	for _, state := range []string{ledger.StateDead, ledger.StateReplayed} {
		s.Exec("UPDATE dead_batches SET state = ?", state)
		report, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Equal(t, int64(1), report.Left)
		consumed, err := s.Ledger.Consumed(ctx, []sale.ID{b.ID, alive.ID})
		require.NoError(t, err)
		require.Equal(t, map[sale.ID]bool{alive.ID: true}, consumed)
	}
}

// TestABatchThatSpoilsTheRest: what the ledger refuses for its own fault does not keep the
// others from being applied.
func TestABatchThatSpoilsTheRest(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	taken := s.Batch(sl, old, "t")
	s.Sell(sl, taken)
	spoiled, fine := s.Batch(sl, old, "x"), s.Batch(sl, old, "y")
	spoiled.Orders[0].ID = taken.Orders[0].ID // another user's order
	s.Confirm(sl, spoiled)
	s.Confirm(sl, fine)
	report, err := newReconciler(s).Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(1), report.Helped)
	require.Equal(t, int64(1), kindOf(&report.Sales[0], audit.ConfirmedNotPersisted).Left)
}

func TestReconcileOfAnUnknownSale(t *testing.T) {
	_, err := newReconciler(storetest.Embedded(t)).Reconcile(context.Background(), Query{SaleID: "nothing"})
	require.Equal(t, sale.CodeSaleNotFound, sale.CodeOf(err))
}

func TestReportsAreBoundedAndPurged(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(plantTotal, 2)
	sold := sellTo(s, sl, "u", maxItems+50)
	giveBack(s, sold)
	ancient := ledger.ReconcileReport{SaleID: sl.ID, StartedAt: time.Now().Add(-48 * time.Hour), FinishedAt: time.Now()}
	require.NoError(t, s.Ledger.AddReconcileReport(ctx, &ancient))
	report, err := newReconciler(s, anyFuse, func(o *Options) { o.ReportRetention = 24 * time.Hour }).
		Reconcile(ctx, Query{SaleID: sl.ID, Trigger: Early("a test")})
	require.NoError(t, err)
	part := &report.Sales[0]
	require.Equal(t, int64(maxItems+50), report.Repaired)
	require.Len(t, part.Items, maxItems)
	require.Equal(t, int64(50), part.Unlisted)
	require.Equal(t, "early: a test", part.Trigger)
	_, err = s.Ledger.ReconcileReport(ctx, ancient.ID)
	require.Equal(t, sale.CodeNotFound, sale.CodeOf(err))
	_, err = s.Ledger.ReconcileReport(ctx, part.ID)
	require.NoError(t, err)
}
