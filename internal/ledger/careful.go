package ledger

import (
	"context"
	"fmt"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// applyCarefully takes the locks of the sales first and decides each order under
// them: batches in the order they came, and within a batch in its own.
func (l *Ledger) applyCarefully(ctx context.Context, tx *gorm.DB, work []*sale.Batch, terms map[string]terms) (Applied, error) {
	w := &writer{Ledger: l, tx: tx, at: now()}
	if err := w.consume(ctx, work); err != nil {
		return Applied{}, err
	}
	applied, logs, _, err := w.enter(ctx, work, terms)
	if err != nil {
		return Applied{}, err
	}
	return applied, w.logUnits(ctx, logs)
}

// enter decides the orders of the batches under the locks of their sales and writes
// them. It returns the units that each batch locked, and the orders it wrote.
func (w *writer) enter(ctx context.Context, work []*sale.Batch, terms map[string]terms) (Applied, []lockedUnits, []orderRow, error) {
	applied, logs, rows, books, err := w.decideAll(work, terms)
	if err != nil {
		return Applied{}, nil, nil, err
	}
	var cancelled []orderRow
	for i := range rows {
		if rows[i].status == sale.Cancelled {
			cancelled = append(cancelled, rows[i])
		}
	}
	applied.Cancelled = len(cancelled)
	if err := w.insertOrders(ctx, rows); err != nil {
		return Applied{}, nil, nil, err
	}
	if err := w.insertTasks(ctx, cancelled); err != nil {
		return Applied{}, nil, nil, err
	}
	if err := w.logCancelled(ctx, "", cancelled); err != nil {
		return Applied{}, nil, nil, err
	}
	for _, id := range sorted(books) {
		book := books[id]
		if book.refused {
			applied.Refused = append(applied.Refused, id)
		}
		if book.locked == 0 {
			continue
		}
		if ok, err := w.lockUnits(ctx, id, book.locked); err != nil {
			return Applied{}, nil, nil, err
		} else if !ok {
			panic(fmt.Sprintf("BUG: sale %s lost units while its row was locked", id))
		}
	}
	return applied, logs, rows, nil
}

// decideAll locks the sales and decides each order that is not in the ledger.
func (w *writer) decideAll(work []*sale.Batch, terms map[string]terms) (applied Applied, logs []lockedUnits, rows []orderRow, books map[string]*book, err error) {
	books = make(map[string]*book, len(terms))
	for _, b := range work {
		books[b.SaleID] = nil
	}
	for _, id := range sorted(books) {
		if books[id], err = w.openBook(id, terms[id].PerUserLimit, work); err != nil {
			return Applied{}, nil, nil, nil, err
		}
	}
	ids, err := w.ownersOf(work)
	if err != nil {
		return Applied{}, nil, nil, nil, err
	}
	applied.Batches = len(work)
	for _, b := range work {
		book, units := books[b.SaleID], int64(0)
		for i := range b.Orders {
			o := &b.Orders[i]
			if owner, ok := ids[o.ID]; ok {
				if owner != (owned{o.SaleID, o.UserID}) {
					return Applied{}, nil, nil, nil, &poison{b.ID, fmt.Errorf("order id %s belongs to another order", o.ID)}
				}
				continue
			}
			ids[o.ID] = owned{o.SaleID, o.UserID}
			row := book.decide(o, b.ID)
			rows = append(rows, row)
			if row.status != sale.Cancelled {
				units += int64(o.Quantity)
				applied.Orders++
			}
		}
		logs = append(logs, lockedUnits{b, units})
	}
	return applied, logs, rows, books, nil
}

// book is a sale's state under its lock, carried forward order by order.
type book struct {
	available int64
	limit     int
	units     map[string]int       // active units by user
	keys      map[buyerKey]sale.ID // whose a user's request key is
	locked    int64                // units that this transaction locks
	refused   bool
}

type buyerKey struct{ user, key string }

// openBook locks the sale and reads what its users in the batches have.
func (w *writer) openBook(saleID string, limit int, work []*sale.Batch) (*book, error) {
	b := &book{limit: limit, units: make(map[string]int), keys: make(map[buyerKey]sale.ID)}
	var available []int64
	err := w.tx.Raw("SELECT available FROM inventory WHERE sale_id = ?"+w.engine.forUpdate, w.engine.bytes(saleID)).
		Find(&available).Error
	if err != nil {
		return nil, err
	}
	if len(available) != 1 {
		return nil, fmt.Errorf("ledger: sale %s has no inventory", saleID)
	}
	b.available = available[0]

	users := make(map[string]bool)
	var args []any
	for _, batch := range work {
		if batch.SaleID != saleID {
			continue
		}
		for i := range batch.Orders {
			if user := batch.Orders[i].UserID; !users[user] {
				users[user] = true
				args = append(args, w.engine.bytes(user))
			}
		}
	}
	for len(args) > 0 {
		n := min(len(args), maxIDsPerQuery)
		var found []struct {
			ID       sale.ID
			UserID   string
			DedupKey *string
			Quantity int
			Status   sale.OrderStatus
		}
		query := "SELECT id, user_id, dedup_key, quantity, status FROM orders" + w.engine.useIndex("orders_key") +
			" WHERE sale_id = ? AND user_id IN " + in(n)
		err := w.tx.Raw(query, append([]any{w.engine.bytes(saleID)}, args[:n]...)...).Find(&found).Error
		if err != nil {
			return nil, err
		}
		for _, o := range found {
			if o.DedupKey != nil {
				b.keys[buyerKey{o.UserID, *o.DedupKey}] = o.ID
			}
			if o.Status.Active() {
				b.units[o.UserID] += o.Quantity
			}
		}
		args = args[n:]
	}
	return b, nil
}

// decide enters an order that is not in the ledger yet.
func (b *book) decide(o *sale.Order, batch sale.ID) orderRow {
	row := orderRow{order: o, batch: batch, status: sale.PendingPayment}
	cancel := func(reason string) orderRow {
		b.refused = true
		row.status, row.reason = sale.Cancelled, reason
		return row
	}
	key := buyerKey{o.UserID, o.RequestKey}
	if survivor, ok := b.keys[key]; ok {
		row.duplicate = true
		return cancel(sale.ReasonDuplicate + " of " + survivor.String())
	}
	b.keys[key] = o.ID
	switch {
	case b.units[o.UserID]+o.Quantity > b.limit:
		return cancel(sale.ReasonLimitExceeded)
	case int64(o.Quantity) > b.available:
		return cancel(sale.ReasonStockRefused)
	}
	b.units[o.UserID] += o.Quantity
	b.available -= int64(o.Quantity)
	b.locked += int64(o.Quantity)
	return row
}

// owned is whose an order id is.
type owned struct{ saleID, user string }

// ownersOf looks which of the batches' order ids are in the ledger.
func (w *writer) ownersOf(work []*sale.Batch) (map[sale.ID]owned, error) {
	var ids []sale.ID
	for _, b := range work {
		for i := range b.Orders {
			ids = append(ids, b.Orders[i].ID)
		}
	}
	owners := make(map[sale.ID]owned)
	err := eachSlice(ids, func(args []any) error {
		var found []struct {
			ID             sale.ID
			SaleID, UserID string
		}
		err := w.tx.Raw("SELECT id, sale_id, user_id FROM orders WHERE id IN "+in(len(args)), args...).Find(&found).Error
		for _, o := range found {
			owners[o.ID] = owned{o.SaleID, o.UserID}
		}
		return err
	})
	return owners, err
}

// insertTasks asks for the units of cancelled orders to be given back in Redis.
func (w *writer) insertTasks(ctx context.Context, cancelled []orderRow) error {
	at := w.at.text()
	var args []any
	for i := range cancelled {
		o := cancelled[i].order
		args = append(args, int64(o.ID), int64(cancelled[i].batch), w.engine.bytes(o.SaleID), w.engine.bytes(o.UserID),
			w.engine.bytes(o.RequestKey), o.Quantity, o.AmountCents, at, string(TaskOpen), at)
	}
	_, err := w.engine.insert(ctx, w.tx, "INSERT", "stock_sync_tasks", []string{"order_id", "batch_id", "sale_id",
		"user_id", "request_key", "quantity", "amount_cents", "next_try", "state", "created_at"}, args)
	return err
}

func (w *writer) logCancelled(ctx context.Context, from string, cancelled []orderRow) error {
	at := w.at.text()
	var args []any
	for i := range cancelled {
		args = append(args, int64(cancelled[i].order.ID), from, string(sale.Cancelled), cancelled[i].reason, at)
	}
	_, err := w.engine.insert(ctx, w.tx, "INSERT", "order_status_log",
		[]string{"order_id", "from_status", "to_status", "reason", "created_at"}, args)
	return err
}
