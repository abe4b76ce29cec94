package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
	"flashgate/internal/rig"
)

// lockedText is what a running process writes.
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

// running is a whole flashgate on embedded engines within the test, ready.
type running struct {
	t                   *testing.T
	shoppers, operators string // host:port
	greeting            lockedText
	log                 func() string
	stop                func() // at the test's end, if not called before
}

// startEmbedded runs flashgate in the folder that the test is in, with edits of its config.
func startEmbedded(t *testing.T, edits ...func(*config.Config)) *running {
	t.Helper()
	c, err := config.Load("configs/embedded.yaml")
	require.NoError(t, err)
	addresses, err := rig.FreeAddresses(2)
	require.NoError(t, err)
	c.Listen, c.OperatorsListen = addresses[0], addresses[1]
	for _, edit := range edits {
		edit(c)
	}

	// The logger writes to standard error, whatever that is when it is made.
	file, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	standard, logger := os.Stderr, slog.Default()
	os.Stderr = file
	r := &running{t: t, shoppers: addresses[0], operators: addresses[1]}
	r.log = func() string {
		text, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		return string(text)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runEmbedded(ctx, c, &plain{to: &r.greeting}) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		require.NoError(t, <-done)
		os.Stderr = standard
		slog.SetDefault(logger)
		require.NoError(t, file.Close())
	}
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Log(r.log())
		}
	})
	require.Eventually(t, func() bool {
		status, _ := r.ask("GET", r.operators, "/readyz", "")
		return status == 200
	}, time.Minute, 20*time.Millisecond)
	return r
}

// ask makes one request, of anything; status 0: there was no answer.
func (r *running) ask(method, host, path, bearer string, headers ...string) (status int, answer string) {
	c, err := net.Dial("tcp", host)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = c.Close() }()
	require.NoError(r.t, c.SetDeadline(time.Now().Add(30*time.Second)))
	if bearer != "" {
		headers = append(headers, "Authorization: Bearer "+bearer)
	}
	_, err = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n%s\r\n", method, path,
		strings.Join(append(headers, ""), "\r\n"))
	require.NoError(r.t, err)
	text, _ := io.ReadAll(c)
	_, _ = fmt.Sscanf(string(text), "HTTP/1.1 %d", &status)
	return status, string(text)
}

// bodyOf is an answer without its head.
func bodyOf(t *testing.T, answer string) string {
	t.Helper()
	parsed, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
	require.NoError(t, err)
	defer func() { _ = parsed.Body.Close() }()
	body, err := io.ReadAll(parsed.Body)
	require.NoError(t, err)
	return string(body)
}

// token is the one that the greeting prints.
func (r *running) token() string {
	r.t.Helper()
	m := regexp.MustCompile(`Authorization: Bearer (\S+)'`).FindStringSubmatch(r.greeting.String())
	require.NotNil(r.t, m, r.greeting.String())
	return m[1]
}

// purchase buys from the demo sale as the greeting's shopper.
func (r *running) purchase(headers ...string) (status int, answer string) {
	return r.ask("POST", r.shoppers, "/v1/sales/demo/purchases", r.token(), headers...)
}
