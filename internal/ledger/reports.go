package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// ReconcileReport is what one run of the reconciler found and did in one sale.
type ReconcileReport struct {
	ID      int64  `json:"id,omitempty"` // 0: not stored
	SaleID  string `json:"sale_id"`
	Trigger string `json:"trigger"` // why it ran: schedule, once, or early and why
	Holder  string `json:"holder"`  // who ran it
	DryRun  bool   `json:"dry_run"`
	// Unfinished: it was cut short, and Note says why. It does not count as the last run.
	Unfinished bool `json:"unfinished,omitempty"`

	// What was compared, in orders, records and batches.
	LedgerOrders int64 `json:"ledger_orders_compared"`
	RedisRecords int64 `json:"redis_records_compared"`
	Younger      int64 `json:"younger_than_watermark"` // records: in flight, not compared
	OpenBatches  int64 `json:"open_batches"`

	// Found = Repaired + Left. Helped are promised batches that were applied ahead of
	// a lagging worker: no difference, and not in Found.
	Found    int64       `json:"found"`
	Repaired int64       `json:"repaired"`
	Left     int64       `json:"left"`
	Helped   int64       `json:"helped"`
	Kinds    []KindCount `json:"kinds"`

	Note       string    `json:"note,omitempty"` // what could not be compared or done, and why
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`

	Items    []ReconcileItem `json:"items"`    // the first of them
	Unlisted int64           `json:"unlisted"` // found or helped, and not in Items
}

// Took is how long the run worked on the sale.
func (r *ReconcileReport) Took() time.Duration { return r.FinishedAt.Sub(r.StartedAt) }

// KindCount counts one kind of difference.
type KindCount struct {
	Kind     string `json:"kind"`
	Found    int64  `json:"found"`
	Repaired int64  `json:"repaired"`
	Left     int64  `json:"left"`
	Helped   int64  `json:"helped"`
	Units    int64  `json:"units"` // of all of them, whichever way they go
}

// ReconcileItem is one difference and what became of it.
type ReconcileItem struct {
	Kind    string      `json:"kind"`
	OrderID sale.ID     `json:"order_id,omitempty"`
	BatchID sale.ID     `json:"batch_id,omitempty"`
	UserID  string      `json:"user_id,omitempty"`
	Units   int64       `json:"units"`
	Outcome ItemOutcome `json:"outcome"`
	Detail  string      `json:"detail"`        // what differs
	Plan    string      `json:"plan"`          // what mends it
	Why     string      `json:"why,omitempty"` // it was left
}

// ItemOutcome is what became of a difference.
type ItemOutcome string

// The outcomes.
const (
	ItemRepaired ItemOutcome = "REPAIRED"
	ItemLeft     ItemOutcome = "LEFT"
	ItemHelped   ItemOutcome = "HELPED"
)

// maxTriggerBytes bounds why a run ran; the column holds as many characters.
const maxTriggerBytes = 200

var itemColumns = []string{"report_id", "kind", "order_id", "batch_id", "user_id", "units", "outcome", "detail", "plan", "why"}

// AddReconcileReport stores a report with its items and sets its ID.
func (l *Ledger) AddReconcileReport(ctx context.Context, r *ReconcileReport) error {
	kinds, err := json.Marshal(r.Kinds)
	if err != nil {
		return fmt.Errorf("ledger: a report's kinds: %w", err)
	}
	return l.change(ctx, func(tx *gorm.DB) error {
		// On one connection, so the id is this row's.
		_, err := exec(ctx, tx, "INSERT INTO reconcile_reports (sale_id, cause, holder, dry_run, unfinished, ledger_orders, redis_records,"+
			" younger, open_batches, found, repaired, remaining, helped, unlisted, kinds, note, started_at, finished_at)"+
			" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			l.engine.bytes(r.SaleID), clip(r.Trigger, maxTriggerBytes), l.engine.bytes(r.Holder), r.DryRun, r.Unfinished, r.LedgerOrders, r.RedisRecords,
			r.Younger, r.OpenBatches, r.Found, r.Repaired, r.Left, r.Helped, r.Unlisted, string(kinds), clip(r.Note, maxTextBytes),
			moment{r.StartedAt}.text(), moment{r.FinishedAt}.text())
		if err != nil {
			return err
		}
		if err := tx.Raw("SELECT " + l.engine.lastID).Find(&r.ID).Error; err != nil {
			return err
		}
		args := make([]any, 0, len(r.Items)*len(itemColumns))
		for i := range r.Items {
			it := &r.Items[i]
			args = append(args, r.ID, it.Kind, int64(it.OrderID), int64(it.BatchID), l.engine.bytes(it.UserID), it.Units,
				string(it.Outcome), clip(it.Detail, maxTextBytes), clip(it.Plan, maxTextBytes), clip(it.Why, maxTextBytes))
		}
		_, err = l.engine.insert(ctx, tx, "INSERT", "reconcile_items", itemColumns, args)
		return err
	})
}

// ReconcileReports lists up to limit reports, newest first, of one sale or ("") of all;
// without their items.
func (l *Ledger) ReconcileReports(ctx context.Context, saleID string, limit int) ([]ReconcileReport, error) {
	if saleID == "" {
		return l.reports(ctx, " ORDER BY id DESC LIMIT ?", limit)
	}
	return l.reports(ctx, " WHERE sale_id = ? ORDER BY id DESC LIMIT ?", l.engine.bytes(saleID), limit)
}

// ReconcileReport reads a report with its items. Error: NOT_FOUND.
func (l *Ledger) ReconcileReport(ctx context.Context, id int64) (ReconcileReport, error) {
	reports, err := l.reports(ctx, " WHERE id = ?", id)
	switch {
	case err != nil:
		return ReconcileReport{}, err
	case len(reports) == 0:
		return ReconcileReport{}, notFound(sale.CodeNotFound, "reconcile report %d", id)
	}
	r := reports[0]
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT kind, order_id, batch_id, user_id, units, outcome, detail, plan, why FROM reconcile_items"+
			" WHERE report_id = ? ORDER BY id", id).Find(&r.Items).Error
	})
	return r, err
}

// LastReconcile is when the newest stored run with the trigger began; zero: there is none.
func (l *Ledger) LastReconcile(ctx context.Context, trigger string) (time.Time, error) {
	reports, err := l.reports(ctx, " WHERE cause = ? AND NOT dry_run AND NOT unfinished ORDER BY id DESC LIMIT 1", clip(trigger, maxTriggerBytes))
	if err != nil || len(reports) == 0 {
		return time.Time{}, err
	}
	return reports[0].StartedAt, nil
}

// LastReconciles is LastReconcile by sale.
func (l *Ledger) LastReconciles(ctx context.Context, trigger string) (map[string]time.Time, error) {
	var rows []struct {
		SaleID string
		Last   moment
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT sale_id, MAX(started_at) AS last FROM reconcile_reports WHERE cause = ? AND NOT dry_run AND NOT unfinished GROUP BY sale_id",
			clip(trigger, maxTriggerBytes)).Find(&rows).Error
	})
	last := make(map[string]time.Time, len(rows))
	for _, r := range rows {
		last[r.SaleID] = r.Last.Time
	}
	return last, err
}

func (l *Ledger) reports(ctx context.Context, where string, args ...any) ([]ReconcileReport, error) {
	var rows []struct {
		ID                                               int64
		SaleID, Cause, Holder                            string
		DryRun, Unfinished                               bool
		LedgerOrders, RedisRecords, Younger, OpenBatches int64
		Found, Repaired, Remaining, Helped, Unlisted     int64
		Kinds, Note                                      string
		StartedAt, FinishedAt                            moment
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT id, sale_id, cause, holder, dry_run, unfinished, ledger_orders, redis_records, younger, open_batches,"+
			" found, repaired, remaining, helped, unlisted, kinds, note, started_at, finished_at FROM reconcile_reports"+where, args...).
			Find(&rows).Error
	})
	reports := make([]ReconcileReport, len(rows))
	for i := range rows {
		r := &rows[i]
		reports[i] = ReconcileReport{
			ID: r.ID, SaleID: r.SaleID, Trigger: r.Cause, Holder: r.Holder, DryRun: r.DryRun, Unfinished: r.Unfinished,
			LedgerOrders: r.LedgerOrders, RedisRecords: r.RedisRecords, Younger: r.Younger, OpenBatches: r.OpenBatches,
			Found: r.Found, Repaired: r.Repaired, Left: r.Remaining, Helped: r.Helped, Unlisted: r.Unlisted,
			Note: r.Note, StartedAt: r.StartedAt.Time, FinishedAt: r.FinishedAt.Time,
		}
		if failed := json.Unmarshal([]byte(r.Kinds), &reports[i].Kinds); failed != nil && err == nil {
			err = fmt.Errorf("ledger: reconcile report %d: %w", r.ID, failed)
		}
	}
	return reports, err
}

// purgeReports bounds what one transaction of a purge deletes.
const purgeReports = 100

// PurgeReconcileReports deletes the reports that began before the given time, with their
// items, and says how many those were.
func (l *Ledger) PurgeReconcileReports(ctx context.Context, before time.Time) (purged int, err error) {
	for {
		var ids []int64
		err := l.change(ctx, func(tx *gorm.DB) error {
			ids = nil
			err := tx.Raw("SELECT id FROM reconcile_reports WHERE started_at < ? ORDER BY started_at LIMIT ?",
				moment{before}.text(), purgeReports).Find(&ids).Error
			if err != nil || len(ids) == 0 {
				return err
			}
			if err := tx.Exec("DELETE FROM reconcile_items WHERE report_id IN ?", ids).Error; err != nil {
				return err
			}
			return tx.Exec("DELETE FROM reconcile_reports WHERE id IN ?", ids).Error
		})
		if err != nil {
			return purged, err
		}
		if purged += len(ids); len(ids) < purgeReports {
			return purged, nil
		}
	}
}
