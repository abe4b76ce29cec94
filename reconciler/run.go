package reconciler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"flashgate/internal/audit"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// What one run keeps of a sale, so that its memory is bounded.
const (
	// maxKept is how many differences one run repairs: some 15 MB. The fuse counts the rest
	// as well, and only a raised fuse lets so many through; the next run repairs them.
	maxKept = 50_000
	// maxItems is how many of them a report lists.
	maxItems = 1000
)

// run is one reconcile of one sale.
type run struct {
	*Reconciler
	sale   *sale.Sale
	query  Query
	fence  ledger.Fence // of a run that is not dry
	report ledger.ReconcileReport

	kept  []audit.Finding // to be repaired, in the order of ranks in the end
	moves int64           // units that the repairs would move, of all findings
	kinds map[audit.Kind]*ledger.KindCount
	notes []string
	help  []audit.Finding // promised batches to be applied together
}

func newRun(r *Reconciler, s *sale.Sale, q Query) *run {
	return &run{
		Reconciler: r, sale: s, query: q, kinds: make(map[audit.Kind]*ledger.KindCount),
		report: ledger.ReconcileReport{
			SaleID: s.ID, Trigger: q.Trigger, Holder: r.runHolder(), DryRun: q.DryRun, StartedAt: time.Now().UTC().Truncate(time.Millisecond),
		},
	}
}

// compare finds what differs. Promised batches that the ledger has not are applied on the
// way; the rest is kept for repair, which has to wait for the fuse.
func (run *run) compare(ctx context.Context) error {
	auditor := *run.o.Auditor
	auditor.Pace = run.o.Pace
	compared, err := auditor.Compare(ctx, run.sale, func(f audit.Finding) error {
		if f.Kind == audit.ConfirmedNotPersisted {
			return run.helpWith(ctx, &f)
		}
		run.keep(f)
		return nil
	})
	run.report.LedgerOrders, run.report.RedisRecords = compared.LedgerOrders, compared.RedisRecords
	run.report.Younger, run.report.OpenBatches = compared.Younger, compared.OpenBatches
	if compared.NotRecounted {
		run.note("held units were not counted afresh: too many buyers, and records moved meanwhile; Redis was checked by its sums alone")
	}
	if compared.AcceptedUnits > 0 {
		run.note("%d units stay held for cancelled orders: an operator abandoned their tasks (`flashgate task list --state ABANDONED`)", compared.AcceptedUnits)
	}
	if compared.NotLoaded {
		run.note("Redis has not the sale: only the ledger was checked")
	}
	if err != nil {
		return err
	}
	return run.flushHelp(ctx)
}

// keep notes a difference to be repaired.
func (run *run) keep(f audit.Finding) {
	run.count(f.Kind, f.Units).Found++
	if t := treatments[f.Kind]; t.mend != nil && !t.owed {
		run.moves += max(f.Units, -f.Units)
	}
	if len(run.kept) < maxKept {
		run.kept = append(run.kept, f)
	}
}

func (run *run) count(kind audit.Kind, units int64) *ledger.KindCount {
	k := run.kinds[kind]
	if k == nil {
		k = &ledger.KindCount{Kind: string(kind)}
		run.kinds[kind] = k
	}
	k.Units += max(units, -units)
	return k
}

func (run *run) note(format string, args ...any) {
	run.notes = append(run.notes, fmt.Sprintf(format, args...))
}

// left adds a difference that was never kept, and why it stays.
func (run *run) left(f *audit.Finding, why string) {
	run.count(f.Kind, f.Units).Found++
	run.item(f, ledger.ItemLeft, why)
}

// item is what became of one difference. why is "" where it was done.
func (run *run) item(f *audit.Finding, outcome ledger.ItemOutcome, why string) {
	k := run.count(f.Kind, 0)
	switch outcome {
	case ledger.ItemRepaired:
		k.Repaired++
	case ledger.ItemHelped:
		k.Helped++
	}
	if len(run.report.Items) == maxItems {
		run.report.Unlisted++
		return
	}
	run.report.Items = append(run.report.Items, ledger.ReconcileItem{
		Kind: string(f.Kind), OrderID: f.OrderID, BatchID: f.BatchID, UserID: f.UserID, Units: f.Units,
		Outcome: outcome, Detail: f.Detail, Plan: run.plan(f), Why: why,
	})
}

// gone takes back a difference that had vanished when its repair looked at it.
func (run *run) gone(f *audit.Finding) {
	k := run.count(f.Kind, 0)
	k.Found--
	k.Units -= max(f.Units, -f.Units)
}

// repair mends what was kept, kind by kind, unless it is dry or the fuse forbids it.
func (run *run) repair(ctx context.Context) error {
	blown := run.blown()
	if blown {
		run.note("%s", run.fuseNote())
	}
	slices.SortStableFunc(run.kept, func(a, b audit.Finding) int {
		return cmp.Compare(treatments[a.Kind].rank, treatments[b.Kind].rank)
	})
	for rest := run.kept; len(rest) > 0; {
		n := 1
		for n < len(rest) && n < maxMended && rest[n].Kind == rest[0].Kind {
			n++
		}
		if err := run.repairSome(ctx, rest[:n], blown); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// repairSome treats findings of one kind.
func (run *run) repairSome(ctx context.Context, findings []audit.Finding, blown bool) error {
	t := treatments[findings[0].Kind]
	why := ""
	switch {
	case t.mend == nil:
		why = t.advice
	case blown && !t.owed:
		why = run.fuseNote()
	case run.query.DryRun:
		why = "dry run"
	}
	if why != "" {
		for i := range findings {
			run.item(&findings[i], ledger.ItemLeft, why)
		}
		return nil
	}
	outcomes, err := t.mend(run, ctx, findings)
	switch {
	case errors.Is(err, stock.ErrUnfit) && len(findings) > 1:
		for i := range findings { // the others can be mended
			if err := run.repairSome(ctx, findings[i:i+1], blown); err != nil {
				return err
			}
		}
		return nil
	case errors.Is(err, stock.ErrUnfit):
		outcomes = explain(make([]outcome, 1), err)
	case err != nil:
		return fmt.Errorf("%s: %w", findings[0].Kind, err)
	}
	failpoint.Hit(failpoint.AfterRepair)
	for i := range findings {
		switch f, o := &findings[i], outcomes[i]; {
		case o.gone:
			run.gone(f)
		case o.why != "":
			run.item(f, ledger.ItemLeft, o.why)
		default:
			run.item(f, ledger.ItemRepaired, "")
		}
	}
	return nil
}

// finish sums the report up. failed ended the run early.
func (run *run) finish(failed error) ledger.ReconcileReport {
	if run.report.Unfinished = failed != nil; failed != nil {
		run.left(&audit.Finding{Kind: NotDone, Detail: "the run ended early"}, failed.Error())
		run.note("ended early: %v", failed)
	}
	r := &run.report
	r.Kinds = make([]ledger.KindCount, 0, len(run.kinds))
	listed := int64(len(r.Items)) + r.Unlisted
	for _, k := range run.kinds {
		if k.Left = k.Found - k.Repaired; *k == (ledger.KindCount{Kind: k.Kind}) {
			continue // all of it had vanished
		}
		r.Found += k.Found
		r.Repaired += k.Repaired
		r.Left += k.Left
		r.Helped += k.Helped
		r.Kinds = append(r.Kinds, *k)
	}
	slices.SortFunc(r.Kinds, func(a, b ledger.KindCount) int { return strings.Compare(a.Kind, b.Kind) })
	if untouched := r.Found + r.Helped - listed; untouched > 0 {
		r.Unlisted += untouched
		if failed == nil {
			run.note("%d differences are more than one run repairs (%d): run it again", untouched, maxKept)
		}
	}
	r.Note = strings.Join(run.notes, "; ")
	r.FinishedAt = time.Now().UTC().Truncate(time.Millisecond)
	return *r
}
