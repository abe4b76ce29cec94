package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Applied says what Apply did.
type Applied struct {
	Batches   int      // newly consumed
	Skipped   int      // consumed before
	Orders    int      // inserted active
	Cancelled int      // inserted as DUPLICATE, LIMIT_EXCEEDED or STOCK_REFUSED
	Refused   []string // sales in which an order was cancelled: reconcile them now
}

var (
	// errKnownBatch: a batch was consumed before, or a moment ago by another worker.
	errKnownBatch = errors.New("a batch is consumed already")
	// errUncommon: an order is there already, or does not fit the limits or the stock.
	errUncommon = errors.New("the batches need the careful way")
)

// Apply is the worker's transaction: many batches of any sales, applied as a whole or
// not at all, each batch once however often and by whomever it is brought. An error
// means that nothing was applied, except that after an error which is not Poison the
// commit may have happened unseen; the batches are then skipped the next time.
//
// Orders that the ledger can't take are stored CANCELLED, with a task to give their
// units back in Redis: DUPLICATE (the user's request key has an order already),
// LIMIT_EXCEEDED (the user's units) or STOCK_REFUSED. An order that is there under its
// own id is skipped.
//
// Two ways lead there. The plain one inserts everything as active, then takes the
// sale's lock by moving its units, then looks whether anybody is over the limit. When
// anything at all is uncommon it rolls back, and the careful one takes the lock first
// and decides order by order under it.
func (l *Ledger) Apply(ctx context.Context, batches []sale.Batch) (applied Applied, err error) {
	if len(batches) == 0 {
		return Applied{}, nil
	}
	started := time.Now()
	defer func() { l.metrics.applied(time.Since(started), applied, err) }()
	for i := range batches {
		if err := validate(&batches[i]); err != nil {
			return Applied{}, &poison{batches[i].ID, err}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.options.ApplyTimeout)
	defer cancel()

	work, repeated := distinct(batches)
	terms, err := l.terms(ctx, work)
	if err != nil {
		return Applied{}, err
	}
	if err := l.orderInsert.prepare(ctx, l.pools[0]); err != nil {
		return Applied{}, err
	}
	known := repeated
	apply := l.applyPlainly
	if !plain(work, terms) {
		apply = l.applyCarefully
	}
	for attempt := 1; ; attempt++ {
		applied = Applied{}
		err := l.transaction(ctx, func(tx *gorm.DB) (err error) {
			applied, err = apply(ctx, tx, work, terms)
			return err
		})
		if err == nil {
			applied.Skipped = known
			return applied, nil
		}
		before := len(work)
		if errors.Is(err, errKnownBatch) {
			l.metrics.retried(retryKnownBatch)
			failed := err
			if work, err = l.withoutConsumed(ctx, work); err != nil {
				return Applied{}, err
			}
			if known += before - len(work); len(work) == 0 {
				return Applied{Skipped: known}, nil
			}
			err = failed
		}
		switch {
		case len(work) < before:
			attempt-- // others are quicker, batch by batch: what is left is tried as if for the first time
		case attempt == maxAttempts:
			return Applied{}, err
		case errors.Is(err, errKnownBatch):
		case errors.Is(err, errUncommon), duplicateKey(err):
			l.metrics.retried(retryUncommon)
			apply = l.applyCarefully
		case retryable(err):
			l.metrics.retried(retryContention)
			if pause(ctx, attempt) != nil {
				return Applied{}, err
			}
		default:
			return Applied{}, err
		}
	}
}

// validate finds what no database would have to be asked about.
func validate(b *sale.Batch) error {
	switch {
	case b.ID <= 0:
		return fmt.Errorf("batch id %d is not positive", b.ID)
	case !sale.ValidID(b.SaleID):
		return fmt.Errorf("sale id %q", b.SaleID)
	case len(b.Orders) == 0:
		return errors.New("no orders")
	}
	for i := range b.Orders {
		o := &b.Orders[i]
		switch {
		case o.ID <= 0:
			return fmt.Errorf("order id %d is not positive", o.ID)
		case o.SaleID != b.SaleID:
			return fmt.Errorf("order %s is of sale %q, its batch of %q", o.ID, o.SaleID, b.SaleID)
		case o.UserID == "" || len(o.UserID) > sale.MaxUserIDBytes:
			return fmt.Errorf("order %s: user id of %d bytes: want 1–%d", o.ID, len(o.UserID), sale.MaxUserIDBytes)
		case len(o.RequestKey) > sale.MaxRequestKeyBytes:
			return fmt.Errorf("order %s: request key of %d bytes: want at most %d", o.ID, len(o.RequestKey), sale.MaxRequestKeyBytes)
		case o.Quantity < 1 || o.Quantity > sale.MaxQuantity:
			return fmt.Errorf("order %s: quantity %d: want 1–%d", o.ID, o.Quantity, sale.MaxQuantity)
		case o.AmountCents < 0:
			return fmt.Errorf("order %s: amount %d cents is negative", o.ID, o.AmountCents)
		}
	}
	return nil
}

// distinct drops batches that come twice in one call, and says how many those were.
func distinct(batches []sale.Batch) (work []*sale.Batch, repeated int) {
	seen := make(map[sale.ID]bool, len(batches))
	for i := range batches {
		if b := &batches[i]; !seen[b.ID] {
			seen[b.ID] = true
			work = append(work, b)
		}
	}
	return work, len(batches) - len(work)
}

// terms is what orders of a sale are held against. None of it changes while a sale exists.
type terms struct {
	ID           string
	PriceCents   int64
	PerUserLimit int
}

// terms reads the terms of the batches' sales and holds the amounts against the prices.
func (l *Ledger) terms(ctx context.Context, work []*sale.Batch) (map[string]terms, error) {
	found := make(map[string]terms)
	var args []any
	for _, b := range work {
		if _, ok := found[b.SaleID]; !ok {
			found[b.SaleID] = terms{}
			args = append(args, l.engine.bytes(b.SaleID))
		}
	}
	var rows []terms
	err := l.reads.WithContext(ctx).
		Raw("SELECT id, price_cents, per_user_limit FROM sales WHERE id IN "+in(len(args)), args...).Find(&rows).Error
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		found[r.ID] = r
	}
	for _, b := range work {
		t := found[b.SaleID]
		if t.ID == "" {
			return nil, &poison{b.ID, notFound(sale.CodeSaleNotFound, "no sale %s", b.SaleID)}
		}
		for i := range b.Orders {
			if o := &b.Orders[i]; o.AmountCents != int64(o.Quantity)*t.PriceCents {
				return nil, &poison{b.ID, fmt.Errorf("order %s: amount %d cents is not %d × %d", o.ID, o.AmountCents, o.Quantity, t.PriceCents)}
			}
		}
	}
	return found, nil
}

func ordersOf(work []*sale.Batch) (n int) {
	for _, b := range work {
		n += len(b.Orders)
	}
	return n
}

// buyer is who has orders in a call of Apply, and of which sale.
type buyer struct{ sale, user string }

// bought is what a buyer has in it.
type bought struct{ orders, units int }

func buyersOf(work []*sale.Batch) map[buyer]bought {
	buyers := make(map[buyer]bought, ordersOf(work))
	for _, b := range work {
		for i := range b.Orders {
			who := buyer{b.SaleID, b.Orders[i].UserID}
			has := buyers[who]
			buyers[who] = bought{has.orders + 1, has.units + b.Orders[i].Quantity}
		}
	}
	return buyers
}

// plain reports whether the batches hold the limits among themselves. Keys that come
// twice are left to the unique key.
func plain(work []*sale.Batch, terms map[string]terms) bool {
	for who, has := range buyersOf(work) {
		if has.units > terms[who.sale].PerUserLimit {
			return false
		}
	}
	return true
}

// applyPlainly is the common path: every order becomes active.
func (l *Ledger) applyPlainly(ctx context.Context, tx *gorm.DB, work []*sale.Batch, terms map[string]terms) (Applied, error) {
	w := &writer{Ledger: l, tx: tx, at: now()}
	if err := w.consume(ctx, work); err != nil {
		return Applied{}, err
	}
	orders := ordersOf(work)
	rows := make([]orderRow, 0, orders)
	logs := make([]lockedUnits, 0, len(work))
	units := make(map[string]int64, len(terms))
	for _, b := range work {
		for i := range b.Orders {
			rows = append(rows, orderRow{order: &b.Orders[i], batch: b.ID, status: sale.PendingPayment})
		}
		n := b.Units()
		logs = append(logs, lockedUnits{b, n})
		units[b.SaleID] += n
	}
	if err := w.insertOrders(ctx, rows); err != nil {
		return Applied{}, err
	}
	if err := w.logUnits(ctx, logs); err != nil {
		return Applied{}, err
	}
	// In one order for everybody, or two workers with two sales wait for each other.
	for _, id := range sorted(units) {
		if ok, err := w.lockUnits(ctx, id, units[id]); err != nil {
			return Applied{}, err
		} else if !ok {
			return Applied{}, errUncommon
		}
	}
	// From here on this transaction has the locks: what other workers have of these
	// sales is either committed, and seen by the next statement, or waits to look
	// after us. Keys need no second look, the unique key has them.
	if others, err := w.haveOthers(ctx, work); err != nil {
		return Applied{}, err
	} else if !others {
		return Applied{Batches: len(work), Orders: orders}, nil // within the limits by the batches alone, see plain
	}
	for id := range units {
		if over, err := w.anyOverLimit(ctx, id, terms[id].PerUserLimit, work); err != nil {
			return Applied{}, err
		} else if over {
			return Applied{}, errUncommon
		}
	}
	return Applied{Batches: len(work), Orders: orders}, nil
}

// haveOthers looks whether a buyer of the batches has any order of the sale that is not
// of the batches. For that it counts in an index, which costs half of what the look at
// their units does, and of most there is nothing else to be seen: of each buyer it counts
// all orders once for each of ours.
func (w *writer) haveOthers(ctx context.Context, work []*sale.Batch) (bool, error) {
	expected, counted := 0, 0
	for _, has := range buyersOf(work) {
		expected += has.orders * has.orders
	}
	if expected > pairsMax*ordersOf(work) {
		return true, nil // a few buyers of very many orders each: counting their pairs would take longer than looking
	}
	ids := make([]sale.ID, len(work))
	for i, b := range work {
		ids[i] = b.ID
	}
	err := eachSlice(ids, func(args []any) error {
		query := "SELECT COUNT(*) FROM orders AS ours" + w.engine.useIndex("orders_batch") + w.engine.thenJoin +
			"orders AS o" + w.engine.useIndex("orders_key") + " ON o.sale_id = ours.sale_id AND o.user_id = ours.user_id" +
			" WHERE ours.batch_id IN " + in(len(args))
		var n int
		err := w.tx.Raw(query, args...).Find(&n).Error
		counted += n
		return err
	})
	return counted != expected, err
}

// pairsMax is how many pairs of orders of one buyer are counted, an order.
const pairsMax = 8

// anyOverLimit looks whether a user of the batches has more units of the sale than
// the limit, orders of other batches and of other workers included.
func (w *writer) anyOverLimit(ctx context.Context, saleID string, limit int, work []*sale.Batch) (bool, error) {
	var ids []sale.ID
	for _, b := range work {
		if b.SaleID == saleID {
			ids = append(ids, b.ID)
		}
	}
	over := false
	err := eachSlice(ids, func(args []any) error {
		// A subquery a user, and no join: an optimizer may turn a join round and walk
		// the whole sale.
		query := "SELECT 1 FROM (SELECT DISTINCT user_id FROM orders" + w.engine.useIndex("orders_batch") +
			" WHERE batch_id IN " + in(len(args)) + ") AS ours WHERE (SELECT SUM(o.quantity) FROM orders AS o" +
			w.engine.useIndex("orders_key") + " WHERE o.sale_id = ? AND o.user_id = ours.user_id" +
			" AND o.status NOT IN ('CANCELLED', 'REFUNDED')) > ? LIMIT 1"
		var found []int
		err := w.tx.Raw(query, append(args, w.engine.bytes(saleID), limit)...).Find(&found).Error
		over = over || len(found) > 0
		return err
	})
	return over, err
}

// withoutConsumed drops the batches that the ledger has.
func (l *Ledger) withoutConsumed(ctx context.Context, work []*sale.Batch) ([]*sale.Batch, error) {
	ids := make([]sale.ID, len(work))
	for i, b := range work {
		ids[i] = b.ID
	}
	consumed, err := l.consumed(l.writes.WithContext(ctx), ids)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(work, func(b *sale.Batch) bool { return consumed[b.ID] }), nil
}

// writer writes the rows of one Apply.
type writer struct {
	*Ledger
	tx *gorm.DB
	at moment
}

// consume marks the batches as applied, all of them or none.
func (w *writer) consume(ctx context.Context, work []*sale.Batch) error {
	byID := slices.Clone(work) // by id, or two workers with the same batches wait for each other
	slices.SortFunc(byID, func(a, b *sale.Batch) int { return cmp.Compare(a.ID, b.ID) })
	at := w.at.text()
	args := make([]any, 0, 3*len(work))
	for _, b := range byID {
		args = append(args, int64(b.ID), w.engine.bytes(b.SaleID), at)
	}
	n, err := w.engine.insert(ctx, w.tx, w.engine.insertIgnore, "consumed_batches",
		[]string{"batch_id", "sale_id", "consumed_at"}, args)
	if err == nil && n < int64(len(work)) {
		err = errKnownBatch
	}
	return err
}

// orderRow is an order as it is inserted.
type orderRow struct {
	order     *sale.Order
	batch     sale.ID
	status    sale.OrderStatus
	reason    string
	duplicate bool // its key is another order's
}

var orderColumns = []string{"id", "sale_id", "user_id", "request_key", "dedup_key", "quantity",
	"amount_cents", "status", "reason", "batch_id", "created_at", "persisted_at"}

func (w *writer) insertOrders(ctx context.Context, rows []orderRow) error {
	at := any(w.at.text())
	args := make([]any, 0, len(rows)*len(orderColumns))
	for i := range rows {
		r := &rows[i]
		key := w.engine.bytes(r.order.RequestKey)
		dedup := key
		if r.duplicate {
			dedup = nil
		}
		args = append(args, int64(r.order.ID), w.engine.bytes(r.order.SaleID), w.engine.bytes(r.order.UserID), key, dedup,
			r.order.Quantity, r.order.AmountCents, string(r.status), r.reason, int64(r.batch),
			moment{r.order.CreatedAt()}.text(), at)
	}
	return w.orderInsert.insert(ctx, w.tx, args)
}

// lockUnits moves units from available to locked; false: there are fewer. The row is
// the sale's lock until the transaction ends.
func (w *writer) lockUnits(ctx context.Context, saleID string, units int64) (bool, error) {
	n, err := exec(ctx, w.tx, "UPDATE inventory SET available = available - ?, locked = locked + ?"+
		" WHERE sale_id = ? AND available >= ?", units, units, w.engine.bytes(saleID), units)
	return n == 1, err
}

// The kinds of inventory_log.
const (
	logCreate = "CREATE"
	logTotal  = "TOTAL"
	logLock   = "LOCK"
)

// lockedUnits is what a batch locked.
type lockedUnits struct {
	batch *sale.Batch
	units int64
}

func (w *writer) logUnits(ctx context.Context, logs []lockedUnits) error {
	at := w.at.text()
	args := make([]any, 0, 5*len(logs))
	for _, g := range logs {
		args = append(args, w.engine.bytes(g.batch.SaleID), logLock, int64(g.batch.ID), g.units, at)
	}
	_, err := w.engine.insert(ctx, w.tx, "INSERT", "inventory_log",
		[]string{"sale_id", "kind", "batch_id", "units", "created_at"}, args)
	return err
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
