package ledger

import (
	"context"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Order is a stored order.
type Order struct {
	sale.Order
	BatchID     sale.ID
	Status      sale.OrderStatus
	Reason      string // why it was cancelled: a sale.Reason, DUPLICATE followed by " of " and the survivor's id
	PersistedAt time.Time
}

const selectOrders = "SELECT id, sale_id, user_id, request_key, quantity, amount_cents, batch_id, status, reason, persisted_at FROM orders"

func (l *Ledger) orders(ctx context.Context, where string, args ...any) (orders []Order, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		orders, err = scanOrders(db.Raw(selectOrders+where, args...))
		return err
	})
	return orders, err
}

// scanOrders reads what selectOrders selects without GORM's finding of fields, which was
// half of what a gateway spent on telling shoppers how their orders stand.
func scanOrders(query *gorm.DB) (orders []Order, err error) {
	rows, err := query.Rows()
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what could matter of it, rows.Err tells
	for rows.Next() {
		var o Order
		var persisted moment
		err := rows.Scan((*int64)(&o.ID), &o.SaleID, &o.UserID, &o.RequestKey, &o.Quantity, &o.AmountCents,
			(*int64)(&o.BatchID), (*string)(&o.Status), &o.Reason, &persisted)
		if err != nil {
			return nil, err
		}
		o.PersistedAt = persisted.Time
		orders = append(orders, o)
	}
	return orders, rows.Err()
}

func one(orders []Order, err error, what string) (Order, error) {
	switch {
	case err != nil:
		return Order{}, err
	case len(orders) == 0:
		return Order{}, notFound(sale.CodeOrderNotFound, "%s", what)
	}
	return orders[0], nil
}

// Order reads one order. Error: ORDER_NOT_FOUND.
func (l *Ledger) Order(ctx context.Context, id sale.ID) (Order, error) {
	orders, err := l.orders(ctx, " WHERE id = ?", int64(id))
	return one(orders, err, id.String())
}

// OrderByKey reads the order that a user's request key names: the survivor, never one
// cancelled as its duplicate. Error: ORDER_NOT_FOUND.
func (l *Ledger) OrderByKey(ctx context.Context, saleID, user, key string) (Order, error) {
	orders, err := l.orders(ctx, " WHERE sale_id = ? AND user_id = ? AND dedup_key = ?",
		l.engine.bytes(saleID), l.engine.bytes(user), l.engine.bytes(key))
	return one(orders, err, "no order with this key")
}

// OrdersOf reads up to limit orders of a user, newest first, of one sale or ("") of all.
func (l *Ledger) OrdersOf(ctx context.Context, user, saleID string, limit int) ([]Order, error) {
	if saleID == "" {
		return l.orders(ctx, " WHERE user_id = ? ORDER BY id DESC LIMIT ?", l.engine.bytes(user), limit)
	}
	return l.orders(ctx, " WHERE sale_id = ? AND user_id = ? ORDER BY id DESC LIMIT ?",
		l.engine.bytes(saleID), l.engine.bytes(user), limit)
}

// EachOrder calls each with a sale's orders of any status whose id is above after, by
// id, in slices of up to size, until there are none or each returns an error. No
// transaction spans the slices: an order that comes late, with an id that has been
// passed, is not seen. The deadline is of each slice.
func (l *Ledger) EachOrder(ctx context.Context, saleID string, after sale.ID, size int, each func([]Order) error) error {
	if size < 1 {
		panic("BUG: slices of no orders")
	}
	// Left to itself, MariaDB begins each slice at the sale's first order: of a million
	// orders that took ten times as long.
	where := l.engine.useIndex("orders_sale") + " WHERE sale_id = ? AND id > ? ORDER BY id LIMIT ?"
	for {
		orders, err := l.orders(ctx, where, l.engine.bytes(saleID), int64(after), size)
		if err != nil || len(orders) == 0 {
			return err
		}
		if err := each(orders); err != nil {
			return err
		}
		if len(orders) < size {
			return nil
		}
		after = orders[len(orders)-1].ID
	}
}

// CountUnits sums the units of a sale's orders by status.
func (l *Ledger) CountUnits(ctx context.Context, saleID string) (map[sale.OrderStatus]int64, error) {
	var rows []struct {
		Status sale.OrderStatus
		Units  int64
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT status, SUM(quantity) AS units FROM orders WHERE sale_id = ? GROUP BY status",
			l.engine.bytes(saleID)).Find(&rows).Error
	})
	units := make(map[sale.OrderStatus]int64, len(rows))
	for _, r := range rows {
		units[r.Status] = r.Units
	}
	return units, err
}
