package reconciler

import (
	"context"
	"errors"
	"strings"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// runTimeoutSeconds bounds one run of one sale: a run that takes longer than the time
// between two is given up, and begun anew.
const runTimeoutSeconds = 3600

// runs runs what is due, a sale at a time, beside the rounds, until ctx ends.
func (r *Reconciler) runs(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
			r.runDue(ctx)
		}
	}
}

// runDue runs the early and the scheduled runs that are due, while this reconciler leads.
func (r *Reconciler) runDue(ctx context.Context) {
	for ctx.Err() == nil {
		t := r.term.Load()
		if t == nil || !r.runNext(t) {
			return
		}
	}
}

// runNext runs the one that is most due; early ones come first, since something has
// happened there. false: nothing is due.
func (r *Reconciler) runNext(t *term) bool {
	began := r.o.Now()
	if q, ok := r.early.next(began); ok {
		err := r.run(t.ctx, q.saleID, q.trigger())
		switch {
		case sale.CodeOf(err) == sale.CodeSaleNotFound, err == nil && r.isOver(q.saleID):
			r.early.drop(q.saleID)
		default:
			if q, done := r.early.ran(q.saleID, began, r.o.Now(), err); done && q.process != "" {
				// What fails here asks for the runs again.
				_ = r.step(t.ctx, "vouch", func(ctx context.Context) error {
					_, _, err := r.o.Stock.Server(ctx, q.saleID, q.process)
					return err
				})
			}
		}
		r.metrics.waiting.Set(float64(r.early.waiting()))
		return true
	}
	if saleID, ok := r.nextScheduled(t.ctx, t, began); ok {
		err := r.run(t.ctx, saleID, TriggerSchedule)
		r.plan.ran(saleID, began, r.o.Now(), err)
		return true
	}
	return false
}

// run reconciles one sale. What fails is logged and tried again.
func (r *Reconciler) run(ctx context.Context, saleID, trigger string) error {
	ctx, cancel := context.WithTimeout(ctx, runTimeoutSeconds*time.Second)
	defer cancel()
	report, err := r.runSale(ctx, saleID, trigger)
	switch {
	case ctx.Err() != nil:
		r.o.Log.Warn("a reconcile was cut short; the next leader runs it", "sale", saleID, "trigger", trigger)
	case err != nil:
		r.metrics.failures.WithLabelValues("reconcile").Inc()
		r.o.Log.Warn("a reconcile failed; it is tried again", "sale", saleID, "trigger", trigger, "err", err)
	case report.Left > 0:
		r.o.Log.Error("a reconcile left differences to an operator: `flashgate reconcile report`",
			"sale", saleID, "trigger", trigger, "report", report.ID, "found", report.Found, "left", report.Left)
	}
	return err
}

// triggerKind is a trigger without what follows its colon, which is free text.
func triggerKind(trigger string) string {
	kind, _, _ := strings.Cut(trigger, ":")
	return kind
}

// reconcileOne is the run of one sale. A run that ended early has a report and an error.
func (r *Reconciler) reconcileOne(ctx context.Context, saleID, trigger string) (ledger.ReconcileReport, error) {
	report, err := r.Reconcile(ctx, Query{SaleID: saleID, Trigger: trigger})
	if err != nil || len(report.Sales) == 0 {
		return ledger.ReconcileReport{}, err
	}
	if part := report.Sales[0]; part.Unfinished {
		return part, errors.New(part.Note)
	}
	return report.Sales[0], nil
}
