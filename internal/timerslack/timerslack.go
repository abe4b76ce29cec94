// Package timerslack sets how much later than asked for the kernel may wake a thread, so
// that one wake does for many timers: Linux's timer slack, 50 µs unless somebody sets it.
//
// While goroutines are in system calls, and a server's always are, a thread of Go's runtime
// (sysmon) sleeps 20 µs at a time, to take processors back from those that stay there too
// long. On a virtual machine, where a wake is dear, that was a sixth of the processor time
// that a gateway took for an order.
package timerslack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// own is what Adopt gives: less than any wait for the engines or the network.
	own = 500 * time.Microsecond
	// kernelDefault is what a process has if nobody gave it another.
	kernelDefault = 50 * time.Microsecond
	// adopted, in the environment, says that the process has executed itself: where that
	// does not keep the slack, it must not go on.
	adopted = "FLASHGATE_TIMER_SLACK_ADOPTED"
)

// Adopt gives this process, with its threads and whatever it starts, a slack of 500 µs,
// unless it was started with another than the kernel's own, or there is no such thing, as
// on other systems than Linux. A thread has the slack of the one that made it, and some of
// the runtime's are made before any code of ours: so the process executes itself once more,
// with the same pid, arguments, environment and files. Call it first in main. After an
// error all works as well, for more processor.
func Adopt() error {
	if os.Getenv(adopted) != "" {
		return os.Unsetenv(adopted)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := get()
	if err != nil || before != kernelDefault {
		return err
	}
	if err := set(own); err != nil {
		return err
	}
	// Not /proc/self/exe: the process would go by the name of exe.
	path, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("execute %s again: %w", path, syscall.Exec(path, os.Args, append(os.Environ(), adopted+"=1")))
}

// Start calls start, which starts a process, on a thread of that slack: the process has
// it from its first moment. 0, or where there is no such thing: it has its starter's.
func Start(slack time.Duration, start func() error) error {
	if slack == 0 {
		return start()
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		before, err := get()
		if err == nil && before != 0 {
			err = set(slack)
		}
		if err != nil {
			started <- fmt.Errorf("timer slack of %s: %w", slack, err)
			return
		}
		started <- start()
	}()
	return <-started
}

// get is the slack of the calling thread; 0: there is no such thing here.
func get() (time.Duration, error) {
	file, err := ofThread()
	if err != nil {
		return 0, ignoreAbsent(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, ignoreAbsent(err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return time.Duration(ns), err
}

func set(slack time.Duration) error {
	file, err := ofThread()
	if err != nil {
		return err
	}
	return os.WriteFile(file, strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0)
}

// ofThread is the file with the calling thread's slack.
func ofThread() (string, error) {
	thread, err := os.Readlink("/proc/thread-self")
	return filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"), err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
