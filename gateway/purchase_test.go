package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"flashgate/internal/ledger"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

func TestAccepted(t *testing.T) {
	var got sale.Order
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) { got = q[0].Order; accept(s, q) })
	r := x.do("POST", "/v1/sales/spring/purchases", `{"quantity":2}`, "Authorization", "Bearer user-alice", "Idempotency-Key", "clé 1")
	require.Equal(t, 202, r.status, r.body)
	require.Equal(t, sale.Order{
		ID: got.ID, SaleID: "spring", UserID: "alice", RequestKey: "clé 1", Quantity: 2, AmountCents: 3998,
	}, got)
	require.Equal(t, sale.ShardOf("alice"), got.ID.Shard())
	require.Equal(t, 1, got.ID.Node())
	require.Equal(t, fmt.Sprintf(
		`{"order_id":"%d","sale_id":"spring","quantity":2,"amount_cents":3998,"currency":"CNY","status":"PROCESSING"}`, got.ID), r.body)
	require.Equal(t, fmt.Sprintf("/v1/orders/%d?sale_id=spring", got.ID), r.header.Get("Location"))
	require.Equal(t, "application/json", r.header.Get("Content-Type"))
	require.Empty(t, r.header.Get("Idempotent-Replayed"))

	// Not in the ledger yet: found in Redis, by the one look-up that Location asks for.
	x.engines.change(func() {
		x.engines.records["spring"] = []stock.Record{
			{OrderID: got.ID - 1, BatchID: 8, UserID: "alice", Quantity: 1, Batch: stock.StateReserved},
			{OrderID: got.ID, BatchID: 9, UserID: "alice", RequestKey: "clé 1", Quantity: 2, Batch: stock.StateConfirmed},
		}
	})
	order := x.do("GET", r.header.Get("Location"), "", "Authorization", "Bearer user-alice")
	require.Equal(t, 200, order.status, order.body)
	require.Equal(t, fmt.Sprintf(
		`{"order_id":"%d","sale_id":"spring","quantity":2,"amount_cents":3998,"currency":"CNY","status":"PROCESSING","reason":"","created_at":"%s"}`,
		got.ID, got.ID.Time().Format("2006-01-02T15:04:05.000Z")), order.body)
	require.Equal(t, []string{"spring"}, x.engines.lookups)
	require.Equal(t, 1.0, testutil.ToFloat64(x.g.metrics.done[routePurchases][len(problems)]))
}

// A body may be left out, and so may the key.
func TestDefaults(t *testing.T) {
	var got sale.Order
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) { got = q[0].Order; accept(s, q) })
	for _, body := range []string{"", "{}"} {
		r := x.do("POST", "/v1/sales/spring/purchases", body, "Authorization", "Bearer user-alice")
		require.Equal(t, 202, r.status, r.body)
		require.Equal(t, 1, got.Quantity)
		require.Equal(t, "", got.RequestKey)
	}
	require.Equal(t, 202, x.buy("Content-Type", "text/plain").status, "no body, so its type says nothing")
	r := x.do("POST", "/v1/sales/spring/purchases", `{"quantity":1}`, "Authorization", "Bearer user-alice", "Content-Type", "Application/JSON; charset=utf-8")
	require.Equal(t, 202, r.status, r.body)
	require.Equal(t, 202, x.buy("Idempotency-Key", strings.Repeat("k", 64)).status)
}

func TestEveryCodeOfTheProtocol(t *testing.T) {
	var a purchase.Answer
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) { answering(a)(s, q) })
	for code, status := range map[sale.Code]int{
		sale.CodeSoldOut: 409, sale.CodeLimitReached: 409, sale.CodeNotStarted: 409, sale.CodeEnded: 409, sale.CodePaused: 409,
		sale.CodeKeyReused: 422, sale.CodeUnavailable: 503, sale.CodeOutcomeUnknown: 503, sale.CodeInternal: 500,
	} {
		a = purchase.Answer{Code: code}
		r := x.buy()
		x.problem(r, status, code)
		require.Equal(t, 1.0, testutil.ToFloat64(x.g.metrics.done[routePurchases][problems[code].slot]), code)
	}
	a = purchase.Answer{Code: "A_NEW_ONE"}
	x.problem(x.buy(), 500, sale.CodeInternal)
}

// The edge asks the protocol even when it could answer itself: the shopper may
// have bought before.
func TestReplayOutlivesTheSale(t *testing.T) {
	x := newEdge(t, answering(purchase.Answer{OrderID: 77, Quantity: 1, AmountCents: 1999, Replayed: true}))
	for name, change := range map[string]func(*sale.Sale){
		"ended":    func(s *sale.Sale) { s.StartsAt, s.EndsAt = began.Add(-time.Hour), began },
		"paused":   func(s *sale.Sale) { s.Status = sale.Paused },
		"upcoming": func(s *sale.Sale) { s.StartsAt = clock().Add(time.Minute) },
	} {
		s := flashSale()
		change(&s)
		x.engines.change(func() { x.engines.sales[0], x.engines.stocks["spring"] = s, 0 })
		x.eventually(func() bool { return *x.sale() == s })
		r := x.buy()
		require.Equal(t, 202, r.status, name)
		require.Equal(t, "true", r.header.Get("Idempotent-Replayed"), name)
	}
}

func (x *edge) sale() *sale.Sale {
	l, _ := x.g.catalog.find([]byte("spring"))
	return &l.sale
}

func TestReplayStatus(t *testing.T) {
	a := purchase.Answer{OrderID: 77, Quantity: 1, AmountCents: 1999, Replayed: true}
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) { answering(a)(s, q) },
		func(o *Options) { o.ReplayWait = 300 * time.Millisecond; o.ReadsMax = 1 })
	stored := ledger.Order{Order: sale.Order{ID: 77, SaleID: "spring", UserID: "alice", Quantity: 1, AmountCents: 1999}}
	check := func(want sale.OrderStatus) {
		t.Helper()
		r := x.buy()
		require.Equal(t, 202, r.status, r.body)
		require.Equal(t, string(want), r.field(t, "status"))
		require.Equal(t, "77", r.field(t, "order_id"))
		require.Equal(t, "true", r.header.Get("Idempotent-Replayed"))
		require.Equal(t, "/v1/orders/77?sale_id=spring", r.header.Get("Location"))
	}
	check(sale.Processing)
	stored.Status = sale.PendingPayment
	x.engines.change(func() { x.engines.orders[77] = stored })
	check(sale.PendingPayment)
	x.engines.change(func() { x.engines.ledgerAway = true })
	check(sale.Processing)
	a.Returned = true
	check(sale.Cancelled)
	x.g.reads <- struct{}{} // every slot for reads is taken
	check(sale.Cancelled)
	<-x.g.reads
}

// Of an order of a moment ago Redis's word is enough. Of an older one the ledger is asked:
// settling may be owed, or the shopper has paid.
func TestReplayOfAFreshOrder(t *testing.T) {
	for name, tc := range map[string]struct {
		age     time.Duration
		settled bool
		want    sale.OrderStatus
	}{
		"young, on its way":      {time.Second, false, sale.Processing},
		"young, in the ledger":   {time.Second, true, sale.PendingPayment},
		"old, on its way":        {6 * time.Second, false, sale.Paid},
		"old, in the ledger":     {6 * time.Second, true, sale.Paid},
		"from a clock far ahead": {-time.Minute, true, sale.Paid},
	} {
		id := sale.FirstIDAt(clock().Add(-tc.age))
		x := newEdge(t, answering(purchase.Answer{OrderID: id, Quantity: 1, AmountCents: 1999, Replayed: true, Settled: tc.settled}))
		x.engines.change(func() {
			x.engines.orders[id] = ledger.Order{
				Order:  sale.Order{ID: id, SaleID: "spring", UserID: "alice", Quantity: 1, AmountCents: 1999},
				Status: sale.Paid,
			}
		})
		require.Equal(t, string(tc.want), x.buy().field(t, "status"), name)
	}
}

// A key's order in Redis that was cancelled as a duplicate gives way to the survivor,
// which only the ledger knows then.
func TestReplayOfADuplicateShowsTheSurvivor(t *testing.T) {
	x := newEdge(t, answering(purchase.Answer{OrderID: 77, Quantity: 1, AmountCents: 1999, Replayed: true, Returned: true}))
	order := sale.Order{ID: 77, SaleID: "spring", UserID: "alice", RequestKey: "k", Quantity: 1, AmountCents: 1999}
	survivor := order
	survivor.ID = 70
	x.engines.change(func() {
		x.engines.orders[77] = ledger.Order{Order: order, Status: sale.Cancelled, Reason: sale.ReasonDuplicate}
		x.engines.orders[70] = ledger.Order{Order: survivor, Status: sale.PendingPayment}
	})
	r := x.buy("Idempotency-Key", "k")
	require.Equal(t, "70", r.field(t, "order_id"))
	require.Equal(t, string(sale.PendingPayment), r.field(t, "status"))
	require.Equal(t, "/v1/orders/70?sale_id=spring", r.header.Get("Location"))
}

// A sale may have been published since the ledger was last heard: only a fresh view
// proves that there is none.
func TestAStaleViewIsNoProof(t *testing.T) {
	var later atomic.Int64
	x := newEdge(t, accept, func(o *Options) {
		o.Now = func() time.Time { return clock().Add(time.Duration(later.Load())) }
	})
	nothing := func() response {
		return x.do("POST", "/v1/sales/nothing/purchases", "", "Authorization", "Bearer user-alice")
	}
	x.problem(nothing(), 404, sale.CodeSaleNotFound)
	x.engines.change(func() { x.engines.ledgerAway = true })
	later.Store(int64(time.Minute))
	x.eventually(func() bool { return nothing().status == 503 })
	require.Equal(t, 202, x.buy().status, "what was published sells on")
}

// Redis need not know a sale that ended long ago; the ledger knows who bought.
func TestASaleThatIsLongOver(t *testing.T) {
	x := newEdge(t, answering(purchase.Answer{Code: sale.CodeUnavailable}), func(o *Options) {
		o.Now = func() time.Time { return clock().Add(300 * 24 * time.Hour) }
	})
	x.problem(x.buy("Idempotency-Key", "k"), 409, sale.CodeEnded)
	x.engines.change(func() {
		x.engines.orders[70] = ledger.Order{
			Order:  sale.Order{ID: 70, SaleID: "spring", UserID: "alice", RequestKey: "k", Quantity: 1, AmountCents: 1999},
			Status: sale.Paid,
		}
	})
	r := x.buy("Idempotency-Key", "k")
	require.Equal(t, 202, r.status, r.body)
	require.Equal(t, "70", r.field(t, "order_id"))
	require.Equal(t, string(sale.Paid), r.field(t, "status"))
	x.engines.change(func() { x.engines.ledgerAway = true })
	x.problem(x.buy("Idempotency-Key", "k"), 503, sale.CodeUnavailable)
}

func TestQueueFull(t *testing.T) {
	inHand, answer := make(chan struct{}, 8), make(chan struct{})
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) {
		inHand <- struct{}{}
		<-answer
		accept(s, q)
	}, func(o *Options) { o.Flushers, o.QueueMax, o.BatchMax = 1, 2, 8 })
	results := make(chan response, 3)
	buy := func() {
		r, _ := x.send("POST", "/v1/sales/spring/purchases", "", "Authorization", "Bearer user-alice")
		results <- r
	}
	go buy()
	<-inHand
	go buy()
	go buy()
	x.eventually(func() bool { return x.g.batcher.depth.Load() == 2 })
	x.problem(x.buy(), 503, sale.CodeUnavailable)
	close(answer)
	for range 3 {
		require.Equal(t, 202, (<-results).status)
	}
}

// Whoever's deadline passes while he is queued knows that nothing was reserved;
// with a flusher at work on it, nobody knows.
func TestDeadlines(t *testing.T) {
	inHand, answer := make(chan struct{}, 8), make(chan struct{})
	var took []bool
	x := newEdge(t, func(_ *sale.Sale, q []*purchase.Request) {
		took = append(took, q[0].Take())
		inHand <- struct{}{}
		<-answer
		if took[len(took)-1] {
			q[0].Answer(purchase.Answer{Code: sale.CodeSoldOut})
		}
	}, func(o *Options) { o.Flushers, o.BatchMax, o.PurchaseTimeout = 1, 1, 300*time.Millisecond })
	taken := make(chan response, 1)
	go func() {
		r, _ := x.send("POST", "/v1/sales/spring/purchases", "", "Authorization", "Bearer user-alice")
		taken <- r
	}()
	<-inHand
	x.problem(x.buy(), 503, sale.CodeUnavailable, "queued")
	x.problem(<-taken, 503, sale.CodeOutcomeUnknown, "taken")
	close(answer)
	<-inHand
	x.eventually(func() bool { return x.g.batcher.depth.Load() == 0 })
	require.Equal(t, []bool{true, false}, took)
}

// ceiling on allocations of a refused purchase, of which one is a copy of the user and the key.
const refusedAllocs = 2

func TestRefusedPurchaseAllocates(t *testing.T) {
	g := still(t, answering(purchase.Answer{Code: sale.CodeSoldOut}))
	var ctx fasthttp.RequestCtx
	ctx.Init(purchaseRequest("user-alice"), nil, nil)
	status := 0
	sold := testing.AllocsPerRun(200, func() {
		ctx.Response.Reset()
		g.serve(&ctx, false)
		status = ctx.Response.StatusCode()
	})
	require.Equal(t, 409, status)
	t.Logf("sold out: %.1f allocations", sold)
	if !raceEnabled { // pools drop at random under the race detector
		require.LessOrEqual(t, sold, float64(refusedAllocs))
	}
}

// still is a gateway that serves nobody, with its view of the sales read once.
func still(t testing.TB, run runner) *Gateway {
	e := &engines{sales: []sale.Sale{flashSale()}, stocks: map[string]int64{"spring": 1}}
	o := options(e, run)
	o.Verifier, o.Limits = alice{}, &open{}
	g, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.listener.Close()) })
	require.NoError(t, g.catalog.refresh(context.Background()))
	return g
}

func purchaseRequest(token string) *fasthttp.Request {
	request := new(fasthttp.Request)
	request.Header.SetMethod("POST")
	request.SetRequestURI("/v1/sales/spring/purchases")
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Idempotency-Key", "0190b7c2-6d4e-7a5e-9d1c-1f0a5ad6c1e2")
	request.Header.SetContentType("application/json")
	request.SetBodyString(`{"quantity":1}`)
	return request
}

func BenchmarkPurchaseSoldOut(b *testing.B) {
	g := still(b, answering(purchase.Answer{Code: sale.CodeSoldOut}))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var ctx fasthttp.RequestCtx
		ctx.Init(purchaseRequest("user-alice"), nil, nil)
		for pb.Next() {
			ctx.Response.Reset()
			g.serve(&ctx, false)
		}
	})
}
