package reconciler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// NotDone is what a report calls work on a sale that failed: a step of the round, or the
// run itself.
const NotDone audit.Kind = "NOT_DONE"

// Why a reconcile ran.
const (
	TriggerOnce     = "once"     // somebody asked for it
	TriggerSchedule = "schedule" // it was due
)

// Early is the trigger of a run that something gave cause for.
func Early(why string) string { return "early: " + why }

// Query says what a reconcile covers.
type Query struct {
	SaleID  string `json:"sale_id,omitempty"` // "" = every sale
	DryRun  bool   `json:"dry_run,omitempty"` // find and plan, change nothing
	Trigger string `json:"-"`                 // "" = TriggerOnce; never a request's word, since the schedule goes by it
}

// Report is what a reconcile found and did, one part a sale. Found = Repaired + Left.
type Report struct {
	DryRun    bool                     `json:"dry_run"`
	Trigger   string                   `json:"trigger"`
	StartedAt time.Time                `json:"started_at"`
	Took      string                   `json:"took"`
	Sales     []ledger.ReconcileReport `json:"sales"`
	Found     int64                    `json:"found"`
	Repaired  int64                    `json:"repaired"`
	Left      int64                    `json:"left"`   // found and not repaired
	Helped    int64                    `json:"helped"` // promised batches applied ahead of a lagging worker
}

// Reconcile compares Redis with the ledger, order by order, and repairs what differs. It
// works under a lease a sale, whether or not a leader is alive: of two at once one waits
// for the other. Each sale's part is stored. A sale that could not be worked on is in the
// report as NOT_DONE. Errors: SALE_NOT_FOUND, and those of the ledger before any sale.
func (r *Reconciler) Reconcile(ctx context.Context, q Query) (Report, error) {
	if q.Trigger == "" {
		q.Trigger = TriggerOnce
	}
	began := time.Now()
	report := Report{DryRun: q.DryRun, Trigger: q.Trigger, StartedAt: began.UTC()}
	sales, err := r.o.Ledger.Sales(ctx)
	if err != nil {
		return report, err
	}
	r.sales.Store(&sales)
	known := q.SaleID == ""
	for i := range sales {
		if ctx.Err() != nil {
			break // the others were not begun: no report of theirs
		}
		s := &sales[i]
		if q.SaleID != "" && s.ID != q.SaleID {
			continue
		}
		known = true
		if time.Now().After(s.EndsAt.Add(sale.Retention)) {
			continue // Redis has forgotten it, as it should
		}
		part := r.reconcileSale(ctx, s, q)
		report.Found += part.Found
		report.Repaired += part.Repaired
		report.Left += part.Left
		report.Helped += part.Helped
		report.Sales = append(report.Sales, part)
	}
	if !known && ctx.Err() == nil {
		return report, &sale.Error{Code: sale.CodeSaleNotFound, Detail: "no sale " + q.SaleID}
	}
	if r.o.ReportRetention > 0 && !q.DryRun && ctx.Err() == nil {
		if _, err := r.o.Ledger.PurgeReconcileReports(ctx, began.Add(-r.o.ReportRetention)); err != nil {
			r.o.Log.Warn("old reconcile reports are still there; the next run tries again", "err", err)
		}
	}
	report.Took = time.Since(began).Round(time.Millisecond).String()
	return report, ctx.Err()
}

// reconcileSale runs on one sale and stores the report, whatever came of it.
func (r *Reconciler) reconcileSale(ctx context.Context, s *sale.Sale, q Query) ledger.ReconcileReport {
	run := newRun(r, s, q)
	err := run.guarded(ctx)
	report := run.finish(err)
	log := r.o.Log.With("sale", s.ID, "trigger", q.Trigger, "dry_run", q.DryRun, "took", report.Took().Round(time.Millisecond),
		"found", report.Found, "repaired", report.Repaired, "left", report.Left, "helped", report.Helped)
	if err != nil {
		log.Warn("reconcile ended early", "err", err)
	} else {
		log.Info("reconciled")
	}
	if !q.DryRun {
		r.metrics.reconciled(&report)
	}
	// Stored even when the run was told to stop: what it did must be known.
	storing, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.StepTimeout)
	defer cancel()
	if err := r.o.Ledger.AddReconcileReport(storing, &report); err != nil {
		log.Error("a reconcile report could not be stored", "err", err)
	}
	return report
}

// guarded does the run's work: a real run under the sale's lease.
func (run *run) guarded(ctx context.Context) error {
	if run.query.DryRun {
		return run.work(ctx)
	}
	held, err := run.enclose(ctx, run.sale.ID, run.report.Holder)
	if err != nil {
		return err
	}
	defer held.release()
	run.fence = held.fence
	if err := run.work(held.ctx); err != nil {
		// What ended the context says more than what the end broke.
		if cause := context.Cause(held.ctx); errors.Is(cause, ledger.ErrFenced) {
			return cause
		}
		return err
	}
	return nil
}

// work compares, repairs, and finishes what is owed anyway.
func (run *run) work(ctx context.Context) error {
	var owing error
	if !run.query.DryRun {
		owing = errors.Join(run.tend(ctx, run.sale, false, true), run.rebuilt(ctx, run.sale.ID))
	}
	if err := run.compare(ctx); err != nil {
		return err
	}
	if err := run.repair(ctx); err != nil {
		return err
	}
	if !run.query.DryRun {
		owing = errors.Join(owing, run.settleOwed(ctx, run.sale.ID), run.runTasksOfSale(ctx, run.sale.ID))
	}
	if owing != nil {
		run.left(&audit.Finding{Kind: NotDone, Detail: "what a round does was not done"}, owing.Error())
	}
	return ctx.Err()
}

// blown reports whether the repairs would move more units than both bounds: then nothing
// is repaired but what is owed anyway, and a person decides.
func (run *run) blown() bool {
	return run.moves > max(run.o.FuseUnits, int64(float64(run.sale.Total)*run.o.FusePercent/100))
}

func (run *run) fuseNote() string {
	return fmt.Sprintf("above the fuse: the repairs would move %d units, more than %d and than %g %% of %d; an operator decides",
		run.moves, run.o.FuseUnits, run.o.FusePercent, run.sale.Total)
}
