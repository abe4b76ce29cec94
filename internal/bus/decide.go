package bus

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"flashgate/internal/sale"
)

// decideLocal runs a local transaction. What a panic leaves behind is unknown: the
// check-back finds out.
func decideLocal(local func() Decision, log *slog.Logger) (d Decision) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("local transaction panicked", "panic", p, "stack", string(debug.Stack()))
			d = Unknown
		}
	}()
	return known(local())
}

// known takes what is no decision for Unknown.
func known(d Decision) Decision {
	if d != Commit && d != Rollback {
		return Unknown
	}
	return d
}

// ask asks check what became of b, within a bound. A panic is Unknown.
func ask(ctx context.Context, check Checker, timeout time.Duration, b *sale.Batch, log *slog.Logger) (d Decision) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			log.Error("check of a batch panicked", "batch_id", b.ID, "panic", p, "stack", string(debug.Stack()))
			d = Unknown
		}
	}()
	return known(check(ctx, b))
}

// A handler that failed is asked again after 100 ms, then twice as long each time:
// an engine that is back after a restart is found within 5 s.
const (
	retryFirstMillis = 100
	retryMostMillis  = 5_000
)

// pause is how long to wait before try n (from 1), with jitter of a quarter so that
// processes do not ask in step.
func pause(n int) time.Duration {
	d := time.Duration(retryMostMillis) * time.Millisecond
	if n < 10 {
		d = min(d, retryFirstMillis*time.Millisecond<<(n-1))
	}
	return d - time.Duration(rand.Int64N(int64(d)/4))
}

// sleep waits for d, or less: false, when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// giver hands deliveries to a handler until it takes them. The retries are in
// place, on both buses: RocketMQ's client takes a failed send-back for an
// acknowledgement, and what waits here holds back what would fail as well.
type giver struct {
	handle  Handler
	metrics *metrics
	log     *slog.Logger
}

// give returns true once the handler took all of them. When stop ends it tries no
// more, and returns false: they are not acknowledged. work is the handler's context.
func (g *giver) give(stop, work context.Context, deliveries []Delivery) bool {
	for i := range deliveries {
		if deliveries[i].Err != nil {
			g.metrics.poison.Inc()
		}
	}
	for try := 1; stop.Err() == nil; try++ {
		err := g.call(work, deliveries)
		if err == nil {
			g.metrics.acknowledged.Add(float64(len(deliveries)))
			return true
		}
		g.metrics.redelivered.Add(float64(len(deliveries)))
		wait := pause(try)
		g.log.Warn("deliveries not taken, will come again", "deliveries", len(deliveries), "try", try, "wait", wait, "error", err)
		if !sleep(stop, wait) {
			return false
		}
	}
	return false
}

func (g *giver) call(ctx context.Context, deliveries []Delivery) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.log.Error("handler panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return g.handle(ctx, deliveries)
}

// draining is a context for what is in hand at a stop: it ends a bounded time after
// ctx, so that a handler finishes and a stuck one does not hold up the stop.
func draining(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(timeout, cancel) })
	return work, func() { unhook(); cancel() }
}

// read makes a delivery of a message body.
func read(id string, body []byte) Delivery {
	b, err := Decode(body)
	return Delivery{MessageID: id, Batch: b, Err: err, Body: body}
}
