package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"flashgate/internal/ledger"
	"flashgate/internal/limits"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/token"
)

// What stands behind a real edge fits.
var (
	_ Verifier = (*token.Verifier)(nil)
	_ Limits   = (*limits.Limiter)(nil)
	_ Breaker  = (*limits.Breaker)(nil)
	_ Ledger   = (*ledger.Ledger)(nil)
	_ Stock    = (*stock.Store)(nil)
	_ Runner   = (*purchase.Protocol)(nil)
)

// verifier takes the token "user-NAME" for NAME's.
type verifier struct{}

func (verifier) Verify(user, raw []byte) ([]byte, time.Time, error) {
	name, ok := bytes.CutPrefix(raw, []byte("user-"))
	if !ok {
		return nil, time.Time{}, &sale.Error{Code: sale.CodeUnauthenticated, Detail: "the token has expired"}
	}
	return append(user, name...), time.Now().Add(time.Hour), nil
}

var errAway = errors.New("engine is away")

// engines stands for ledger and Redis.
type engines struct {
	mu          sync.Mutex
	sales       []sale.Sale
	orders      map[sale.ID]ledger.Order
	ledgerAway  bool
	onOrder     func() // before an order is read, without the lock
	stocks      map[string]int64
	records     map[string][]stock.Record // by sale; of one user
	lookups     []string                  // the sales that were asked
	confirms    []sale.ID
	confirmErr  error
	redisAway   bool
	ordersAsked int
	lease       func() (stock.Lease, error) // nil = there are free units
	buyers      []string
	leasesAsked int
	buyersAsked int
}

func (e *engines) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *engines) Sales(context.Context) ([]sale.Sale, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ledgerAway {
		return nil, errAway
	}
	return append([]sale.Sale(nil), e.sales...), nil
}

func (e *engines) OrdersByID(_ context.Context, ids []sale.ID) (map[sale.ID]*ledger.Order, error) {
	e.mu.Lock()
	hook := e.onOrder
	e.mu.Unlock()
	if hook != nil {
		hook()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ordersAsked++
	if e.ledgerAway {
		return nil, errAway
	}
	found := make(map[sale.ID]*ledger.Order)
	for _, id := range ids {
		if o, ok := e.orders[id]; ok {
			found[id] = &o
		}
	}
	return found, nil
}

func (e *engines) OrderByKey(_ context.Context, saleID, user, key string) (ledger.Order, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ledgerAway {
		return ledger.Order{}, errAway
	}
	for o := range maps.Values(e.orders) {
		// A duplicate gave its key up.
		if o.SaleID == saleID && o.UserID == user && o.RequestKey == key && o.Reason != sale.ReasonDuplicate {
			return o, nil
		}
	}
	return ledger.Order{}, &sale.Error{Code: sale.CodeOrderNotFound}
}

func (e *engines) OrdersOf(_ context.Context, user, saleID string, limit int) ([]ledger.Order, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ledgerAway {
		return nil, errAway
	}
	var list []ledger.Order
	for o := range maps.Values(e.orders) {
		if o.UserID == user && (saleID == "" || o.SaleID == saleID) {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b ledger.Order) int { return cmp.Compare(b.ID, a.ID) })
	return list[:min(len(list), limit)], nil
}

func (e *engines) Stocks(_ context.Context, ids []string, units []int64, ok []bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.redisAway {
		return errAway
	}
	for i, id := range ids {
		units[i], ok[i] = e.stocks[id]
	}
	return nil
}

func (e *engines) Lookup(_ context.Context, saleID, user string) ([]stock.Record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lookups = append(e.lookups, saleID)
	if e.redisAway {
		return nil, errAway
	}
	if _, ok := e.stocks[saleID]; !ok {
		return nil, stock.ErrNotReady
	}
	var found []stock.Record
	for _, r := range e.records[saleID] {
		if r.UserID == user {
			found = append(found, r)
		}
	}
	return found, nil
}

func (e *engines) Confirm(_ context.Context, b *sale.Batch) (stock.State, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.confirms = append(e.confirms, b.ID)
	return stock.StateConfirmed, e.confirmErr
}

func (e *engines) SoldOut(context.Context, string, time.Duration, int) (stock.Lease, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leasesAsked++
	if e.lease == nil {
		return stock.Lease{}, nil
	}
	return e.lease()
}

func (e *engines) SoldOutBuyers(ctx context.Context, saleID string, d time.Duration, buyersMax int) ([]string, stock.Lease, error) {
	l, err := e.SoldOut(ctx, saleID, d, buyersMax)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.buyersAsked++
	return append([]string(nil), e.buyers...), l, err
}

// runner answers batches with a func.
type runner func(s *sale.Sale, requests []*purchase.Request)

func (r runner) Run(_ context.Context, s *sale.Sale, requests []*purchase.Request) { r(s, requests) }

// accept says yes to every request.
func accept(_ *sale.Sale, requests []*purchase.Request) {
	for _, q := range requests {
		if q.Take() {
			q.Answer(purchase.Answer{OrderID: q.Order.ID, Quantity: q.Order.Quantity, AmountCents: q.Order.AmountCents})
		}
	}
}

// answering says the same to every request.
func answering(a purchase.Answer) runner {
	return func(_ *sale.Sale, requests []*purchase.Request) {
		for _, q := range requests {
			if q.Take() {
				q.Answer(a)
			}
		}
	}
}

// edge is a gateway that serves on the loopback, and a client.
type edge struct {
	t       *testing.T
	g       *Gateway
	engines *engines
	client  *http.Client
	stop    context.CancelFunc
	ended   chan error
}

var began = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

func flashSale() sale.Sale {
	return sale.Sale{
		ID: "spring", Title: `Tea "Longjing" <1 kg>`, PriceCents: 1999, Currency: "CNY", Total: 1000, PerUserLimit: 2,
		StartsAt: began, EndsAt: began.Add(time.Hour), Status: sale.Opened, Epoch: 1, Version: 1,
	}
}

// clock stands still within the sale.
func clock() time.Time { return began.Add(30 * time.Minute) }

// options are as in production, but for the refreshes.
func options(e *engines, run runner) Options {
	return Options{
		Listen: "127.0.0.1:0", Verifier: verifier{}, Ledger: e, Stock: e, Runner: run,
		IDs: sale.NewIDs(1, clock), Now: clock, Log: slog.New(slog.DiscardHandler),
		Connections: 65536, HeaderBytes: 8192, BodyBytes: 4096,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		PurchaseTimeout: 3 * time.Second, ReadWait: time.Second, ReplayWait: 250 * time.Millisecond, DrainTimeout: 10 * time.Second,
		ReadsMax: 256, BatchMax: 128, Flushers: 4, BatchPatience: 20 * time.Millisecond, QueueMax: 16384, SalesMax: 1024,
		SaleRefresh: 5 * time.Millisecond, StockRefresh: 5 * time.Millisecond, CutoffBuyers: 100,
	}
}

func newEdge(t *testing.T, run runner, change ...func(*Options)) *edge {
	t.Helper()
	e := &engines{
		sales:   []sale.Sale{flashSale()},
		orders:  map[sale.ID]ledger.Order{},
		stocks:  map[string]int64{"spring": 700},
		records: map[string][]stock.Record{},
	}
	draft := flashSale()
	draft.ID, draft.Status = "draft", sale.Draft
	e.sales = append(e.sales, draft)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	o := options(e, run)
	o.Listener, o.Registerer = ln, prometheus.NewRegistry()
	for _, f := range change {
		f(&o)
	}
	g, err := New(o)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	x := &edge{t: t, g: g, engines: e, stop: stop, ended: make(chan error, 1), client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
		Timeout:   10 * time.Second,
	}}
	go func() { x.ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		x.client.CloseIdleConnections()
		<-x.ended
	})
	if o.Ledger == e {
		x.eventually(func() bool { return g.Ready() == nil })
	}
	return x
}

func (x *edge) eventually(f func() bool) {
	x.t.Helper()
	require.Eventually(x.t, f, 10*time.Second, time.Millisecond)
}

func (x *edge) url(path string) string { return "http://" + x.g.Addr().String() + path }

// response is an answer, read to its end.
type response struct {
	status int
	header http.Header
	body   string
}

func (r response) field(t *testing.T, name string) any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.body), &m), r.body)
	return m[name]
}

func (x *edge) do(method, path, body string, headers ...string) response {
	x.t.Helper()
	r, err := x.send(method, path, body, headers...)
	require.NoError(x.t, err)
	want := "no-store"
	if method == "POST" { // which no cache stores by itself
		want = ""
	}
	require.Equal(x.t, want, r.header.Get("Cache-Control"))
	return r
}

func (x *edge) send(method, path, body string, headers ...string) (response, error) {
	request, err := http.NewRequest(method, x.url(path), strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
		if headers[i+1] == "" {
			request.Header.Del(headers[i])
		}
	}
	raw, err := x.client.Do(request)
	if err != nil {
		return response{}, err
	}
	defer raw.Body.Close()
	all, err := io.ReadAll(raw.Body)
	return response{raw.StatusCode, raw.Header, string(all)}, err
}

// buy is a purchase by alice.
func (x *edge) buy(headers ...string) response {
	x.t.Helper()
	return x.do("POST", "/v1/sales/spring/purchases", "", append([]string{"Authorization", "Bearer user-alice"}, headers...)...)
}

// problem checks everything that every problem has.
func (x *edge) problem(r response, status int, code sale.Code, msg ...any) {
	x.t.Helper()
	require.Equal(x.t, status, r.status, append(msg, r.body)...)
	require.Equal(x.t, "application/problem+json", r.header.Get("Content-Type"), msg...)
	require.Equal(x.t, string(code), r.field(x.t, "code"), msg...)
	require.Equal(x.t, float64(status), r.field(x.t, "status"), msg...)
	require.NotEmpty(x.t, r.field(x.t, "type"), msg...)
	require.NotEmpty(x.t, r.field(x.t, "title"), msg...)
	require.NotEmpty(x.t, r.field(x.t, "detail"), msg...)
	require.Equal(x.t, status == 429 || status == 503, r.header.Get("Retry-After") != "", msg...)
	require.Equal(x.t, "flashgate", r.header.Get("Server"), msg...)
}

// raw sends bytes as they are and reads until the server closes.
func (x *edge) raw(request []byte) string {
	x.t.Helper()
	c, err := net.Dial("tcp", x.g.Addr().String())
	require.NoError(x.t, err)
	defer c.Close()
	require.NoError(x.t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Write(request)
	require.NoError(x.t, err)
	var all bytes.Buffer
	_, err = all.ReadFrom(c)
	require.NoError(x.t, err)
	return all.String()
}

// gates are limits that a test shuts.
type gates struct {
	address, user, gateway, sale bool
	blocked                      bool
	header                       string // what a proxy on the loopback says is believed
	ticket                       bool
}

const gateRetry = 2500 * time.Millisecond

func (l *gates) AllowAddress(_ limits.Class, ip netip.Addr, _ time.Time) (time.Duration, string, bool) {
	switch {
	case l.blocked:
		return 0, limits.BlockedAddress, false
	case l.address, !ip.IsLoopback():
		return gateRetry, "address", false
	}
	return 0, "", true
}

func (l *gates) AllowUser(limits.Class, []byte, time.Time) (time.Duration, string, bool) {
	if l.user {
		return gateRetry, "user", false
	}
	return 0, "", true
}

func (l *gates) Enter(limits.Class, time.Time) (limits.Pass, time.Duration, string, bool) {
	if l.gateway {
		return limits.Pass{}, 0, "gateway", false
	}
	return limits.Pass{}, 0, "", true
}

func (l *gates) AllowSale(limits.Class, string, time.Time) (time.Duration, string, bool) {
	if l.sale {
		return gateRetry, "sale", false
	}
	return 0, "", true
}

func (l *gates) ForwardedHeader(netip.Addr) string { return l.header }

// Client takes the one address that is there.
func (l *gates) Client(_ netip.Addr, values [][]byte) netip.Addr {
	return netip.MustParseAddr(string(values[0]))
}

func (l *gates) TicketRules() (bool, time.Duration) { return l.ticket, 30 * time.Second }

// open are limits that refuse nobody.
type open struct{}

func (*open) AllowAddress(limits.Class, netip.Addr, time.Time) (time.Duration, string, bool) {
	return 0, "", true
}
func (*open) AllowUser(limits.Class, []byte, time.Time) (time.Duration, string, bool) {
	return 0, "", true
}
func (*open) AllowSale(limits.Class, string, time.Time) (time.Duration, string, bool) {
	return 0, "", true
}
func (*open) ForwardedHeader(netip.Addr) string             { return "" }
func (*open) Client(peer netip.Addr, _ [][]byte) netip.Addr { return peer }
func (*open) TicketRules() (bool, time.Duration)            { return false, 0 }
func (*open) Enter(limits.Class, time.Time) (limits.Pass, time.Duration, string, bool) {
	return limits.Pass{}, 0, "", true
}

// alice is a verifier that takes every token for hers, without allocating.
type alice struct{}

func (alice) Verify(user, _ []byte) ([]byte, time.Time, error) {
	return append(user, "alice"...), time.Time{}, nil
}
