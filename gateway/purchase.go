package gateway

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"flashgate/internal/limits"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
)

const headerReplayed = "Idempotent-Replayed"

// purchase is POST /v1/sales/{id}/purchases. The edge decides nothing about the
// sale itself: whoever has bought already must get his order back, even after the
// last unit or the end, and only the script knows who that is; but for the cut-off, which
// knows it too.
func (g *Gateway) purchase(c *call, id []byte) refusal {
	if no := g.authenticate(c); no.code != "" {
		return no
	}
	l, no := g.published(id)
	if no.code != "" {
		return no
	}
	quantity, no := readQuantity(&c.ctx.Request, c.tooLarge)
	if no.code != "" {
		return no
	}
	key, no := readKey(&c.ctx.Request.Header)
	if no.code != "" {
		return no
	}
	if no := g.allowUser(c, limits.Purchase); no.code != "" {
		return no
	}
	if no := g.checkTicket(c, l); no.code != "" {
		return no
	}
	if no := g.allowSale(c, limits.Purchase, l); no.code != "" {
		return no
	}

	if g.cutoff.refuses(l, c.user, quantity, c.began, g.o.Now()) {
		return refuse(sale.CodeSoldOut)
	}

	// User and key are gone with the call, the order is not: one string holds both.
	c.buf = append(append(c.buf[:0], c.user...), key...)
	names := string(c.buf)
	user, requestKey := names[:len(c.user)], names[len(c.user):]
	if !g.canMakeIDs() {
		return refuse(sale.CodeUnavailable)
	}
	request := purchase.NewRequest(sale.Order{
		ID:          g.o.IDs.Next(sale.ShardOf(user)),
		SaleID:      l.sale.ID,
		UserID:      user,
		RequestKey:  requestKey,
		Quantity:    quantity,
		AmountCents: int64(quantity) * l.sale.PriceCents,
	}, c.began.Add(g.o.PurchaseTimeout))
	request.Span = c.span
	if !g.batcher.enqueue(&l.sale, request) {
		request.Discard()
		return refuse(sale.CodeUnavailable)
	}
	a := request.Wait()
	if a.Code == sale.CodeSoldOut {
		g.cutoff.soldOut(l, time.Now())
	}
	if a.Code == sale.CodeUnavailable && g.o.Now().After(l.sale.EndsAt.Add(sale.Retention)) {
		a = g.longOver(l.sale.ID, user, requestKey)
	}
	if a.Code != "" {
		return refuse(a.Code)
	}
	g.accepted(c, l, &a, requestKey)
	g.noteOrder(c, l, &a)
	return refusal{}
}

// longOver answers for a sale that Redis need not know any more: the ledger alone
// knows who bought.
func (g *Gateway) longOver(saleID, user, key string) purchase.Answer {
	ctx, cancel := g.readContext(g.o.ReadWait)
	defer cancel()
	o, err := g.readOrderByKey(ctx, saleID, user, key)
	switch {
	case err == nil:
		return purchase.Answer{OrderID: o.ID, Quantity: o.Quantity, AmountCents: o.AmountCents, Replayed: true, Settled: true}
	case sale.CodeOf(err) == sale.CodeOrderNotFound:
		return purchase.Answer{Code: sale.CodeEnded}
	default:
		return purchase.Answer{Code: sale.CodeUnavailable}
	}
}

// noteOrder tells the trace and, at debug level, the log which order a request became.
func (g *Gateway) noteOrder(c *call, l *listing, a *purchase.Answer) {
	ctx := context.Background()
	if c.span != nil {
		c.span.SetAttributes(attribute.String("flashgate.order_id", a.OrderID.String()), attribute.Bool("flashgate.replayed", a.Replayed))
		ctx = trace.ContextWithSpan(ctx, c.span)
	}
	if g.o.Log.Enabled(ctx, slog.LevelDebug) {
		g.o.Log.DebugContext(ctx, "purchase accepted", "order", a.OrderID, "sale", l.sale.ID, "replayed", a.Replayed)
	}
}

// accepted writes the 202.
func (g *Gateway) accepted(c *call, l *listing, a *purchase.Answer, key string) {
	status := sale.Processing
	if a.Replayed {
		c.ctx.Response.Header.Set(headerReplayed, "true")
		status = g.present(a, l.sale.ID, string(c.user), key)
	}
	c.buf = append(c.buf[:0], "/v1/orders/"...)
	c.buf = strconv.AppendInt(c.buf, int64(a.OrderID), 10)
	c.buf = append(c.buf, "?sale_id="...)
	c.buf = append(c.buf, l.sale.ID...)
	c.ctx.Response.Header.SetBytesV("Location", c.buf)
	o := sale.Order{ID: a.OrderID, SaleID: l.sale.ID, Quantity: a.Quantity, AmountCents: a.AmountCents}
	c.buf = appendOrderHead(c.buf[:0], &o, l.sale.Currency)
	c.buf = append(c.buf, status...)
	c.buf = append(c.buf, `"}`...)
	c.answer(202)
}

// freshSeconds is how long Redis's word on an order is enough: the ledger has it, or will
// have it, as the worker writes it. Later the settling may be owed, and it may be paid.
const freshSeconds = 2

// present asks the ledger how a replayed order stands, unless it is of a moment ago, as
// most replays are. Of a key whose order in Redis is cancelled it tells the survivor, if
// there is one: the order was a duplicate. A ledger that is away keeps nobody waiting for
// long.
func (g *Gateway) present(a *purchase.Answer, saleID, user, key string) sale.OrderStatus {
	if !a.Returned && g.o.Now().Sub(a.OrderID.Time()).Abs() < freshSeconds*time.Second {
		if a.Settled {
			return sale.PendingPayment
		}
		return sale.Processing
	}
	ctx, cancel := g.readContext(g.o.ReplayWait)
	defer cancel()
	if a.Returned {
		if o, err := g.readOrderByKey(ctx, saleID, user, key); err == nil {
			a.OrderID, a.Quantity, a.AmountCents = o.ID, o.Quantity, o.AmountCents
			return o.Status
		}
	}
	if o, found, err := g.readOrder(ctx, a.OrderID); err == nil && found {
		return o.Status
	}
	if a.Returned {
		return sale.Cancelled
	}
	return sale.Processing
}
