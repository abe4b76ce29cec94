package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/usage"
)

const (
	commandTimeoutSeconds = 600 // for one flashgate command; the slowest is a reconcile of a large sale
	openTimeoutSeconds    = 30  // for a sale to be loaded and open at every gateway; 1 s is promised
	stockTimeoutSeconds   = 2   // for stock_left after the last order; 200 ms is promised
	pollMillis            = 20  // between two looks at what is waited for

	tokenTTL     = time.Hour // longer than any run
	saleDuration = 24 * time.Hour
)

// System is what is measured, as it is seen from outside: the shoppers' API, and
// the commands of the program.
type System struct {
	Gateways []string  // host:port of the shoppers' listeners
	daemons  []*Daemon // that the run started
	command  string    // the flashgate binary
	Config   string    // its --config
	Dir      string    // for what the run has to write
	Timeout  time.Duration
	Progress *load.Progress
	Real     bool // its engines are the real ones
	own      *own // nil: it shares what its config names
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

// Usage is what a command took of the machine.
type Usage struct {
	Took      time.Duration
	CPU       time.Duration // of all processors
	PeakBytes int64         // resident
}

// run runs a flashgate command and returns what it printed. err quotes stderr and
// wraps the *exec.ExitError.
func (s *System) run(ctx context.Context, args ...string) ([]byte, error) {
	out, _, err := s.Measured(ctx, args...)
	return out, err
}

// Measured is run, and says what the command took.
func (s *System) Measured(ctx context.Context, args ...string) ([]byte, Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeoutSeconds*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.command, append(args, "--config", s.Config)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeoutSeconds * time.Second
	cmd.Env = s.own.env()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	var used Usage
	err := cmd.Start()
	if err == nil {
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			used.PeakBytes = usage.Peak(cmd.Process.Pid)
		}()
		err = cmd.Wait()
		<-watched
	}
	used.Took = time.Since(began)
	if state := cmd.ProcessState; state != nil {
		used.CPU = state.UserTime() + state.SystemTime()
	}
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, used, context.Canceled
		}
		return stdout.Bytes(), used, fmt.Errorf("flashgate %s: %w\n%s", strings.Join(args, " "), err, tail(stderr.Bytes()))
	}
	return stdout.Bytes(), used, nil
}

// get reads one JSON resource; an answer other than 200 is an error.
func (s *System) get(addr, path, token string, into any) error {
	c := load.NewConn(addr, s.Timeout)
	defer c.Close()
	if err := c.Do(load.AppendGet(nil, addr, path, token)); err != nil {
		return err
	}
	if c.Resp.StatusCode() != http.StatusOK {
		return fmt.Errorf("GET %s from %s: %d %.300s", path, addr, c.Resp.StatusCode(), c.Resp.Body())
	}
	if err := json.Unmarshal(c.Resp.Body(), into); err != nil {
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

// auditWatermark is the age from which an audit compares an order across the stores.
// Ordinarily younger ones are in flight; here, all have arrived. It is the least that
// a config may say.
const auditWatermark = time.Second

// audit has the program check its invariants on what is stored of a sale. ok is false
// for a breach; findings are its JSON either way.
func (s *System) audit(ctx context.Context, config, saleID string) (findings json.RawMessage, ok bool, err error) {
	auditor := *s
	auditor.Config = config
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
