package rig

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// standIn is a Process that runs argv in place of an engine.
func standIn(t *testing.T, argv ...string) *Process {
	t.Helper()
	program, err := exec.LookPath(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := &Process{
		Name:    "stand-in",
		Engine:  "stand-in",
		Argv:    append([]string{program}, argv[1:]...),
		PIDFile: filepath.Join(dir, "stand-in.pid"),
		Logs:    []string{filepath.Join(dir, "console.log")},
	}
	t.Cleanup(func() {
		if err := p.killIfRunning(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// sleeper runs until it is signalled, an hour at most. The fraction makes its
// command line this test's own.
func sleeper(t *testing.T) *Process {
	t.Helper()
	return standIn(t, "sleep", fmt.Sprintf("3600.%09d", rand.IntN(1e9)))
}

func TestProcessYields(t *testing.T) {
	p := sleeper(t)
	p.Nice = 3
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ to, want int }{{3, 3}, {BehindNice, BehindNice}, {1, BehindNice}} {
		if err := Renice(p.PID(), step.to); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		// Counted from behind the command's name, which may have spaces: see proc(5).
		_, fields, _ := strings.Cut(string(text), ") ")
		if nice := strings.Fields(fields)[16]; nice != strconv.Itoa(step.want) {
			t.Errorf("nice %s after Renice to %d, not %d", nice, step.to, step.want)
		}
	}
	pid := p.PID()
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := Renice(pid, BehindNice); err != nil {
		t.Errorf("of a process that is gone: %v", err)
	}
}

func TestProcessTimerSlack(t *testing.T) {
	// It prints its own, which only root could read from outside, and stays.
	p := standIn(t, "tail", "-n", "+1", "-f", "-s", fmt.Sprintf("3600.%09d", rand.IntN(1e9)), "/proc/self/timerslack_ns")
	p.TimerSlack = 3 * time.Millisecond
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	err := poll(t.Context(), 10*time.Second, func() error {
		text, err := os.ReadFile(p.Logs[0])
		if err == nil && !strings.HasPrefix(string(text), "3000000\n") {
			err = fmt.Errorf("timer slack of %q ns, not of 3 ms", text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestProcessStartsOnceAndStops(t *testing.T) {
	p := sleeper(t)
	if pid := p.PID(); pid != 0 {
		t.Fatalf("pid %d before the start", pid)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	if pid == 0 {
		t.Fatal("not running after Start")
	}
	if err := p.Start(); err != nil || p.PID() != pid {
		t.Errorf("a second Start: %v, pid %d, not %d", err, p.PID(), pid)
	}
	if session, err := sessionOf(pid); err != nil || session != pid {
		t.Errorf("session %d (%v), not its own %d", session, err, pid)
	}
	environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil || len(environ) != 0 {
		t.Errorf("environment %q, %v: a restart by the command line alone would differ", environ, err)
	}
	for range 2 {
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if pid := p.PID(); pid != 0 {
		t.Errorf("pid %d after Stop", pid)
	}
	if err := p.Kill(t.Context()); err == nil {
		t.Error("Kill of a process that does not run succeeds")
	}
}

func sessionOf(pid int) (int, error) {
	session, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(session), nil
}

func TestProcessStopsOneThatIsFrozen(t *testing.T) {
	p := sleeper(t)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > stopTimeoutSeconds*time.Second/2 {
		t.Errorf("took %s: it had to be killed", took)
	}
}

func TestProcessIsFoundAfterARestartByOthers(t *testing.T) {
	p := sleeper(t)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	first := p.PID()
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := exec.Command(p.Argv[0], p.Argv[1:]...)
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = again.Wait() }()
	err := poll(t.Context(), 5*time.Second, func() error {
		if got := p.PID(); got != again.Process.Pid {
			return errors.New("found pid " + strconv.Itoa(got))
		}
		return nil
	})
	if err != nil {
		t.Errorf("restarted as %d (first %d): %v", again.Process.Pid, first, err)
	}
}

// The pid in the file may be another program's by now: it is not touched.
func TestProcessLeavesAStrangerAlone(t *testing.T) {
	p := sleeper(t)
	if err := os.WriteFile(p.PIDFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pid := p.PID(); pid != 0 {
		t.Fatalf("takes pid %d for its own", pid)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err) // and this test process still runs
	}
}

func TestProcessThatEndsQuotesItsLog(t *testing.T) {
	p := standIn(t, "sh", "-c", "echo the disk is on fire; exit 3")
	err := p.Start()
	if err == nil { // it may have been seen running
		err = await(t.Context(), 5*time.Second, []*Process{p}, func() error { return errors.New("not ready") })
	}
	if err == nil || !strings.Contains(err.Error(), "the disk is on fire") || !strings.Contains(err.Error(), p.Logs[0]) {
		t.Errorf("%v: names neither the log nor its last line", err)
	}
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var text strings.Builder
	for i := range 2000 {
		text.WriteString("line " + strconv.Itoa(i) + "\n")
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(lastLines(path), "\n")
	if len(got) != tailLines || got[0] != "    line 1985" || got[tailLines-1] != "    line 1999" {
		t.Errorf("%d lines, from %q to %q", len(got), got[0], got[len(got)-1])
	}
	if got := lastLines(path + ".none"); got != "" {
		t.Errorf("a missing log gives %q", got)
	}
}

func TestPoll(t *testing.T) {
	asked := 0
	err := poll(t.Context(), time.Second, func() error {
		if asked++; asked < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || asked != 3 {
		t.Errorf("%v after %d questions", err, asked)
	}
	err = poll(t.Context(), time.Millisecond, func() error { return errors.New("the reason") })
	if err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("a time-out says %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := poll(ctx, time.Minute, func() error { return errors.New("the reason") }); err == nil {
		t.Error("a cancelled wait succeeds")
	}
}
