package reconciler

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// unchecked changes the ledger by hand past its CHECKs.
func unchecked(t *testing.T, s *storetest.Stores, query string, args ...any) {
	t.Helper()
	ctx := context.Background()
	c, err := s.SQL.Conn(ctx)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	off, on := "SET check_constraint_checks = 0", "SET check_constraint_checks = 1"
	if _, err := c.ExecContext(ctx, off); err != nil {
		off, on = "PRAGMA ignore_check_constraints = ON", "PRAGMA ignore_check_constraints = OFF"
		_, err := c.ExecContext(ctx, off)
		require.NoError(t, err)
	}
	_, err = c.ExecContext(ctx, query, args...)
	require.NoError(t, err)
	_, err = c.ExecContext(ctx, on)
	require.NoError(t, err)
}

// TestABreachIsFoundConfirmedAndRepaired plants one in each store and lets rounds and
// early runs go on.
func TestABreachIsFoundConfirmedAndRepaired(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, c := range []struct {
			name     string
			equation Equation
			plant    func(sl *sale.Sale)
		}{
			{"units that Redis made up", RedisUnits, func(sl *sale.Sale) { s.MoveStock(sl.ID, 3) }},
			{"units that Redis lost", RedisUnits, func(sl *sale.Sale) { s.MoveStock(sl.ID, -2) }},
			{"a row of the ledger that does not add up", LedgerUnits, func(sl *sale.Sale) {
				unchecked(t, s, "UPDATE inventory SET available = available + 2 WHERE sale_id = ?", sl.ID)
			}},
			{"a row of the ledger that its orders contradict", LedgerOrders, func(sl *sale.Sale) {
				s.Exec("UPDATE inventory SET available = available - 1, locked = locked + 1 WHERE sale_id = ?", sl.ID)
			}},
			{"a row that has paid what is not paid", LedgerOrders, func(sl *sale.Sale) {
				s.Exec("UPDATE inventory SET locked = locked - 1, sold = sold + 1 WHERE sale_id = ?", sl.ID)
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				sl := s.LoadedSale(10, 5)
				s.Sell(sl, s.Batch(sl, 0, "a", "b"))
				reconciled(t, s, sl)
				var log bytes.Buffer
				r := newReconciler(s, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
				breached := func() float64 {
					return testutil.ToFloat64(r.metrics.breach.WithLabelValues(sl.ID, string(c.equation)))
				}
				c.plant(sl)
				r.Round(context.Background())
				require.Zero(t, breached(), "one look proves nothing")
				rounds := 1
				for ; breached() == 0; rounds++ {
					require.Less(t, rounds, 20, "not found in so many rounds")
					r.Round(context.Background())
				}
				require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.breaches.WithLabelValues(string(c.equation))))
				require.Contains(t, log.String(), "level=ERROR")
				require.Contains(t, log.String(), "sale="+sl.ID+" equation="+string(c.equation))
				for range 3 {
					r.Round(context.Background())
				}
				require.Equal(t, 1, strings.Count(log.String(), "level=ERROR"), "said once")

				r.runDue(context.Background())
				r.watch.of(sl.ID).counted = time.Time{} // its turn to be counted has come
				r.Round(context.Background())
				require.Zero(t, breached())
				require.Contains(t, log.String(), "units are conserved again")
				reports, err := s.Ledger.ReconcileReports(context.Background(), sl.ID, 10)
				require.NoError(t, err)
				require.Len(t, reports, 1)
				require.Equal(t, "early: conservation", reports[0].Trigger)
				require.Positive(t, reports[0].Repaired)
				audited(t, s, sl.ID)
			})
		}
	})
}

// TestWhatIsInFlightIsAMetric: units, the age of the oldest batch, and its bound.
func TestWhatIsInFlightIsAMetric(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(100, 5)
		s.Sell(sl, s.Batch(sl, 2*time.Hour, "sold"))
		first := s.Batch(sl, time.Hour, "a", "b")
		s.Confirm(sl, first)
		s.Confirm(sl, s.Batch(sl, time.Minute, "c"))
		s.Reserve(sl, s.Batch(sl, 0, "d"), time.Minute)
		r := newReconciler(s)
		r.Round(context.Background())
		units := func() float64 { return testutil.ToFloat64(r.metrics.inFlight.WithLabelValues(sl.ID)) }
		oldest := func() float64 { return testutil.ToFloat64(r.metrics.oldest.WithLabelValues(sl.ID)) }
		require.Equal(t, 4.0, units())
		require.InDelta(t, time.Hour.Seconds(), oldest(), 60)
		require.Equal(t, testWatermark.Seconds(), testutil.ToFloat64(r.metrics.bound))

		s.Apply(first)
		s.Settle(first)
		for range oldestEveryRounds {
			r.Round(context.Background())
		}
		require.Equal(t, 2.0, units())
		require.InDelta(t, time.Minute.Seconds(), oldest(), 55)

		require.NoError(t, r.resign())
		require.Zero(t, testutil.CollectAndCount(r.metrics.inFlight)+testutil.CollectAndCount(r.metrics.oldest)+
			testutil.CollectAndCount(r.metrics.ledgerUnits), "who does not lead does not say")
	})
}

// TestNoBreachIsSeenInARunningSale: shoppers buy, gateways die, workers lag and orders are
// refused, while rounds look on.
func TestNoBreachIsSeenInARunningSale(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		const shoppers, batches, rounds = 4, 25, 150
		sl := s.LoadedSale(shoppers*batches*3, 100)
		reconciled(t, s, sl)
		// Made here: the helpers that make batches are for one goroutine.
		var of [shoppers][batches]*sale.Batch
		for i := range of {
			for j := range of[i] {
				of[i][j] = s.Batch(sl, 0, fmt.Sprintf("u%d-%d", i, j), fmt.Sprintf("v%d-%d", i, j))
			}
		}
		r := newReconciler(s)
		var selling sync.WaitGroup
		selling.Add(shoppers)
		for i := range shoppers {
			go func() {
				defer selling.Done()
				for j, b := range of[i] {
					out := make([]stock.Outcome, len(b.Orders))
					terms := stock.Terms{StartsAt: sl.StartsAt, EndsAt: sl.EndsAt, PerUserLimit: sl.PerUserLimit}
					if _, err := s.Stock.Reserve(ctx, b, terms, time.Minute, out); err != nil {
						continue // what Redis did of it must be conserved all the same
					}
					if j%5 == 4 {
						_, _ = s.Stock.Release(ctx, sl.ID, b.ID, 0, nil)
						continue
					}
					if _, err := s.Stock.Confirm(ctx, b); err != nil {
						continue
					}
					if _, err := s.Ledger.Apply(ctx, []sale.Batch{*b}); err != nil || j%3 == 2 {
						continue // settled by the rounds
					}
					_, _ = s.Stock.Settle(ctx, sl.ID, []sale.ID{b.ID}, s.Ledger.ActiveOrders)
				}
			}()
		}
		sold := make(chan struct{})
		go func() { selling.Wait(); close(sold) }()
		for n := 0; ; n++ {
			r.watch.mu.Lock()
			r.watch.of(sl.ID).counted = time.Time{} // counted every round
			r.watch.mu.Unlock()
			r.Round(ctx)
			select {
			case <-sold:
				if n < rounds {
					continue
				}
			default:
				continue
			}
			break
		}
		for _, e := range equations {
			require.Zero(t, testutil.ToFloat64(r.metrics.breaches.WithLabelValues(string(e))), e)
		}
		require.Zero(t, r.early.waiting())
		inv, err := s.Ledger.Inventory(ctx, sl.ID)
		require.NoError(t, err)
		require.Positive(t, inv.Locked)
	})
}

// TestSeriesAreBounded: sales beyond the bound are watched without series, and those that
// are over lose theirs, but for a breach.
func TestSeriesAreBounded(t *testing.T) {
	r := newReconciler(storetest.Embedded(t))
	now := time.Now()
	sales := make([]sale.Sale, maxShownSales+5)
	for i := range sales {
		sales[i] = sale.Sale{ID: fmt.Sprint("s", i), EndsAt: now.Add(time.Hour)}
		r.watch.saw(sales[i].ID, stock.Snapshot{Loaded: true, Total: 10, Stock: 10})
	}
	r.show(sales, now)
	require.Equal(t, maxShownSales, testutil.CollectAndCount(r.metrics.drift))
	require.Equal(t, 5.0, testutil.ToFloat64(r.metrics.hidden))

	hidden := sales[len(sales)-1].ID
	r.watch.mu.Lock()
	for range confirmLooks {
		r.judge(hidden, r.watch.of(hidden), RedisUnits, 1)
	}
	r.watch.mu.Unlock()
	require.Equal(t, 1, testutil.CollectAndCount(r.metrics.breach), "a breach has a series whatever the sale")

	for i := range 10 {
		sales[i].EndsAt = now.Add(-(shownAfterEndHours + 1) * time.Hour)
	}
	r.show(sales, now)
	require.Equal(t, maxShownSales-5, testutil.CollectAndCount(r.metrics.drift))
	require.Zero(t, testutil.ToFloat64(r.metrics.hidden))
	r.show(sales[:len(sales)-1], now)
	require.Zero(t, testutil.CollectAndCount(r.metrics.breach), "nobody looks at it any more")
}
