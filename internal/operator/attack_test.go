package operator_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"flashgate/internal/operator"
	"flashgate/internal/sale"
)

// raw sends bytes as they are and reads all that comes back.
func (p *port) raw(t *testing.T, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", p.server.Addr())
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, request)
	require.NoError(t, err)
	answer, _ := io.ReadAll(c) // a connection may be reset behind the answer
	return string(answer)
}

// ask sends one request, with headers and a body, and returns status and body.
func (p *port) ask(t *testing.T, method, path, body string, headers ...string) (int, string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n", method, path, len(body))
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	raw := p.raw(t, b.String()+"\r\n"+body)
	r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
	require.NoError(t, err, "%s: %q", path, raw)
	defer func() { _ = r.Body.Close() }()
	content, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r.StatusCode, string(content)
}

const bearer = "Authorization: Bearer " + token

// Nothing but the token, whole and in its place, opens the port; no path leads around it.
func TestNothingButTheTokenOpensThePort(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	for name, headers := range map[string][]string{
		"none":                {},
		"no scheme":           {"Authorization: " + token},
		"another scheme":      {"Authorization: Basic " + token},
		"empty":               {"Authorization: Bearer "},
		"the scheme alone":    {"Authorization: Bearer"},
		"a part":              {"Authorization: Bearer " + token[:len(token)-1]},
		"more":                {"Authorization: Bearer " + token + "0"},
		"a list":              {"Authorization: Bearer x, Bearer " + token},
		"the second of two":   {"Authorization: Bearer x", bearer},
		"a blank too many":    {"Authorization: Bearer  " + token},
		"a cookie":            {"Cookie: token=" + token},
		"another header":      {"X-Authorization: Bearer " + token},
		"for a proxy":         {"Proxy-Authorization: Bearer " + token},
		"an upgrade":          {"Connection: Upgrade", "Upgrade: h2c"},
		"a trusted neighbour": {"X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1"},
		"an override":         {"X-HTTP-Method-Override: GET", "X-Original-URL: /healthz", "X-Rewrite-URL: /healthz"},
		"8 kB":                {"Authorization: Bearer " + strings.Repeat("x", 8000)},
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "get"} {
			if method == "HEAD" {
				raw := p.raw(t, "HEAD /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"+strings.Join(append(headers, ""), "\r\n")+"\r\n")
				require.True(t, strings.HasPrefix(raw, "HTTP/1.1 401 "), "%s: %s", name, raw)
				continue
			}
			status, body := p.ask(t, method, "/admin/v1/sales", "", headers...)
			require.Equal(t, 401, status, "%s %s", method, name)
			require.NotContains(t, body, token)
		}
	}
	for _, path := range []string{
		"//metrics", "/./metrics", "/healthz/../metrics", "/healthz/%2e%2e/metrics", "/healthz%2f..%2fmetrics", "/metrics/", "/METRICS",
		"/metrics?token=" + token, "/metrics?access_token=" + token, "/readyz/x", "/healthz;/metrics", "http://h/metrics", "/metrics#/healthz",
		"/debug/pprof", "/debug/pprof/heap", "/debug/vars", "/admin", "/admin/v1", "/", "*",
	} {
		status, body := p.ask(t, "GET", path, "")
		require.Contains(t, []int{301, 307, 400, 401}, status, path)
		require.NotContains(t, body, "flashgate_", path)
		require.NotContains(t, body, token)
	}
	status, _ := p.ask(t, "GET", "/metrics", "", bearer)
	require.Equal(t, 200, status)
}

// Nobody without the token makes the port read much, or wait long.
func TestStrangersCostLittle(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	raw := p.raw(t, "GET /healthz HTTP/1.1\r\nHost: h\r\nX: "+strings.Repeat("x", 40<<10)+"\r\n\r\n")
	require.Contains(t, raw, " 431 ")
	raw = p.raw(t, "POST /admin/v1/sales HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1000000000000\r\n\r\n{")
	require.Contains(t, raw, " 401 ", "answered without its body")
	for _, framing := range []string{"Content-Length: 4\r\nContent-Length: 5\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Content-Length: -1\r\n"} {
		require.Regexp(t, "^HTTP/1.1 (400|501) ", p.raw(t, "POST /admin/v1/sales HTTP/1.1\r\nHost: h\r\n"+framing+"\r\n0\r\n\r\n"))
	}
	large := `{"id":"` + strings.Repeat("x", 2<<20) + `"}`
	status, body := p.ask(t, "POST", "/admin/v1/sales", large, bearer)
	require.Equal(t, 413, status)
	require.Contains(t, body, "BODY_TOO_LARGE")
	require.Contains(t, body, "1048576 bytes")
}

// Ids that mean something to SQL, Redis or a file system are ids of nothing: each is a
// clear refusal, and the tables and the sale beside it stay as they are.
func TestHostileIDs(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	_, err := p.admin.CreateSale(context.Background(), spec("good"))
	require.NoError(t, err)
	_, err = p.admin.OpenSale(context.Background(), "good")
	require.NoError(t, err)
	for _, id := range []string{
		"'", "good'--", "good' OR '1'='1", "good'; DROP TABLE sales; --", `good\`, "good\x00", "\x00", "\xff\xfe", "*", "g?od", "{good}", "good}", "%", "_ood",
		"fg:{good}:stock", "..", "../good", "good/open", "GOOD", "good ", " good", strings.Repeat("g", 10000), "redis.call('FLUSHALL')", "$(id)", "🛒", "null",
	} {
		path := url.PathEscape(id)
		if id == ".." {
			path = "%2e%2e" // or the client would resolve it
		}
		for _, request := range [][2]string{
			{"GET", "/sales/" + path}, {"POST", "/sales/" + path + "/open"}, {"POST", "/sales/" + path + "/pause"}, {"POST", "/sales/" + path + "/load"},
			{"POST", "/sales/" + path + "/restock"}, {"GET", "/audit?sale_id=" + url.QueryEscape(id)},
			{"GET", "/tasks?state=" + url.QueryEscape(id)}, {"POST", "/tasks/" + path + "/retry"}, {"GET", "/dead-batches/" + path}, {"GET", "/reconcile/reports/" + path},
			{"GET", "/reconcile/reports?limit=" + url.QueryEscape(id)},
		} {
			body := ""
			if strings.HasSuffix(request[1], "/restock") {
				body = `{"add":1}`
			}
			status, answer := p.ask(t, request[0], "/admin/v1"+request[1], body, bearer)
			require.Contains(t, []int{301, 307, 400, 404}, status, "%v: %s", request, answer)
		}
		status, answer := p.ask(t, "GET", "/admin/v1/reconcile/reports?sale_id="+url.QueryEscape(id), "", bearer)
		require.Equal(t, 200, status)
		require.JSONEq(t, `{"reports":[]}`, strings.Replace(answer, "null", "[]", 1))
		hostileID, hostileCurrency := spec("x"), spec("x")
		hostileID.ID, hostileCurrency.Currency = id, id
		for _, spec := range []operator.SaleSpec{hostileID, hostileCurrency} {
			if sale.ValidID(spec.ID) && spec.Currency == "CNY" {
				continue // an id that a sale may have
			}
			_, err := p.client.CreateSale(context.Background(), spec)
			require.Equal(t, sale.CodeInvalid, sale.CodeOf(err), "%q: %v", id, err)
		}
	}
	v, err := p.admin.Sale(context.Background(), "good")
	require.NoError(t, err)
	require.Equal(t, sale.Opened, v.Status)
	require.Equal(t, int64(10), v.Inventory.Total)
	all, err := p.admin.Sales(context.Background())
	require.NoError(t, err)
	require.Len(t, all, 1)
}

// A sale's title is text that any terminal, log or page may show.
func TestTitlesAreText(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	for _, title := range []string{"a\nb", "\x1b[2J", "\u009b31m", "a\x00", "\xff", "a\x7f", "\r"} {
		s := spec("t")
		s.Title = title
		_, err := p.admin.CreateSale(context.Background(), s)
		require.Equal(t, sale.CodeInvalid, sale.CodeOf(err), "%q", title)
	}
	s := spec("t")
	s.Title = `'; DROP TABLE sales; -- <script>"手机 🛒`
	_, err := p.client.CreateSale(context.Background(), s)
	require.NoError(t, err)
	v, err := p.client.Sale(context.Background(), "t")
	require.NoError(t, err)
	require.Equal(t, s.Title, v.Title)
}

// lockedText is a log that is read while others write.
type lockedText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The token is in no page of the port, and in no line of its log.
func TestThePortKeepsItsToken(t *testing.T) {
	var logged lockedText
	s, err := operator.NewServer(operator.ServerOptions{
		Listen: "127.0.0.1:0", Token: token, Gatherer: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	p := &port{server: s}
	for _, path := range []string{
		"/metrics", "/healthz", "/readyz", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/allocs?debug=1",
		"/debug/pprof/symbol", "/admin/v1/sales", "/nothing",
	} {
		_, body := p.ask(t, "GET", path, "", bearer)
		require.NotContains(t, body, token, path)
	}
	for _, bad := range []string{
		bearer + "\r\n\r\n", "GET / HTTP/1.1\r\n" + bearer + "\r\n\r\n", "GET / HTTP/9.9\r\nHost: h\r\n" + bearer + "\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\n" + bearer + "\r\nContent-Length: x\r\n\r\n", "GET /" + token + "\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		require.NotContains(t, p.raw(t, bad), token)
	}
	stop()
	require.NoError(t, <-done)
	require.NotContains(t, logged.String(), token)
}
