// Package worker takes committed batches from the bus, writes many of them to the
// ledger in one transaction, and settles them in Redis.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"flashgate/internal/bus"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/tracing"
)

// Ledger is the part of ledger.Ledger that a worker uses.
type Ledger interface {
	Apply(ctx context.Context, batches []sale.Batch) (ledger.Applied, error)
	MarkSettled(ctx context.Context, ids []sale.ID) error
	ActiveOrders(ctx context.Context, ids []sale.ID) (map[sale.ID][]sale.Order, error)
	AddDeadBatch(ctx context.Context, d *ledger.DeadBatch) error
}

// Stock is the part of stock.Store that a worker uses.
type Stock interface {
	Settle(ctx context.Context, saleID string, ids []sale.ID, active func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error)) ([]sale.ID, error)
}

// Options are a worker's parts and bounds.
type Options struct {
	Bus    bus.Bus
	Ledger Ledger
	Stock  Stock
	Check  bus.Checker // decides messages that the bus gave up checking

	PoisonTries   int             // tries of a batch that fails by its own fault, before it is dead-lettered
	BackoffMin    time.Duration   // between tries; doubles, with jitter,
	BackoffMax    time.Duration   // up to this
	SettleTimeout time.Duration   // of settling in Redis; what it leaves is the reconciler's
	Tracer        *tracing.Tracer // nil = nothing is followed
	Log           *slog.Logger
	Registerer    prometheus.Registerer
}

// Worker persists batches. Any number of workers may run.
type Worker struct {
	o       Options
	metrics metrics
}

// New makes a worker; Run starts it.
func New(o Options) *Worker {
	if o.Bus == nil || o.Ledger == nil || o.Stock == nil || o.Check == nil {
		panic("BUG: worker.New wants a bus, a ledger, a stock and a checker")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Worker{o: o, metrics: newMetrics(o.Registerer)}
}

// Run consumes until ctx ends and the handlers under way have finished.
func (w *Worker) Run(ctx context.Context) error {
	return w.o.Bus.Consume(ctx, w.handle, w.o.Check)
}

// handle persists deliveries; nil acknowledges them. It tries until the ledger
// has them all, as transaction or as dead batch, or ctx ends.
func (w *Worker) handle(ctx context.Context, deliveries []bus.Delivery) error {
	batches := make([]sale.Batch, 0, len(deliveries))
	sources := make(map[sale.ID]*bus.Delivery, len(deliveries))
	for i := range deliveries {
		d := &deliveries[i]
		if d.Err != nil {
			if err := w.bury(ctx, d, d.Err); err != nil {
				return err
			}
			continue
		}
		// The bus delivers at least once: the same batch may stand here twice.
		if _, twice := sources[d.Batch.ID]; !twice {
			sources[d.Batch.ID] = d
			batches = append(batches, *d.Batch)
		}
	}
	if len(batches) == 0 {
		return nil
	}
	ctx, span := w.follow(ctx, deliveries)
	persisted, err := w.persist(ctx, batches, sources)
	// What is persisted is settled even if the rest was not: it will not come this
	// way as new again.
	failpoint.Hit(failpoint.AfterApply)
	w.settle(ctx, persisted)
	failpoint.Hit(failpoint.AfterSettle)
	tracing.End(span, err)
	return err
}

// follow begins a span for deliveries, if one of them is followed.
func (w *Worker) follow(ctx context.Context, deliveries []bus.Delivery) (context.Context, trace.Span) {
	var parents []string
	for i := range deliveries {
		if deliveries[i].Trace != "" {
			parents = append(parents, deliveries[i].Trace)
		}
	}
	return w.o.Tracer.Consume(ctx, "persist", parents)
}

// persist applies batches in one transaction. If they fail by a fault of their own,
// each half is tried alone, down to the batch at fault, which is buried.
func (w *Worker) persist(ctx context.Context, batches []sale.Batch, sources map[sale.ID]*bus.Delivery) ([]sale.Batch, error) {
	err := w.apply(ctx, batches)
	switch {
	case err == nil:
		return batches, nil
	case !ledger.Poison(err):
		return nil, err
	case len(batches) == 1:
		return nil, w.bury(ctx, sources[batches[0].ID], err)
	}
	half := len(batches) / 2
	left, err := w.persist(ctx, batches[:half], sources)
	if err != nil {
		return left, err
	}
	right, err := w.persist(ctx, batches[half:], sources)
	return append(left[:len(left):len(left)], right...), err
}

// apply is one transaction, tried again while the ledger is away, and a few times
// when the data is at fault and stands alone.
func (w *Worker) apply(ctx context.Context, batches []sale.Batch) error {
	poisoned := 0
	return w.retry(ctx, "apply", func() error {
		began := time.Now()
		inStep, span := tracing.Child(ctx, "ledger transaction")
		applied, err := w.o.Ledger.Apply(inStep, batches)
		tracing.End(span, err)
		w.metrics.applied(applied, time.Since(began), err)
		if err != nil {
			if ledger.Poison(err) {
				poisoned++
				if len(batches) > 1 || poisoned >= w.o.PoisonTries {
					return backoff.Permanent(err)
				}
			}
			return err
		}
		if applied.Cancelled > 0 {
			w.o.Log.WarnContext(ctx, "the ledger refused orders; their units are on the way back",
				"cancelled", applied.Cancelled, "sales", applied.Refused)
		}
		return nil
	})
}

// bury writes a delivery to the dead-letter table, so that it stops blocking the
// rest and can be seen, mended and replayed.
func (w *Worker) bury(ctx context.Context, d *bus.Delivery, cause error) error {
	dead := ledger.DeadBatch{MessageID: d.MessageID, Body: d.Body, Error: cause.Error()}
	if d.Batch != nil {
		dead.BatchID, dead.SaleID = d.Batch.ID, d.Batch.SaleID
	}
	err := w.retry(ctx, "bury", func() error { return w.o.Ledger.AddDeadBatch(ctx, &dead) })
	if err != nil {
		return err
	}
	w.metrics.dead.Inc()
	w.o.Log.ErrorContext(ctx, "a message failed by its own fault and is a dead batch now",
		"message", d.MessageID, "batch", dead.BatchID, "sale", dead.SaleID, "err", cause)
	return nil
}

// besides is how many sales are settled side by side: one after the other, those of a
// transaction with hundreds of sales would take as many waits for a busy Redis.
const besides = 32

// settle tells Redis that batches are persisted. It is owed, not urgent: what fails
// here keeps settled_at null, and the reconciler settles it.
func (w *Worker) settle(ctx context.Context, batches []sale.Batch) {
	if len(batches) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.o.SettleTimeout)
	defer cancel()
	ctx, span := tracing.Child(ctx, "settle")
	defer span.End()
	bySale := make(map[string][]sale.ID)
	for i := range batches {
		b := &batches[i]
		bySale[b.SaleID] = append(bySale[b.SaleID], b.ID)
	}
	var (
		mu       sync.Mutex
		settled  []sale.ID
		settling errgroup.Group
	)
	settling.SetLimit(besides)
	for saleID, ids := range bySale {
		settling.Go(func() error {
			done, err := w.o.Stock.Settle(ctx, saleID, ids, w.o.Ledger.ActiveOrders)
			if err != nil {
				w.unsettled(ctx, saleID, len(ids)-len(done), err)
			}
			mu.Lock()
			defer mu.Unlock()
			settled = append(settled, done...)
			return nil
		})
	}
	_ = settling.Wait() // returns nothing: see above
	if len(settled) == 0 {
		return
	}
	if err := w.o.Ledger.MarkSettled(ctx, settled); err != nil {
		w.unsettled(ctx, "", len(settled), err)
	}
}

func (w *Worker) unsettled(ctx context.Context, saleID string, n int, err error) {
	w.metrics.unsettled.Add(float64(n))
	w.o.Log.WarnContext(ctx, "batches are persisted but not settled; the reconciler will settle them", "sale", saleID, "batches", n, "err", err)
}

// retry runs do until it succeeds, fails for good, or ctx ends.
func (w *Worker) retry(ctx context.Context, what string, do func() error) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = w.o.BackoffMin, w.o.BackoffMax
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, do() },
		backoff.WithBackOff(b),
		backoff.WithMaxElapsedTime(0), // as long as the process lives: the bus keeps the message
		backoff.WithNotify(func(err error, next time.Duration) {
			w.metrics.retries.WithLabelValues(what).Inc()
			w.o.Log.WarnContext(ctx, "the ledger did not take it; trying again", "step", what, "in", next, "err", err)
		}))
	if err != nil {
		return fmt.Errorf("worker: %s: %w", what, err)
	}
	return nil
}
