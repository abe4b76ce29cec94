// Package gateway is the HTTP edge: it turns shoppers' requests into purchase
// requests, queues them by sale, and answers with what the protocol decided.
//
// A request passes, in this order: its route, the limits by address and of the whole
// gateway, its token, the sale, its body, the limits by user, its ticket, the limits of
// the sale, its cut-off when it is sold out, and only then its queue. Whatever is refused before the queue has
// reserved nothing.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"flashgate/internal/gather"
	"flashgate/internal/ledger"
	"flashgate/internal/limits"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/ticket"
	"flashgate/internal/tracing"
)

// Verifier says whose a token is. Its errors are sale.Error UNAUTHENTICATED.
type Verifier interface {
	// Verify appends the user to a slice, and returns that.
	Verify(user, raw []byte) (_ []byte, expires time.Time, err error)
}

// Limits say no early; see limits.Limiter.
type Limits interface {
	ForwardedHeader(peer netip.Addr) string
	Client(peer netip.Addr, values [][]byte) netip.Addr
	AllowAddress(c limits.Class, ip netip.Addr, now time.Time) (retryAfter time.Duration, limit string, ok bool)
	AllowUser(c limits.Class, user []byte, now time.Time) (retryAfter time.Duration, limit string, ok bool)
	AllowSale(c limits.Class, id string, now time.Time) (retryAfter time.Duration, limit string, ok bool)
	Enter(c limits.Class, now time.Time) (pass limits.Pass, retryAfter time.Duration, limit string, ok bool)
	TicketRules() (required bool, ttl time.Duration)
}

// Ledger is what the edge reads of ledger.Ledger.
type Ledger interface {
	Sales(ctx context.Context) ([]sale.Sale, error)
	OrdersByID(ctx context.Context, ids []sale.ID) (map[sale.ID]*ledger.Order, error)
	OrderByKey(ctx context.Context, saleID, user, key string) (ledger.Order, error)
	OrdersOf(ctx context.Context, user, saleID string, limit int) ([]ledger.Order, error)
}

// Stock is what the edge reads of stock.Store.
type Stock interface {
	Stocks(ctx context.Context, saleIDs []string, units []int64, ok []bool) error
	Lookup(ctx context.Context, saleID, user string) ([]stock.Record, error)
	Confirm(ctx context.Context, b *sale.Batch) (stock.State, error)
	SoldOut(ctx context.Context, saleID string, lease time.Duration, buyersMax int) (stock.Lease, error)
	SoldOutBuyers(ctx context.Context, saleID string, lease time.Duration, buyersMax int) (users []string, l stock.Lease, err error)
}

// Breaker stands before an engine that a shopper's read needs; see limits.Breaker.
type Breaker interface {
	Do(ctx context.Context, do func(context.Context) error) error
}

// Options are a gateway's parts and bounds. Every bound must be set.
type Options struct {
	Listen   string       // host:port; unless Listener is set
	Listener net.Listener // taken over by the gateway

	Verifier      Verifier
	Limits        Limits           // nil = none
	Tickets       *ticket.Issuer   // nil = there are none, and the limits require none
	Challenge     ticket.Challenge // before a ticket is given; nil = none
	Ledger        Ledger
	LedgerBreaker Breaker // nil = none
	Stock         Stock
	RedisBreaker  Breaker // nil = none
	Runner        Runner
	IDs           *sale.IDs
	Lease         *NodeLease            // of the number in IDs; nil = it needs none
	Tracer        *tracing.Tracer       // nil = nothing is followed
	Log           *slog.Logger          // nil = slog.Default()
	Registerer    prometheus.Registerer // nil = no metrics
	Now           func() time.Time      // nil = time.Now; decides what phase a sale is shown in

	Connections     int           // open at once, at least 8192
	HeaderBytes     int           // request line and header
	BodyBytes       int           // request body
	ReadTimeout     time.Duration // of a whole request, from its first byte
	WriteTimeout    time.Duration // of an answer
	IdleTimeout     time.Duration // between two requests of a connection
	PurchaseTimeout time.Duration // until a purchase is answered
	ReadWait        time.Duration // for the ledger, and again for Redis, when an order is asked for
	ReplayWait      time.Duration // for the ledger's word on a replayed order
	DrainTimeout    time.Duration // for what is in hand when Run is told to stop
	ReadsMax        int           // reads of ledger or Redis under way
	BatchMax        int           // requests in a batch
	Flushers        int           // batches under way, a sale, at most
	BatchLinger     time.Duration // for more than a few to gather to a whole batch after the last; at most as long as that took
	BatchPatience   time.Duration // before another flusher comes for less than a whole batch
	QueueMax        int           // requests waiting, a sale
	SalesMax        int           // sales selling at once
	SaleRefresh     time.Duration // of the sales' terms: a change is everywhere within 1 s
	StockRefresh    time.Duration // of the stock shown: at most 200 ms old, the reading included

	CutoffLease  time.Duration // for which the shoppers of a sold-out sale are refused without asking; 0 = never
	CutoffBuyers int           // whom to know by name, a sale; a sale with more is always asked for
}

// check says which bound is missing or out of range.
func (o *Options) check() error {
	for _, n := range []struct {
		name         string
		value, least int
	}{
		{"connections", o.Connections, 8192}, // fewer would refuse a crowd that the limits let in
		{"header bytes", o.HeaderBytes, 1024},
		{"body bytes", o.BodyBytes, 64},
		{"reads", o.ReadsMax, 1},
		{"batch size", o.BatchMax, 1},
		{"flushers", o.Flushers, 1},
		{"queue", o.QueueMax, 1},
		{"sales", o.SalesMax, 1},
		{"buyers of the cut-off", o.CutoffBuyers, 1},
	} {
		if n.value < n.least {
			return fmt.Errorf("gateway: %s: want at least %d, got %d", n.name, n.least, n.value)
		}
	}
	for _, d := range []struct {
		name               string
		value, least, most time.Duration
	}{
		{"read timeout", o.ReadTimeout, time.Millisecond, time.Hour},
		{"write timeout", o.WriteTimeout, time.Millisecond, time.Hour},
		{"idle timeout", o.IdleTimeout, time.Millisecond, time.Hour},
		{"purchase timeout", o.PurchaseTimeout, time.Millisecond, time.Hour},
		{"read wait", o.ReadWait, time.Millisecond, time.Hour},
		{"replay wait", o.ReplayWait, time.Millisecond, time.Hour},
		{"drain timeout", o.DrainTimeout, 0, time.Hour},
		{"batch linger", o.BatchLinger, 0, time.Second},
		{"batch patience", o.BatchPatience, 0, time.Second},
		{"sale refresh", o.SaleRefresh, time.Millisecond, time.Second},
		{"stock refresh", o.StockRefresh, time.Millisecond, 150 * time.Millisecond},
		{"lease of the cut-off", o.CutoffLease, 0, stock.MaxLease},
	} {
		if d.value < d.least || d.value > d.most {
			return fmt.Errorf("gateway: %s: want %s to %s, got %s", d.name, d.least, d.most, d.value)
		}
	}
	if o.CutoffLease > 0 && o.CutoffLease < time.Millisecond {
		return fmt.Errorf("gateway: lease of the cut-off: want 0, or 1ms and more, got %s", o.CutoffLease)
	}
	return nil
}

// Gateway is one HTTP edge.
type Gateway struct {
	o        Options
	server   *fasthttp.Server
	listener *listener
	catalog  *catalog
	batcher  *batcher
	cutoff   *cutoff
	reads    chan struct{} // a slot a read under way
	draining atomic.Bool
	metrics  metrics

	orderReads *gather.Group[sale.ID, storedOrder]
}

// New checks o and binds the listener; Run serves it.
func New(o Options) (*Gateway, error) {
	if o.Verifier == nil || o.Ledger == nil || o.Stock == nil || o.Runner == nil || o.IDs == nil {
		panic("BUG: gateway.New wants a verifier, a ledger, a stock, a runner and a source of ids")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	ln := o.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
	}
	g := &Gateway{o: o, reads: make(chan struct{}, o.ReadsMax)}
	g.catalog = &catalog{
		ledger: o.Ledger, stock: o.Stock, log: o.Log, now: o.Now,
		saleEvery: o.SaleRefresh, stockEvery: o.StockRefresh,
	}
	g.batcher = newBatcher(o.Runner, o.BatchMax, o.Flushers, o.BatchLinger, o.BatchPatience, o.QueueMax, o.SalesMax)
	g.batcher.panicked = g.panicked
	g.cutoff = newCutoff(o.Stock, o.CutoffLease, o.CutoffBuyers, o.SalesMax, o.Log)
	g.orderReads = gather.New(orderReadsAtOnce, orderReadMax, gather.Linger{}, g.readOrders)
	g.listener = newListener(ln, o.Connections, crowded(), func() { g.metrics.refused.Inc() })
	g.newMetrics(o.Registerer)
	g.server = &fasthttp.Server{
		Name:                         "flashgate",
		Handler:                      func(ctx *fasthttp.RequestCtx) { g.serve(ctx, false) },
		ErrorHandler:                 g.unreadable,
		ConnState:                    track,
		Concurrency:                  o.Connections + 1, // the listener says no first, as a problem
		ReadBufferSize:               o.HeaderBytes,
		WriteBufferSize:              writeBufferBytes,
		ReadTimeout:                  o.ReadTimeout,
		WriteTimeout:                 o.WriteTimeout,
		IdleTimeout:                  o.IdleTimeout,
		MaxRequestBodySize:           o.BodyBytes,
		DisablePreParseMultipartForm: true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true, // requests hold tokens
		Logger:                       serverLog{o.Log},
	}
	return g, nil
}

// writeBufferBytes holds a purchase's answer with its headers; lists are flushed in
// pieces. Every open connection has one.
const writeBufferBytes = 2048

// serverLog is where fasthttp reports what concerns no request, and every connection
// that sent what is none: those are for debugging, or any stranger could fill the log.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Printf(format string, args ...any) {
	level := slog.LevelWarn
	if strings.HasPrefix(format, "error when serving connection") {
		level = slog.LevelDebug
	}
	if ctx := context.Background(); l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "http server: "+fmt.Sprintf(format, args...))
	}
}

// crowded is the whole response to a connection over the limit.
func crowded() []byte {
	p := problemOf(sale.CodeUnavailable)
	return fmt.Appendf(nil, "HTTP/1.1 503 Service Unavailable\r\nServer: flashgate\r\nConnection: close\r\n"+
		"Content-Type: %s\r\nRetry-After: %d\r\nContent-Length: %d\r\n\r\n%s",
		problemType, retryAfterSeconds, len(p.plain), p.plain)
}

// Addr is the address that shoppers reach.
func (g *Gateway) Addr() net.Addr { return g.listener.Addr() }

// Ready says what keeps the gateway from selling, or nil.
func (g *Gateway) Ready() error {
	if g.draining.Load() {
		return errors.New("gateway: draining")
	}
	if g.catalog.view.Load() == nil {
		return errors.New("gateway: the ledger has not told the sales yet")
	}
	if !g.canMakeIDs() {
		return errors.New("gateway: the ledger has not leased it a node number yet")
	}
	return nil
}

func (g *Gateway) canMakeIDs() bool { return g.o.Lease == nil || g.o.Lease.Held() }

// Run serves until ctx ends, then drains: no new connections, 503 to new requests,
// an answer to everything in hand. It returns within the drain timeout and the two
// seconds that an interrupted run may take to void its batch, with an error if
// something in hand was cut off. It may be called once.
func (g *Gateway) Run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var refreshing sync.WaitGroup
	refreshing.Go(func() { g.catalog.run(background) })
	if g.o.Lease != nil {
		refreshing.Go(func() { g.o.Lease.keep(background) })
	}
	defer refreshing.Wait()
	defer stop()
	defer g.cutoff.stop()

	served := make(chan error, 1)
	go func() { served <- g.server.Serve(g.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("gateway: the listener failed: %w", errors.Join(err, net.ErrClosed, g.drain()))
	case <-ctx.Done():
	}
	g.draining.Store(true)
	_ = g.listener.Close() // what it accepted is drained; a port that is gone is closed
	<-served
	return g.drain()
}

const (
	// drainPollMillis is how often drain looks whether anything is in hand.
	drainPollMillis = 5
	// drainQuietMillis is how long nothing must be in hand before connections are
	// closed: a kept-alive shopper whose next request is on its way gets a 503,
	// which is definite, rather than a reset, which is not.
	drainQuietMillis = 200
)

func (g *Gateway) drain() error {
	g.draining.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), g.o.DrainTimeout)
	defer cancel()
	tick := time.NewTicker(drainPollMillis * time.Millisecond)
	defer tick.Stop()
	quiet := time.Now()
	for ctx.Err() == nil && g.listener.open() > 0 && time.Since(quiet) < drainQuietMillis*time.Millisecond {
		if g.listener.active.Load() > 0 {
			quiet = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	var cut int64
	if ctx.Err() != nil {
		cut = g.listener.active.Load()
	}
	g.batcher.stop(ctx)
	g.listener.shutdown()
	if cut > 0 {
		return fmt.Errorf("gateway: %d requests were still in hand after %s", cut, g.o.DrainTimeout)
	}
	<-g.listener.gone
	return nil
}
