package reconciler

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"flashgate/internal/audit"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// maxHelped is how many promised batches are applied in one transaction, about what a
// worker takes at a time; confirmsAtOnce is how many of them are confirmed side by side,
// for each waits for its replicas.
const (
	maxHelped      = 128
	confirmsAtOnce = 16
)

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
	var waiting []audit.Finding
	var promised []stock.BatchRecord
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
		waiting, promised = append(waiting, *f), append(promised, records[f.BatchID])
	}
	return run.applyRecords(ctx, promised, waiting)
}

// applyRecords applies the batches that records tell of, each for its finding. They are
// confirmed again, which waits for the replicas: what only a master knows is no promise
// yet.
func (run *run) applyRecords(ctx context.Context, records []stock.BatchRecord, findings []audit.Finding) error {
	if len(records) == 0 {
		return nil
	}
	snap, err := run.o.Stock.Snapshot(ctx, run.sale.ID)
	if err != nil {
		return err
	}
	batches := make([]sale.Batch, len(records))
	states := make([]stock.State, len(records))
	confirms, confirming := errgroup.WithContext(ctx)
	confirms.SetLimit(confirmsAtOnce)
	for i, record := range records {
		b := sale.Batch{ID: record.ID, SaleID: run.sale.ID, Epoch: snap.Epoch, Orders: record.Orders}
		for o := range b.Orders {
			b.Orders[o].AmountCents = int64(b.Orders[o].Quantity) * run.sale.PriceCents
		}
		batches[i] = b
		confirms.Go(func() error {
			state, err := run.o.Stock.Confirm(confirming, &batches[i])
			if errors.Is(err, stock.ErrNotReplicated) {
				return nil // no promise yet, and so in flight: left to its worker, or to the next run
			}
			states[i] = state
			return err
		})
	}
	if err := confirms.Wait(); err != nil {
		return err
	}
	var promised []sale.Batch
	var helped []audit.Finding
	for i, state := range states {
		if state == stock.StateConfirmed {
			promised, helped = append(promised, batches[i]), append(helped, findings[i])
		}
	}
	return run.applyPromised(ctx, promised, helped)
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
