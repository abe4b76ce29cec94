package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// seller is an edge that notes what reaches the protocol.
type seller struct {
	*edge
	mu   sync.Mutex
	sold []sale.Order
}

func newSeller(t *testing.T, change ...func(*Options)) *seller {
	s := &seller{}
	s.edge = newEdge(t, func(sl *sale.Sale, q []*purchase.Request) {
		s.mu.Lock()
		for _, r := range q {
			s.sold = append(s.sold, r.Order)
		}
		s.mu.Unlock()
		accept(sl, q)
	}, change...)
	return s
}

// orders are those that reached the protocol since the last call.
func (s *seller) orders() []sale.Order {
	s.mu.Lock()
	defer s.mu.Unlock()
	sold := s.sold
	s.sold = nil
	return sold
}

const (
	attackLine = "POST /v1/sales/spring/purchases HTTP/1.1\r\n"
	attackHead = attackLine + "Host: h\r\nAuthorization: Bearer user-alice\r\nContent-Type: application/json\r\n"
	// hidden stands behind the request that is tried, on the same connection: whoever
	// counts the bytes otherwise than the proxy in front takes it for somebody's.
	hidden = attackLine + "Host: h\r\nAuthorization: Bearer user-mallory\r\nConnection: close\r\n\r\n"
)

// Requests whose end can be seen in two places are refused, and the connection with
// them, so that nothing of one can pass for the next.
func TestAmbiguousFramingIsRefused(t *testing.T) {
	x := newSeller(t, func(o *Options) { o.ReadTimeout = 500 * time.Millisecond })
	chunks := "2\r\n{}\r\n0\r\n\r\n"
	for name, request := range map[string]string{
		"length, then chunks":          attackHead + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
		"chunks, then length":          attackHead + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunks,
		"length, and no chunk":         attackHead + "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		"on a read":                    "GET /v1/sales HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"on no route":                  "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":                  attackHead + "Content-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
		"two equal lengths":            attackHead + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
		"a list of lengths":            attackHead + "Content-Length: 2, 2\r\n\r\n{}",
		"a signed length":              attackHead + "Content-Length: +2\r\n\r\n{}",
		"a length below 0":             attackHead + "Content-Length: -2\r\n\r\n{}",
		"a hexadecimal length":         attackHead + "Content-Length: 0x2\r\n\r\n{}",
		"a length beyond 64 bits":      attackHead + "Content-Length: 18446744073709551618\r\n\r\n{}",
		"a blank before the colon":     attackHead + "Content-Length : 2\r\n\r\n{}",
		"chunks and another coding":    attackHead + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunks,
		"codings in two lines":         attackHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunks,
		"nearly chunked":               attackHead + "Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}",
		"chunked behind a control":     attackHead + "Transfer-Encoding: \x0bchunked\r\nContent-Length: 2\r\n\r\n{}",
		"a chunk below 0":              attackHead + "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
		"a chunk beyond 64 bits":       attackHead + "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
		"chunks in bare line feeds":    attackHead + "Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
		"a token in the trailer":       attackHead + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nAuthorization: Bearer user-mallory\r\n\r\n",
		"two hosts":                    strings.Replace(attackHead, "Host: h\r\n", "Host: h\r\nHost: i\r\n", 1) + "Content-Length: 2\r\n\r\n{}",
		"no host":                      strings.Replace(attackHead, "Host: h\r\n", "", 1) + "Content-Length: 2\r\n\r\n{}",
		"no version":                   "GET /v1/sales\r\n\r\n",
		"NUL in a header":              attackHead + "Idempotency-Key: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
		"a carriage return in a value": attackHead + "Idempotency-Key: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",
		"a line without a colon":       attackHead + "Idempotency-Key\r\nContent-Length: 2\r\n\r\n{}",
	} {
		t.Run(name, func(t *testing.T) {
			answer := x.raw([]byte(request + hidden))
			require.True(t, strings.HasPrefix(answer, "HTTP/1.1 400 "), answer)
			require.Contains(t, answer, "Connection: close")
			require.Equal(t, 1, strings.Count(answer, "HTTP/1.1 "), "what is hidden is not answered: %s", answer)
			require.Empty(t, x.orders(), "and buys nothing")
		})
	}
	// A plain chunked request is none of these, and the connection goes on.
	answer := x.raw([]byte(attackHead + "Transfer-Encoding: chunked\r\n\r\n" + chunks + hidden))
	require.Equal(t, 2, strings.Count(answer, "HTTP/1.1 202 "), answer)
}

// A header folded over two lines stays one header.
func TestFoldedHeaders(t *testing.T) {
	x := newSeller(t)
	answer := x.raw([]byte(attackLine + "Host: h\r\nX-Any: y\r\n Authorization: Bearer user-mallory\r\nConnection: close\r\n\r\n"))
	require.Contains(t, answer, " 401 ")
	require.Empty(t, x.orders())
	x.raw([]byte(attackHead + "Idempotency-Key: a\r\n b\r\nConnection: close\r\n\r\n"))
	require.Equal(t, "a b", x.orders()[0].RequestKey)
}

// Ids that mean something to SQL, Lua, Redis's globs and hash tags, the shell or a file
// system are ids of no sale, and reach no engine.
func TestHostileSaleIDs(t *testing.T) {
	x := newSeller(t)
	for _, id := range []string{
		"'", `"`, "spring'--", "spring' OR '1'='1", "spring;DROP TABLE sales", `spring\`, "spring%00", "%00", "%ff%fe", "spr%0Aing",
		"*", "spring*", "?", "[a-z]*", "{spring}", "}:{spring", "spring}", "fg:{spring}:stock", "spring.1", "spring:stock",
		"..", "%2e%2e", "%2e%2e%2fspring", "spring%2fpurchases", "$(id)", "`id`", "|id", "<script>", "spring%20", "%20spring", "sprıng", "ｓpring",
		"SPRING", strings.Repeat("s", 65), strings.Repeat("%41", 1000), "redis.call('FLUSHALL')", "-1", "0", "null", "NaN", "true",
	} {
		for _, path := range []string{"/v1/sales/%s/purchases", "/v1/sales/%s"} {
			method := "GET"
			if strings.HasSuffix(path, "purchases") {
				method = "POST"
			}
			answer := x.raw([]byte(method + " " + strings.ReplaceAll(fmt.Sprintf(path, id), " ", "%20") +
				" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer user-alice\r\nConnection: close\r\n\r\n"))
			require.Regexp(t, `^HTTP/1.1 (400|404|405) `, answer, "%s", id)
		}
		answer := x.raw([]byte("GET /v1/orders?sale_id=" + strings.ReplaceAll(id, " ", "%20") +
			" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer user-alice\r\nConnection: close\r\n\r\n"))
		require.Regexp(t, `^HTTP/1.1 (200|400) `, answer, "%s", id)
	}
	require.Empty(t, x.orders())
	x.engines.change(func() {
		for _, asked := range x.engines.lookups {
			require.True(t, sale.ValidID(asked), "Redis was asked for %q", asked)
		}
	})
}

// JSON that is deep, wide, long, doubled, cut, or followed by more is refused, and
// reserves nothing.
func TestJSONBombs(t *testing.T) {
	x := newSeller(t)
	for name, body := range map[string]string{
		"deep lists":           strings.Repeat("[", 4000),
		"deep objects":         strings.Repeat(`{"quantity":`, 340),
		"a huge number":        `{"quantity":` + strings.Repeat("9", 4000) + `}`,
		"a huge exponent":      `{"quantity":1e999999999}`,
		"a tiny number":        `{"quantity":0.` + strings.Repeat("0", 3000) + `1}`,
		"many fields":          `{` + strings.Repeat(`"a":1,`, 600) + `"quantity":1}`,
		"the field twice":      `{"quantity":1,"quantity":2}`,
		"an escape for it":     `{"quantit\u0079":1}`,
		"trailing garbage":     `{"quantity":1}}`,
		"a second value":       `{"quantity":1}{"quantity":2}`,
		"a comment":            `{"quantity":1/**/}`,
		"no UTF-8":             "{\"quantity\":1}\xff",
		"UTF-16":               "\xff\xfe{\x00}\x00",
		"a byte order mark":    "\ufeff{}",
		"NUL":                  "{}\x00",
		"a prototype":          `{"__proto__":{"quantity":1}}`,
		"a full-width digit":   `{"quantity":１}`,
		"minus zero":           `{"quantity":-0}`,
		"blanks, and no value": strings.Repeat(" ", 4000),
	} {
		x.problem(x.do("POST", "/v1/sales/spring/purchases", body, asAlice...), 400, sale.CodeInvalid, name)
	}
	require.Empty(t, x.orders())
}

// A shopper who sends a byte now and then is let go after the read time-out, and so is
// one who stops reading.
func TestSlowShoppersAreLetGo(t *testing.T) {
	const patience = 400 * time.Millisecond
	x := newSeller(t, func(o *Options) {
		o.ReadTimeout, o.WriteTimeout, o.IdleTimeout = patience, patience, patience
	})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", x.g.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		return c
	}
	for name, trickle := range map[string]string{
		"header": attackHead,
		"body":   attackHead + "Content-Length: 4000\r\n\r\n" + strings.Repeat(" ", 4000),
		"chunks": attackHead + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\n \r\n", 600),
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now() // of a first request the gateway counts from the connection on
			c, gone := dial(), make(chan string, 1)
			go func() {
				answer, _ := io.ReadAll(c)
				gone <- string(answer)
			}()
			tick := time.NewTicker(patience / 40)
			defer tick.Stop()
			for i := 0; ; i++ {
				if i < len(trickle)-1 {
					_, _ = c.Write([]byte{trickle[i]}) // fails once it is gone
				}
				select {
				case answer := <-gone:
					require.GreaterOrEqual(t, time.Since(began), patience)
					require.Contains(t, answer, "REQUEST_TIMEOUT")
					return
				case <-tick.C:
					require.Less(t, time.Since(began), 15*time.Second)
				}
			}
		})
	}
	t.Run("half open: connected, and silent", func(t *testing.T) {
		_, _ = io.ReadAll(dial()) // returns: the gateway hangs up
	})
	t.Run("silent between two requests", func(t *testing.T) {
		c := dial()
		_, err := fmt.Fprintf(c, "GET /v1/sales HTTP/1.1\r\nHost: h\r\n\r\n")
		require.NoError(t, err)
		answer, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Contains(t, string(answer), " 200 ")
	})
	t.Run("reads nothing of what it asks for", func(t *testing.T) {
		c := dial()
		require.NoError(t, c.(*net.TCPConn).SetReadBuffer(4096))
		ask := []byte(strings.Repeat("GET /v1/sales HTTP/1.1\r\nHost: h\r\n\r\n", 1000))
		for {
			if _, err := c.Write(ask); err != nil {
				break // the gateway has hung up
			}
		}
	})
	require.Empty(t, x.orders())
	x.eventually(func() bool { return x.g.listener.open() == 0 })
	require.Equal(t, 202, x.buy().status, "the others buy on")
}

// A shopper who hangs up after asking has bought all the same, and the retry with the
// same key gets that order: nothing depends on his staying.
func TestAShopperWhoHangsUp(t *testing.T) {
	x := newSeller(t)
	c, err := net.Dial("tcp", x.g.Addr().String())
	require.NoError(t, err)
	_, err = fmt.Fprint(c, attackHead+"Idempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}")
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).SetLinger(0))
	x.eventually(func() bool { x.mu.Lock(); defer x.mu.Unlock(); return len(x.sold) == 1 })
	require.NoError(t, c.Close())
	require.Equal(t, "k", x.orders()[0].RequestKey)
	require.Equal(t, 202, x.buy("Idempotency-Key", "k").status)
}

// A storm of one shopper's retries on many connections is many requests of one key: the
// protocol gets each with that key, and answers each.
func TestDuplicateStorm(t *testing.T) {
	x := newSeller(t)
	const storm = 200
	var waiting sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range storm {
		waiting.Go(func() {
			r, err := x.send("POST", "/v1/sales/spring/purchases", "", append(asAlice, "Idempotency-Key", "same")...)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				statuses[r.status]++
			}
		})
	}
	waiting.Wait()
	require.Equal(t, map[int]int{202: storm}, statuses)
	for _, o := range x.orders() {
		require.Equal(t, "same", o.RequestKey)
		require.Equal(t, "alice", o.UserID)
	}
}

// A gateway whose clock is hours off sells as any other: whether the sale is on is for
// Redis's clock to say, ids stay apart, and an order is found by the Location it came with.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{-26 * time.Hour, -3 * time.Hour, 3 * time.Hour, 26 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			x := newSeller(t, func(o *Options) {
				o.Now = func() time.Time { return clock().Add(skew) }
				o.IDs = sale.NewIDs(1, o.Now)
			})
			first, second := x.buy("Idempotency-Key", "a"), x.buy("Idempotency-Key", "b")
			require.Equal(t, 202, first.status, first.body)
			require.Equal(t, 202, second.status, second.body)
			sold := x.orders()
			require.Less(t, sold[0].ID, sold[1].ID)
			x.engines.change(func() {
				for i := range sold {
					x.engines.records["spring"] = append(x.engines.records["spring"],
						stock.Record{OrderID: sold[i].ID, BatchID: 9, UserID: "alice", Quantity: 1, Batch: stock.StateConfirmed})
				}
			})
			for _, r := range []response{first, second} {
				poll := x.do("GET", r.header.Get("Location"), "", asAlice...)
				require.Equal(t, 200, poll.status, poll.body)
				require.Equal(t, r.field(t, "order_id"), poll.field(t, "order_id"))
			}
		})
	}
	t.Run("a clock that goes back", func(t *testing.T) {
		var mu sync.Mutex
		now := clock()
		x := newSeller(t, func(o *Options) {
			o.IDs = sale.NewIDs(1, func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				now = now.Add(-time.Minute)
				return now
			})
		})
		for range 5 {
			require.Equal(t, 202, x.buy().status)
		}
		sold := x.orders()
		for i := 1; i < len(sold); i++ {
			require.Greater(t, sold[i].ID, sold[i-1].ID)
		}
	})
}

// What a shopper sent comes back in no header and, in a body, as JSON: no answer can be
// split, and nothing in it runs.
func TestNothingOfARequestComesBackRaw(t *testing.T) {
	x := newSeller(t)
	for _, evil := range []string{"%0d%0aSet-Cookie:%20a=b", "<script>alert(1)</script>", "%22%7d", "%e2%80%a8"} {
		for _, request := range []string{
			"GET /v1/sales/" + evil, "GET /v1/orders/" + evil, "GET /v1/orders?sale_id=" + evil, "GET /" + evil, "POST /v1/sales/" + evil + "/purchases",
		} {
			raw := x.raw([]byte(request + " HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer user-alice\r\nConnection: close\r\n\r\n"))
			r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
			require.NoError(t, err)
			require.Empty(t, r.Header.Get("Set-Cookie"))
			require.NoError(t, r.Body.Close())
			require.NotContains(t, raw, "<script>")
			require.Contains(t, r.Header.Get("Content-Type"), "json")
		}
	}
}

// records passes on the level of each record.
type records struct {
	slog.Handler
	levels chan slog.Level
}

func (r records) Handle(_ context.Context, record slog.Record) error {
	r.levels <- record.Level
	return nil
}

// Requests that nobody can read are for debugging: a stranger fills no log with them.
func TestStrangersFillNoLog(t *testing.T) {
	debug := slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug})
	const requests = 20
	log := records{debug, make(chan slog.Level, requests)}
	x := newSeller(t, func(o *Options) { o.Log = slog.New(log) })
	for range requests {
		require.Contains(t, x.raw([]byte(attackHead+"Content-Length: x\r\n\r\n")), " 400 ")
	}
	for range requests {
		select {
		case level := <-log.levels:
			require.Equal(t, slog.LevelDebug, level)
		case <-time.After(20 * time.Second):
			t.Fatal("the connection is not in the log")
		}
	}
}
