package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	commandTimeoutSeconds = 600 // for one flashgate command; the slowest is a reconcile of a large sale
	openTimeoutSeconds    = 30  // for a sale to be loaded and open at every gateway; 1 s is promised
	stockTimeoutSeconds   = 2   // for stock_left after the last order; 200 ms is promised
	pollMillis            = 20  // between two looks at what is waited for

	tokenTTL     = time.Hour // longer than any run
	saleDuration = 24 * time.Hour
)

// system is what is measured, as it is seen from outside: the shoppers' API, and
// the commands of the program.
type system struct {
	gateways []string  // host:port of the shoppers' listeners
	daemons  []*daemon // that the run started
	command  string    // the flashgate binary
	config   string    // its --config
	dir      string    // for what the run has to write
	timeout  time.Duration
	progress *progress
}

// gatewayAddr makes host:port of a gateway's URL.
func gatewayAddr(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return "", fmt.Errorf("gateway %q: want http://host:port", raw)
	}
	if u.Port() == "" {
		return u.Host + ":80", nil
	}
	return u.Host, nil
}

// usage is what a command took of the machine.
type usage struct {
	took      time.Duration
	cpu       time.Duration // of all processors
	peakBytes int64         // resident
}

// run runs a flashgate command and returns what it printed. err quotes stderr and
// wraps the *exec.ExitError.
func (s *system) run(ctx context.Context, args ...string) ([]byte, error) {
	out, _, err := s.measured(ctx, args...)
	return out, err
}

// measured is run, and says what the command took.
func (s *system) measured(ctx context.Context, args ...string) ([]byte, usage, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeoutSeconds*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.command, append(args, "--config", s.config)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeoutSeconds * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	var used usage
	err := cmd.Start()
	if err == nil {
		watched := make(chan struct{})
		go func() { // and not ru_maxrss, which begins with this process's own
			defer close(watched)
			used.peakBytes = watchPeak(cmd.Process.Pid)
		}()
		err = cmd.Wait()
		<-watched
	}
	used.took = time.Since(began)
	if state := cmd.ProcessState; state != nil {
		used.cpu = state.UserTime() + state.SystemTime()
	}
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, used, context.Canceled
		}
		return stdout.Bytes(), used, fmt.Errorf("flashgate %s: %w\n%s", strings.Join(args, " "), err, tail(stderr.Bytes()))
	}
	return stdout.Bytes(), used, nil
}

// watchPeak returns the most memory that a process has had resident, in bytes, as Linux
// showed it last; it returns when the process has ended.
func watchPeak(pid int) (peak int64) {
	ticker := time.NewTicker(pollMillis * time.Millisecond)
	defer ticker.Stop()
	for ; ; <-ticker.C {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, line, found := strings.Cut(string(status), "\nVmHWM:")
		if err != nil || !found { // ended: no memory is left to tell of
			return peak
		}
		var kib int64
		if _, err := fmt.Sscan(line, &kib); err == nil {
			peak = kib << 10
		}
	}
}

// newSaleID is a sale's id that no other run has.
func newSaleID(scenario string) string {
	return fmt.Sprintf("bench-%s-%s-%s", scenario, time.Now().UTC().Format("20060102-150405"), uuid.NewString()[:8])
}

// openSale makes a sale of total units, one to a user, and waits until every
// gateway sells it.
func (s *system) openSale(ctx context.Context, id string, total int) error {
	_, err := s.run(ctx, "sale", "create", "--id", id, "--title", "Load test "+id,
		"--total", strconv.Itoa(total), "--price-cents", "9900", "--currency", "CNY",
		"--per-user-limit", "1", "--starts-at", "now",
		"--ends-at", time.Now().Add(saleDuration).UTC().Format(time.RFC3339))
	if err != nil {
		return err
	}
	if _, err := s.run(ctx, "sale", "open", id); err != nil {
		return err
	}
	return s.awaitSale(ctx, id, "OPEN", int64(total), openTimeoutSeconds*time.Second)
}

// awaitSale waits until every gateway shows the sale in this state.
func (s *system) awaitSale(ctx context.Context, id, status string, stockLeft int64, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, addr := range s.gateways {
		err := await(ctx, func() error {
			var page struct {
				Status    string `json:"status"`
				StockLeft int64  `json:"stock_left"`
			}
			if err := s.get(addr, "/v1/sales/"+id, "", &page); err != nil {
				return err
			}
			if page.Status != status || page.StockLeft != stockLeft {
				return fmt.Errorf("gateway %s: sale %s is %s with %d units left, and should be %s with %d",
					addr, id, page.Status, page.StockLeft, status, stockLeft)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// get reads one JSON resource; an answer other than 200 is an error.
func (s *system) get(addr, path, token string, into any) error {
	c := newConn(addr, s.timeout)
	defer c.close()
	if err := c.do(appendGet(nil, addr, path, token)); err != nil {
		return err
	}
	if c.resp.StatusCode() != http.StatusOK {
		return fmt.Errorf("GET %s from %s: %d %.300s", path, addr, c.resp.StatusCode(), c.resp.Body())
	}
	if err := json.Unmarshal(c.resp.Body(), into); err != nil {
		return fmt.Errorf("GET %s from %s: %w", path, addr, err)
	}
	return nil
}

// await looks until condition holds. Its last complaint is the error when ctx ends.
func await(ctx context.Context, condition func() error) error {
	ticker := time.NewTicker(pollMillis * time.Millisecond)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return context.Canceled
			}
			return fmt.Errorf("waited too long: %w", err)
		case <-ticker.C:
		}
	}
}

// newShoppers makes n shoppers with tokens, and sees that every gateway takes them.
func (s *system) newShoppers(ctx context.Context, n int, saleID string) ([]shopper, error) {
	shoppers := make([]shopper, n)
	for i := range shoppers {
		shoppers[i] = shopper{user: uuid.NewString(), key: uuid.NewString()}
	}
	var err error
	if secret := os.Getenv("FLASHGATE_JWT_SECRET"); secret != "" {
		err = sign(shoppers, []byte(secret))
	} else {
		err = s.issue(ctx, shoppers)
	}
	if err != nil {
		return nil, err
	}
	for _, addr := range s.gateways {
		var page struct{}
		if err := s.get(addr, "/v1/orders?sale_id="+saleID, shoppers[0].token, &page); err != nil {
			return nil, fmt.Errorf("a gateway does not take the tokens of this run (is FLASHGATE_JWT_SECRET its secret?): %w", err)
		}
	}
	return shoppers, nil
}

// sign makes the shoppers' tokens here, which is quicker than a process is started.
func sign(shoppers []shopper, secret []byte) error {
	now := time.Now()
	for i := range shoppers {
		claims := jwt.RegisteredClaims{
			Subject:   shoppers[i].user,
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(tokenTTL)),
		}
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
		if err != nil {
			return err
		}
		shoppers[i].token = token
	}
	return nil
}

// issue has the program make the tokens, in one call.
func (s *system) issue(ctx context.Context, shoppers []shopper) error {
	var users strings.Builder
	for i := range shoppers {
		users.WriteString(shoppers[i].user + "\n")
	}
	file := filepath.Join(s.dir, "users.txt")
	if err := os.WriteFile(file, []byte(users.String()), 0o600); err != nil {
		return err
	}
	out, err := s.run(ctx, "token", "--users", file, "--ttl", tokenTTL.String())
	if err != nil {
		return err
	}
	tokens := make(map[string]string, len(shoppers))
	for line := range strings.Lines(string(out)) {
		user, token, _ := strings.Cut(strings.TrimSpace(line), " ")
		tokens[user] = token
	}
	for i := range shoppers {
		shoppers[i].token = tokens[shoppers[i].user]
		if shoppers[i].token == "" {
			return fmt.Errorf("flashgate token --users: no token for user %s in its %d lines", shoppers[i].user, len(tokens))
		}
	}
	return nil
}

// auditWatermark is the age from which an audit compares an order across the stores.
// Ordinarily younger ones are in flight; here, all have arrived. It is the least that
// a config may say.
const auditWatermark = time.Second

// audit has the program check its invariants on what is stored. ok is false for a
// breach; findings are its JSON either way.
func (s *system) audit(ctx context.Context, saleID string) (findings json.RawMessage, ok bool, err error) {
	config, err := writeConfig(s.config, s.dir, "audit.yaml", setup{watermark: auditWatermark.String()})
	if err != nil {
		return nil, false, err
	}
	auditor := *s
	auditor.config = config
	out, err := auditor.run(ctx, "audit", "--sale", saleID, "--json")
	if !json.Valid(out) {
		out = nil
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 && out != nil {
		return out, false, nil
	}
	return out, err == nil, err
}

const (
	tailLines = 20
	tailBytes = 16 << 10
)

// tail is the end of a process's output, indented, for an error to quote.
func tail(out []byte) string {
	out = bytes.TrimSpace(out[max(0, len(out)-tailBytes):])
	lines := bytes.Split(out, []byte("\n"))
	lines = lines[max(0, len(lines)-tailLines):]
	return "    " + string(bytes.Join(lines, []byte("\n    ")))
}
