package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"flashgate/internal/timerslack"
)

const (
	pollMillis = 25

	// stopTimeoutSeconds is how long an engine may take to stop by itself. A
	// broker is the slowest: it takes 10 s with nothing to do, 20 s on a busy
	// machine.
	stopTimeoutSeconds = 60
	killTimeoutSeconds = 10

	// tailLines is how much of a log an error quotes: enough for a stack trace's
	// cause, short enough to read.
	tailLines = 15
	tailBytes = 16 << 10
)

// Process is one engine process. It is restarted by its command line alone: the
// paths in Argv are absolute and its environment is empty.
type Process struct {
	Name    string   `json:"name"`     // such as "redis-7001", unique in a rig
	Engine  string   `json:"engine"`   // such as "redis cluster"
	Addr    string   `json:"addr"`     // host:port that clients use
	Argv    []string `json:"argv"`     // what was started, and what to start it by again
	PIDFile string   `json:"pid_file"` // the pid it was last started with
	Logs    []string `json:"logs"`     // Logs[0] takes stdout and stderr; the others the engine writes itself
	Nice    int      `json:"nice"`     // how far it yields the processor to others; 0 = as its starter does

	// TimerSlack is how much later than asked for its timers may wake it, so that one wake
	// does for many; 0 = as its starter's.
	TimerSlack time.Duration `json:"timer_slack"`
}

// BehindNice is the Nice of what is behind the rush: the ledger's engine, and workers and
// reconcilers, where they share cores with gateways. A tenth of a gateway's share is
// enough to fill what the rush leaves, in larger transactions; a ledger with none at all
// could not renew the gateways' leases.
const BehindNice = 10

// Renice makes a process and its group, with all their threads, yield to others. One
// that yields as far already stays as it is, and one that is gone has yielded.
func Renice(pid, nice int) error {
	// The kernel's word is 20 - nice: an error is below zero.
	if now, err := syscall.Getpriority(syscall.PRIO_PGRP, pid); err == nil && niceMiddle-now >= nice {
		return nil
	}
	if err := syscall.Setpriority(syscall.PRIO_PGRP, pid, nice); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("nice %d of process group %d: %w", nice, pid, err)
	}
	return nil
}

const niceMiddle = 20

// PID returns the pid of the running process, or 0. A process that someone else
// started again by the same command line counts, whatever its pid.
func (p *Process) PID() int {
	if text, err := os.ReadFile(p.PIDFile); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && p.is(pid) {
			return pid
		}
	}
	// The pid file is stale: the pid is gone or belongs to someone else by now.
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && p.is(pid) {
			return pid
		}
	}
	return 0
}

// is tells whether pid runs this process's command line. A pid alone proves
// nothing: the kernel hands it out again. A zombie has no command line.
func (p *Process) is(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || len(text) == 0 {
		return false
	}
	argv := strings.Split(string(bytes.TrimSuffix(text, []byte{0})), "\x00")
	return slices.Equal(argv, p.Argv)
}

// Start starts the process unless it is running. It does not wait until the
// engine is ready: see Rig.Ready.
func (p *Process) Start() error {
	if p.PID() != 0 {
		return nil
	}
	console, err := os.OpenFile(p.Logs[0], os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	defer func() { _ = console.Close() }()

	cmd := &exec.Cmd{
		Path:   p.Argv[0],
		Args:   p.Argv,
		Env:    []string{}, // nothing that a restart by the same command line would miss
		Dir:    filepath.Dir(p.PIDFile),
		Stdout: console,
		Stderr: console,
		// Its own session: it outlives its starter, and Ctrl-C in the starter's
		// terminal is not sent to it.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := timerslack.Start(p.TimerSlack, cmd.Start); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	pid := cmd.Process.Pid
	// Reaped as soon as it ends, or it would stay a zombie for as long as its
	// starter lives. How it ended is in its log.
	go func() { _ = cmd.Wait() }()
	if p.Nice != 0 {
		if err := Renice(pid, p.Nice); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	if err := os.WriteFile(p.PIDFile, []byte(strconv.Itoa(pid)+"\n"), 0o600); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	// The child's command line is its own only once it has executed.
	return poll(context.Background(), time.Second, func() error {
		if p.is(pid) {
			return nil
		}
		return fmt.Errorf("%s ended at once%s", p.Name, p.tail())
	})
}

// Signal sends sig to the running process; one that is not running is an error.
func (p *Process) Signal(sig syscall.Signal) error {
	pid := p.PID()
	if pid == 0 {
		return fmt.Errorf("%s is not running", p.Name)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("%s, pid %d: %w", p.Name, pid, err)
	}
	return nil
}

// Kill is kill -9: it returns when the process is gone.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return p.waitGone(ctx, killTimeoutSeconds*time.Second)
}

func (p *Process) killIfRunning(ctx context.Context) error {
	if p.PID() == 0 {
		return nil
	}
	return p.Kill(ctx)
}

// Stop ends the process in good order, or by force when it doesn't end within
// stopTimeoutSeconds. One that is not running is stopped already.
func (p *Process) Stop(ctx context.Context) error {
	pid := p.PID()
	if pid == 0 {
		return nil
	}
	// SIGCONT too, for a process that a fault test froze and left.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("%s, pid %d: %w", p.Name, pid, err)
		}
	}
	if err := p.waitGone(ctx, stopTimeoutSeconds*time.Second); err == nil {
		return nil
	}
	if p.PID() == 0 {
		return nil
	}
	// Not ctx: an impatient caller still leaves no process behind.
	return p.Kill(context.WithoutCancel(ctx))
}

func (p *Process) waitGone(ctx context.Context, timeout time.Duration) error {
	return poll(ctx, timeout, func() error {
		if pid := p.PID(); pid != 0 {
			return fmt.Errorf("%s, pid %d, is still running", p.Name, pid)
		}
		return nil
	})
}

// tail quotes the last lines of the process's logs, for an error's end.
func (p *Process) tail() string {
	var out strings.Builder
	for _, path := range p.Logs {
		text := lastLines(path)
		if text == "" {
			continue
		}
		fmt.Fprintf(&out, "\n  the last lines of %s:\n%s", path, text)
	}
	if out.Len() == 0 {
		return fmt.Sprintf("\n  its log %s is empty", p.Logs[0])
	}
	return out.String()
}

func lastLines(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	from := max(0, info.Size()-tailBytes)
	text := make([]byte, info.Size()-from)
	n, _ := file.ReadAt(text, from) // a log that shrank meanwhile gives what there is
	trimmed := strings.TrimRight(string(text[:n]), "\n")
	if trimmed == "" {
		return ""
	}
	lines := strings.Split(trimmed, "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return "    " + strings.Join(lines, "\n    ")
}

// poll asks condition until it holds. Its last complaint is the error when the
// time is up.
func poll(ctx context.Context, timeout time.Duration, condition func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
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
				return fmt.Errorf("interrupted while waiting: %w", err)
			}
			return fmt.Errorf("not within %s: %w", timeout, err)
		case <-ticker.C:
		}
	}
}

// await is poll for the readiness of an engine: it ends early when one of its
// processes is gone, and an error quotes the logs.
func await(ctx context.Context, timeout time.Duration, processes []*Process, condition func() error) error {
	var dead *Process
	err := poll(ctx, timeout, func() error {
		for _, p := range processes {
			if p.PID() == 0 {
				dead = p
				return nil
			}
		}
		return condition()
	})
	if dead != nil {
		return fmt.Errorf("%s is not running%s", dead.Name, dead.tail())
	}
	if err != nil && ctx.Err() == nil {
		var tails strings.Builder
		for _, p := range processes {
			tails.WriteString(p.tail())
		}
		return fmt.Errorf("%w%s", err, tails.String())
	}
	return err
}

// portFree tells whether 127.0.0.1:port can be listened on.
func portFree(port int) error {
	listener, err := net.Listen("tcp", address(port))
	if err != nil {
		return fmt.Errorf("%s is in use by another program (`ss -ltnp 'sport = :%d'` names it); "+
			"is an engine of another clone up there?", address(port), port)
	}
	return listener.Close()
}

func address(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// lookup finds a program. Daemons live in sbin, which is not on everyone's PATH.
func lookup(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: run deploy/local/install.sh", program)
}
