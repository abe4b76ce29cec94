package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// The repairs, one a kind of difference. Each looks again before it acts, and goes
// through the script or the transaction that owns the rule, so that it can be made
// twice, or late, without harm.

func (run *run) levelTotals(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	if err := run.LevelTotal(ctx, run.sale.ID); err != nil {
		return explain(out, err), engineFault(ctx, err)
	}
	return out, nil
}

func (run *run) recountLedger(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	changed, err := run.o.Ledger.RecountInventory(ctx, run.fence, run.sale.ID, run.entry(&findings[0]))
	if sale.CodeOf(err) == sale.CodeConflict {
		return explain(out, err), nil
	}
	out[0].gone = !changed
	return out, err
}

func (run *run) cancelOverLimit(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	users := make(map[string]ledger.Repair, len(findings))
	for i := range findings {
		users[findings[i].UserID] = run.entry(&findings[i])
	}
	done, err := run.o.Ledger.CancelOverLimit(ctx, run.fence, run.sale.ID, run.sale.PerUserLimit, users)
	switch {
	case err != nil && ledger.Poison(err) && len(findings) > 1:
		for i := range findings { // one of them spoils it
			one, err := run.cancelOverLimit(ctx, findings[i:i+1])
			if err != nil {
				return nil, err
			}
			out[i] = one[0]
		}
		return out, nil
	case err != nil && ledger.Poison(err):
		out[0].why = "the inventory does not cover it: reconcile again once the counts are right: " + err.Error()
		return out, nil
	case err != nil:
		return nil, err
	}
	for i := range findings {
		switch of := done[findings[i].UserID]; {
		case of.Left > 0:
			out[i].why = fmt.Sprintf("%d units above the limit are paid for: refund one of the orders", of.Left)
		case len(of.Cancelled) == 0:
			out[i].gone = true
		}
	}
	return out, nil
}

// addLostOrders enters orders whose settled record says that the ledger once had them. A
// record whose batch is VOID is no promise: its units go back instead.
func (run *run) addLostOrders(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	dead, err := run.o.Ledger.DeadBatchStates(ctx, batchIDs(findings))
	if err != nil {
		return nil, err
	}
	records, err := run.recordsOf(ctx, findings)
	if err != nil {
		return nil, err
	}
	var lost []int // of findings
	for i := range findings {
		f, r := &findings[i], records[findings[i].OrderID]
		switch {
		case r == nil || r.Returned:
			out[i].gone = true
		case dead[f.BatchID] == ledger.StateDead:
			out[i].why = "of a dead batch: see why it failed, then replay it"
		case r.Batch == stock.StateSettled:
			lost = append(lost, i)
		case r.Batch == stock.StateVoid:
			if err := run.logAll(ctx, findings[i:i+1]); err != nil {
				return nil, err
			}
			amended, err := run.o.Stock.Amend(ctx, run.sale.ID, r, r.Quantity, true)
			if err != nil {
				return nil, err
			}
			out[i].gone = !amended
		default:
			out[i].gone = true // its batch is open again: it is judged as a batch
		}
	}
	return out, run.enter(ctx, findings, lost, records, out)
}

// enter adds orders to the ledger together, or, when one of them spoils it, one by one.
func (run *run) enter(ctx context.Context, findings []audit.Finding, which []int, records map[sale.ID]*stock.Record, out []outcome) error {
	if len(which) == 0 {
		return nil
	}
	batches := make([]sale.Batch, len(which))
	for n, i := range which {
		r := records[findings[i].OrderID]
		batches[n] = sale.Batch{ID: r.BatchID, SaleID: run.sale.ID, Orders: []sale.Order{{
			ID: r.OrderID, SaleID: run.sale.ID, UserID: r.UserID, RequestKey: r.RequestKey, Quantity: r.Quantity,
			AmountCents: int64(r.Quantity) * run.sale.PriceCents,
		}}}
	}
	applied, err := run.o.Ledger.AddLostOrders(ctx, run.fence, batches, run.entry(&findings[which[0]]))
	switch {
	case err != nil && ledger.Poison(err) && len(which) > 1:
		for n := range which {
			if err := run.enter(ctx, findings, which[n:n+1], records, out); err != nil {
				return err
			}
		}
		return nil
	case err != nil && ledger.Poison(err):
		out[which[0]].why = "the ledger can't take it: " + err.Error()
		return nil
	case err != nil:
		return err
	}
	if applied.Cancelled > 0 {
		run.note("%d orders that the ledger had lost are CANCELLED now: see order_status_log", applied.Cancelled)
	}
	return nil
}

func (run *run) releaseBatches(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	dead, err := run.o.Ledger.DeadBatchStates(ctx, batchIDs(findings))
	if err != nil {
		return nil, err
	}
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	for i := range findings {
		if state, is := dead[findings[i].BatchID]; is {
			out[i].why = fmt.Sprintf("a dead batch (%s): see why it failed, then replay it", state)
			continue
		}
		state, err := run.o.Stock.Release(ctx, run.sale.ID, findings[i].BatchID, 0, nil)
		if err != nil {
			return nil, err
		}
		out[i].gone = state != stock.StateVoid
	}
	return out, nil
}

func (run *run) settleBatches(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	return make([]outcome, len(findings)), run.settleWhole(ctx, batchIDs(findings))
}

// amendRecords sets records to what the ledger says.
func (run *run) amendRecords(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	records, err := run.recordsOf(ctx, findings)
	if err != nil {
		return nil, err
	}
	// After the records: an order that is active now was not given back in between.
	stored, err := run.o.Ledger.OrdersByID(ctx, orderIDs(findings))
	if err != nil {
		return nil, err
	}
	taken := make([]*ledger.Order, len(findings))
	err = sideBySide(out, func(i int) error {
		r, o := records[findings[i].OrderID], stored[findings[i].OrderID]
		if r == nil || o == nil {
			out[i].gone = true
			return nil
		}
		if kind, _ := audit.Judge(r, o); kind != audit.QuantityDiffers && kind != audit.ReturnedButActive {
			out[i].gone = true
			return nil
		}
		amended, err := run.o.Stock.Amend(ctx, run.sale.ID, r, o.Quantity, !o.Status.Active())
		switch {
		case err != nil:
			return err
		case !amended:
			out[i].why = "the record changed meanwhile: the next run looks again"
		case o.Status.Active():
			taken[i] = o
		}
		return nil
	})
	// Those that were amended, whatever became of the others.
	taken = slices.DeleteFunc(taken, func(o *ledger.Order) bool { return o == nil })
	return out, errors.Join(err, run.untake(ctx, taken))
}

// sideBySide calls mend with each finding's place, some at a time: what a repair of one
// record takes is mostly the way to Redis and back. What Redis cannot hold is that
// finding's outcome; any other error is returned, the first of them.
func sideBySide(out []outcome, mend func(i int) error) error {
	var mending errgroup.Group
	mending.SetLimit(besides)
	for i := range out {
		mending.Go(func() error {
			err := mend(i)
			if errors.Is(err, stock.ErrUnfit) {
				out[i].why = err.Error()
				return nil
			}
			return err
		})
	}
	return mending.Wait()
}

// untake gives back what was just taken for an order that was cancelled in between: its
// own give-back may have come before, when the record was still RETURNED.
func (run *run) untake(ctx context.Context, taken []*ledger.Order) error {
	ids := make([]sale.ID, len(taken))
	for i, o := range taken {
		ids[i] = o.ID
	}
	now, err := run.o.Ledger.OrdersByID(ctx, ids)
	if err != nil {
		return err
	}
	for _, o := range taken {
		if is := now[o.ID]; is != nil && is.Status.Active() {
			continue
		}
		if _, err := run.o.Stock.Restore(ctx, &o.Order, o.BatchID); err != nil {
			return err
		}
	}
	return nil
}

func (run *run) restoreOrders(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	stored, err := run.o.Ledger.OrdersByID(ctx, orderIDs(findings))
	if err != nil {
		return nil, err
	}
	return out, sideBySide(out, func(i int) error {
		o := stored[findings[i].OrderID]
		if o == nil || o.Status.Active() {
			out[i].gone = true
			return nil
		}
		back, err := run.o.Stock.Restore(ctx, &o.Order, o.BatchID)
		out[i].gone = err == nil && !back
		return err
	})
}

func (run *run) runStuckTasks(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	stored, err := run.o.Ledger.OrdersByID(ctx, orderIDs(findings))
	if err != nil {
		return nil, err
	}
	tasks, err := run.o.Ledger.TasksOf(ctx, orderIDs(findings))
	if err != nil {
		return nil, err
	}
	given := make([]int64, len(findings)) // the task, once its units are back
	err = sideBySide(out, func(i int) error {
		t, has := tasks[findings[i].OrderID]
		o := stored[findings[i].OrderID]
		switch {
		case !has || t.State != ledger.TaskStuck:
			out[i].gone = true
			return nil
		case o != nil && o.Status.Active():
			out[i].why = fmt.Sprintf("its order is %s: abandon the task, or cancel the order", o.Status)
			return nil
		}
		if _, err := run.o.Stock.Restore(ctx, &t.Order, t.BatchID); err != nil {
			return err
		}
		given[i] = t.ID
		return nil
	})
	given = slices.DeleteFunc(given, func(id int64) bool { return id == 0 })
	return out, errors.Join(err, run.o.Ledger.TasksDone(ctx, given...))
}

func (run *run) recountRedis(ctx context.Context, findings []audit.Finding) ([]outcome, error) {
	out := make([]outcome, len(findings))
	if err := run.logAll(ctx, findings); err != nil {
		return nil, err
	}
	drift, counted, err := run.o.Stock.RepairCounts(ctx, run.sale.ID)
	switch {
	case err != nil:
		return nil, err
	case counted:
	case drift < 0:
		out[0].why = "lowered so that nothing is oversold; too busy for its records to be counted: run it again when the sale is quiet"
	default:
		out[0].why = "too large and too busy for its records to be counted: run it again when the sale is quiet"
	}
	return out, nil
}

// recordsOf reads the findings' records as they are now, by order.
func (run *run) recordsOf(ctx context.Context, findings []audit.Finding) (map[sale.ID]*stock.Record, error) {
	users := make([]string, len(findings))
	for i := range findings {
		users[i] = findings[i].UserID
	}
	found, err := run.o.Stock.Records(ctx, run.sale.ID, users)
	byOrder := make(map[sale.ID]*stock.Record, len(findings))
	for _, records := range found {
		for i := range records {
			byOrder[records[i].OrderID] = &records[i]
		}
	}
	return byOrder, err
}

// explain gives all outcomes one reason.
func explain(out []outcome, err error) []outcome {
	for i := range out {
		out[i].why = err.Error()
	}
	return out
}

// engineFault is err if it ends the run: an engine that is away, and not a refusal.
func engineFault(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, stock.ErrNotRun) || errors.Is(err, stock.ErrNotReady) {
		return err
	}
	return nil
}
