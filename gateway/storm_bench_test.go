package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"flashgate/internal/limits"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/token"
)

// stormConn is a connection on which requests come one after the other, each when the one
// before was answered, and whose answers nobody reads.
type stormConn struct {
	net.Conn
	requests [][]byte
	left     int
	rest     []byte // of the request under way
	written  []byte // the last answer
}

func (c *stormConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		if c.left == 0 {
			return 0, io.EOF
		}
		c.left--
		c.rest = c.requests[c.left%len(c.requests)]
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *stormConn) Write(p []byte) (int, error) {
	c.written = append(c.written[:0], p...)
	return len(p), nil
}

func (c *stormConn) Close() error                     { return nil }
func (c *stormConn) SetDeadline(time.Time) error      { return nil }
func (c *stormConn) SetReadDeadline(time.Time) error  { return nil }
func (c *stormConn) SetWriteDeadline(time.Time) error { return nil }
func (c *stormConn) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *stormConn) RemoteAddr() net.Addr             { return c.LocalAddr() }

// storm is a gateway with real tokens and limits that refuses by its cut-off, and the
// requests of many shoppers.
func storm(t testing.TB) (g *Gateway, requests [][]byte) {
	secret := []byte("a secret of the tests, of more than 32 bytes")
	verifier, err := token.NewVerifier(token.Options{Secret: secret, CacheEntries: 100_000})
	require.NoError(t, err)
	rules, err := limits.Load("../configs/limits.yaml")
	require.NoError(t, err)
	plenty := limits.Bucket{Rate: 1e9, Burst: 1e9}
	rules.Address.Purchase, rules.User.Purchase, rules.Gateway.Purchase = plenty, plenty, plenty
	rules.Flow.PurchaseQPS, rules.Hotspot.PurchaseQPS = 1e9, 1e9
	limiter, err := limits.New(rules, limits.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, limiter.Close()) })

	e := &engines{sales: []sale.Sale{flashSale()}, stocks: map[string]int64{"spring": 0}}
	o := options(e, answering(purchase.Answer{Code: sale.CodeSoldOut}))
	o.Verifier, o.Limits = verifier, limiter
	g, err = New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.listener.Close()) })
	require.NoError(t, g.catalog.refresh(context.Background()))
	l, _ := g.catalog.find([]byte("spring"))
	until := time.Now().Add(time.Hour)
	g.cutoff.soldOut(l, time.Now())
	l.shutter.view.Store(&soldOut{until: until, wall: until.UnixNano(), buyers: map[string]struct{}{"bob": {}}})

	issuer, err := token.NewIssuer(secret, "", "")
	require.NoError(t, err)
	for i := range 1000 {
		raw, err := issuer.Issue(fmt.Sprintf("0190b7c2-6d4e-7a5e-9d1c-%012d", i), 10*time.Hour)
		require.NoError(t, err)
		requests = append(requests, fmt.Appendf(nil, "POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"+
			"User-Agent: bench\r\nContent-Type: application/json\r\nContent-Length: 14\r\nAuthorization: Bearer %s\r\n"+
			"Idempotency-Key: 0190b7c2-6d4e-7a5e-9d1c-%012d\r\n\r\n{\"quantity\":1}", raw, i))
	}
	return g, requests
}

// serveStorm serves n requests on one connection, and returns the last answer.
func (g *Gateway) serveStorm(requests [][]byte, n int) string {
	c := &stormConn{requests: requests, left: n}
	_ = g.server.ServeConn(&conn{Conn: c, owner: g.listener, addr: netip.MustParseAddr("127.0.0.1")})
	return string(c.written)
}

// BenchmarkStorm is a refusal as a shopper meets it, but for the network: HTTP, token,
// limits, the cut-off and the answer.
func BenchmarkStorm(b *testing.B) {
	g, requests := storm(b)
	require.Contains(b, g.serveStorm(requests, 2000), "SOLD_OUT") // all users are known to the limits
	l, _ := g.catalog.find([]byte("spring"))
	held := l.shutter.view.Load()
	for name, view := range map[string]*soldOut{"cut off": held, "asking": nil} { // whom it asks says no at once
		b.Run(name, func(b *testing.B) {
			l.shutter.view.Store(view)
			b.ReportAllocs()
			refused := testutil.ToFloat64(g.cutoff.refusals)
			b.ResetTimer()
			began := processorTime(b)
			last := g.serveStorm(requests, b.N)
			require.Contains(b, last, "SOLD_OUT")
			require.Equal(b, view != nil, testutil.ToFloat64(g.cutoff.refusals) == refused+float64(b.N))
			b.ReportMetric(float64(processorTime(b)-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is what the process has used of it, which a busy machine does not stretch.
func processorTime(t testing.TB) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A refusal at the edge allocates nothing.
func TestStormAllocates(t *testing.T) {
	g, requests := storm(t)
	answer := g.serveStorm(requests, 2000)
	require.Contains(t, answer, "HTTP/1.1 409 ")
	require.Contains(t, answer, `"code":"SOLD_OUT"`)
	const each = 1000
	refused := testutil.ToFloat64(g.cutoff.refusals)
	allocs := testing.AllocsPerRun(10, func() { g.serveStorm(requests, each) }) / each
	t.Logf("%.3f allocations a refusal", allocs)
	require.Equal(t, refused+11*each, testutil.ToFloat64(g.cutoff.refusals), "all by the cut-off; the first run warms up")
	if !raceEnabled { // pools drop at random under the race detector
		require.Less(t, allocs, 0.1) // a connection's own are spread over its requests
	}
}
