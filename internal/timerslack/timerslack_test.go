package timerslack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// helper makes this test's binary a process that adopts its slack, and prints its pid and
// the slack of each of its threads.
const helper = "FLASHGATE_TEST_TIMER_SLACK"

func TestMain(m *testing.M) {
	if os.Getenv(helper) == "" {
		os.Exit(m.Run())
	}
	err := Adopt()
	name, _ := os.ReadFile("/proc/self/comm")
	fmt.Println(os.Getpid(), len(os.Args), strings.HasPrefix(filepath.Base(os.Args[0]), strings.TrimSpace(string(name))), os.Getenv(adopted), err)
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
		again bool          // it has executed itself already
		want  time.Duration
	}{
		"the kernel's own is replaced":   {kernelDefault, false, own},
		"the operator's choice is kept":  {time.Millisecond, false, time.Millisecond},
		"a shorter one is a choice, too": {time.Microsecond, false, time.Microsecond},
		"once only":                      {kernelDefault, true, kernelDefault},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "an", "argument")
			cmd.Env = append(os.Environ(), helper+"=1")
			if step.again {
				cmd.Env = append(cmd.Env, adopted+"=1")
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			if err := Start(step.given, cmd.Start); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err, out.String())
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if lines[0] != fmt.Sprintf("%d 3 true  <nil>", cmd.Process.Pid) {
				t.Errorf("pid, arguments, whether the name is right, what is left in the environment, error: %q, not of %d", lines[0], cmd.Process.Pid)
			}
			for _, line := range lines[1:] {
				if line != fmt.Sprint(step.want.Nanoseconds(), " <nil>") {
					t.Errorf("a thread's slack is %q, not %s", line, step.want)
				}
			}
			if len(lines) < 2 || os.Geteuid() == 0 && len(lines) < 3 {
				t.Errorf("only %d threads: none of the runtime's?", len(lines)-1)
			}
		})
	}
}

func TestStartLeavesTheStarter(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := get()
	if err != nil || before == 0 {
		t.Fatal(before, err)
	}
	failed := errors.New("no such program")
	err = Start(3*time.Millisecond, func() error {
		if during, err := get(); during != 3*time.Millisecond {
			t.Errorf("slack of %s, %v, not 3 ms", during, err)
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("%v, not what start returned", err)
	}
	if after, err := get(); after != before {
		t.Errorf("the starter's slack is %s, %v now, was %s", after, err, before)
	}
}
