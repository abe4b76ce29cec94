package gateway

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

var asAlice = []string{"Authorization", "Bearer user-alice"}

// orderID is an id made within the sale.
func orderID(n int) sale.ID { return sale.FirstIDAt(began.Add(time.Minute)) + sale.ID(n) }

func rowOf(id sale.ID, user string, status sale.OrderStatus) ledger.Order {
	return ledger.Order{
		Order:  sale.Order{ID: id, SaleID: "spring", UserID: user, Quantity: 1, AmountCents: 1999},
		Status: status,
	}
}

func held(id sale.ID, batch stock.State) stock.Record {
	return stock.Record{OrderID: id, BatchID: id + 1, UserID: "alice", Quantity: 1, Batch: batch}
}

func TestOrder(t *testing.T) {
	id := orderID(1)
	for _, c := range []struct {
		name   string
		query  string
		set    func(e *engines)
		status int
		want   string // code, or the order's status
	}{
		{"in the ledger", "", func(e *engines) {
			e.orders[id] = rowOf(id, "alice", sale.PendingPayment)
		}, 200, "PENDING_PAYMENT"},
		{"in the ledger, Redis away", "?sale_id=spring", func(e *engines) {
			e.orders[id], e.redisAway = rowOf(id, "alice", sale.Cancelled), true
		}, 200, "CANCELLED"},
		{"another's", "", func(e *engines) {
			e.orders[id] = rowOf(id, "bob", sale.PendingPayment)
		}, 404, "ORDER_NOT_FOUND"},
		{"another's, in Redis", "?sale_id=spring", func(e *engines) {
			r := held(id, stock.StateConfirmed)
			r.UserID = "bob"
			e.records["spring"] = []stock.Record{r}
		}, 404, "ORDER_NOT_FOUND"},
		{"nowhere", "?sale_id=spring", func(*engines) {}, 404, "ORDER_NOT_FOUND"},
		{"nowhere, sale not named", "", func(*engines) {}, 404, "ORDER_NOT_FOUND"},
		{"promised", "?sale_id=spring", func(e *engines) {
			e.records["spring"] = []stock.Record{held(id, stock.StateConfirmed)}
		}, 200, "PROCESSING"},
		{"promised, sale not named", "", func(e *engines) {
			e.records["spring"] = []stock.Record{held(id, stock.StateConfirmed)}
		}, 200, "PROCESSING"},
		{"reserved only", "?sale_id=spring", func(e *engines) {
			e.records["spring"] = []stock.Record{held(id, stock.StateReserved)}
		}, 404, "ORDER_NOT_FOUND"},
		{"not loaded", "?sale_id=spring", func(e *engines) {
			delete(e.stocks, "spring")
		}, 503, "UNAVAILABLE"},
		{"not loaded, sale not named", "", func(e *engines) {
			delete(e.stocks, "spring")
		}, 503, "UNAVAILABLE"},
		{"no such sale", "?sale_id=other", func(*engines) {}, 404, "ORDER_NOT_FOUND"},
		{"Redis away", "?sale_id=spring", func(e *engines) { e.redisAway = true }, 503, "UNAVAILABLE"},
		{"ledger away, promised", "?sale_id=spring", func(e *engines) {
			e.ledgerAway = true
			e.records["spring"] = []stock.Record{held(id, stock.StateSettled)}
		}, 200, "PROCESSING"},
		{"ledger away, given back", "?sale_id=spring", func(e *engines) {
			e.ledgerAway = true
			r := held(id, stock.StateSettled)
			r.Returned = true
			e.records["spring"] = []stock.Record{r}
		}, 503, "UNAVAILABLE"},
		{"ledger away, not in Redis", "?sale_id=spring", func(e *engines) { e.ledgerAway = true }, 503, "UNAVAILABLE"},
		{"reached the ledger meanwhile", "?sale_id=spring", func(e *engines) {
			e.records["spring"] = []stock.Record{held(id, stock.StateSettled)}
			reads := 0
			e.onOrder = func() {
				if reads++; reads == 2 {
					e.change(func() { e.orders[id] = rowOf(id, "alice", sale.PendingPayment) })
				}
			}
		}, 200, "PENDING_PAYMENT"},
		{"a sale over for good", "?sale_id=spring", func(e *engines) {
			e.redisAway = true
			s := flashSale()
			s.StartsAt, s.EndsAt = s.StartsAt.Add(-2*sale.Retention), s.EndsAt.Add(-sale.Retention-time.Hour)
			e.sales[0] = s
		}, 404, "ORDER_NOT_FOUND"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newEdge(t, accept)
			x.engines.change(func() { c.set(x.engines) })
			if c.name == "a sale over for good" {
				x.eventually(func() bool { return x.sale().EndsAt.Before(began) })
			}
			r := x.do("GET", fmt.Sprintf("/v1/orders/%d%s", id, c.query), "", asAlice...)
			if c.status != 200 {
				x.problem(r, c.status, sale.Code(c.want))
				return
			}
			require.Equal(t, 200, r.status, r.body)
			require.Equal(t, c.want, r.field(t, "status"))
			require.Equal(t, id.String(), r.field(t, "order_id"))
			require.Equal(t, 1999.0, r.field(t, "amount_cents"))
			require.Empty(t, x.engines.confirms)
		})
	}
}

func TestOrderIDs(t *testing.T) {
	x := newEdge(t, accept)
	for _, id := range []string{"0", "-1", "+1", "01", "x", "9223372036854775808", "1", "9223372036854775807", "%00"} {
		x.problem(x.do("GET", "/v1/orders/"+id, "", asAlice...), 404, sale.CodeOrderNotFound, id)
	}
	require.Empty(t, x.engines.lookups, "no sale was on when these would have been made")
}

func list(t *testing.T, r response) (ids []sale.ID, statuses []string) {
	t.Helper()
	require.Equal(t, 200, r.status, r.body)
	var body struct {
		Orders []struct {
			ID     sale.ID `json:"order_id"`
			Status string  `json:"status"`
		} `json:"orders"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.body), &body))
	for _, o := range body.Orders {
		ids, statuses = append(ids, o.ID), append(statuses, o.Status)
	}
	return ids, statuses
}

func TestOrders(t *testing.T) {
	x := newEdge(t, accept)
	r := x.do("GET", "/v1/orders?sale_id=spring", "", asAlice...)
	require.Equal(t, `{"orders":[]}`, r.body)
	a, b, c, d := orderID(100), orderID(200), orderID(300), orderID(400)
	x.engines.change(func() {
		x.engines.orders[a] = rowOf(a, "alice", sale.Cancelled)
		x.engines.orders[c] = rowOf(c, "alice", sale.PendingPayment)
		x.engines.orders[d+1] = rowOf(d+1, "bob", sale.PendingPayment)
		returned := held(a, stock.StateSettled)
		returned.Returned = true
		x.engines.records["spring"] = []stock.Record{
			returned, held(c, stock.StateConfirmed), held(b, stock.StateConfirmed), held(d, stock.StateReserved),
		}
	})
	for _, query := range []string{"", "?sale_id=spring"} {
		ids, statuses := list(t, x.do("GET", "/v1/orders"+query, "", asAlice...))
		require.Equal(t, []sale.ID{c, b, a}, ids, "newest first, each once; a reservation is no order yet")
		require.Equal(t, []string{"PENDING_PAYMENT", "PROCESSING", "CANCELLED"}, statuses)
	}
	require.Equal(t, []sale.ID{b + 1, b + 1}, x.engines.confirms, "what Redis alone has is on its replicas before it is shown")

	x.engines.change(func() { x.engines.confirmErr = stock.ErrNotReplicated })
	x.problem(x.do("GET", "/v1/orders", "", asAlice...), 503, sale.CodeUnavailable)

	// Redis away: an order that was promised might be missing.
	x.engines.change(func() { x.engines.confirmErr, x.engines.redisAway = nil, true })
	x.problem(x.do("GET", "/v1/orders?sale_id=spring", "", asAlice...), 503, sale.CodeUnavailable)

	// The ledger away: Redis has all orders of a sale, but not why one was cancelled.
	x.engines.change(func() { x.engines.redisAway, x.engines.ledgerAway = false, true })
	x.problem(x.do("GET", "/v1/orders", "", asAlice...), 503, sale.CodeUnavailable)
	x.problem(x.do("GET", "/v1/orders?sale_id=spring", "", asAlice...), 503, sale.CodeUnavailable)
	x.engines.change(func() { x.engines.records["spring"] = x.engines.records["spring"][1:] })
	ids, statuses := list(t, x.do("GET", "/v1/orders?sale_id=spring", "", asAlice...))
	require.Equal(t, []sale.ID{c, b}, ids)
	require.Equal(t, []string{"PROCESSING", "PROCESSING"}, statuses)
}

// A list is bounded. What is older than the ledger's page is left out of it, and is
// no reason to refuse it.
func TestOrdersBound(t *testing.T) {
	x := newEdge(t, accept)
	x.engines.change(func() {
		for i := range ordersMax {
			id := orderID(1000 + i)
			x.engines.orders[id] = rowOf(id, "alice", sale.PendingPayment)
		}
		returned := held(orderID(2), stock.StateSettled)
		returned.Returned = true
		x.engines.records["spring"] = []stock.Record{returned, held(orderID(1), stock.StateSettled), held(orderID(5000), stock.StateConfirmed)}
	})
	ids, _ := list(t, x.do("GET", "/v1/orders?sale_id=spring", "", asAlice...))
	require.Len(t, ids, ordersMax)
	require.Equal(t, orderID(5000), ids[0])
	require.NotContains(t, ids, orderID(1))
}

func TestFanOut(t *testing.T) {
	x := newEdge(t, accept)
	add := func(from, to int) {
		x.engines.change(func() {
			for i := from; i < to; i++ {
				s := flashSale()
				s.ID = fmt.Sprintf("s%d", i)
				x.engines.sales = append(x.engines.sales, s)
				x.engines.stocks[s.ID] = 1
			}
		})
		x.eventually(func() bool { return len(x.g.catalog.view.Load().listings) == to+1 })
	}
	add(0, fanOutMax-1)
	id := orderID(7)
	x.engines.change(func() { x.engines.records["s7"] = []stock.Record{held(id, stock.StateConfirmed)} })
	r := x.do("GET", "/v1/orders/"+id.String(), "", asAlice...)
	require.Equal(t, 200, r.status, r.body)
	require.Equal(t, "s7", r.field(t, "sale_id"))
	require.Len(t, x.engines.lookups, fanOutMax)
	ids, _ := list(t, x.do("GET", "/v1/orders", "", asAlice...))
	require.Equal(t, []sale.ID{id}, ids)

	add(fanOutMax-1, fanOutMax)
	x.problem(x.do("GET", "/v1/orders/"+id.String(), "", asAlice...), 400, sale.CodeInvalid)
	x.problem(x.do("GET", "/v1/orders", "", asAlice...), 400, sale.CodeInvalid)
	require.Equal(t, 200, x.do("GET", "/v1/orders/"+id.String()+"?sale_id=s7", "", asAlice...).status)
}

// A sale that this gateway's view is too old to have: its orders are not denied.
func TestOrderOfSaleNotSeenYet(t *testing.T) {
	x := newEdge(t, accept, func(o *Options) { o.SaleRefresh = time.Second })
	id := orderID(1)
	x.engines.change(func() {
		x.engines.stocks["fresh"] = 5
		x.engines.records["fresh"] = []stock.Record{held(id, stock.StateConfirmed)}
	})
	x.problem(x.do("GET", fmt.Sprintf("/v1/orders/%d?sale_id=fresh", id), "", asAlice...), 503, sale.CodeUnavailable)
	require.Equal(t, 404, x.do("GET", fmt.Sprintf("/v1/orders/%d?sale_id=nosuch", id), "", asAlice...).status)
}
