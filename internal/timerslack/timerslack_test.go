package timerslack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// helper makes this test's binary a process that adopts slackOfHelper, and prints its pid
// and the slack of each of its threads.
const (
	helper        = "FLASHGATE_TEST_TIMER_SLACK"
	slackOfHelper = 700 * time.Microsecond
)

func TestMain(m *testing.M) {
	if os.Getenv(helper) == "" {
		os.Exit(m.Run())
	}
	Adopt(slackOfHelper)
	name, err := os.ReadFile("/proc/self/comm")
	fmt.Println(os.Getpid(), len(os.Args), strings.HasPrefix(filepath.Base(os.Args[0]), strings.TrimSpace(string(name))), err)
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(threads) == 0 {
		fmt.Println(threads, err)
		os.Exit(1)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
		if errors.Is(err, fs.ErrPermission) {
			continue // only root sees that of other threads
		}
		fmt.Println(strings.TrimSpace(string(text)), err)
	}
}

func TestAdopt(t *testing.T) {
	for name, step := range map[string]struct {
		given time.Duration // by the starter
		want  time.Duration
	}{
		"the kernel's own is replaced":   {0, slackOfHelper},
		"the operator's choice is kept":  {time.Millisecond, time.Millisecond},
		"what it would adopt is kept":    {slackOfHelper, slackOfHelper},
		"a shorter one is a choice, too": {time.Microsecond, time.Microsecond},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "an", "argument")
			cmd.Env = append(os.Environ(), helper+"=1")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			// The test itself may have been given a slack of its own.
			given := step.given
			if given == 0 {
				given = kernelDefault
			}
			if err := Start(given, cmd.Start); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err, out.String())
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if lines[0] != fmt.Sprintf("%d 3 true <nil>", cmd.Process.Pid) {
				t.Errorf("pid, arguments and whether the name is right: %q, not of %d", lines[0], cmd.Process.Pid)
			}
			for _, line := range lines[1:] {
				if line != fmt.Sprint(step.want.Nanoseconds(), " <nil>") {
					t.Errorf("a thread's slack is %q, not %s", line, step.want)
				}
			}
			if os.Geteuid() == 0 && len(lines) < 3 {
				t.Errorf("only %d threads: none of the runtime's?", len(lines)-1)
			}
		})
	}
}

func TestStartLeavesTheStarter(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own := func() string {
		thread, err := os.Readlink("/proc/thread-self")
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	before, during := own(), ""
	if err := Start(3*time.Millisecond, func() error { during = own(); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := strconv.Itoa(3_000_000); during != want {
		t.Errorf("slack of %s ns, not %s", during, want)
	}
	if after := own(); after != before {
		t.Errorf("the starter's slack is %s ns now, was %s", after, before)
	}
}
