package ledger

import (
	"context"
	"fmt"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Repair is a row of inventory_log: a difference that was mended, in either store.
type Repair struct {
	SaleID  string
	Kind    string // of the difference
	OrderID sale.ID
	BatchID sale.ID
	Units   int64 // that it moves
	Before  string
	After   string
	Reason  string
}

// maxStateBytes bounds what a log row says of a state; the columns hold as many characters.
const maxStateBytes = 200

var repairColumns = []string{"sale_id", "kind", "batch_id", "order_id", "units", "before_state", "after_state", "reason", "created_at"}

// LogRepairs writes repairs of Redis down before they are made, unless the fence has
// gone to another: then they must not be made. Error: ErrFenced.
func (l *Ledger) LogRepairs(ctx context.Context, fence Fence, repairs []Repair) error {
	return l.repair(ctx, fence, func(tx *gorm.DB) error { return l.logRepairs(ctx, tx, repairs) })
}

func (l *Ledger) logRepairs(ctx context.Context, tx *gorm.DB, repairs []Repair) error {
	at := now().text()
	nullable := func(id sale.ID) any {
		if id == 0 {
			return nil
		}
		return int64(id)
	}
	args := make([]any, 0, len(repairs)*len(repairColumns))
	for i := range repairs {
		r := &repairs[i]
		args = append(args, l.engine.bytes(r.SaleID), r.Kind, nullable(r.BatchID), nullable(r.OrderID), r.Units,
			clip(r.Before, maxStateBytes), clip(r.After, maxStateBytes), clip(r.Reason, maxReasonBytes), at)
	}
	_, err := l.engine.insert(ctx, tx, "INSERT", "inventory_log", repairColumns, args)
	return err
}

// RecountInventory sets a sale's row to what its orders say: locked and sold afresh, and
// available to what the total leaves. false: it was so already. The sale's workers wait
// meanwhile, some 2 s for 1,000,000 orders. r tells kind and reason; the rest is filled in.
// Errors: ErrFenced, SALE_NOT_FOUND, and CONFLICT when the orders are more than the total.
func (l *Ledger) RecountInventory(ctx context.Context, fence Fence, saleID string, r Repair) (changed bool, err error) {
	err = l.repair(ctx, fence, func(tx *gorm.DB) error {
		changed = false
		rows, err := l.inventory(tx, saleID, l.engine.forUpdate)
		switch {
		case err != nil:
			return err
		case len(rows) == 0:
			return notFound(sale.CodeSaleNotFound, "no sale %s", saleID)
		}
		have := rows[0]
		var sums []struct{ Locked, Sold int64 }
		err = tx.Raw("SELECT COALESCE(SUM(CASE WHEN status = ? THEN quantity END), 0) AS locked,"+
			" COALESCE(SUM(CASE WHEN status NOT IN (?, ?, ?) THEN quantity END), 0) AS sold FROM orders WHERE sale_id = ?",
			string(sale.PendingPayment), string(sale.PendingPayment), string(sale.Cancelled), string(sale.Refunded),
			l.engine.bytes(saleID)).Find(&sums).Error
		if err != nil {
			return err
		}
		want := have
		want.Locked, want.Sold = sums[0].Locked, sums[0].Sold
		if want.Available = have.Total - want.Locked - want.Sold; want.Available < 0 {
			return &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf(
				"the orders hold %d units of %d: raise the total or cancel orders", want.Locked+want.Sold, have.Total)}
		}
		if changed = want != have; !changed {
			return nil
		}
		_, err = exec(ctx, tx, "UPDATE inventory SET available = ?, locked = ?, sold = ? WHERE sale_id = ?",
			want.Available, want.Locked, want.Sold, l.engine.bytes(saleID))
		if err != nil {
			return err
		}
		r.SaleID, r.Units, r.Before, r.After = saleID, want.Available-have.Available, have.terms(), want.terms()
		return l.logRepairs(ctx, tx, []Repair{r})
	})
	return changed && err == nil, err
}

func (i *Inventory) terms() string {
	return fmt.Sprintf("available %d, locked %d, sold %d", i.Available, i.Locked, i.Sold)
}

// AddLostOrders enters orders that Redis holds as settled and the ledger does not have,
// as the worker's careful way does: those that the limits, the keys or the stock refuse
// are stored CANCELLED, with a task. An order that is there under its id is skipped. The
// batches are not marked consumed: one that is redelivered still brings its other orders.
// Errors: ErrFenced, and those of Apply.
func (l *Ledger) AddLostOrders(ctx context.Context, fence Fence, batches []sale.Batch, r Repair) (applied Applied, err error) {
	work := make([]*sale.Batch, len(batches))
	for i := range batches {
		if err := validate(&batches[i]); err != nil {
			return Applied{}, &poison{batches[i].ID, err}
		}
		work[i] = &batches[i]
	}
	terms, err := l.terms(ctx, work)
	if err != nil {
		return Applied{}, err
	}
	if err := l.orderInsert.prepare(ctx, l.pools[0]); err != nil {
		return Applied{}, err
	}
	err = l.repair(ctx, fence, func(tx *gorm.DB) error {
		w := &writer{Ledger: l, tx: tx, at: now()}
		var rows []orderRow
		var err error
		if applied, _, rows, err = w.enter(ctx, work, terms); err != nil {
			return err
		}
		repairs := make([]Repair, len(rows))
		for i := range rows {
			row := &rows[i]
			repairs[i] = r
			entry := &repairs[i]
			entry.SaleID, entry.OrderID, entry.BatchID = row.order.SaleID, row.order.ID, row.batch
			entry.Before, entry.After = "no order", fmt.Sprintf("%s, %d units", row.status, row.order.Quantity)
			if row.status != sale.Cancelled {
				entry.Units = int64(row.order.Quantity)
			} else {
				entry.After += ": " + row.reason
			}
		}
		return l.logRepairs(ctx, tx, repairs)
	})
	if err != nil {
		return Applied{}, err
	}
	return applied, nil
}

// OverLimit is what became of one user's orders above the limit.
type OverLimit struct {
	Cancelled []sale.Order
	Left      int64 // units above the limit still: those of orders that are paid for
}

// CancelOverLimit cancels the newest unpaid orders of each user until the rest holds no
// more than limit units: CANCELLED / LIMIT_EXCEEDED, the units available again, and a task
// an order to give them back in Redis. users tells of each what its repair is called. All
// of it or nothing is done. Error: ErrFenced.
func (l *Ledger) CancelOverLimit(ctx context.Context, fence Fence, saleID string, limit int, users map[string]Repair) (done map[string]OverLimit, err error) {
	err = l.repair(ctx, fence, func(tx *gorm.DB) error {
		done = make(map[string]OverLimit, len(users))
		if rows, err := l.inventory(tx, saleID, l.engine.forUpdate); err != nil || len(rows) == 0 {
			return err
		}
		// After the lock, so that nobody adds an order of a user meanwhile.
		args := make([]any, 0, len(users)+3)
		args = append(args, l.engine.bytes(saleID))
		for _, user := range sorted(users) {
			args = append(args, l.engine.bytes(user))
		}
		stored, err := scanOrders(tx.Raw(selectOrders+l.engine.useIndex("orders_key")+" WHERE sale_id = ? AND user_id IN "+in(len(users))+
			" AND status NOT IN (?, ?) ORDER BY id DESC"+l.engine.forUpdate,
			append(args, string(sale.Cancelled), string(sale.Refunded))...))
		if err != nil {
			return err
		}
		for user := range users {
			done[user] = OverLimit{Left: -int64(limit)}
		}
		for i := range stored {
			of := done[stored[i].UserID]
			of.Left += int64(stored[i].Quantity)
			done[stored[i].UserID] = of
		}
		c := cancellation{saleID: saleID}
		for i := range stored {
			o := &stored[i]
			of := done[o.UserID]
			if of.Left <= 0 || o.Status != sale.PendingPayment {
				continue
			}
			of.Left -= int64(o.Quantity)
			of.Cancelled = append(of.Cancelled, o.Order)
			done[o.UserID] = of
			c.add(o, users[o.UserID])
		}
		for user, of := range done {
			of.Left = max(of.Left, 0)
			done[user] = of
		}
		if len(c.rows) == 0 {
			return nil
		}
		return l.cancel(ctx, tx, &c)
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// cancellation is unpaid orders of a sale that go to CANCELLED / LIMIT_EXCEEDED.
type cancellation struct {
	saleID  string
	ids     []sale.ID
	rows    []orderRow
	repairs []Repair
	units   int64
}

func (c *cancellation) add(o *Order, r Repair) {
	c.ids = append(c.ids, o.ID)
	c.rows = append(c.rows, orderRow{order: &o.Order, batch: o.BatchID, status: sale.Cancelled, reason: sale.ReasonLimitExceeded})
	c.units += int64(o.Quantity)
	r.SaleID, r.OrderID, r.BatchID, r.Units = c.saleID, o.ID, o.BatchID, int64(o.Quantity)
	r.Before, r.After = string(o.Status), string(sale.Cancelled)+": "+sale.ReasonLimitExceeded
	c.repairs = append(c.repairs, r)
}

// cancel moves unpaid orders, whose sale is locked, to CANCELLED with all that belongs to it.
func (l *Ledger) cancel(ctx context.Context, tx *gorm.DB, c *cancellation) error {
	w := &writer{Ledger: l, tx: tx, at: now()}
	err := eachSlice(c.ids, func(ids []any) error {
		_, err := exec(ctx, tx, "UPDATE orders SET status = ?, reason = ? WHERE id IN "+in(len(ids)),
			append([]any{string(sale.Cancelled), sale.ReasonLimitExceeded}, ids...)...)
		if err == nil {
			// A task of an earlier life of the order would stand in the way of this one.
			_, err = exec(ctx, tx, "DELETE FROM stock_sync_tasks WHERE order_id IN "+in(len(ids)), ids...)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := w.logCancelled(ctx, string(sale.PendingPayment), c.rows); err != nil {
		return err
	}
	if err := w.insertTasks(ctx, c.rows); err != nil {
		return err
	}
	// What the row has not locked it cannot give back: the counts drift, which is a
	// difference of its own.
	_, err = exec(ctx, tx, "UPDATE inventory SET locked = locked - ?, available = available + ? WHERE sale_id = ?",
		c.units, c.units, l.engine.bytes(c.saleID))
	if err != nil {
		return err
	}
	return l.logRepairs(ctx, tx, c.repairs)
}
