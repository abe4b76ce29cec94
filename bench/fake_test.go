package main

import (
	"bytes"
	"context"
	"flashgate/bench/load"
	"flashgate/bench/system"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// The test binary is its own flashgate: with fakeVariable set it is a command or a
// daemon of a shop in memory, which can be told by its config to do one thing wrong.
const fakeVariable = "FLASHGATE_BENCH_FAKE"

func TestMain(m *testing.M) {
	if os.Getenv(fakeVariable) == "" {
		os.Exit(runTests(m))
	}
	if err := fakeFlashgate(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runTests runs the tests with an environment in which every process they start is
// the fake, and what failed runs keep is removed in the end.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "flashgate-bench-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for name, value := range map[string]string{fakeVariable: "1", "TMPDIR": dir, "FLASHGATE_JWT_SECRET": ""} {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// persistDelay is how long an order of the fake stays PROCESSING.
const persistDelay = 50 * time.Millisecond

// fakeShop sells like flashgate, but for its fault.
type fakeShop struct {
	fault string
	limit string // raisedLimit, or every purchase is refused

	mu       sync.Mutex
	total    int
	sold     int
	refusals int
	last     int64
	opened   bool
	orders   map[string]fakeOrder // by user
}

type fakeOrder struct {
	id int64
	at time.Time
}

func (s *fakeShop) serve(c *fasthttp.RequestCtx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := string(c.Path())
	user := strings.TrimPrefix(string(c.Request.Header.Peek("Authorization")), "Bearer token-of-")
	switch {
	case c.IsPost() && strings.HasSuffix(path, "/purchases"):
		s.purchase(c, user)
	case strings.HasPrefix(path, "/v1/sales/"):
		s.page(c)
	case path == "/v1/orders":
		c.SetBodyString(`{"orders":[]}`)
	case strings.HasPrefix(path, "/v1/orders/"):
		s.order(c, user, strings.TrimPrefix(path, "/v1/orders/"))
	default:
		c.SetStatusCode(http.StatusNotFound)
	}
}

func (s *fakeShop) page(c *fasthttp.RequestCtx) {
	left := max(0, s.total-s.sold)
	status := "OPEN"
	switch {
	case !s.opened:
		status = "PAUSED"
	case left == 0:
		status = "SOLD_OUT"
	}
	if s.fault == "stock" && s.sold > 0 {
		left++
	}
	fmt.Fprintf(c, `{"id":"x","status":%q,"stock_left":%d}`, status, left)
}

func (s *fakeShop) purchase(c *fasthttp.RequestCtx, user string) {
	if string(c.Request.Header.Peek("Idempotency-Key")) == "" || string(c.PostBody()) != `{"quantity":1}` {
		refuse(c, http.StatusBadRequest, "INVALID_REQUEST")
		return
	}
	if s.limit != system.RaisedLimit {
		refuse(c, http.StatusTooManyRequests, "RATE_LIMITED")
		return
	}
	order, replay := s.orders[user]
	if s.fault == "busy" || s.fault == "busy-once" && !replay && s.sold == 4 && s.busy() {
		refuse(c, http.StatusServiceUnavailable, "UNAVAILABLE")
		return
	}
	units := s.total
	if s.fault == "oversell" {
		units += 3
	}
	switch {
	case replay && s.fault == "refused-replay":
		refuse(c, http.StatusConflict, "SOLD_OUT")
		return
	case replay && s.fault == "replay-id":
		s.last++
		order.id = s.last
	case replay:
	case s.sold >= units && s.fault == "code":
		refuse(c, http.StatusConflict, "LIMIT_REACHED")
		return
	case s.sold >= units:
		refuse(c, http.StatusConflict, "SOLD_OUT")
		return
	default:
		s.last++
		s.sold++
		order = fakeOrder{id: s.last, at: time.Now()}
		if s.fault == "doubled-id" && s.sold == 5 {
			order.id--
		}
		s.orders[user] = order
	}
	if s.fault == "missing-answer" && s.sold == 5 {
		c.HijackSetNoResponse(true)
		c.Hijack(func(net.Conn) {})
		return
	}
	c.SetStatusCode(http.StatusAccepted)
	if replay != (s.fault == "unmarked-replay" && replay) {
		c.Response.Header.Set("Idempotent-Replayed", "true")
	}
	if s.fault == "no-id" && s.sold == 5 {
		c.SetBodyString(`{"status":"PROCESSING"}`)
		return
	}
	fmt.Fprintf(c, `{"order_id":"%d","status":"PROCESSING"}`, order.id)
}

func (s *fakeShop) order(c *fasthttp.RequestCtx, user, id string) {
	order, there := s.orders[user]
	if !there || id != strconv.FormatInt(order.id, 10) || s.fault == "invisible" && order.id == 5 {
		refuse(c, http.StatusNotFound, "ORDER_NOT_FOUND")
		return
	}
	status := "PENDING_PAYMENT"
	switch {
	case time.Since(order.at) < persistDelay || s.fault == "lost" && order.id == 5:
		status = "PROCESSING"
	case s.fault == "cancelled" && order.id == 5:
		status = "CANCELLED"
	}
	fmt.Fprintf(c, `{"order_id":"%d", "status": %q}`, order.id, status)
}

func refuse(c *fasthttp.RequestCtx, status int, code string) {
	c.SetStatusCode(status)
	c.SetContentType("application/problem+json")
	fmt.Fprintf(c, `{"title":"no","code":%q}`, code)
}

// busy is true three times.
func (s *fakeShop) busy() bool {
	s.refusals++
	return s.refusals <= 3
}

// operate is the operators' port.
func (s *fakeShop) operate(c *fasthttp.RequestCtx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(c.Path()) {
	case "/readyz":
	case "/create":
		s.total, s.sold, s.opened, s.orders = c.QueryArgs().GetUintOrZero("total"), 0, false, map[string]fakeOrder{}
	case "/open":
		s.opened = true
	case "/audit":
		if s.fault == "audit" {
			c.SetStatusCode(http.StatusConflict)
		}
		c.SetBodyString(`{"sales":[{"ledger_orders_compared":20,"redis_records_compared":21}]}`)
	}
}

// fakeFlashgate is the fake's command line.
func fakeFlashgate(args []string) error {
	value := func(flag string) string {
		for i := range len(args) - 1 {
			if args[i] == flag {
				return args[i+1]
			}
		}
		return ""
	}
	config, err := system.ReadDocument(value("--config"))
	if err != nil {
		return err
	}
	ask := func(path string) error {
		c := load.NewConn(config.Get(system.KeyOperators), time.Second)
		defer c.Close()
		if err := c.Do(load.AppendGet(nil, c.Addr, path, "")); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(c.Resp.Body()); err != nil {
			return err
		}
		if c.Resp.StatusCode() != http.StatusOK {
			return fmt.Errorf("%s: %d", path, c.Resp.StatusCode())
		}
		return nil
	}
	switch args[0] {
	case "migrate":
		return nil
	case "sale":
		return ask("/" + args[1] + "?total=" + value("--total"))
	case "audit":
		return ask("/audit")
	case "token":
		users, err := os.ReadFile(value("--users"))
		if err != nil {
			return err
		}
		var out bytes.Buffer
		for user := range strings.Lines(string(users)) {
			user = strings.TrimSpace(user)
			fmt.Fprintf(&out, "%s token-of-%s\n", user, user)
		}
		_, err = os.Stdout.Write(out.Bytes())
		return err
	}
	limits, err := system.ReadDocument(config.Get(system.KeyLimits))
	if err != nil {
		return err
	}
	shop := &fakeShop{fault: config.Get([]string{"fault"}), limit: limits.Get([]string{"address", "rate"})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	shoppers := &fasthttp.Server{Handler: shop.serve}
	operators := &fasthttp.Server{Handler: shop.operate}
	failed := make(chan error, 2)
	go func() { failed <- shoppers.ListenAndServe(value("--listen")) }()
	go func() { failed <- operators.ListenAndServe(value("--operators-listen")) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	if shop.fault == "bad-stop" {
		return fmt.Errorf("stopped badly")
	}
	return nil
}
