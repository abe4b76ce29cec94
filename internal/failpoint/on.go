//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Enabled says whether this build has failpoints.
const Enabled = true

var dir = os.Getenv(EnvDir)

// clockReadMillis is how stale the offset of the clock may be.
const clockReadMillis = 50

var clock struct {
	offset atomic.Int64 // a time.Duration
	read   atomic.Int64 // Unix ms of the last look at the file
}

// Hit does what the point's file says, if there is one.
func Hit(p Point) {
	if dir == "" {
		return
	}
	path := filepath.Join(dir, string(p))
	text, err := os.ReadFile(path)
	if err != nil || os.Remove(path) != nil {
		return // not armed, or taken by another goroutine
	}
	action := strings.TrimSpace(string(text))
	fmt.Fprintf(os.Stderr, "failpoint %s: %s\n", p, action)
	if kill, ok := strings.CutPrefix(action, Kill); ok {
		if kill != "" {
			hold(p, strings.TrimPrefix(kill, " after "))
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err) // dead by other means
		}
		select {} // the signal is on its way
	}
	hold(p, action)
}

// hold keeps who passes a point for as long as its file says.
func hold(p Point, text string) {
	d, err := time.ParseDuration(text)
	if err != nil {
		panic("BUG: failpoint " + string(p) + ": " + err.Error())
	}
	<-time.After(d)
}

// Now is the time of a clock that a test may move.
func Now() time.Time {
	now := time.Now()
	if dir == "" {
		return now
	}
	if last := clock.read.Load(); now.UnixMilli()-last >= clockReadMillis && clock.read.CompareAndSwap(last, now.UnixMilli()) {
		text, err := os.ReadFile(filepath.Join(dir, ClockFile))
		var offset time.Duration
		if err == nil {
			offset, err = time.ParseDuration(strings.TrimSpace(string(text)))
		}
		if err == nil || os.IsNotExist(err) {
			clock.offset.Store(int64(offset))
		}
	}
	return now.Add(time.Duration(clock.offset.Load()))
}
