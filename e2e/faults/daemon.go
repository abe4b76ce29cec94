package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"flashgate/internal/failpoint"
	"flashgate/internal/rig"
)

// Bounds of a daemon's start and stop; binaries are built with -race, on a machine that
// may be busy with other tests.
const (
	readyTimeoutSeconds = 240
	stopTimeoutSeconds  = 120
)

// daemon is one flashgate process, started again on the same addresses however often it
// dies.
type daemon struct {
	name      string // such as gateway-0
	argv      []string
	env       []string
	dir       string // working directory
	points    string // directory of its failpoints
	log       string // file; every start appends to it
	shoppers  string // host:port, of a gateway
	operators string // host:port

	mu   sync.Mutex
	cmd  *exec.Cmd
	gone chan struct{} // closed when the process is
	own  bool          // its end was not asked for
}

// newDaemon makes a handle; role is the subcommand.
func (s *Site) newDaemon(role string, number int) (*daemon, error) {
	addresses, err := rig.FreeAddresses(2)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%d", role, number)
	d := &daemon{
		name: name, dir: s.dir, shoppers: addresses[0], operators: addresses[1],
		points: filepath.Join(s.dir, "failpoints", name),
		log:    filepath.Join(s.dir, name+".log"),
	}
	d.argv = []string{s.binary, role, "--config", s.config, "--listen", d.shoppers, "--operators-listen", d.operators}
	d.env = append(append([]string{}, s.env...), failpoint.EnvDir+"="+d.points)
	return d, os.MkdirAll(d.points, 0o755)
}

// start starts the process unless it runs.
func (d *daemon) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil && !closed(d.gone) {
		return nil
	}
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(d.argv[0], d.argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.dir, d.env, out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	gone := make(chan struct{})
	d.cmd, d.gone, d.own = cmd, gone, true
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(gone)
	}()
	return nil
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// signal sends sig to the process; one that is gone gets nothing.
func (d *daemon) signal(sig syscall.Signal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil && !closed(d.gone) {
		_ = d.cmd.Process.Signal(sig) // it may be gone this very moment
	}
}

// expectEnd notes that the process is about to end by the harness's doing, and returns
// what is closed when it has.
func (d *daemon) expectEnd() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.own = false
	return d.gone
}

// kill is kill -9; the process is gone when it returns.
func (d *daemon) kill() {
	gone := d.expectEnd()
	if gone == nil {
		return
	}
	d.signal(syscall.SIGKILL)
	<-gone
}

// stop ends the process in order.
func (d *daemon) stop() error {
	gone := d.expectEnd()
	d.signal(syscall.SIGTERM)
	select {
	case <-gone:
		return nil
	case <-time.After(stopTimeoutSeconds * time.Second):
		return fmt.Errorf("%s did not stop within %d s", d.name, stopTimeoutSeconds)
	}
}

// died reports whether the process ended though nobody ended it.
func (d *daemon) died() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.own && closed(d.gone)
}

// arm arms a failpoint of the process.
func (d *daemon) arm(p failpoint.Point, action string) error {
	// Renamed into place: whoever finds it finds it whole.
	aside := filepath.Join(d.points, "."+string(p))
	if err := os.WriteFile(aside, []byte(action), 0o644); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(d.points, string(p)))
}

// disarm takes a failpoint back; false: somebody has passed it.
func (d *daemon) disarm(p failpoint.Point) bool {
	return os.Remove(filepath.Join(d.points, string(p))) == nil
}

// ready is nil when the daemon lacks nothing.
func (d *daemon) ready(ctx context.Context) error {
	lacks, err := d.lacks(ctx)
	if err == nil && len(lacks) > 0 {
		err = fmt.Errorf("%s lacks %s", d.name, strings.Join(lacks, "; "))
	}
	return err
}

// lacks asks /readyz.
func (d *daemon) lacks(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.operators+"/readyz", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Ready bool
		Lacks []string
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	if !answer.Ready && len(answer.Lacks) == 0 {
		return nil, fmt.Errorf("%s is not ready and does not say why", d.name)
	}
	return answer.Lacks, nil
}

// alarms are the lines of a log that no fault excuses.
var alarms = []string{"WARNING: DATA RACE", "BUG:", "panic: ", "panicked", "fatal error: "}

// alarmed returns the first alarm in what a log holds from an offset on, and the
// log's size.
func alarmed(path string, from int64) (string, int64, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	size := int64(len(text))
	for line := range strings.Lines(string(text[min(from, size):])) {
		for _, alarm := range alarms {
			if strings.Contains(line, alarm) {
				return strings.TrimSpace(line), size, nil
			}
		}
	}
	return "", size, nil
}
