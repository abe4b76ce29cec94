// Package bare measures each engine by itself, with nothing of flashgate in between: what
// it does at most on this machine for one purchase, or one batch of them.
package bare

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/usage"
)

// Options say what is asked of an engine.
type Options struct {
	Connections int // who ask it at one time
	Calls       int
	Progress    *load.Progress
}

// answered is the status that a call which succeeded is recorded with.
const answered = 200

// measure calls do as often as told, from workers at one time, and adds what it shows:
// units a call are counted. The first error ends it.
func measure(ctx context.Context, rep *report.Report, p *load.Progress, workers, calls, units int, unit string, engines []usage.Process, do func(ctx context.Context, call int) error) error {
	rep.Set("side by side", workers)
	rep.Set("calls", calls)
	p.Step("%s: %d calls, %d at a time", rep.Scenario, calls, workers)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answers := make([]load.Answer, calls)
	watch := usage.Start(append(append([]usage.Process{{Name: "driver", PIDs: []int{os.Getpid()}}}, engines...), usage.Stolen))
	defer watch.Stop()
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < calls && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				sent := time.Now()
				if err := do(ctx, i); err != nil {
					cancel(err)
					return
				}
				done := time.Now()
				answers[i] = load.Answer{Status: answered, TookNanos: int64(done.Sub(sent)), DoneNanos: int64(done.Sub(began))}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", rep.Scenario, context.Cause(ctx))
	}
	rep.Figure(unit, float64(calls*units)/took.Seconds(), "/s")
	rep.Latency("call", answers, func(*load.Answer) bool { return true })
	rep.Took(watch.Between(began, began.Add(took)), calls*units)
	return nil
}
