package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
)

// The order of refusals (DESIGN §6): route, limits by address, token, sale, body,
// limits by user. Each case has the fault that is named and every later one.
func TestRefusalsInOrder(t *testing.T) {
	limits := &gates{}
	x := newEdge(t, accept, func(o *Options) { o.Limits = limits })
	const (
		purchases = "/v1/sales/spring/purchases"
		nowhere   = "/v1/sales/nosuch/purchases"
		bad       = `{"quantity":`
	)
	good := []string{"Authorization", "Bearer user-alice"}
	forged := []string{"Authorization", "Bearer forged"}
	for _, c := range []struct {
		name         string
		address, usr bool
		method, path string
		body         string
		headers      []string
		status       int
		code         sale.Code
	}{
		{"route", true, true, "POST", "/v1/nothing", bad, forged, 404, sale.CodeNotFound},
		{"method", true, true, "PUT", nowhere, bad, forged, 405, sale.CodeMethod},
		{"address", true, true, "POST", nowhere, bad, forged, 429, sale.CodeRateLimited},
		{"token", false, true, "POST", nowhere, bad, forged, 401, sale.CodeUnauthenticated},
		{"no token", false, true, "POST", nowhere, bad, nil, 401, sale.CodeUnauthenticated},
		{"sale", false, true, "POST", nowhere, bad, good, 404, sale.CodeSaleNotFound},
		{"draft sale", false, true, "POST", "/v1/sales/draft/purchases", bad, good, 404, sale.CodeSaleNotFound},
		{"body too large", false, true, "POST", purchases, strings.Repeat("x", 5000), append(good, "Content-Type", "text/plain"), 413, sale.CodeTooLarge},
		{"media type", false, true, "POST", purchases, bad, append(good, "Content-Type", "text/plain"), 415, sale.CodeMediaType},
		{"no media type", false, true, "POST", purchases, bad, append(good, "Content-Type", ""), 415, sale.CodeMediaType},
		{"multipart", false, true, "POST", purchases, "--x\r\nrubbish", append(good, "Content-Type", "multipart/form-data; boundary=x"), 415, sale.CodeMediaType},
		{"encoding", false, true, "POST", purchases, bad, append(good, "Content-Encoding", "gzip"), 415, sale.CodeMediaType},
		{"body", false, true, "POST", purchases, bad, append(good, "Idempotency-Key", "k"), 400, sale.CodeInvalid},
		{"key", false, true, "POST", purchases, "{}", append(good, "Idempotency-Key", strings.Repeat("k", 65)), 400, sale.CodeInvalid},
		{"key of no UTF-8", false, true, "POST", purchases, "{}", append(good, "Idempotency-Key", "k\xff"), 400, sale.CodeInvalid},
		{"user", false, true, "POST", purchases, "{}", good, 429, sale.CodeRateLimited},
		{"large body, bad route", true, true, "POST", "/v1/nothing", strings.Repeat("x", 5000), forged, 404, sale.CodeNotFound},
		{"large body, address", true, true, "POST", purchases, strings.Repeat("x", 5000), forged, 429, sale.CodeRateLimited},
		{"large body, bad token", false, true, "POST", purchases, strings.Repeat("x", 5000), forged, 401, sale.CodeUnauthenticated},
		{"large body, bad sale", false, true, "POST", nowhere, strings.Repeat("x", 5000), good, 404, sale.CodeSaleNotFound},
		{"orders: token", false, true, "GET", "/v1/orders/x", "", forged, 401, sale.CodeUnauthenticated},
		{"orders: user", false, true, "GET", "/v1/orders/x", "", good, 429, sale.CodeRateLimited},
		{"orders: id", false, false, "GET", "/v1/orders/x", "", good, 404, sale.CodeOrderNotFound},
		{"orders: sale id", false, false, "GET", "/v1/orders?sale_id=a.b", "", good, 400, sale.CodeInvalid},
		{"sales: address", true, true, "GET", "/v1/sales", "", nil, 429, sale.CodeRateLimited},
		{"sales: unknown", false, true, "GET", "/v1/sales/nosuch", "", nil, 404, sale.CodeSaleNotFound},
		{"sales: draft", false, true, "GET", "/v1/sales/draft", "", nil, 404, sale.CodeSaleNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			limits.address, limits.user = c.address, c.usr
			r := x.do(c.method, c.path, c.body, c.headers...)
			x.problem(r, c.status, c.code)
			switch c.status {
			case 405:
				require.Equal(t, "POST", r.header.Get("Allow"))
			case 401:
				require.Equal(t, "Bearer", r.header.Get("WWW-Authenticate"))
			case 429:
				require.Equal(t, "3", r.header.Get("Retry-After"), "2.5 s, rounded up")
				require.Equal(t, float64(3), r.field(t, "retry_after"))
			}
		})
	}
	limits.address, limits.user, limits.gateway = false, false, true
	x.problem(x.buy(), 429, sale.CodeRateLimited)
	limits.gateway = false
	require.Equal(t, 202, x.buy().status)
}

func TestTokenHeader(t *testing.T) {
	x := newEdge(t, accept)
	for _, value := range []string{"user-alice", "Basic user-alice", "Bearer", "Bearer ", "Bearer  ", "Beareruser-alice"} {
		x.problem(x.buy("Authorization", value), 401, sale.CodeUnauthenticated, value)
	}
	require.Equal(t, 202, x.buy("Authorization", "bearer user-alice").status, "a scheme's case does not matter")
	two := x.raw([]byte("POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" +
		"Authorization: Bearer user-alice\r\nAuthorization: Bearer user-bob\r\n\r\n"))
	require.Contains(t, two, " 401 ")
	two = x.raw([]byte("POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" +
		"Authorization: Bearer user-alice\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n"))
	require.Contains(t, two, " 400 ")
}

func TestMethods(t *testing.T) {
	x := newEdge(t, accept)
	for path, allow := range map[string]string{
		"/v1/sales": "GET, HEAD", "/v1/sales/spring": "GET, HEAD", "/v1/orders": "GET, HEAD", "/v1/orders/1": "GET, HEAD",
		"/v1/sales/spring/purchases": "POST",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
			r := x.do(method, path, "")
			if strings.Contains(allow, method) {
				require.NotEqual(t, 405, r.status, "%s %s", method, path)
				continue
			}
			require.Equal(t, 405, r.status, "%s %s", method, path)
			require.Equal(t, allow, r.header.Get("Allow"), "%s %s", method, path)
		}
	}
}

func TestUnreadableRequests(t *testing.T) {
	ran := 0
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) { ran++; accept(s, q) },
		func(o *Options) { o.ReadTimeout = 500 * time.Millisecond })
	head := "POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer user-alice\r\nContent-Type: application/json\r\n"
	for _, c := range []struct{ name, request, status, code string }{
		{"no HTTP", "\x16\x03\x01\x00\xa5\r\n\r\n", "400", "INVALID_REQUEST"},
		{"header too large", head + "X-Big: " + strings.Repeat("x", 9000) + "\r\n\r\n", "431", "HEADER_TOO_LARGE"},
		{"path too large", "GET /" + strings.Repeat("x", 9000) + " HTTP/1.1\r\nHost: h\r\n\r\n", "431", "HEADER_TOO_LARGE"},
		{"body too large", head + "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000), "413", "BODY_TOO_LARGE"},
		{"chunks too large", head + "Transfer-Encoding: chunked\r\n\r\n2000\r\n" + strings.Repeat("x", 0x2000) + "\r\n0\r\n\r\n", "413", "BODY_TOO_LARGE"},
		{"broken chunks", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "400", "INVALID_REQUEST"},
		{"header never ends", head, "408", "REQUEST_TIMEOUT"},
		{"body never ends", head + "Content-Length: 14\r\n\r\n{\"quan", "408", "REQUEST_TIMEOUT"},
		{"silence", "", "408", "REQUEST_TIMEOUT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer := x.raw([]byte(c.request))
			require.True(t, strings.HasPrefix(answer, "HTTP/1.1 "+c.status+" "), answer)
			require.Contains(t, answer, `"code":"`+c.code+`"`)
			require.Contains(t, answer, "Content-Type: application/problem+json")
			require.Contains(t, answer, "Connection: close")
		})
	}
	require.Zero(t, ran, "nothing of it may reach the protocol")
}

func TestChunkedBody(t *testing.T) {
	x := newEdge(t, accept)
	answer := x.raw([]byte("POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer user-alice\r\nConnection: close\r\n" +
		"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"quantit\r\n5\r\ny\":2}\r\n0\r\n\r\n"))
	require.Contains(t, answer, " 202 ")
	require.Contains(t, answer, `"quantity":2`)
}

func TestExpectContinue(t *testing.T) {
	x := newEdge(t, accept)
	c, err := net.Dial("tcp", x.g.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = fmt.Fprintf(c, "POST /v1/sales/spring/purchases HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer user-alice\r\n"+
		"Content-Type: application/json\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n")
	require.NoError(t, err)
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "100 Continue")
	_, err = r.ReadString('\n')
	require.NoError(t, err)
	_, err = c.Write([]byte(`{"quantity":2}`))
	require.NoError(t, err)
	answer, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, 202, answer.StatusCode)
}

func TestConnectionLimit(t *testing.T) {
	x := newEdge(t, accept)
	x.g.listener.mu.Lock()
	x.g.listener.limit = 1
	x.g.listener.mu.Unlock()
	require.Equal(t, 202, x.buy().status) // kept alive
	answer := x.raw(nil)
	require.Contains(t, answer, "HTTP/1.1 503 ")
	require.Contains(t, answer, `"code":"UNAVAILABLE"`)
	require.Contains(t, answer, "Retry-After: 1")
	require.Equal(t, 202, x.buy().status)
	require.Equal(t, 1.0, testutil.ToFloat64(x.g.metrics.refused))
}

func TestPanicIsOneAnswer(t *testing.T) {
	x := newEdge(t, accept)
	x.engines.change(func() { x.engines.onOrder = func() { panic("BUG: of a test") } })
	x.problem(x.do("GET", "/v1/orders/1", "", "Authorization", "Bearer user-alice"), 500, sale.CodeInternal)
	require.Equal(t, 202, x.buy().status)
	require.Equal(t, 1.0, testutil.ToFloat64(x.g.metrics.panics))
	require.Zero(t, x.g.metrics.inFlight.Load())
}

// What is in hand is answered; what comes meanwhile gets a definite no; then the
// connections are closed and Run returns.
func TestDrain(t *testing.T) {
	inHand, answer := make(chan struct{}), make(chan struct{})
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) {
		close(inHand)
		<-answer
		accept(s, q)
	})
	kept, err := net.Dial("tcp", x.g.Addr().String())
	require.NoError(t, err)
	defer kept.Close()
	r := bufio.NewReader(kept)
	ask := func() *http.Response {
		_, err := fmt.Fprintf(kept, "GET /v1/sales HTTP/1.1\r\nHost: h\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, answer.Body)
		require.NoError(t, err)
		answer.Body.Close()
		return answer
	}
	require.Equal(t, 200, ask().StatusCode)

	bought := make(chan response, 1)
	go func() {
		r, _ := x.send("POST", "/v1/sales/spring/purchases", "", "Authorization", "Bearer user-alice")
		bought <- r
	}()
	<-inHand
	x.stop()
	x.eventually(func() bool { return x.g.Ready() != nil })
	late := ask()
	require.Equal(t, 503, late.StatusCode)
	require.True(t, late.Close)
	require.Equal(t, "1", late.Header.Get("Retry-After"))
	_, err = net.DialTimeout("tcp", x.g.Addr().String(), time.Second)
	require.Error(t, err, "no new connections")
	select {
	case <-x.ended:
		t.Fatal("returned with a purchase in hand")
	default:
	}
	close(answer)
	require.Equal(t, 202, (<-bought).status)
	require.NoError(t, <-x.ended)
	x.ended <- nil
	require.Zero(t, x.g.listener.open())
}

// A read in hand holds the drain up too, however long nothing else happens.
func TestDrainWaitsForReads(t *testing.T) {
	inHand, goOn := make(chan struct{}), make(chan struct{})
	x := newEdge(t, accept)
	x.engines.change(func() { x.engines.onOrder = func() { close(inHand); <-goOn } })
	read := make(chan response, 1)
	go func() {
		r, _ := x.send("GET", "/v1/orders/1", "", asAlice...)
		read <- r
	}()
	<-inHand
	x.stop()
	require.Never(t, func() bool { return len(x.ended) > 0 || x.g.listener.open() == 0 },
		2*drainQuietMillis*time.Millisecond, drainPollMillis*time.Millisecond)
	close(goOn)
	x.problem(<-read, 404, sale.CodeOrderNotFound)
	require.NoError(t, <-x.ended)
	x.ended <- nil
}

func TestDrainDeadline(t *testing.T) {
	inHand, answer := make(chan struct{}), make(chan struct{})
	x := newEdge(t, func(s *sale.Sale, q []*purchase.Request) {
		close(inHand)
		<-answer
		accept(s, q)
	}, func(o *Options) { o.DrainTimeout = 50 * time.Millisecond })
	go func() { _, _ = x.send("POST", "/v1/sales/spring/purchases", "", "Authorization", "Bearer user-alice") }()
	<-inHand
	x.stop()
	err := <-x.ended
	x.ended <- nil
	require.ErrorContains(t, err, "1 requests were still in hand")
	close(answer)
}

func TestOptions(t *testing.T) {
	base := options(&engines{}, accept)
	for name, change := range map[string]func(*Options){
		"connections: want at least 8192":  func(o *Options) { o.Connections = 100 },
		"batch size: want at least 1":      func(o *Options) { o.BatchMax = -1 },
		"read timeout: want 1ms to 1h":     func(o *Options) { o.ReadTimeout = 0 },
		"idle timeout: want 1ms to 1h":     func(o *Options) { o.IdleTimeout = 0 },
		"sale refresh: want 1ms to 1s":     func(o *Options) { o.SaleRefresh = 2 * time.Second },
		"stock refresh: want 1ms to 150ms": func(o *Options) { o.StockRefresh = 200 * time.Millisecond },
		"lease of the cut-off: want 0s to": func(o *Options) { o.CutoffLease = time.Second },
		"lease of the cut-off: want 0, or": func(o *Options) { o.CutoffLease = time.Microsecond },
		"buyers of the cut-off: want at l": func(o *Options) { o.CutoffBuyers = 0 },
		"listen tcp: address 70000: inval": func(o *Options) { o.Listen = "127.0.0.1:70000" },
	} {
		o := base
		change(&o)
		_, err := New(o)
		require.ErrorContains(t, err, strings.TrimSuffix(name, "inval"))
	}
	require.PanicsWithValue(t, "BUG: gateway.New wants a verifier, a ledger, a stock, a runner and a source of ids", func() { _, _ = New(Options{}) })
	g, err := New(base)
	require.NoError(t, err)
	require.Error(t, g.Ready(), "nothing is known of the sales yet")
	s := g.server
	require.Positive(t, s.ReadTimeout)
	require.Positive(t, s.WriteTimeout)
	require.Positive(t, s.IdleTimeout)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.NoError(t, g.Run(ctx))
}
