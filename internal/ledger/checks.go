package ledger

import (
	"context"
	"time"

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

// balancePageOrders is how many orders one statement of Balance adds up: some 10 ms.
const balancePageOrders = 5000

// Balance reads both sides of invariant 4b in one snapshot of the database, page by
// page, so that no order can come between them and no statement lasts. rest, if there
// is one, is called with the number of orders after each page, and may wait. Errors:
// SALE_NOT_FOUND, and what rest returns.
func (l *Ledger) Balance(ctx context.Context, saleID string, rest func(context.Context, int) error) (Balance, error) {
	var b Balance
	err := l.reads.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		rows, err := l.inventory(tx, saleID, "")
		switch {
		case err != nil:
			return err
		case len(rows) == 0:
			return notFound(sale.CodeSaleNotFound, "no sale %s", saleID)
		}
		b = Balance{Inventory: rows[0]}
		for after := sale.ID(0); ; {
			page, err := l.balancePage(ctx, tx, saleID, after)
			if err != nil {
				return err
			}
			b.LockedOrders += page.Locked
			b.SoldOrders += page.Sold
			if rest != nil {
				if err := rest(ctx, page.Orders); err != nil {
					return err
				}
			}
			if page.Orders < balancePageOrders {
				return nil
			}
			after = page.Last
		}
	}, l.engine.snapshotOptions)
	return b, err
}

type balancePage struct {
	Orders       int
	Last         sale.ID
	Locked, Sold int64
}

func (l *Ledger) balancePage(ctx context.Context, tx *gorm.DB, saleID string, after sale.ID) (balancePage, error) {
	ctx, cancel := l.deadline(ctx)
	defer cancel()
	var pages []balancePage
	err := tx.WithContext(ctx).Raw("SELECT COUNT(*) AS orders, COALESCE(MAX(id), 0) AS last,"+
		" COALESCE(SUM(CASE WHEN status = ? THEN quantity END), 0) AS locked,"+
		" COALESCE(SUM(CASE WHEN status NOT IN (?, ?, ?) THEN quantity END), 0) AS sold FROM"+
		" (SELECT id, status, quantity FROM orders"+l.engine.useIndex("orders_sale")+
		" WHERE sale_id = ? AND id > ? ORDER BY id LIMIT ?) AS page",
		string(sale.PendingPayment), string(sale.PendingPayment), string(sale.Cancelled), string(sale.Refunded),
		l.engine.bytes(saleID), int64(after), balancePageOrders).Find(&pages).Error
	if err != nil {
		return balancePage{}, err
	}
	return pages[0], nil
}

// UserUnits is what one user has in a sale.
type UserUnits struct {
	UserID  string
	Units   int64 // of active orders
	Largest int64 // of the active order with the most units
	Orders  int64 // active ones
	Keys    int64 // request keys of those
}

// EachUser calls each with what the users of a sale have who have an active order, by
// user, in slices of up to size. The deadline is of each slice.
func (l *Ledger) EachUser(ctx context.Context, saleID string, size int, each func([]UserUnits) error) error {
	if size < 1 {
		panic("BUG: slices of no users")
	}
	for after := ""; ; {
		users, err := l.userUnits(ctx, "user_id > ?", saleID, after, size)
		if err != nil || len(users) == 0 {
			return err
		}
		if err := each(users); err != nil {
			return err
		}
		if len(users) < size {
			return nil
		}
		after = users[len(users)-1].UserID
	}
}

// UserUnits reads what one user has in a sale.
func (l *Ledger) UserUnits(ctx context.Context, saleID, user string) (UserUnits, error) {
	users, err := l.userUnits(ctx, "user_id = ?", saleID, user, 1)
	if err != nil || len(users) == 0 {
		return UserUnits{UserID: user}, err
	}
	return users[0], nil
}

func (l *Ledger) userUnits(ctx context.Context, which, saleID, user string, size int) (users []UserUnits, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT user_id, SUM(quantity) AS units, MAX(quantity) AS largest, COUNT(*) AS orders, COUNT(DISTINCT request_key) AS `keys`"+
			" FROM orders"+l.engine.useIndex("orders_key")+" WHERE sale_id = ? AND "+which+" AND status NOT IN (?, ?)"+
			" GROUP BY user_id ORDER BY user_id LIMIT ?",
			l.engine.bytes(saleID), l.engine.bytes(user), string(sale.Cancelled), string(sale.Refunded), size).Find(&users).Error
	})
	return users, err
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

// Consumption is when a batch came into the ledger, and when Redis was known to have
// settled it; zero: not yet.
type Consumption struct {
	ConsumedAt time.Time
	SettledAt  time.Time
}

// Consumptions reads which of the batches are in the ledger; the others are absent.
func (l *Ledger) Consumptions(ctx context.Context, ids []sale.ID) (map[sale.ID]Consumption, error) {
	found := make(map[sale.ID]Consumption, len(ids))
	err := eachSlice(ids, func(args []any) error {
		var rows []struct {
			BatchID               sale.ID
			ConsumedAt, SettledAt moment
		}
		err := l.read(ctx, func(db *gorm.DB) error {
			return db.Raw("SELECT batch_id, consumed_at, settled_at FROM consumed_batches WHERE batch_id IN "+in(len(args)), args...).
				Find(&rows).Error
		})
		for _, r := range rows {
			found[r.BatchID] = Consumption{r.ConsumedAt.Time, r.SettledAt.Time}
		}
		return err
	})
	return found, err
}

// TasksOf reads the tasks of the orders; an order without one is absent.
func (l *Ledger) TasksOf(ctx context.Context, orders []sale.ID) (map[sale.ID]Task, error) {
	found := make(map[sale.ID]Task)
	err := eachSlice(orders, func(args []any) error {
		tasks, err := l.tasks(ctx, " WHERE order_id IN "+in(len(args)), args...)
		for _, t := range tasks {
			found[t.Order.ID] = t
		}
		return err
	})
	return found, err
}

// StuckTasks lists up to limit tasks of a sale that are out of tries, oldest first, with
// ids above after.
func (l *Ledger) StuckTasks(ctx context.Context, saleID string, after int64, limit int) ([]Task, error) {
	return l.tasks(ctx, " WHERE state = ? AND sale_id = ? AND id > ? ORDER BY id LIMIT ?",
		string(TaskStuck), l.engine.bytes(saleID), after, limit)
}

// DeadBatchStates reads the states of those of the batches that died; of one that died
// several times, DEAD if it is dead now.
func (l *Ledger) DeadBatchStates(ctx context.Context, ids []sale.ID) (map[sale.ID]string, error) {
	found := make(map[sale.ID]string)
	err := eachSlice(ids, func(args []any) error {
		var rows []struct {
			BatchID sale.ID
			State   string
		}
		err := l.read(ctx, func(db *gorm.DB) error {
			return db.Raw("SELECT batch_id, state FROM dead_batches WHERE batch_id IN "+in(len(args)), args...).Find(&rows).Error
		})
		for _, r := range rows {
			if found[r.BatchID] != StateDead {
				found[r.BatchID] = r.State
			}
		}
		return err
	})
	return found, err
}
