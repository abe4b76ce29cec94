// Package timerslack sets how much later than asked for the kernel may wake a thread, so
// that one wake does for many timers: Linux's timer slack, 50 µs unless somebody sets it.
//
// While goroutines are in system calls, and a server's always are, a thread of Go's runtime
// (sysmon) sleeps 20 µs at a time, to take processors back from those that stay there too
// long. On a virtual machine, where a wake is dear, that was a sixth of the processor time
// that a gateway took for an order.
package timerslack

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// kernelDefault, in nanoseconds, is what a process has if nobody gave it another.
const kernelDefault = 50_000

// adopted, in the environment, says that the process has executed itself: where that does
// not keep the slack, it must not go on.
const adopted = "FLASHGATE_TIMER_SLACK_ADOPTED"

// Adopt gives this process, with its threads and whatever it starts, that slack, unless it
// was started with another than the kernel's own. A thread has the slack of the one that
// made it, and some of the runtime's are made before any code of ours: so the process
// executes itself once more, with the same pid, arguments, environment and files. Call it
// first in main. It returns when there is nothing to do, or when it cannot be done (there
// is no such thing but on Linux): then all works as well, for more processor.
func Adopt(slack time.Duration) {
	undo, before, err := set(slack)
	if err != nil {
		return
	}
	defer undo()
	if before != kernelDefault || os.Getenv(adopted) != "" {
		return
	}
	// Not /proc/self/exe: the process would go by the name of exe.
	if path, err := os.Executable(); err == nil {
		_ = syscall.Exec(path, os.Args, append(os.Environ(), adopted+"=1"))
	}
}

// Start calls start, which starts a process, on a thread of that slack: the process has
// it from its first moment. 0, or where there is no such thing: it has its starter's.
func Start(slack time.Duration, start func() error) error {
	if slack == 0 {
		return start()
	}
	if undo, _, err := set(slack); err == nil {
		defer undo()
	}
	return start()
}

// set sets the slack of the calling goroutine's thread, which is its own until undo.
func set(slack time.Duration) (undo func(), before int64, err error) {
	runtime.LockOSThread()
	defer func() {
		if err != nil {
			runtime.UnlockOSThread()
		}
	}()
	thread, err := os.Readlink("/proc/thread-self")
	if err != nil {
		return nil, 0, err
	}
	file := filepath.Join("/proc", filepath.Base(thread), "timerslack_ns")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, 0, err
	}
	text = bytes.TrimSpace(text)
	if before, err = strconv.ParseInt(string(text), 10, 64); err != nil {
		return nil, 0, err
	}
	if err := os.WriteFile(file, strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0); err != nil {
		return nil, 0, err
	}
	return func() {
		_ = os.WriteFile(file, text, 0)
		runtime.UnlockOSThread()
	}, before, nil
}
