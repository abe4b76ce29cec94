package reconciler

import (
	"context"
	"fmt"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"flashgate/internal/audit"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// plant makes one kind of difference for n shoppers, by the hands of somebody who has the
// engines' own clients. Each takes a sale of plantTotal units with limit 2.
type plant struct {
	name  string
	kind  audit.Kind
	make  func(s *storetest.Stores, sl *sale.Sale, who string, n int)
	once  bool // it is about the sale, and not about n orders
	helps bool // help, and no difference
}

const plantTotal = 20_000

// crowd is n users, in batches of some orders.
func crowd(who string, n int) (batches [][]string) {
	size := 50
	if n > 1000 {
		size = 150 // planting takes longer than what is tested
	}
	for i := 0; i < n; i += size {
		var users []string
		for j := i; j < min(i+size, n); j++ {
			users = append(users, fmt.Sprintf("%s%d", who, j))
		}
		batches = append(batches, users)
	}
	return batches
}

func sellTo(s *storetest.Stores, sl *sale.Sale, who string, n int) (sold []*sale.Batch) {
	for _, users := range crowd(who, n) {
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

// giveBack returns the units of the batches' orders in Redis alone.
func giveBack(s *storetest.Stores, sold []*sale.Batch) {
	s.T.Helper()
	var giving errgroup.Group
	giving.SetLimit(16) // each waits for its answer
	eachOf(sold, func(b *sale.Batch, o *sale.Order) {
		giving.Go(func() error {
			_, err := s.Stock.Restore(context.Background(), o, b.ID)
			return err
		})
	})
	require.NoError(s.T, giving.Wait())
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
	{name: "promised batches that never came", kind: audit.ConfirmedNotPersisted, helps: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		for _, users := range crowd(who, n) {
			s.Confirm(sl, s.Batch(sl, old, users...))
		}
	}},
	{name: "orders that Redis forgot", kind: audit.PersistedUnknownToRedis, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		for _, users := range crowd(who, n) {
			b := s.Batch(sl, old, users...)
			s.Apply(b)
			require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), []sale.ID{b.ID}))
		}
	}},
	{name: "records deleted by hand", kind: audit.PersistedUnknownToRedis, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		for _, b := range sellTo(s, sl, who, n) {
			users := make([]string, len(b.Orders))
			for i := range b.Orders {
				users[i] = b.Orders[i].UserID
			}
			require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hdel().Key("fg:{"+sl.ID+"}:buyers").Field(users...).Build()).Error())
		}
		// Whoever deletes by hand may well put the sums right.
		s.MoveStock(sl.ID, int64(n))
		require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hincrby().Key("fg:{"+sl.ID+"}:meta").Field("held").Increment(int64(-n)).Build()).Error())
	}},
	{name: "orders cancelled by hand", kind: audit.CancelledStillHeld, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		sold := sellTo(s, sl, who, n)
		s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "orders that the ledger lost", kind: audit.HeldWithoutOrder, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		for _, users := range crowd(who, n) {
			b := s.Batch(sl, old, users...)
			s.Confirm(sl, b)
			mustSettle(s, b)
		}
	}},
	{name: "rows deleted by hand", kind: audit.HeldWithoutOrder, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		sold := sellTo(s, sl, who, n)
		s.Exec("DELETE FROM orders WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "batches nobody settled", kind: audit.ConsumedNotSettled, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		for _, users := range crowd(who, n) {
			b := s.Batch(sl, old, users...)
			s.Confirm(sl, b)
			s.Apply(b)
			require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), []sale.ID{b.ID}))
		}
	}},
	{name: "quantities raised by hand", kind: audit.QuantityDiffers, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		sold := sellTo(s, sl, who, n)
		s.Exec("UPDATE orders SET quantity = 2, amount_cents = 200 WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked + ?, available = available - ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "units given back by hand", kind: audit.ReturnedButActive, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		giveBack(s, sellTo(s, sl, who, n))
	}},
	{name: "stock lowered by hand", kind: audit.StockDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) { s.MoveStock(sl.ID, int64(-n)) }},
	{name: "stock raised by hand", kind: audit.StockDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) { s.MoveStock(sl.ID, int64(n)) }},
	{name: "held and stock moved by hand", kind: audit.StockDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		s.MoveStock(sl.ID, int64(n))
		require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Hincrby().Key("fg:{"+sl.ID+"}:meta").Field("held").Increment(int64(-n)).Build()).Error())
	}},
	{name: "inventory locked by hand", kind: audit.LedgerCountsDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		s.Exec("UPDATE inventory SET locked = locked + ?, available = available - ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "inventory sold by hand", kind: audit.LedgerCountsDrift, once: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		sellTo(s, sl, who, n)
		s.Exec("UPDATE inventory SET locked = locked - ?, sold = sold + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
	{name: "orders above the limit", kind: audit.LimitExceeded, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		sold := sellTo(s, sl, who, n)
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
	{name: "tasks out of tries", kind: audit.StuckTask, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		sold := sellTo(s, sl, who, n)
		s.Exec("UPDATE orders SET status = 'CANCELLED' WHERE id IN " + inIDs(sold))
		s.Exec("UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
		s.Exec(`INSERT INTO stock_sync_tasks (order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, next_try, state, created_at)
			SELECT id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, created_at, 'STUCK', created_at FROM orders WHERE id IN ` + inIDs(sold))
	}},
	{name: "a restock that Redis missed", kind: audit.TotalDiffers, once: true, make: func(s *storetest.Stores, sl *sale.Sale, who string, n int) {
		s.Exec("UPDATE inventory SET total = total + ?, available = available + ? WHERE sale_id = ?", n, n, sl.ID)
	}},
}
