package reconciler

import (
	"context"
	"time"

	"flashgate/internal/sale"
)

// plan is when each sale was last reconciled by schedule. It is read from the stored
// reports when a term begins, so a time that is due is run once whoever leads, and one at
// which nobody led is made up for at once.
type plan struct {
	term  *term
	last  map[string]time.Time // by sale
	retry map[string]time.Time // by sale: its run failed, and is not tried before
}

// retryAfterSeconds lies between two tries of a run that failed.
const retryAfterSeconds = 30

// nextScheduled is a sale whose scheduled run is due.
func (r *Reconciler) nextScheduled(ctx context.Context, t *term, now time.Time) (saleID string, due bool) {
	if r.o.Schedule == nil || r.sales.Load() == nil {
		return "", false
	}
	if r.plan.term != t {
		if r.step(ctx, "schedule", func(ctx context.Context) error { return r.readPlan(ctx, t, now) }) != nil {
			return "", false
		}
	}
	sales := r.tended(now)
	r.plan.admit(sales)
	r.metrics.scheduled.Set(r.plan.oldest(sales, now))
	for i := range sales {
		id := sales[i].ID
		if !r.plan.retry[id].After(now) && r.isDue(r.plan.last[id], now) {
			return id, true
		}
	}
	return "", false
}

// isDue reports whether a scheduled time has come since the last run; without a last run
// it has.
func (r *Reconciler) isDue(last, now time.Time) bool {
	if last.IsZero() {
		return true
	}
	next := r.o.Schedule.Next(last.UTC())
	return !next.IsZero() && !next.After(now)
}

func (r *Reconciler) readPlan(ctx context.Context, t *term, now time.Time) error {
	last, err := r.o.Ledger.LastReconciles(ctx, TriggerSchedule)
	if err != nil {
		return err
	}
	for id, at := range last {
		if at.After(now) { // of a clock that was wrong: it must not put off the next run for ever
			last[id] = now
		}
	}
	r.plan = plan{term: t, last: last, retry: make(map[string]time.Time)}
	return nil
}

// admit gives a sale without a run that of the sale whose turn is longest past: what is
// due for that one is due for this one too. With no run at all, all are due.
func (p *plan) admit(sales []sale.Sale) {
	var first time.Time
	for i := range sales {
		if at, known := p.last[sales[i].ID]; known && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	for i := range sales {
		if _, known := p.last[sales[i].ID]; !known {
			p.last[sales[i].ID] = first
		}
	}
}

// oldest is, in seconds, the time since which every sale has had its scheduled run; 0
// when one has had none.
func (p *plan) oldest(sales []sale.Sale, now time.Time) float64 {
	oldest := now
	for i := range sales {
		at := p.last[sales[i].ID]
		if at.IsZero() {
			return 0
		}
		if at.Before(oldest) {
			oldest = at
		}
	}
	return float64(oldest.UnixMilli()) / 1000
}

func (p *plan) ran(saleID string, began, now time.Time, err error) {
	if err != nil {
		p.retry[saleID] = now.Add(retryAfterSeconds * time.Second)
		return
	}
	p.last[saleID] = began
	delete(p.retry, saleID)
}
