package reconciler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// NotDone is what a report calls a step of the round that failed: releasing, loading,
// levelling, settling or a task.
const NotDone audit.Kind = "NOT_DONE"

// Query says what a reconcile on demand covers.
type Query struct {
	SaleID string `json:"sale_id,omitempty"` // "" = every sale
	DryRun bool   `json:"dry_run,omitempty"` // find, repair nothing
}

// Report is what a reconcile found and did.
type Report struct {
	DryRun    bool         `json:"dry_run"`
	StartedAt time.Time    `json:"started_at"`
	Took      string       `json:"took"`
	Sales     []SaleResult `json:"sales"`
	Found     int          `json:"found"`
	Repaired  int          `json:"repaired"`
	Left      int          `json:"left"` // found and not repaired
}

// SaleResult is one sale's part of a Report.
type SaleResult struct {
	SaleID       string `json:"sale_id"`
	LedgerOrders int64  `json:"ledger_orders_compared"`
	RedisRecords int64  `json:"redis_records_compared"`
	Younger      int64  `json:"younger_than_watermark"`
	Items        []Item `json:"items"`
}

// Item is one difference and what became of it.
type Item struct {
	Kind     audit.Kind `json:"kind"`
	OrderID  string     `json:"order_id,omitempty"`
	BatchID  string     `json:"batch_id,omitempty"`
	UserID   string     `json:"user_id,omitempty"`
	Units    int64      `json:"units"`
	Detail   string     `json:"detail"`
	Repaired bool       `json:"repaired"`
	Why      string     `json:"why,omitempty"` // it was not repaired
}

// Once compares Redis with the ledger, order by order, and repairs what differs. It
// runs whether or not a leader is alive: every repair is idempotent.
func (r *Reconciler) Once(ctx context.Context, q Query) (Report, error) {
	began := time.Now()
	report := Report{DryRun: q.DryRun, StartedAt: began.UTC()}
	sales, err := r.o.Ledger.Sales(ctx)
	if err != nil {
		return report, err
	}
	r.sales.Store(&sales)
	known := q.SaleID == ""
	for i := range sales {
		s := &sales[i]
		if q.SaleID != "" && s.ID != q.SaleID || time.Now().After(s.EndsAt.Add(sale.Retention)) {
			known = known || s.ID == q.SaleID
			continue
		}
		known = true
		var owing error
		if !q.DryRun {
			owing = errors.Join(r.tend(ctx, s, false, true), r.rebuilt(ctx, s.ID))
		}
		result, err := r.reconcile(ctx, s, q.DryRun)
		if err != nil {
			return report, fmt.Errorf("reconcile of sale %s: %w", s.ID, err)
		}
		if !q.DryRun {
			owing = errors.Join(owing, r.settleOwed(ctx, s.ID), r.runTasks(ctx, s.ID))
		}
		if owing != nil {
			result.Items = append(result.Items, Item{Kind: NotDone, Detail: "what a round does was not done", Why: owing.Error()})
		}
		for i := range result.Items {
			report.Found++
			if result.Items[i].Repaired {
				report.Repaired++
			} else {
				report.Left++
			}
		}
		report.Sales = append(report.Sales, result)
	}
	if !known {
		return report, &sale.Error{Code: sale.CodeSaleNotFound, Detail: "no sale " + q.SaleID}
	}
	report.Took = time.Since(began).Round(time.Millisecond).String()
	return report, nil
}

func (r *Reconciler) reconcile(ctx context.Context, s *sale.Sale, dryRun bool) (SaleResult, error) {
	var findings []audit.Finding
	compared, err := r.o.Auditor.Compare(ctx, s, func(f audit.Finding) error {
		findings = append(findings, f)
		return nil
	})
	result := SaleResult{
		SaleID: s.ID, LedgerOrders: compared.LedgerOrders, RedisRecords: compared.RedisRecords,
		Younger: compared.Younger, Items: make([]Item, 0, len(findings)),
	}
	if err != nil {
		return result, err
	}
	dead, err := r.deadBatches(ctx)
	if err != nil {
		return result, err
	}
	var open map[sale.ID]stock.BatchRecord
	blown := r.blowsFuse(s, findings)
	for i := range findings {
		f := &findings[i]
		item := Item{Kind: f.Kind, UserID: f.UserID, Units: f.Units, Detail: f.Detail}
		if f.OrderID != 0 {
			item.OrderID = f.OrderID.String()
		}
		if f.BatchID != 0 {
			item.BatchID = f.BatchID.String()
		}
		switch {
		case dryRun:
			item.Why = "dry run"
		case f.BatchID != 0 && dead[f.BatchID]:
			item.Why = "a dead batch: see why it failed, then retry it"
		case blown && !owed[f.Kind]:
			item.Why = fmt.Sprintf("above the fuse of %d units or %g %% of the sale: an operator decides", r.o.FuseUnits, r.o.FusePercent)
		default:
			if f.Kind == audit.ConfirmedNotPersisted && open == nil {
				if open, err = r.openBatches(ctx, s.ID); err != nil {
					return result, err
				}
			}
			if err := r.repair(ctx, s, f, open); err != nil {
				item.Why = err.Error()
			} else {
				item.Repaired = true
			}
		}
		result.Items = append(result.Items, item)
	}
	return result, nil
}

// owed are the kinds whose repair only finishes what was begun; the fuse does not
// hold it back.
var owed = map[audit.Kind]bool{
	audit.ConfirmedNotPersisted: true,
	audit.ConsumedNotSettled:    true,
	audit.StuckReservation:      true,
}

// blowsFuse reports whether the repairs would move more units than both bounds: then
// nothing is repaired but what is owed anyway, and a person decides.
func (r *Reconciler) blowsFuse(s *sale.Sale, findings []audit.Finding) bool {
	var moved int64
	for i := range findings {
		if !owed[findings[i].Kind] {
			moved += max(findings[i].Units, -findings[i].Units)
		}
	}
	return moved > max(r.o.FuseUnits, int64(float64(s.Total)*r.o.FusePercent/100))
}

// maxDeadBatches bounds the dead batches that one run looks out for.
const maxDeadBatches = 10_000

// deadBatches are those that wait for an operator: a reconcile leaves them alone.
func (r *Reconciler) deadBatches(ctx context.Context) (map[sale.ID]bool, error) {
	rows, err := r.o.Ledger.DeadBatches(ctx, maxDeadBatches)
	dead := make(map[sale.ID]bool, len(rows))
	for i := range rows {
		if rows[i].State == ledger.StateDead {
			dead[rows[i].BatchID] = true
		}
	}
	return dead, err
}

func (r *Reconciler) openBatches(ctx context.Context, saleID string) (map[sale.ID]stock.BatchRecord, error) {
	open := make(map[sale.ID]stock.BatchRecord)
	err := r.o.Stock.Batches(ctx, saleID, func(records []stock.BatchRecord) error {
		for _, b := range records {
			open[b.ID] = b
		}
		return nil
	})
	return open, err
}

// repair mends one difference by the script or transaction that owns the rule.
func (r *Reconciler) repair(ctx context.Context, s *sale.Sale, f *audit.Finding, open map[sale.ID]stock.BatchRecord) error {
	switch f.Kind {
	case audit.ConfirmedNotPersisted:
		return r.persist(ctx, s, open[f.BatchID])
	case audit.ConsumedNotSettled, audit.PersistedUnknownToRedis:
		settled, err := r.o.Stock.Settle(ctx, s.ID, []sale.ID{f.BatchID}, r.o.Ledger.ActiveOrders)
		if err != nil {
			return err
		}
		return r.o.Ledger.MarkSettled(ctx, settled)
	case audit.CancelledStillHeld:
		o, err := r.o.Ledger.Order(ctx, f.OrderID)
		if err != nil {
			return err
		}
		if o.Status.Active() {
			return nil
		}
		_, err = r.o.Stock.Restore(ctx, &o.Order, o.BatchID)
		return err
	case audit.TotalDiffers:
		return r.LevelTotal(ctx, s.ID)
	case audit.StuckReservation:
		_, err := r.o.Stock.Release(ctx, s.ID, f.BatchID, 0, nil)
		return err
	case audit.StockDrift:
		_, ok, err := r.o.Stock.Recount(ctx, s.ID, true)
		if err == nil && !ok {
			return fmt.Errorf("the sale is too busy to be recounted now")
		}
		return err
	default:
		return fmt.Errorf("needs an operator")
	}
}

// persist applies a promised batch that did not come through the bus, from its
// Redis record. The record is confirmed again first, which waits for the replicas:
// what only a master knows is no promise yet.
func (r *Reconciler) persist(ctx context.Context, s *sale.Sale, record stock.BatchRecord) error {
	if record.State != stock.StateConfirmed {
		return fmt.Errorf("the batch is not CONFIRMED any more")
	}
	b := sale.Batch{ID: record.ID, SaleID: s.ID, Orders: record.Orders}
	for i := range b.Orders {
		b.Orders[i].SaleID = s.ID
		b.Orders[i].AmountCents = int64(b.Orders[i].Quantity) * s.PriceCents
	}
	snap, err := r.o.Stock.Snapshot(ctx, s.ID)
	if err != nil {
		return err
	}
	b.Epoch = snap.Epoch
	state, err := r.o.Stock.Confirm(ctx, &b)
	if err != nil {
		return err
	}
	if state != stock.StateConfirmed {
		return nil // settled meanwhile
	}
	if _, err := r.o.Ledger.Apply(ctx, []sale.Batch{b}); err != nil {
		return err
	}
	settled, err := r.o.Stock.Settle(ctx, s.ID, []sale.ID{b.ID}, r.o.Ledger.ActiveOrders)
	if err != nil {
		return err
	}
	return r.o.Ledger.MarkSettled(ctx, settled)
}
