package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"flashgate/bench/load"
	"flashgate/bench/scenario"
	"flashgate/bench/system"
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

const testsSideBySide = "8"

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
	// They wait for processes and watermarks far more than they compute.
	if err := flag.Set("test.parallel", testsSideBySide); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
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
	refusals int
	last     int64
	sales    map[string]*fakeSale
}

type fakeSale struct {
	total  int
	sold   int
	starts time.Time
	opened bool
	orders map[string]fakeOrder // by user
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
	case strings.HasPrefix(path, "/v1/sales/"):
		id, _, _ := strings.Cut(strings.TrimPrefix(path, "/v1/sales/"), "/")
		of, there := s.sales[id]
		switch {
		case !there:
			refuse(c, http.StatusNotFound, "SALE_NOT_FOUND")
		case c.IsPost():
			s.purchase(c, of, user)
		default:
			s.page(c, of)
		}
	case path == "/v1/orders":
		c.SetBodyString(`{"orders":[]}`)
	case strings.HasPrefix(path, "/v1/orders/"):
		if of, there := s.sales[string(c.QueryArgs().Peek("sale_id"))]; there {
			s.order(c, of, user, strings.TrimPrefix(path, "/v1/orders/"))
		} else {
			refuse(c, http.StatusNotFound, "ORDER_NOT_FOUND")
		}
	default:
		c.SetStatusCode(http.StatusNotFound)
	}
}

func (s *fakeShop) page(c *fasthttp.RequestCtx, of *fakeSale) {
	left := max(0, of.total-of.sold)
	status := "OPEN"
	switch {
	case !of.opened:
		status = "PAUSED"
	case time.Now().Before(of.starts):
		status = "UPCOMING"
	case left == 0:
		status = "SOLD_OUT"
	}
	if s.fault == "stock" && of.sold > 0 {
		left++
	}
	fmt.Fprintf(c, `{"id":"x","status":%q,"stock_left":%d}`, status, left)
}

func (s *fakeShop) purchase(c *fasthttp.RequestCtx, of *fakeSale, user string) {
	if string(c.Request.Header.Peek("Idempotency-Key")) == "" || string(c.PostBody()) != `{"quantity":1}` {
		refuse(c, http.StatusBadRequest, "INVALID_REQUEST")
		return
	}
	if s.limit != system.RaisedLimit {
		refuse(c, http.StatusTooManyRequests, "RATE_LIMITED")
		return
	}
	if time.Now().Before(of.starts) {
		refuse(c, http.StatusConflict, "NOT_STARTED")
		return
	}
	order, replay := of.orders[user]
	if s.fault == "busy" || s.fault == "busy-once" && !replay && of.sold == 4 && s.busy() {
		refuse(c, http.StatusServiceUnavailable, "UNAVAILABLE")
		return
	}
	units := of.total
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
	case of.sold >= units && s.fault == "code":
		refuse(c, http.StatusConflict, "LIMIT_REACHED")
		return
	case of.sold >= units:
		refuse(c, http.StatusConflict, "SOLD_OUT")
		return
	default:
		s.last++
		of.sold++
		order = fakeOrder{id: s.last, at: time.Now()}
		if s.fault == "doubled-id" && of.sold == 5 {
			order.id--
		}
		of.orders[user] = order
	}
	if s.fault == "missing-answer" && of.sold == 5 {
		c.HijackSetNoResponse(true)
		c.Hijack(func(net.Conn) {})
		return
	}
	c.SetStatusCode(http.StatusAccepted)
	if replay != (s.fault == "unmarked-replay" && replay) {
		c.Response.Header.Set("Idempotent-Replayed", "true")
	}
	if s.fault == "no-id" && of.sold == 5 {
		c.SetBodyString(`{"status":"PROCESSING"}`)
		return
	}
	fmt.Fprintf(c, `{"order_id":"%d","status":"PROCESSING"}`, order.id)
}

func (s *fakeShop) order(c *fasthttp.RequestCtx, of *fakeSale, user, id string) {
	order, there := of.orders[user]
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
	id := string(c.QueryArgs().Peek("id"))
	switch string(c.Path()) {
	case "/readyz":
	case "/create":
		starts, _ := time.Parse(time.RFC3339Nano, string(c.QueryArgs().Peek("starts"))) // "now" is long ago
		s.sales[id] = &fakeSale{total: c.QueryArgs().GetUintOrZero("total"), starts: starts, orders: map[string]fakeOrder{}}
	case "/open":
		s.sales[id].opened = true
	case "/audit":
		if s.fault == "audit" {
			c.SetStatusCode(http.StatusConflict)
		}
		of := s.sales[id]
		fmt.Fprintf(c, `{"sales":[{"ledger_orders_compared":20,"redis_records_compared":21,"active_units":%d,"stock":%d}]}`,
			of.sold, of.total-of.sold)
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
	if args[0] == scenario.HelloServerCommand {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		return scenario.ServeHello(ctx, args[1])
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
		id := value("--id")
		if args[1] == "open" {
			id = args[2]
		}
		return ask("/" + args[1] + "?id=" + id + "&total=" + value("--total") + "&starts=" + url.QueryEscape(value("--starts-at")))
	case "audit":
		return ask("/audit?id=" + value("--sale"))
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
	shop := &fakeShop{sales: map[string]*fakeSale{}, fault: config.Get([]string{"fault"}), limit: limits.Get([]string{"address", "rate"})}
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
