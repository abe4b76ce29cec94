package gateway

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"flashgate/internal/limits"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/ticket"
)

func tickets(t testing.TB) *ticket.Issuer {
	i, err := ticket.NewIssuer([]byte(strings.Repeat("k", 32)))
	require.NoError(t, err)
	return i
}

// After the user's limits come the ticket and the limits of the sale, and last the queue.
func TestLastRefusalsInOrder(t *testing.T) {
	gates := &gates{user: true, ticket: true, sale: true}
	x := newEdge(t, accept, func(o *Options) { o.Limits, o.Tickets = gates, tickets(t) })
	good := tickets(t).Issue([]byte("alice"), "spring", clock().Add(time.Second))
	r := x.buy()
	x.problem(r, 429, sale.CodeRateLimited)
	require.Equal(t, "user", r.field(t, "limit"), "the limit's name")
	gates.user = false
	x.problem(x.buy(), 403, sale.CodeTicket)
	r = x.buy("Purchase-Ticket", good)
	x.problem(r, 429, sale.CodeRateLimited)
	require.Equal(t, "sale", r.field(t, "limit"))
	require.Equal(t, "3", r.header.Get("Retry-After"))
	gates.sale = false
	require.Equal(t, 202, x.buy("Purchase-Ticket", good).status)

	// The limits of a sale hold for whoever reads it, and not for the list of all.
	gates.sale = true
	x.problem(x.do("GET", "/v1/sales/spring", ""), 429, sale.CodeRateLimited)
	x.problem(x.do("GET", "/v1/orders?sale_id=spring", "", "Authorization", "Bearer user-alice"), 429, sale.CodeRateLimited)
	require.Equal(t, 200, x.do("GET", "/v1/sales", "").status)
	require.Equal(t, 404, x.do("GET", "/v1/orders/1?sale_id=nosuch", "", "Authorization", "Bearer user-alice").status)

	gates.blocked = true
	r = x.buy("Purchase-Ticket", good)
	x.problem(r, 403, sale.CodeBlocked)
	require.Empty(t, r.header.Get("Retry-After"), "waiting does not help")
}

func TestTickets(t *testing.T) {
	var later atomic.Int64
	now := func() time.Time { return clock().Add(time.Duration(later.Load())) }
	gates := &gates{ticket: true}
	x := newEdge(t, accept, func(o *Options) { o.Limits, o.Tickets, o.Now = gates, tickets(t), now })
	get := func(user string) response {
		return x.do("POST", "/v1/sales/spring/ticket", "", "Authorization", "Bearer user-"+user)
	}
	r := get("alice")
	require.Equal(t, 200, r.status, r.body)
	require.Equal(t, "2026-03-01T10:30:30.000Z", r.field(t, "expires_at"))
	own := r.field(t, "ticket").(string)
	require.Equal(t, 202, x.buy("Purchase-Ticket", own).status)
	require.Equal(t, 202, x.buy("Purchase-Ticket", own).status, "a retry needs no other")
	x.problem(x.buy(), 403, sale.CodeTicket)
	x.problem(x.buy("Purchase-Ticket", get("bob").field(t, "ticket").(string)), 403, sale.CodeTicket, "another's")
	later.Store(int64(30 * time.Second))
	x.problem(x.buy("Purchase-Ticket", own), 403, sale.CodeTicket, "expired")

	gates.ticket = false
	require.Equal(t, 202, x.buy().status, "not required now")
	gates.ticket = true

	later.Store(0)
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		status       int
		code         sale.Code
	}{
		"method":   {"GET", "/v1/sales/spring/ticket", nil, 405, sale.CodeMethod},
		"no token": {"POST", "/v1/sales/spring/ticket", nil, 401, sale.CodeUnauthenticated},
		"no sale":  {"POST", "/v1/sales/nosuch/ticket", []string{"Authorization", "Bearer user-alice"}, 404, sale.CodeSaleNotFound},
		"draft":    {"POST", "/v1/sales/draft/ticket", []string{"Authorization", "Bearer user-alice"}, 404, sale.CodeSaleNotFound},
	} {
		x.problem(x.do(c.method, c.path, "", c.headers...), c.status, c.code, name)
	}

	later.Store(int64(-30*time.Minute) - 1)
	x.problem(get("alice"), 409, sale.CodeNotStarted, "nothing can be prepared")
	later.Store(0)
	x.engines.change(func() { x.engines.sales[0].Status = sale.Paused })
	x.eventually(func() bool { return get("alice").status == 409 })
	x.problem(get("alice"), 409, sale.CodePaused)
	x.engines.change(func() { x.engines.sales[0].Status = sale.Opened })
	x.eventually(func() bool { return get("alice").status == 200 })

	// Long after the end a retry goes on without: the script knows whether it won.
	later.Store(int64(30*time.Minute + skewMinutes*time.Minute))
	x.problem(x.buy(), 403, sale.CodeTicket)
	later.Add(1)
	require.Equal(t, 202, x.buy().status)
}

func TestNoTicketsWithoutAKey(t *testing.T) {
	x := newEdge(t, accept, func(o *Options) { o.Limits = &gates{} })
	x.problem(x.do("POST", "/v1/sales/spring/ticket", "", "Authorization", "Bearer user-alice"), 404, sale.CodeNotFound)
}

func TestChallenge(t *testing.T) {
	var got ticket.Attempt
	x := newEdge(t, accept, func(o *Options) {
		o.Limits, o.Tickets = &gates{ticket: true, header: "X-Forwarded-For"}, tickets(t)
		o.Challenge = func(_ context.Context, a ticket.Attempt) error {
			got = a
			switch a.Proof {
			case "human":
				return nil
			case "away":
				return errors.New("no answer")
			}
			return &sale.Error{Code: sale.CodeChallenge}
		}
	})
	get := func(proof string) response {
		return x.do("POST", "/v1/sales/spring/ticket", "", "Authorization", "Bearer user-alice",
			"X-Forwarded-For", "127.0.0.9", "Challenge-Proof", proof)
	}
	require.Equal(t, 200, get("human").status)
	require.Equal(t, ticket.Attempt{User: "alice", SaleID: "spring", Address: netip.MustParseAddr("127.0.0.9"), Proof: "human"}, got)
	x.problem(get("robot"), 403, sale.CodeChallenge)
	x.problem(get(""), 403, sale.CodeChallenge, "none")
	x.problem(get("away"), 503, sale.CodeUnavailable)
	x.problem(get(strings.Repeat("p", proofMaxBytes+1)), 400, sale.CodeInvalid)
}

// What a proxy says is held against the limits; what anyone else says is not looked at.
func TestForwardedClient(t *testing.T) {
	rules, err := limits.Load("../configs/limits.yaml")
	require.NoError(t, err)
	rules.Address.Purchase = limits.Bucket{Rate: 1, Burst: 1}
	limiter, err := limits.New(rules, limits.Options{Now: clock})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, limiter.Close()) })
	x := newEdge(t, accept, func(o *Options) { o.Limits = limiter })
	from := func(forwarded string) int { return x.buy("X-Forwarded-For", forwarded).status }
	require.Equal(t, 202, from("192.0.2.1"))
	require.Equal(t, 429, from("192.0.2.2"), "nobody here is a trusted proxy")
	trusting := *rules
	trusting.Proxies.Trusted = []string{"127.0.0.0/8", "::1"}
	require.NoError(t, limiter.Swap(&trusting))
	require.Equal(t, 202, from("192.0.2.1"))
	require.Equal(t, 429, from("192.0.2.1"))
	require.Equal(t, 429, from("198.51.100.9, 192.0.2.1"), "what a client wrote before is nobody's word")
	require.Equal(t, 202, from("192.0.2.2"))
	require.Equal(t, 429, from(""), "the proxy itself, which has bought")
}

// All limits on and none reached: what the limits add to a purchase allocates nothing.
func TestLimitsAllocateNothing(t *testing.T) {
	ctx, without := new(fasthttp.RequestCtx), still(t, answering(purchase.Answer{Code: sale.CodeSoldOut}))
	ctx.Init(purchaseRequest("user-alice"), nil, nil)
	allocs := func(g *Gateway) float64 {
		return testing.AllocsPerRun(200, func() {
			ctx.Response.Reset()
			g.serve(ctx, false)
			if ctx.Response.StatusCode() != 409 {
				t.Error(ctx.Response.StatusCode())
			}
		})
	}
	with := still(t, answering(purchase.Answer{Code: sale.CodeSoldOut}))
	with.o.Limits = everyLimit(t)
	with.o.Tickets = tickets(t)
	before, after := allocs(without), allocs(with)
	t.Logf("without limits %.1f, with %.1f allocations", before, after)
	if !raceEnabled { // pools drop at random under the race detector
		require.LessOrEqual(t, after, before+0.5)
	}
}

// everyLimit is a limiter whose every limit is on and cannot be reached.
func everyLimit(t testing.TB) *limits.Limiter {
	rules, err := limits.Load("../configs/limits.yaml")
	require.NoError(t, err)
	wide := limits.Bucket{Rate: 1e11, Burst: 1e11}
	for _, p := range []*limits.PerClass{&rules.Gateway, &rules.Address, &rules.User, &rules.Sale} {
		p.Purchase, p.Read = wide, wide
	}
	rules.Flow.PurchaseQPS, rules.Hotspot, rules.System.InboundQPS = 1e11, limits.Hotspot{PurchaseQPS: 1e11, ReadQPS: 1e11}, 1e11
	rules.Sales = map[string]limits.NamedSale{"spring": {Purchase: wide, Read: wide, PurchaseQPS: 1e11, ReadQPS: 1e11}}
	rules.Block.Addresses, rules.Allow.Users = []string{"203.0.113.0/24", "2001:db8::/32"}, []string{"root"}
	limiter, err := limits.New(rules, limits.Options{Tickets: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, limiter.Close()) })
	return limiter
}

func BenchmarkPurchaseSoldOutWithLimits(b *testing.B) {
	g := still(b, answering(purchase.Answer{Code: sale.CodeSoldOut}))
	g.o.Limits = everyLimit(b)
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
