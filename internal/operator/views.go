package operator

import (
	"context"

	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
)

// maxRows bounds the lists of tasks and dead batches; the oldest come first.
const maxRows = 1000

// Sales lists every sale, drafts included.
func (a *Admin) Sales(ctx context.Context) ([]SaleView, error) {
	sales, err := a.Ledger.Sales(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]SaleView, len(sales))
	for i := range sales {
		if views[i], err = a.view(ctx, &sales[i]); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// Sale shows one sale.
func (a *Admin) Sale(ctx context.Context, id string) (SaleView, error) {
	s, err := a.Ledger.Sale(ctx, id)
	if err != nil {
		return SaleView{}, err
	}
	return a.view(ctx, &s)
}

func (a *Admin) view(ctx context.Context, s *sale.Sale) (SaleView, error) {
	v := SaleView{
		SaleSpec: SaleSpec{
			ID: s.ID, Title: s.Title, Total: s.Total, PriceCents: s.PriceCents, Currency: s.Currency,
			PerUserLimit: s.PerUserLimit, StartsAt: s.StartsAt, EndsAt: s.EndsAt,
		},
		Status: s.Status, Epoch: s.Epoch, Version: s.Version,
	}
	inv, err := a.Ledger.Inventory(ctx, s.ID)
	if err != nil {
		return v, err
	}
	v.Inventory = &InventoryView{Total: inv.Total, Available: inv.Available, Locked: inv.Locked, Sold: inv.Sold}
	// A list is worth having while Redis is away.
	snap, err := a.Stock.Snapshot(ctx, s.ID)
	if err != nil {
		v.Problem = err.Error()
		return v, nil //nolint:nilerr // shown in the view
	}
	v.Redis = &RedisView{
		Loaded: snap.Loaded, Stock: snap.Stock, Held: snap.Held, Total: snap.Total, Version: snap.Version,
		Epoch: snap.Epoch, Pending: snap.Pending, Batches: snap.Batches,
	}
	return v, nil
}

// Tasks lists the tasks in a state.
func (a *Admin) Tasks(ctx context.Context, state ledger.TaskState) ([]TaskView, error) {
	tasks, err := a.Ledger.Tasks(ctx, state, maxRows)
	if err != nil {
		return nil, err
	}
	views := make([]TaskView, len(tasks))
	for i := range tasks {
		t := &tasks[i]
		views[i] = TaskView{
			ID: t.ID, OrderID: t.Order.ID, SaleID: t.Order.SaleID, Quantity: t.Order.Quantity,
			State: t.State, Tries: t.Tries, NextTry: t.NextTry, LastError: t.LastErr,
		}
	}
	return views, nil
}

// RetryTask makes a task due now, with its tries counted afresh.
func (a *Admin) RetryTask(ctx context.Context, id int64) error { return a.Ledger.RetryTask(ctx, id) }

// DeadBatches lists the messages that failed by their own fault.
func (a *Admin) DeadBatches(ctx context.Context) ([]DeadBatchView, error) {
	dead, err := a.Ledger.DeadBatches(ctx, maxRows)
	if err != nil {
		return nil, err
	}
	views := make([]DeadBatchView, len(dead))
	for i := range dead {
		d := &dead[i]
		views[i] = DeadBatchView{
			ID: d.ID, MessageID: d.MessageID, SaleID: d.SaleID, Error: d.Error, State: d.State,
			CreatedAt: d.CreatedAt, Body: string(d.Body),
		}
		if d.BatchID != 0 {
			views[i].BatchID = d.BatchID.String()
		}
	}
	return views, nil
}

// ReplayDeadBatch applies a dead batch once its cause is mended.
func (a *Admin) ReplayDeadBatch(ctx context.Context, id int64) error {
	d, err := a.Ledger.DeadBatch(ctx, id)
	if err != nil {
		return err
	}
	b, err := bus.Decode(d.Body)
	if err != nil {
		return &sale.Error{Code: sale.CodeConflict, Detail: "its body cannot be read: " + err.Error()}
	}
	// It may never have been promised: then Redis has voided it, or does so now.
	switch purchase.Checker(a.Stock, nil)(ctx, b) {
	case bus.Rollback:
		return &sale.Error{Code: sale.CodeConflict, Detail: "it was never promised, and Redis has voided it: nothing is to be done"}
	case bus.Unknown:
		return &sale.Error{Code: sale.CodeConflict, Detail: "Redis cannot say now whether it was promised: try again"}
	}
	if _, err := a.Ledger.Apply(ctx, []sale.Batch{*b}); err != nil {
		if ledger.Poison(err) {
			return &sale.Error{Code: sale.CodeConflict, Detail: "it fails still: " + err.Error()}
		}
		return err
	}
	// Settling is owed from here on: what fails now, the reconciler does.
	return a.Ledger.MarkReplayed(ctx, id)
}
