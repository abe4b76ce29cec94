package ledger

import (
	"context"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Balance is a sale's inventory beside the units of its orders, read at one instant.
type Balance struct {
	Inventory
	LockedOrders int64 // units of orders that await payment
	SoldOrders   int64 // units of orders that are paid for
}

// Active is the units that active orders hold.
func (b *Balance) Active() int64 { return b.LockedOrders + b.SoldOrders }

// Balance reads both sides of invariant 4b in one statement, so that no order can
// come between them. Error: SALE_NOT_FOUND.
func (l *Ledger) Balance(ctx context.Context, saleID string) (Balance, error) {
	var rows []Balance
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw(`SELECT i.sale_id, i.total, i.available, i.locked, i.sold, i.version,
			COALESCE((SELECT SUM(o.quantity) FROM orders o WHERE o.sale_id = i.sale_id AND o.status = ?), 0) AS locked_orders,
			COALESCE((SELECT SUM(o.quantity) FROM orders o WHERE o.sale_id = i.sale_id AND o.status NOT IN (?, ?, ?)), 0) AS sold_orders
			FROM inventory i WHERE i.sale_id = ?`,
			string(sale.PendingPayment), string(sale.PendingPayment), string(sale.Cancelled), string(sale.Refunded),
			l.engine.bytes(saleID)).Find(&rows).Error
	})
	if err == nil && len(rows) == 0 {
		err = notFound(sale.CodeSaleNotFound, "no sale %s", saleID)
	}
	if err != nil {
		return Balance{}, err
	}
	return rows[0], nil
}

// UserUnits is the active units of one user in a sale.
type UserUnits struct {
	UserID string
	Units  int64
}

const selectActive = "SELECT user_id, SUM(quantity) AS units FROM orders WHERE sale_id = ? AND status NOT IN (?, ?)"

// OverLimit lists up to limit users whose active units are above perUser: invariant 8.
func (l *Ledger) OverLimit(ctx context.Context, saleID string, perUser, limit int) ([]UserUnits, error) {
	return l.userUnits(ctx, selectActive+" GROUP BY user_id HAVING SUM(quantity) > ? LIMIT ?", saleID, perUser, limit)
}

// DoubleOrders lists up to limit users with two active orders of one request key:
// invariant 3, looked at without the unique key that keeps it.
func (l *Ledger) DoubleOrders(ctx context.Context, saleID string, limit int) ([]UserUnits, error) {
	return l.userUnits(ctx, selectActive+" GROUP BY user_id, request_key HAVING COUNT(*) > ? LIMIT ?", saleID, 1, limit)
}

func (l *Ledger) userUnits(ctx context.Context, query, saleID string, bound, limit int) (rows []UserUnits, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw(query, l.engine.bytes(saleID), string(sale.Cancelled), string(sale.Refunded), bound, limit).Find(&rows).Error
	})
	return rows, err
}

// OrdersByID reads the orders that are there of the given ones.
func (l *Ledger) OrdersByID(ctx context.Context, ids []sale.ID) (map[sale.ID]*Order, error) {
	found := make(map[sale.ID]*Order, len(ids))
	err := eachSlice(ids, func(args []any) error {
		orders, err := l.orders(ctx, " WHERE id IN "+in(len(args)), args...)
		for i := range orders {
			found[orders[i].ID] = &orders[i]
		}
		return err
	})
	return found, err
}
