package gateway

import (
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"flashgate/internal/limits"
	"flashgate/internal/sale"
	"flashgate/internal/tracing"
)

// call is one request on its way through the gateway.
type call struct {
	ctx      *fasthttp.RequestCtx
	began    time.Time
	addr     netip.Addr // the client's; the zero Addr when it has none
	user     []byte     // once authenticated; the next call will have its room
	span     trace.Span // nil unless the request is followed
	tooLarge bool       // the body was not read
	buf      []byte     // scratch for the response
}

var calls = sync.Pool{New: func() any { return &call{buf: make([]byte, 0, 512)} }}

// bufKeepBytes: a buffer that a long list has grown is not kept.
const bufKeepBytes = 16 << 10

func (c *call) release() {
	if cap(c.buf) > bufKeepBytes {
		c.buf = make([]byte, 0, 512)
	}
	*c = call{user: c.user[:0], buf: c.buf[:0]}
	calls.Put(c)
}

// serve answers one request. tooLarge: all but its body was read.
func (g *Gateway) serve(ctx *fasthttp.RequestCtx, tooLarge bool) {
	c := calls.Get().(*call)
	c.ctx, c.began, c.tooLarge = ctx, time.Now(), tooLarge
	g.metrics.inFlight.Add(1)
	r, id := parseRoute(ctx.Path())
	if g.o.Tracer.Sample() {
		c.span = g.o.Tracer.Serve(ctx.Request.Header.Peek(tracing.Property), string(ctx.Method())+" "+routeNames[r])
	}
	var p *problem
	defer func() {
		if v := recover(); v != nil {
			g.panicked(v, debug.Stack())
			ctx.Response.Reset()
			p = c.problem(refuse(sale.CodeInternal))
		}
		g.metrics.inFlight.Add(-1)
		g.metrics.observe(r, p, time.Since(c.began))
		c.followed(r, p)
		c.release()
	}()
	if no := g.dispatch(c, r, id); no.code != "" {
		p = c.problem(no)
	}
}

// followed ends the span of a request that has one.
func (c *call) followed(r route, p *problem) {
	if c.span == nil {
		return
	}
	code := codeOK
	if p != nil {
		code = string(p.code)
	}
	c.span.SetAttributes(attribute.String("http.route", routeNames[r]), attribute.String("flashgate.code", code),
		attribute.Int("http.response.status_code", c.ctx.Response.StatusCode()))
	if c.ctx.Response.StatusCode() >= 500 {
		c.span.SetStatus(codes.Error, code)
	}
	c.span.End()
}

func (g *Gateway) panicked(v any, stack []byte) {
	g.metrics.panics.Inc()
	g.o.Log.Error("panic", "value", v, "stack", string(stack))
}

func (g *Gateway) dispatch(c *call, r route, id []byte) refusal {
	if g.draining.Load() {
		c.ctx.SetConnectionClose()
		return refuse(sale.CodeUnavailable)
	}
	if twoLengths(&c.ctx.Request.Header) {
		c.ctx.SetConnectionClose()
		return refuseWith(sale.CodeInvalid, faultFraming)
	}
	if r == routeUnknown {
		return refuse(sale.CodeNotFound)
	}
	if !r.allows(c.ctx.Method()) {
		c.ctx.Response.Header.Set(fasthttp.HeaderAllow, allowed[r])
		return refuse(sale.CodeMethod)
	}
	if peer, ok := c.ctx.Conn().(*conn); ok {
		c.addr = peer.addr
	}
	if g.o.Limits == nil {
		return g.handle(c, r, id)
	}
	class := limits.Read
	if r == routePurchases {
		class = limits.Purchase
	}
	if header := g.o.Limits.ForwardedHeader(c.addr); header != "" {
		c.addr = g.o.Limits.Client(c.addr, c.ctx.Request.Header.PeekAll(header))
	}
	if after, limit, ok := g.o.Limits.AllowAddress(class, c.addr, c.began); !ok {
		return limited(after, limit)
	}
	pass, after, limit, ok := g.o.Limits.Enter(class, c.began)
	if !ok {
		return limited(after, limit)
	}
	defer pass.Exit()
	return g.handle(c, r, id)
}

func (g *Gateway) handle(c *call, r route, id []byte) refusal {
	switch r {
	case routeSales:
		return g.sales(c)
	case routeSale:
		return g.sale(c, id)
	case routePurchases:
		return g.purchase(c, id)
	case routeTicket:
		return g.ticket(c, id)
	case routeOrders:
		return g.orders(c)
	case routeOrder:
		return g.order(c, id)
	}
	panic("BUG: route without a handler: " + strconv.Itoa(int(r)))
}

func (g *Gateway) allowUser(c *call, class limits.Class) refusal {
	if g.o.Limits == nil {
		return refusal{}
	}
	if after, limit, ok := g.o.Limits.AllowUser(class, c.user, c.began); !ok {
		return limited(after, limit)
	}
	return refusal{}
}

func (g *Gateway) allowSale(c *call, class limits.Class, l *listing) refusal {
	if g.o.Limits == nil {
		return refusal{}
	}
	if after, limit, ok := g.o.Limits.AllowSale(class, l.sale.ID, c.began); !ok {
		return limited(after, limit)
	}
	return refusal{}
}

func limited(after time.Duration, limit string) refusal {
	if limit == limits.BlockedAddress || limit == limits.BlockedUser {
		return refuse(sale.CodeBlocked)
	}
	return refusal{code: sale.CodeRateLimited, limit: limit, retryAfter: max(after, time.Millisecond)}
}

// unreadable answers what fasthttp could not read to its end; it then closes the
// connection.
func (g *Gateway) unreadable(ctx *fasthttp.RequestCtx, err error) {
	if peer, ok := ctx.Conn().(*conn); ok {
		peer.linger = true
	}
	_ = ctx.Conn().SetWriteDeadline(time.Now().Add(g.o.WriteTimeout)) // of a connection that is gone: the write fails too
	if errors.Is(err, fasthttp.ErrBodyTooLarge) && ctx.Request.Header.ContentLength() > g.o.BodyBytes {
		// The body is the fifth thing to be refused: four come first.
		g.serve(ctx, true)
		return
	}
	c := calls.Get().(*call)
	c.ctx, c.began = ctx, time.Now()
	p := c.problem(refuse(unreadableCode(err)))
	g.metrics.done[routeUnknown][p.slot].Inc()
	c.release()
}

func unreadableCode(err error) sale.Code {
	var small *fasthttp.ErrSmallBuffer
	var network net.Error
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		// A chunked body: nothing tells its length before it has grown too long, and
		// by then fasthttp has dropped the header.
		return sale.CodeTooLarge
	case errors.As(err, &small):
		return codeHeaderTooLarge
	case errors.As(err, &network) && network.Timeout():
		return codeRequestTimeout
	default:
		return sale.CodeInvalid
	}
}
