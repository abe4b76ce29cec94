package ledger

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
)

// model is the ledger as one would tell it: orders come one after the other.
type model struct {
	saleID    string
	available int
	limit     int
	consumed  map[sale.ID]bool
	orders    map[sale.ID]modelOrder
}

type modelOrder struct {
	sale.Order
	status sale.OrderStatus
	reason string
}

// apply is one call; ok false: poison, and nothing changed.
func (m *model) apply(batches []sale.Batch) (applied Applied, ok bool) {
	next := model{m.saleID, m.available, m.limit, copyMap(m.consumed), copyMap(m.orders)}
	for _, b := range batches {
		if next.consumed[b.ID] {
			applied.Skipped++
			continue
		}
		next.consumed[b.ID] = true
		applied.Batches++
		for _, o := range b.Orders {
			if known, there := next.orders[o.ID]; there {
				if known.UserID != o.UserID {
					return Applied{}, false
				}
				continue
			}
			reason := next.refuses(o)
			if reason == "" {
				next.available -= o.Quantity
				next.orders[o.ID] = modelOrder{o, sale.PendingPayment, ""}
				applied.Orders++
				continue
			}
			next.orders[o.ID] = modelOrder{o, sale.Cancelled, reason}
			applied.Cancelled++
			applied.Refused = []string{m.saleID}
		}
	}
	*m = next
	return applied, true
}

func (m *model) refuses(o sale.Order) string {
	units := 0
	for _, other := range m.orders {
		if other.UserID != o.UserID {
			continue
		}
		isCopy := len(other.reason) > len(sale.ReasonDuplicate) && other.reason[:len(sale.ReasonDuplicate)] == sale.ReasonDuplicate
		if other.RequestKey == o.RequestKey && !isCopy {
			return fmt.Sprintf("DUPLICATE of %d", other.ID)
		}
		if other.status.Active() {
			units += other.Quantity
		}
	}
	switch {
	case units+o.Quantity > m.limit:
		return sale.ReasonLimitExceeded
	case o.Quantity > m.available:
		return sale.ReasonStockRefused
	}
	return ""
}

func copyMap[K comparable, V any](m map[K]V) map[K]V {
	c := make(map[K]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// testApplyModel holds random sequences of calls against the model: batches brought
// again, orders brought again in other batches, ids of others, keys used twice, users
// over the limit, stock running out.
func testApplyModel(t *testing.T, r *rig) {
	rapid.Check(t, func(t *rapid.T) {
		m := model{
			available: rapid.IntRange(1, 30).Draw(t, "total"),
			limit:     rapid.IntRange(1, 5).Draw(t, "limit"),
			consumed:  map[sale.ID]bool{}, orders: map[sale.ID]modelOrder{},
		}
		total := m.available
		m.saleID = r.newSale(t, int64(total), m.limit)
		var batches []sale.Batch
		var orders []sale.Order
		for range rapid.IntRange(1, 5).Draw(t, "calls") {
			var call []sale.Batch
			for range rapid.IntRange(1, 4).Draw(t, "batches") {
				if len(batches) > 0 && rapid.IntRange(0, 4).Draw(t, "batch brought again") == 0 {
					call = append(call, rapid.SampledFrom(batches).Draw(t, "batch"))
					continue
				}
				b := sale.Batch{ID: testIDs.Next(0), SaleID: m.saleID}
				for range rapid.IntRange(1, 6).Draw(t, "orders") {
					o := drawOrder(t, m.saleID, orders)
					orders = append(orders, o)
					b.Orders = append(b.Orders, o)
				}
				batches = append(batches, b)
				call = append(call, b)
			}
			want, ok := m.apply(call)
			got, err := r.Apply(context.Background(), call)
			if !ok {
				require.True(t, Poison(err), "want poison, got %v, %+v", err, got)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, want, got)
		}

		var stored []Order
		require.NoError(t, r.EachOrder(context.Background(), m.saleID, 0, 3, func(slice []Order) error {
			stored = append(stored, slice...)
			return nil
		}))
		require.Len(t, stored, len(m.orders))
		for _, o := range stored {
			require.Equal(t, m.orders[o.ID], modelOrder{o.Order, o.Status, o.Reason})
		}
		r.requireUnits(t, m.saleID, int64(m.available), int64(total-m.available))
		r.checkInvariants(t, m.saleID)
	})
}

func drawOrder(t *rapid.T, saleID string, known []sale.Order) sale.Order {
	if len(known) > 0 {
		switch rapid.IntRange(0, 19).Draw(t, "known order") {
		case 0:
			return rapid.SampledFrom(known).Draw(t, "order")
		case 1:
			o := rapid.SampledFrom(known).Draw(t, "id of")
			o.UserID = "thief"
			return o
		}
	}
	quantity := rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "quantity")
	return order(saleID, fmt.Sprint("user-", rapid.IntRange(1, 8).Draw(t, "user")),
		fmt.Sprint("key-", rapid.IntRange(1, 4).Draw(t, "key")), quantity)
}
