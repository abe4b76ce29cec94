package gateway

import (
	"bytes"
	"errors"

	"flashgate/internal/sale"
)

var schemeBearer = []byte("Bearer ")

// authenticate finds out who is asking.
func (g *Gateway) authenticate(c *call) refusal {
	values := c.ctx.Request.Header.PeekAll("Authorization")
	if len(values) == 0 {
		return refuse(sale.CodeUnauthenticated)
	}
	// Two headers, two users: none of them is taken.
	scheme := len(schemeBearer)
	if len(values) > 1 || len(values[0]) <= scheme || !bytes.EqualFold(values[0][:scheme], schemeBearer) {
		return refuseWith(sale.CodeUnauthenticated, "Authorization: want one Bearer token")
	}
	user, _, err := g.o.Verifier.Verify(c.user[:0], bytes.TrimSpace(values[0][scheme:]))
	if err != nil {
		var e *sale.Error
		if errors.As(err, &e) && e.Code == sale.CodeUnauthenticated {
			return refuseWith(sale.CodeUnauthenticated, e.Detail)
		}
		g.o.Log.Error("token was not verified", "err", err)
		return refuse(sale.CodeInternal)
	}
	c.user = user
	return refusal{}
}
