package limits

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"time"

	"github.com/fsnotify/fsnotify"

	"flashgate/internal/strictyaml"
)

const (
	// settleDelay gathers the several events of one save, and lets a file that is
	// written in place be written to its end.
	settleDelay = 50 * time.Millisecond
	// pollInterval finds what no event told of: a change before the folder was watched,
	// a link in the path that was turned elsewhere, a file system that sends none.
	pollInterval = 500 * time.Millisecond
)

// Watch follows the limits file at path until ctx ends, and then returns nil: a valid
// change is in force within a second, an invalid one is logged with its line, counted
// in flashgate_limits_reload_failures_total, and changes nothing. It watches the
// folder, so that a file replaced by a rename (editors, config maps) is seen. Beside
// that it reads the machine's load average for the rule on it.
func (l *Limiter) Watch(ctx context.Context, path string) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", path, err)
	}
	defer func() { _ = events.Close() }()
	if err := events.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watching %s: %w", path, err)
	}
	f := &follower{limiter: l, path: path}
	l.history.from(path)
	var noLoad error
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events.Events:
			if !ok {
				return errors.New("watching the limits file: the watcher stopped")
			}
			if settled == nil {
				settled = time.After(settleDelay)
			}
		case err := <-events.Errors:
			// Events were lost; the poll finds what they told of.
			l.log.Warn("watching the limits file", "path", path, "error", err)
		case <-settled:
			settled = nil
			f.look()
		case <-poll.C:
			f.look()
			if err := readLoad(); err != nil && noLoad == nil {
				noLoad = err
				l.log.Warn("the load average cannot be read: system.load1 refuses nobody", "error", err)
			}
		}
	}
}

// follower remembers what of a limits file was looked at.
type follower struct {
	limiter *Limiter
	path    string
	seen    [sha256.Size]byte // of the content last looked at
	problem string            // of the file that can't be read, "" if it can
}

// look reads the file and, if its content is not what was looked at last, puts it in
// force or reports what is wrong with it, once.
func (f *follower) look() {
	l := f.limiter
	content, err := strictyaml.ReadFile(f.path)
	if err != nil {
		if f.problem != err.Error() {
			f.problem = err.Error()
			l.history.refused(err)
			l.log.Error("limits file cannot be read: the limits before stay in force", "path", f.path, "error", err)
			l.metrics.reloadFailures.Inc()
		}
		return
	}
	f.problem = ""
	sum := sha256.Sum256(content)
	if sum == f.seen {
		return
	}
	f.seen = sum
	rules, err := Parse(f.path, content)
	if err == nil {
		if reflect.DeepEqual(*rules, l.rules.Load().Rules) {
			l.history.refused(nil) // mended, or never wrong
			return
		}
		err = l.Swap(rules)
	}
	if err != nil {
		l.history.refused(err)
		l.report(err)
		l.metrics.reloadFailures.Inc()
		return
	}
	l.history.refused(nil)
	l.metrics.reloads.Inc()
	l.metrics.reloaded.Set(float64(time.Now().UnixMilli()) / 1000)
	l.log.Info("limits reloaded", "path", f.path)
}

func (l *Limiter) report(err error) {
	const message = "limits file refused: the limits before stay in force"
	var problems strictyaml.Problems
	if !errors.As(err, &problems) {
		l.log.Error(message, "error", err)
		return
	}
	for _, p := range problems {
		l.log.Error(message, "file", p.File, "line", p.Line, "key", p.Key, "error", p.Detail)
	}
}
