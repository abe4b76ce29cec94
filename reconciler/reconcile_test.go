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

// plant makes one kind of difference for n shoppers, by the hands of somebody who has the
// engines' own clients. Each takes a sale of plantTotal units with limit 2.
type plant struct {
	name  string
	kind  audit.Kind
	make  func(s *storetest.Stores, sl *sale.Sale, n int)
	once  bool // it is about the sale, and not about n orders
	helps bool // help, and no difference
}

const plantTotal = 20_000

// crowd is n users, in batches of some orders.
func crowd(n int) (batches [][]string) {
	const size = 50
	for i := 0; i < n; i += size {
		var users []string
		for j := i; j < min(i+size, n); j++ {
			users = append(users, fmt.Sprintf("u%d", j))
		}
		batches = append(batches, users)
	}
	return batches
}

func sellTo(s *storetest.Stores, sl *sale.Sale, n int) (sold []*sale.Batch) {
	for _, users := range crowd(n) {
		b := s.Batch(sl, old, users...)
		s.Sell(sl, b)
		sold = append(sold, b)
	}
	return sold
}

// eachOf calls f with every order of the batches.
func eachOf(batches []*sale.Batch, f func(b *sale.Batch, o *sale.Order)) {
	for _, b := range batches {
		for i := range b.Orders {
			f(b, &b.Orders[i])
		}
	}
}

// inIDs is a list of the batches' orders for SQL.
func inIDs(batches []*sale.Batch) string {
	var list []byte
	eachOf(batches, func(_ *sale.Batch, o *sale.Order) {
		if list != nil {
			list = append(list, ',')
		}
		list = append(list, o.ID.String()...)
	})
	return "(" + string(list) + ")"
}

func mustSettle(s *storetest.Stores, b *sale.Batch) {
	_, err := s.Stock.Settle(context.Background(), b.SaleID, []sale.ID{b.ID}, nil)
	require.NoError(s.T, err)
}

var plants = []plant{
	{name: "promised batches that never came", kind: audit.ConfirmedNotPersisted, helps: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		for _, users := range crowd(n) {
			s.Confirm(sl, s.Batch(sl, old, users...))
		}
	}},
	{name: "orders that Redis forgot", kind: audit.PersistedUnknownToRedis, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		for _, users := range crowd(n) {
			b := s.Batch(sl, old, users...)
			s.Apply(b)
			require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), []sale.ID{b.ID}))
		}
	}},
	{name: "records deleted by hand", kind: audit.PersistedUnknownToRedis, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		eachOf(sellTo(s, sl, n), func(_ *sale.Batch, o *sale.Order) {
			require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hdel().Key("fg:{"+sl.ID+"}:buyers").Field(o.UserID).Build()).Error())
		})
		// Whoever deletes by hand may well put the sums right.
		s.MoveStock(sl.ID, int64(n))
		require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hincrby().Key("fg:{"+sl.ID+"}:meta").Field("held").Increment(int64(-n)).Build()).Error())
	}},
	{name: "orders cancelled by hand", kind: audit.CancelledStillHeld, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		sold := sellTo(s, sl, n)
		s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "orders that the ledger lost", kind: audit.HeldWithoutOrder, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		for _, users := range crowd(n) {
			b := s.Batch(sl, old, users...)
			s.Confirm(sl, b)
			mustSettle(s, b)
		}
	}},
	{name: "rows deleted by hand", kind: audit.HeldWithoutOrder, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		sold := sellTo(s, sl, n)
		s.Exec("DELETE FROM orders WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "batches nobody settled", kind: audit.ConsumedNotSettled, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		for _, users := range crowd(n) {
			b := s.Batch(sl, old, users...)
			s.Confirm(sl, b)
			s.Apply(b)
			require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), []sale.ID{b.ID}))
		}
	}},
	{name: "quantities raised by hand", kind: audit.QuantityDiffers, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		sold := sellTo(s, sl, n)
		s.Exec("UPDATE orders SET quantity = 2, amount_cents = 200 WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked + ?, available = available - ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "units given back by hand", kind: audit.ReturnedButActive, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		eachOf(sellTo(s, sl, n), func(b *sale.Batch, o *sale.Order) {
			_, err := s.Stock.Restore(context.Background(), o, b.ID)
			require.NoError(s.T, err)
		})
	}},
	{name: "stock lowered by hand", kind: audit.StockDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) { s.MoveStock(sl.ID, int64(-n)) }},
	{name: "stock raised by hand", kind: audit.StockDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) { s.MoveStock(sl.ID, int64(n)) }},
	{name: "held and stock moved by hand", kind: audit.StockDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		s.MoveStock(sl.ID, int64(n))
		require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hincrby().Key("fg:{"+sl.ID+"}:meta").Field("held").Increment(int64(-n)).Build()).Error())
	}},
	{name: "inventory locked by hand", kind: audit.LedgerCountsDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		s.Exec("UPDATE inventory SET locked = locked + ?, available = available - ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "inventory sold by hand", kind: audit.LedgerCountsDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		sellTo(s, sl, n)
		s.Exec("UPDATE inventory SET locked = locked - ?, sold = sold + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "orders above the limit", kind: audit.LimitExceeded, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		sold := sellTo(s, sl, n)
		// Two units each are allowed: a second and a third order come in by hand, in both stores.
		for range 2 {
			var second []*sale.Batch
			for _, b := range sold {
				var users []string
				for i := range b.Orders {
					users = append(users, b.Orders[i].UserID)
				}
				c := s.Batch(sl, old, users...)
				for i := range c.Orders {
					c.Orders[i].RequestKey = "k" + c.ID.String()
				}
				second = append(second, c)
			}
			s.Exec("UPDATE sales SET per_user_limit = 3 WHERE id = ?", sl.ID)
			loose := *sl
			loose.PerUserLimit = 3
			for _, b := range second {
				s.Sell(&loose, b)
			}
			s.Exec("UPDATE sales SET per_user_limit = 2 WHERE id = ?", sl.ID)
		}
	}},
	{name: "tasks out of tries", kind: audit.StuckTask, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		sold := sellTo(s, sl, n)
		s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
		s.Exec(`INSERT INTO stock_sync_tasks (order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, next_try, state, created_at)
			SELECT id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, created_at, 'STUCK', created_at FROM orders WHERE id IN ` + inIDs(sold))
	}},
	{name: "a restock that Redis missed", kind: audit.TotalDiffers, once: true, make: func(s *storetest.Stores, sl *sale.Sale, n int) {
		s.Exec("UPDATE inventory SET total = total + ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
}

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
	p.make(s, sl, n)
	r := newReconciler(s, anyFuse)
	want := int64(n)
	switch {
	case p.once:
		want = 1
	case p.kind == audit.ConfirmedNotPersisted, p.kind == audit.ConsumedNotSettled:
		want = int64(len(crowd(n)))
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

// TestReconcileRepairsThousands: 5,000 orders of the kinds that are about orders.
func TestReconcileRepairsThousands(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, p := range plants {
			if p.once {
				continue
			}
			t.Run(p.name, func(t *testing.T) { repairs(ctx, t, s, p, 5000) })
		}
	})
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
	sold := sellTo(s, sl, maxItems+50)
	eachOf(sold, func(b *sale.Batch, o *sale.Order) {
		_, err := s.Stock.Restore(ctx, o, b.ID)
		require.NoError(t, err)
	})
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
