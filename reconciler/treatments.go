package reconciler

import (
	"context"
	"fmt"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
)

// treatment is what is done about a kind of difference.
type treatment struct {
	rank int // the ledger is set right by itself first, then Redis by the ledger, then Redis's sums
	// mend repairs findings of the kind, at most maxMended, each after another look at it;
	// nil: an operator must, by the advice. One outcome a finding; an error ends the run.
	mend func(run *run, ctx context.Context, findings []audit.Finding) ([]outcome, error)
	// owed: the repair only finishes what was begun, and the fuse does not hold it back.
	owed   bool
	plan   string // what mend does, for people
	advice string
}

// outcome is what became of one finding: repaired, unless it was gone or why says why not.
type outcome struct {
	gone bool
	why  string
}

// maxMended is how many findings are mended, and logged, at a time.
const maxMended = 100

var treatments map[audit.Kind]treatment

func init() {
	treatments = map[audit.Kind]treatment{
		audit.TotalDiffers: {rank: 1, mend: (*run).levelTotals,
			plan: "bring the side whose total is of an earlier version to the other's"},
		audit.LedgerCountsDrift: {rank: 2, mend: (*run).recountLedger,
			plan: "count locked and sold afresh from the orders, and set available to what the total leaves"},
		audit.LimitExceeded: {rank: 3, mend: (*run).cancelOverLimit,
			plan: "cancel the user's newest unpaid orders above the limit (LIMIT_EXCEEDED) and give their units back in both stores"},
		audit.HeldWithoutOrder: {rank: 4, mend: (*run).addLostOrders,
			plan: "enter the order into the ledger from its Redis record; what limits, keys or stock refuse becomes CANCELLED"},
		audit.StuckReservation: {rank: 5, mend: (*run).releaseBatches, owed: true,
			plan: "void the reservation and give its units back"},
		audit.ConsumedNotSettled: {rank: 6, mend: (*run).settleBatches, owed: true,
			plan: "settle the batch in Redis"},
		audit.PersistedUnknownToRedis: {rank: 7, mend: (*run).settleBatches,
			plan: "adopt the order in Redis: a HELD record, its units taken from stock"},
		audit.QuantityDiffers: {rank: 8, mend: (*run).amendRecords,
			plan: "set the record in Redis to the ledger's quantity and state, and move the units"},
		audit.ReturnedButActive: {rank: 9, mend: (*run).amendRecords,
			plan: "set the record in Redis back to HELD, its units taken from stock"},
		audit.CancelledStillHeld: {rank: 10, mend: (*run).restoreOrders,
			plan: "give the order's units back in Redis"},
		audit.StuckTask: {rank: 11, mend: (*run).runStuckTasks, owed: true,
			plan: "give the order's units back in Redis now, and close the task"},
		audit.StockDrift: {rank: 12, mend: (*run).recountRedis,
			plan: "count held units afresh from the buyers' records, and set stock to what the total leaves"},
		audit.ConfirmedNotPersisted: {owed: true,
			plan: "apply the batch from its Redis record, once that is known to be replicated, and settle it"},
		audit.NotLoaded: {rank: 13, plan: "none here: the rebuild loads the sale from bus and ledger",
			advice: "left to the rebuild, which every round of the leading reconciler tries: is one running?"},
		audit.Oversold: {rank: 14, plan: "none: a person decides",
			advice: "raise the total (flashgate sale restock) or cancel orders, then reconcile again"},
		audit.DoubleOrder: {rank: 15, plan: "none: a person decides",
			advice: "the ledger's unique key orders_key is missing or was bypassed: restore it, cancel all but one of the orders, then reconcile again"},
		NotDone: {rank: 16, plan: "none: see why", advice: "see the log"},
	}
}

// plan says what mends a finding, the same in a dry run, in a report and in the log.
func (run *run) plan(f *audit.Finding) string {
	text := treatments[f.Kind].plan
	switch {
	case f.Before != "" && f.After != "":
		return fmt.Sprintf("%s (%s → %s)", text, f.Before, f.After)
	case f.After != "":
		return fmt.Sprintf("%s (→ %s)", text, f.After)
	}
	return text
}

// entry is a finding's repair as inventory_log keeps it.
func (run *run) entry(f *audit.Finding) ledger.Repair {
	return ledger.Repair{
		SaleID: run.sale.ID, Kind: string(f.Kind), OrderID: f.OrderID, BatchID: f.BatchID, Units: f.Units,
		Before: f.Before, After: f.After,
		Reason: fmt.Sprintf("%s: %s [%s, %s]", f.Detail, treatments[f.Kind].plan, run.query.Trigger, run.report.Holder),
	}
}

// logAll writes repairs of Redis down before they are made, unless this run has been
// replaced by another.
func (run *run) logAll(ctx context.Context, findings []audit.Finding) error {
	entries := make([]ledger.Repair, len(findings))
	for i := range findings {
		entries[i] = run.entry(&findings[i])
	}
	return run.o.Ledger.LogRepairs(ctx, run.fence, entries)
}
