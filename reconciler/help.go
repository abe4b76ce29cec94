package reconciler

import (
	"context"
	"fmt"

	"flashgate/internal/audit"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// maxHelped is how many promised batches are applied in one transaction, about what a
// worker takes at a time.
const maxHelped = 32

// helpWith collects promised batches that the ledger has not: their workers are behind,
// or their messages are lost. Either way applying them is what was promised.
func (run *run) helpWith(ctx context.Context, f *audit.Finding) error {
	run.help = append(run.help, *f)
	if len(run.help) < maxHelped {
		return nil
	}
	return run.flushHelp(ctx)
}

// flushHelp applies the collected batches, from their records as they are now.
func (run *run) flushHelp(ctx context.Context) error {
	findings := run.help
	run.help = nil
	if len(findings) == 0 {
		return nil
	}
	ids := batchIDs(findings)
	dead, err := run.o.Ledger.DeadBatchStates(ctx, ids)
	if err != nil {
		return err
	}
	records, err := run.o.Stock.BatchesByID(ctx, run.sale.ID, ids)
	if err != nil {
		return err
	}
	var batches []sale.Batch
	var helped []audit.Finding
	for i := range findings {
		f := &findings[i]
		if state, is := dead[f.BatchID]; is {
			run.left(f, fmt.Sprintf("a dead batch (%s): see why it failed, then replay it", state))
			continue
		}
		if records[f.BatchID].State != stock.StateConfirmed {
			continue // settled meanwhile
		}
		if run.query.DryRun {
			run.count(f.Kind, f.Units)
			run.item(f, ledger.ItemHelped, "dry run")
			continue
		}
		b, promised, err := run.promised(ctx, records[f.BatchID])
		if err != nil {
			return err
		}
		if promised {
			batches, helped = append(batches, b), append(helped, *f)
		}
	}
	return run.applyPromised(ctx, batches, helped)
}

// promised makes the batch that a record tells of. The record is confirmed again, which
// waits for the replicas: what only a master knows is no promise yet.
func (run *run) promised(ctx context.Context, record stock.BatchRecord) (sale.Batch, bool, error) {
	b := sale.Batch{ID: record.ID, SaleID: run.sale.ID, Orders: record.Orders}
	for i := range b.Orders {
		b.Orders[i].AmountCents = int64(b.Orders[i].Quantity) * run.sale.PriceCents
	}
	snap, err := run.o.Stock.Snapshot(ctx, run.sale.ID)
	if err != nil {
		return b, false, err
	}
	b.Epoch = snap.Epoch
	state, err := run.o.Stock.Confirm(ctx, &b)
	return b, state == stock.StateConfirmed, err
}

// applyPromised applies batches together, or, when one of them spoils it, one by one.
func (run *run) applyPromised(ctx context.Context, batches []sale.Batch, findings []audit.Finding) error {
	if len(batches) == 0 {
		return nil
	}
	_, err := run.o.Ledger.Apply(ctx, batches)
	if err != nil && ledger.Poison(err) && len(batches) > 1 {
		for i := range batches {
			if err := run.applyPromised(ctx, batches[i:i+1], findings[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil && ledger.Poison(err) {
		run.left(&findings[0], "the ledger can't take it: "+err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.AfterHelp)
	if err := run.settleWhole(ctx, batchIDs(findings)); err != nil {
		return err
	}
	for i := range findings {
		run.count(findings[i].Kind, findings[i].Units)
		run.item(&findings[i], ledger.ItemHelped, "")
	}
	return nil
}

// settleWhole settles batches that the ledger has, and adopts those of their active
// orders that have no record. The first call removes what is open, and looks no further;
// the second finds it removed, and adopts.
func (run *run) settleWhole(ctx context.Context, ids []sale.ID) error {
	for range 2 {
		settled, err := run.o.Stock.Settle(ctx, run.sale.ID, ids, run.o.Ledger.ActiveOrders)
		if err != nil {
			return err
		}
		if err := run.o.Ledger.MarkSettled(ctx, settled); err != nil {
			return err
		}
	}
	return nil
}

// batchIDs are the batches of the findings, each once.
func batchIDs(findings []audit.Finding) []sale.ID {
	ids := make([]sale.ID, 0, len(findings))
	seen := make(map[sale.ID]bool, len(findings))
	for i := range findings {
		if id := findings[i].BatchID; !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

func orderIDs(findings []audit.Finding) []sale.ID {
	ids := make([]sale.ID, len(findings))
	for i := range findings {
		ids[i] = findings[i].OrderID
	}
	return ids
}
