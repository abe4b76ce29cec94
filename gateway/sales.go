package gateway

import (
	"strconv"

	"flashgate/internal/limits"
	"flashgate/internal/sale"
)

var (
	jsonType           = []byte("application/json")
	headerCacheControl = []byte("Cache-Control")
	noStore            = []byte("no-store")
)

// head writes what every answer has.
func (c *call) head(status int, contentType []byte) {
	response := &c.ctx.Response
	response.SetStatusCode(status)
	response.Header.SetContentTypeBytes(contentType)
	// Every answer is of its moment; that to a POST no cache stores unless it is told to
	// (RFC 9110 §9.3.3), and a storm's refusals are read that much sooner.
	if !c.ctx.IsPost() {
		response.Header.SetCanonical(headerCacheControl, noStore)
	}
}

// answer sends c.buf as the JSON body.
func (c *call) answer(status int) {
	c.head(status, jsonType)
	c.ctx.Response.SetBody(c.buf)
}

// sales is GET /v1/sales.
func (g *Gateway) sales(c *call) refusal {
	v := g.catalog.view.Load()
	if v == nil {
		return refuse(sale.CodeUnavailable)
	}
	c.buf = v.append(c.buf[:0], g.o.Now())
	c.answer(200)
	return refusal{}
}

// sale is GET /v1/sales/{id}.
func (g *Gateway) sale(c *call, id []byte) refusal {
	l, no := g.published(id)
	if no.code != "" {
		return no
	}
	if no := g.allowSale(c, limits.Read, l); no.code != "" {
		return no
	}
	c.buf = l.append(c.buf[:0], g.o.Now())
	c.answer(200)
	return refusal{}
}

// published finds a published sale, or says truthfully that it can't.
func (g *Gateway) published(id []byte) (*listing, refusal) {
	l, ready := g.catalog.find(id)
	switch {
	case l != nil:
		return l, refusal{}
	case !ready, !g.catalog.lacks(string(id)):
		// It may have been published since the ledger was last heard.
		return nil, refuse(sale.CodeUnavailable)
	default:
		return nil, refuse(sale.CodeSaleNotFound)
	}
}

// appendOrderHead writes what every answer about an order begins with, up to its
// status.
func appendOrderHead(dst []byte, o *sale.Order, currency string) []byte {
	dst = append(dst, `{"order_id":"`...)
	dst = strconv.AppendInt(dst, int64(o.ID), 10)
	dst = append(dst, `","sale_id":`...)
	dst = appendJSONString(dst, o.SaleID)
	dst = append(dst, `,"quantity":`...)
	dst = strconv.AppendInt(dst, int64(o.Quantity), 10)
	dst = append(dst, `,"amount_cents":`...)
	dst = strconv.AppendInt(dst, o.AmountCents, 10)
	dst = append(dst, `,"currency":`...)
	dst = appendJSONString(dst, currency)
	return append(dst, `,"status":"`...)
}
