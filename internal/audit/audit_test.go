package audit_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// old is an age past the watermark of these tests.
const old = time.Hour

func auditor(s *storetest.Stores) *audit.Auditor {
	return &audit.Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Minute}
}

// consumedLongAgo makes a batch one that its worker had all the time to settle.
func consumedLongAgo(s *storetest.Stores, b *sale.Batch) {
	s.Exec("UPDATE consumed_batches SET consumed_at = '2026-01-01 00:00:00.000' WHERE batch_id = ?", int64(b.ID))
}

// TestEveryDifferenceIsFound plants each kind of difference from outside, beside
// orders that are as they should be, and wants it found, named, and nothing else.
func TestEveryDifferenceIsFound(t *testing.T) {
	ctx := context.Background()
	cases := []struct {
		name      string
		plant     func(s *storetest.Stores, sl *sale.Sale)
		kind      audit.Kind // "" = nothing is wrong
		invariant string
	}{
		{"nothing", func(*storetest.Stores, *sale.Sale) {}, "", ""},
		{"a promised batch that is young", func(s *storetest.Stores, sl *sale.Sale) {
			s.Confirm(sl, s.Batch(sl, 0, "x"))
		}, "", ""},
		{"a reservation under way", func(s *storetest.Stores, sl *sale.Sale) {
			s.Reserve(sl, s.Batch(sl, 0, "x"), time.Minute)
		}, "", ""},
		{"a promised batch that never came", func(s *storetest.Stores, sl *sale.Sale) {
			s.Confirm(sl, s.Batch(sl, old, "x"))
		}, audit.ConfirmedNotPersisted, "2"},
		{"a persisted batch that is not settled", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Confirm(sl, b)
			s.Apply(b)
			consumedLongAgo(s, b)
		}, audit.ConsumedNotSettled, "4c"},
		{"a persisted batch that is noted as settled", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Confirm(sl, b)
			s.Apply(b)
			require.NoError(s.T, s.Ledger.MarkSettled(ctx, []sale.ID{b.ID}))
		}, audit.ConsumedNotSettled, "4c"},
		{"an old batch that a lagging worker has just persisted", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Confirm(sl, b)
			s.Apply(b)
		}, "", ""},
		{"an old reservation of a gateway whose clock is behind", func(s *storetest.Stores, sl *sale.Sale) {
			s.Reserve(sl, s.Batch(sl, old, "x"), time.Minute)
		}, "", ""},
		{"a reservation nobody swept", func(s *storetest.Stores, sl *sale.Sale) {
			s.Reserve(sl, s.Batch(sl, old, "x"), -time.Minute)
		}, audit.StuckReservation, "7"},
		{"a reservation nobody can sweep", func(s *storetest.Stores, sl *sale.Sale) {
			s.Reserve(sl, s.Batch(sl, old, "x"), time.Minute)
			require.NoError(s.T, s.Redis.Do(ctx, s.Redis.B().Del().Key("fg:{"+sl.ID+"}:pending").Build()).Error())
		}, audit.StuckReservation, "7"},
		{"an order Redis forgot", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Apply(b)
			consumedLongAgo(s, b)
		}, audit.PersistedUnknownToRedis, "4c"},
		{"an order Redis forgot, which settling is about to adopt", func(s *storetest.Stores, sl *sale.Sale) {
			s.Apply(s.Batch(sl, old, "x"))
		}, "", ""},
		{"a cancelled order whose task is under way", func(s *storetest.Stores, sl *sale.Sale) {
			first, second := s.Batch(sl, old, "x"), s.Batch(sl, old, "x")
			second.Orders[0].RequestKey = "other"
			second.Orders[0].Quantity, second.Orders[0].AmountCents = 2, 200
			s.Apply(first)
			s.Confirm(sl, second)
			require.Equal(s.T, 1, s.Apply(second).Cancelled)
			s.Settle(first)
			s.Settle(second)
		}, "", ""},
		{"an order the ledger forgot", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Confirm(sl, b)
			_, err := s.Stock.Settle(ctx, sl.ID, []sale.ID{b.ID}, nil)
			require.NoError(s.T, err)
		}, audit.HeldWithoutOrder, "4c"},
		{"a cancelled order that holds its unit", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Sell(sl, b)
			s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id = ?", int64(b.Orders[0].ID))
			s.Exec("UPDATE inventory SET locked = locked - 1, available = available + 1 WHERE sale_id = ?", sl.ID)
		}, audit.CancelledStillHeld, "4c"},
		{"an active order whose unit was given back", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Sell(sl, b)
			_, err := s.Stock.Restore(ctx, &b.Orders[0], b.ID)
			require.NoError(s.T, err)
		}, audit.ReturnedButActive, "4c"},
		{"another quantity", func(s *storetest.Stores, sl *sale.Sale) {
			b := s.Batch(sl, old, "x")
			s.Sell(sl, b)
			s.Exec("UPDATE orders SET quantity = 2 WHERE id = ?", int64(b.Orders[0].ID))
			s.Exec("UPDATE inventory SET locked = locked + 1, available = available - 1 WHERE sale_id = ?", sl.ID)
		}, audit.QuantityDiffers, "4c"},
		{"stock by hand", func(s *storetest.Stores, sl *sale.Sale) { s.MoveStock(sl.ID, 3) }, audit.StockDrift, "4a"},
		{"held by hand", func(s *storetest.Stores, sl *sale.Sale) {
			s.MoveStock(sl.ID, 1)
			require.NoError(s.T, s.Redis.Do(ctx, s.Redis.B().Hincrby().Key("fg:{"+sl.ID+"}:meta").Field("held").Increment(-1).Build()).Error())
		}, audit.StockDrift, "4a"},
		{"inventory by hand", func(s *storetest.Stores, sl *sale.Sale) {
			s.Exec("UPDATE inventory SET locked = locked + 2, available = available - 2 WHERE sale_id = ?", sl.ID)
		}, audit.LedgerCountsDrift, "4b"},
		{"a task out of tries", func(s *storetest.Stores, sl *sale.Sale) {
			s.Exec(`INSERT INTO stock_sync_tasks (order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, next_try, state, created_at)
				VALUES (1, 1, ?, 'x', 'k', 1, 100, '2026-01-01 00:00:00.000', 'STUCK', '2026-01-01 00:00:00.000')`, sl.ID)
		}, audit.StuckTask, "7"},
		{"a published sale that Redis has not", func(s *storetest.Stores, sl *sale.Sale) { s.LoseRedis(sl.ID) }, audit.NotLoaded, "4c"},
		{"another total", func(s *storetest.Stores, sl *sale.Sale) {
			s.Exec("UPDATE inventory SET total = total + 5, available = available + 5 WHERE sale_id = ?", sl.ID)
		}, audit.TotalDiffers, "4c"},
	}
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				sl := s.LoadedSale(10, 2)
				s.Sell(sl, s.Batch(sl, old, "a", "b"))
				s.Sell(sl, s.Batch(sl, 0, "c"))
				c.plant(s, sl)
				r, err := auditor(s).Audit(ctx, sl.ID)
				require.NoError(t, err)
				require.Equal(t, c.kind == "", r.OK, "%+v", r.Breaches)
				if c.kind != "" {
					require.Len(t, r.Breaches, 1)
					require.Equal(t, c.kind, r.Breaches[0].Kind)
					require.Equal(t, c.invariant, r.Breaches[0].Invariant)
				}
			})
		}
	})
}

// TestGuardsAreLookedBehind: the ledger's own guards make these impossible; the audit
// finds them when somebody has taken the guards away.
func TestGuardsAreLookedBehind(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(3, 1)
	s.Sell(sl, s.Batch(sl, old, "a"))
	for i, user := range []string{"a", "b", "c"} {
		s.Exec(`INSERT INTO orders (id, sale_id, user_id, request_key, quantity, amount_cents, status, batch_id, created_at, persisted_at)
			VALUES (?, ?, ?, 'k', 1, 100, 'PENDING_PAYMENT', 9, '2026-01-01 00:00:00.000', '2026-01-01 00:00:00.000')`, i+1, sl.ID, user)
	}
	r, err := auditor(s).Audit(ctx, sl.ID)
	require.NoError(t, err)
	var kinds []audit.Kind
	for _, b := range r.Breaches {
		kinds = append(kinds, b.Kind)
	}
	for _, kind := range []audit.Kind{audit.Oversold, audit.LimitExceeded, audit.DoubleOrder, audit.LedgerCountsDrift} {
		require.True(t, slices.Contains(kinds, kind), "%s in %v", kind, kinds)
	}
}

func TestAnUnknownSaleIsAnError(t *testing.T) {
	_, err := auditor(storetest.Embedded(t)).Audit(context.Background(), "nothing")
	require.Equal(t, sale.CodeSaleNotFound, sale.CodeOf(err))
}
