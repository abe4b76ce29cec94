// Package e2e runs the whole program as its users meet it: the built binary, its
// commands, its ports, real engines.
package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/enginetest"
	"flashgate/internal/rig"
)

// The binaries under test, built once.
var flashgate, bench string

// The binaries' folder is removed on return, which os.Exit is not.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "flashgate-e2e-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	flashgate, bench = filepath.Join(dir, "flashgate"), filepath.Join(dir, "bench")
	for out, pkg := range map[string]string{flashgate: "flashgate", bench: "flashgate/bench"} {
		if text, err := exec.Command("go", "build", "-race", "-o", out, pkg).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build %s: %v\n%s", pkg, err, text)
			return 1
		}
	}
	return m.Run()
}

// Bounds of one wait, generous: binaries are built with -race, and other tests run
// beside this one.
const (
	readyTimeout = 90 * time.Second
	waitTimeout  = 30 * time.Second
	pollEvery    = 20 * time.Millisecond
	loadTimeout  = 4 * time.Minute
)

func eventually(t testing.TB, timeout time.Duration, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, timeout, pollEvery, what)
}

// folder is a working directory with the configs that users have.
type folder struct {
	t    testing.TB
	dir  string
	env  []string
	file string // the config that commands are given
}

func newFolder(t testing.TB) *folder {
	f := &folder{t: t, dir: t.TempDir()}
	require.NoError(t, os.Mkdir(filepath.Join(f.dir, "configs"), 0o755))
	files, err := filepath.Glob("../configs/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(f.dir, "configs", filepath.Base(file)), text, 0o644))
	}
	for _, v := range os.Environ() {
		// Secrets of the one who runs the tests are not the tests'.
		if !strings.HasPrefix(v, "FLASHGATE_") {
			f.env = append(f.env, v)
		}
	}
	// The binaries are built with -race, and the RocketMQ client has races of its own.
	suppressions, err := filepath.Abs("../internal/bus/race.suppressions")
	require.NoError(t, err)
	f.env = append(f.env, "GORACE=suppressions="+suppressions)
	return f
}

// realEngines points the folder's local.yaml at the test engines, with a database and
// a topic of its own.
func (f *folder) realEngines() *folder {
	f.file = "configs/local.yaml"
	text, err := os.ReadFile(filepath.Join(f.dir, f.file))
	require.NoError(f.t, err)
	random := make([]byte, 5)
	_, err = rand.Read(random)
	require.NoError(f.t, err)
	own := "e2e-" + hex.EncodeToString(random)
	before, after, ok := strings.Cut(string(text), "redis:\n")
	require.True(f.t, ok, "local.yaml has a redis section")
	_, after, ok = strings.Cut(after, "mysql:\n")
	require.True(f.t, ok, "local.yaml has a mysql section")
	redis := "  - " + strings.Join(enginetest.Redis(f.t), "\n    - ")
	config := fmt.Sprintf("%sredis:\n  addresses:\n  %s\nrocketmq:\n  name_servers: [%q]\n  topic: %s\n  producer_group: %s-p\n  consumer_group: %s-c\nreconciler:\n  watermark: 1s\nmysql:\n%s",
		before, redis, enginetest.RocketMQ(f.t), own, own, own, after)
	require.NoError(f.t, os.WriteFile(filepath.Join(f.dir, f.file), []byte(config), 0o644))
	f.env = append(f.env,
		"FLASHGATE_JWT_SECRET=e2e-secret-"+hex.EncodeToString(random)+"-of-more-than-32-bytes",
		"FLASHGATE_ADMIN_TOKEN=e2e-token-"+hex.EncodeToString(random)+"-of-more-than-32-bytes",
		"FLASHGATE_MYSQL_DSN="+enginetest.MariaDB(f.t))
	return f
}

// embedded makes the folder's commands run on embedded engines.
func (f *folder) embedded() *folder {
	f.file = "configs/embedded.yaml"
	return f
}

func (f *folder) command(program string, args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Dir, c.Env = f.dir, f.env
	return c
}

// try runs a command to its end.
func (f *folder) try(args ...string) (stdout string, err error) {
	c := f.command(flashgate, append(args, "--config", f.file)...)
	var errout bytes.Buffer
	c.Stderr = &errout
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("flashgate %s: %w\n%s%s", strings.Join(args, " "), err, out, errout.Bytes())
	}
	return string(out), err
}

func (f *folder) must(args ...string) string {
	f.t.Helper()
	out, err := f.try(args...)
	require.NoError(f.t, err)
	return out
}

// openSale makes and opens a sale.
func (f *folder) openSale(id string, args ...string) {
	f.t.Helper()
	f.must(append([]string{"sale", "create", "--id", id, "--title", "T", "--price-cents", "100", "--currency", "CNY"}, args...)...)
	f.must("sale", "open", id)
}

// daemon is a process under test.
type daemon struct {
	t         testing.TB
	cmd       *exec.Cmd
	out       *os.File
	shoppers  string // host:port
	operators string
	done      chan error
}

// start starts a daemon (or, without args, the embedded process) on ports of its own.
func (f *folder) start(args ...string) *daemon {
	f.t.Helper()
	addresses, err := rig.FreeAddresses(2)
	require.NoError(f.t, err)
	d := &daemon{t: f.t, shoppers: addresses[0], operators: addresses[1], done: make(chan error, 1)}
	d.out, err = os.CreateTemp(f.t.TempDir(), "daemon-*.log")
	require.NoError(f.t, err)
	d.cmd = f.command(flashgate, append(args, "--config", f.file, "--listen", d.shoppers, "--operators-listen", d.operators)...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	require.NoError(f.t, d.cmd.Start())
	go func() { d.done <- d.cmd.Wait() }()
	f.t.Cleanup(func() {
		d.kill()
		if f.t.Failed() {
			f.t.Logf("output of %v:\n%s", args, d.output())
		}
	})
	return d
}

func (d *daemon) output() string {
	text, err := os.ReadFile(d.out.Name())
	require.NoError(d.t, err)
	return string(text)
}

// ready waits for /readyz.
func (d *daemon) ready() *daemon {
	d.t.Helper()
	eventually(d.t, readyTimeout, "the daemon is ready", func() bool {
		resp, err := http.Get("http://" + d.operators + "/readyz")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusOK
	})
	return d
}

// kill is kill -9; the process is gone when it returns.
func (d *daemon) kill() {
	if d.done == nil {
		return
	}
	_ = d.cmd.Process.Kill() // it may be gone already
	<-d.done                 // killed, and so not nil
	d.done = nil
}

// stop is SIGTERM; the daemon must drain and end well.
func (d *daemon) stop() {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-d.done:
		d.done = nil
		require.NoError(d.t, err, "a stopped daemon exits with 0")
	case <-time.After(waitTimeout):
		d.t.Fatal("the daemon did not stop")
	}
}

// answer is a shopper's view of a response.
type answer struct {
	status int
	header http.Header
	body   string
}

// send makes one request; without content type when body is empty.
func send(t testing.TB, method, url, token, key, body string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	require.NoError(t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{resp.StatusCode, resp.Header, string(text)}
}
