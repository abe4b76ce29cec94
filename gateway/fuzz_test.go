package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/token"
)

// fuzzEdge is a gateway without a network whose tokens are real ones.
type fuzzEdge struct {
	g       *Gateway
	engines *engines
	bearer  string // alice's
	sold    []sale.Order
}

var fuzzSecret = []byte("a secret of the fuzz targets, of more than 32 bytes")

func newFuzzEdge(f *testing.F) *fuzzEdge {
	x := &fuzzEdge{}
	x.g = still(f, func(sl *sale.Sale, q []*purchase.Request) {
		for _, r := range q {
			x.sold = append(x.sold, r.Order)
		}
		accept(sl, q)
	})
	x.engines = x.g.o.Stock.(*engines)
	x.g.o.PurchaseTimeout = time.Minute
	var err error
	x.g.o.Verifier, err = token.NewVerifier(token.Options{Secret: fuzzSecret})
	require.NoError(f, err)
	x.bearer, err = jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "alice", "exp": 4102444800}).SignedString(fuzzSecret)
	require.NoError(f, err)
	return x
}

// serve reads one request as the server would and answers it; nil: it cannot be read.
func (x *fuzzEdge) serve(raw []byte) *fasthttp.RequestCtx {
	var ctx fasthttp.RequestCtx
	ctx.Init(new(fasthttp.Request), nil, nil)
	if ctx.Request.ReadLimitBody(bufio.NewReaderSize(bytes.NewReader(raw), x.g.o.HeaderBytes), x.g.o.BodyBytes) != nil {
		return nil
	}
	x.g.serve(&ctx, false)
	return &ctx
}

// whole checks what every answer is: JSON of a status that the API has, and no header
// that the gateway does not write.
func whole(t *testing.T, ctx *fasthttp.RequestCtx) (status int) {
	t.Helper()
	status = ctx.Response.StatusCode()
	body := ctx.Response.Body()
	require.True(t, json.Valid(body) && utf8.Valid(body), "%d %q", status, body)
	if status >= 400 {
		var p struct {
			Status int
			Code   sale.Code
		}
		require.NoError(t, json.Unmarshal(body, &p))
		require.Equal(t, status, p.Status)
		require.Contains(t, problems, p.Code)
		require.NotEqual(t, sale.CodeInternal, p.Code, "%s", body)
	}
	for key := range ctx.Response.Header.All() {
		switch string(key) {
		case "Content-Type", "Content-Length", "Cache-Control", "Location", "Retry-After", "Allow", "Www-Authenticate", "WWW-Authenticate",
			"Connection", "Idempotent-Replayed":
		default:
			t.Fatalf("header %s", key)
		}
	}
	return status
}

// FuzzPurchase sends whole requests through the handler. TOKEN in one stands for a token
// of alice's. What reaches the protocol is hers, of the sale, and within all bounds; what
// does not is refused in a document of its own.
func FuzzPurchase(f *testing.F) {
	const head = "POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\nContent-Type: application/json\r\n"
	for _, seed := range []string{
		head + "Content-Length: 14\r\n\r\n{\"quantity\":2}",
		head + "Idempotency-Key: cl\xc3\xa9 1\r\n\r\n",
		head + "Idempotency-Key: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
		head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		strings.Replace(head, "/v1/", "/v1/../v1/%2e/", 1) + "\r\n",
		strings.Replace(head, "spring", "spring%00", 1) + "\r\n",
		strings.Replace(head, "Bearer TOKEN", "bearer  TOKEN ", 1) + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
		strings.Replace(head, "POST /v1", "POST http://other:80/v1", 1) + "Expect: 100-continue\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	x := newFuzzEdge(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		x.sold = nil
		ctx := x.serve(bytes.ReplaceAll(raw, []byte("TOKEN"), []byte(x.bearer)))
		if ctx == nil {
			return
		}
		status := whole(t, ctx)
		require.Equal(t, status == 202, len(x.sold) == 1, "%d, %v", status, x.sold)
		if status != 202 {
			return
		}
		o := x.sold[0]
		require.Equal(t, "alice", o.UserID)
		require.Equal(t, "spring", o.SaleID)
		require.Positive(t, o.ID)
		require.True(t, o.Quantity >= 1 && o.Quantity <= sale.MaxQuantity, "%d", o.Quantity)
		require.Equal(t, int64(o.Quantity)*flashSale().PriceCents, o.AmountCents)
		require.True(t, len(o.RequestKey) <= sale.MaxRequestKeyBytes && plainText([]byte(o.RequestKey)), "%q", o.RequestKey)
		require.True(t, ctx.Request.Header.IsPost())
		require.Equal(t, fmt.Sprintf("/v1/orders/%d?sale_id=spring", o.ID), string(ctx.Response.Header.Peek("Location")))
	})
}

// FuzzOrders asks for orders by any path and query. Redis is asked for sales by ids that
// can be some, and nobody sees another's order.
func FuzzOrders(f *testing.F) {
	mine, others := orderID(1), orderID(2)
	for _, seed := range []string{
		"/v1/orders", "/v1/orders?sale_id=spring", "/v1/orders/" + mine.String() + "?sale_id=spring", "/v1/orders/" + others.String(),
		"/v1/orders/1?sale_id=%73pring&sale_id=x", "/v1/orders?sale_id=a.b", "/v1/orders?sale_id=%7bs%7d", "/v1/orders/%00?%00=%00",
		"/v1/orders/18446744073709551617", "/v1/orders?sale_id=" + strings.Repeat("s", 65), "/v1/sales?x=y", "/v1/sales/spring;a=b",
	} {
		f.Add(seed)
	}
	x := newFuzzEdge(f)
	theirs := held(others, stock.StateConfirmed)
	theirs.UserID = "bob"
	x.engines.records = map[string][]stock.Record{"spring": {held(mine, stock.StateConfirmed), theirs}}
	x.engines.orders = nil
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n\x00") || target == "" {
			return
		}
		x.engines.lookups = nil
		ctx := x.serve([]byte("GET " + target + " HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + x.bearer + "\r\n\r\n"))
		if ctx == nil {
			return
		}
		whole(t, ctx)
		for _, id := range x.engines.lookups {
			require.True(t, sale.ValidID(id), "%q", id)
		}
		if !strings.Contains(string(ctx.Path()), others.String()) {
			require.NotContains(t, string(ctx.Response.Body()), others.String(), "bob's order")
		}
		if u, err := url.Parse(target); err == nil && u.Path == "/v1/orders/"+others.String() && ctx.Response.StatusCode() == 200 {
			t.Fatal("bob's order")
		}
	})
}
