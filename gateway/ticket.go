package gateway

import (
	"time"

	"flashgate/internal/limits"
	"flashgate/internal/sale"
	"flashgate/internal/ticket"
)

const (
	headerTicket = "Purchase-Ticket"
	headerProof  = "Challenge-Proof"
)

// proofMaxBytes bounds what a shopper sends to a challenge: the tokens of the usual
// captchas are shorter. The header's own bound comes first.
const proofMaxBytes = 4096

const (
	detailNoTickets = "no sale here gives out tickets"
	detailProof     = "Challenge-Proof: want at most 4096 bytes, given once"
)

// ticket is POST /v1/sales/{id}/ticket: a ticket for a purchase by this user, once the
// sale has begun by this gateway's clock. After the end it is given too: a winner's
// retry needs none then, and nobody is sold anything.
func (g *Gateway) ticket(c *call, id []byte) refusal {
	if no := g.authenticate(c); no.code != "" {
		return no
	}
	l, no := g.published(id)
	if no.code != "" {
		return no
	}
	if c.tooLarge {
		return refuse(sale.CodeTooLarge)
	}
	if no := g.allowUser(c, limits.Read); no.code != "" {
		return no
	}
	if no := g.allowSale(c, limits.Read, l); no.code != "" {
		return no
	}
	now := g.o.Now()
	switch {
	case g.o.Tickets == nil, g.o.Limits == nil:
		return refuseWith(sale.CodeNotFound, detailNoTickets)
	case now.Before(l.sale.StartsAt):
		return refuse(sale.CodeNotStarted)
	case l.sale.Status == sale.Paused:
		return refuse(sale.CodePaused)
	}
	if no := g.challenge(c, l); no.code != "" {
		return no
	}
	_, ttl := g.o.Limits.TicketRules()
	expires := g.o.Now().Add(ttl)
	c.buf = append(c.buf[:0], `{"ticket":"`...)
	c.buf = append(c.buf, g.o.Tickets.Issue(c.user, l.sale.ID, expires)...)
	c.buf = append(c.buf, `","expires_at":`...)
	c.buf = appendTime(c.buf, expires)
	c.buf = append(c.buf, '}')
	c.answer(200)
	return refusal{}
}

// challenge has the shopper's proof judged, in one of the slots for reads.
func (g *Gateway) challenge(c *call, l *listing) refusal {
	if g.o.Challenge == nil {
		return refusal{}
	}
	proof := c.ctx.Request.Header.PeekAll(headerProof)
	if len(proof) > 1 || len(proof) == 1 && len(proof[0]) > proofMaxBytes {
		return refuseWith(sale.CodeInvalid, detailProof)
	}
	a := ticket.Attempt{User: string(c.user), SaleID: l.sale.ID, Address: c.addr}
	if len(proof) == 1 {
		a.Proof = string(proof[0])
	}
	ctx, cancel := g.readContext(g.o.PurchaseTimeout)
	defer cancel()
	select {
	case g.reads <- struct{}{}:
	case <-ctx.Done():
		return refuse(sale.CodeUnavailable)
	}
	defer func() { <-g.reads }()
	switch err := g.o.Challenge(ctx, a); {
	case err == nil:
		return refusal{}
	case sale.CodeOf(err) == sale.CodeChallenge:
		return refuse(sale.CodeChallenge)
	default:
		g.o.Log.Warn("a challenge was not judged", "sale", l.sale.ID, "err", err)
		return refuse(sale.CodeUnavailable)
	}
}

// checkTicket refuses a purchase without a ticket, if the limits require one. A sale
// that is over can sell nothing: a winner's retry goes on without.
func (g *Gateway) checkTicket(c *call, l *listing) refusal {
	if g.o.Limits == nil || g.o.Tickets == nil {
		return refusal{}
	}
	required, _ := g.o.Limits.TicketRules()
	const skew = skewMinutes * time.Minute
	now := g.o.Now()
	if !required || now.After(l.sale.EndsAt.Add(skew)) {
		return refusal{}
	}
	given := c.ctx.Request.Header.Peek(headerTicket)
	if err := g.o.Tickets.Check(given, c.user, l.sale.ID, now); err != nil {
		return ticketRefusal(err)
	}
	return refusal{}
}

func ticketRefusal(err error) refusal {
	known, ok := err.(*sale.Error) //nolint:errorlint // Check's errors are of this type
	if !ok {
		panic("BUG: a ticket's error without a code: " + err.Error())
	}
	return refuseWith(known.Code, known.Detail)
}
