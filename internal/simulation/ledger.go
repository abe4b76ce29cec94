package simulation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"flashgate/internal/sale"
)

// ledger is the system of record: what internal/ledger does, each transaction whole
// and at one instant.
type ledger struct {
	w         *world
	orders    []*row
	byID      map[sale.ID]*row
	consumed  []*consumedBatch
	tasks     []*syncTask
	available int64
	locked    int64
	total     int64
	version   int64
	epoch     int64
}

// row is an order as it is stored.
type row struct {
	sale.Order
	batch  sale.ID
	active bool
	reason string
	dedup  bool // it has the request key; a cancelled duplicate does not
}

type consumedBatch struct {
	id        sale.ID
	at        time.Duration
	settled   bool
	settledAt time.Duration // Redis was asked then or later
	markedAt  time.Duration
}

// syncTask is an order whose units must be given back in Redis.
type syncTask struct {
	order  *row
	done   bool
	doneAt time.Duration // Redis was asked then or later
	next   time.Duration
}

const ledgerTimeout = 2 * time.Second

var errConflict = errors.New("the change contradicts what is stored")

func newLedger(w *world, total int64) *ledger {
	return &ledger{w: w, byID: make(map[sale.ID]*row), available: total, total: total, version: 1}
}

// transact runs do in the ledger, whole; when the reply is lost, nobody knows.
func (t *task) transact(do func(l *ledger) error) error {
	w := t.w
	return t.call(ledgerTimeout, func(reply func(error)) {
		if w.now < w.ledgerDown {
			return
		}
		err := do(w.ledger)
		w.checkLedger()
		reply(err)
	})
}

func (l *ledger) consumedBatch(id sale.ID) *consumedBatch {
	for _, c := range l.consumed {
		if c.id == id {
			return c
		}
	}
	return nil
}

// apply is the worker's transaction.
func (l *ledger) apply(batches []*sale.Batch) {
	for _, b := range batches {
		if l.consumedBatch(b.ID) != nil {
			continue
		}
		l.consumed = append(l.consumed, &consumedBatch{id: b.ID, at: l.w.now})
		for i := range b.Orders {
			o := &b.Orders[i]
			if l.byID[o.ID] != nil {
				continue
			}
			r := l.decide(o, b.ID)
			if r == nil {
				continue
			}
			l.orders = append(l.orders, r)
			l.byID[o.ID] = r
			l.w.note("ledger: %s of %s is %s", l.w.name(o.ID), l.w.name(b.ID), r)
			if !r.active {
				l.tasks = append(l.tasks, &syncTask{order: r, next: l.w.now})
			}
		}
	}
}

func (r *row) String() string {
	if r.active {
		return "active"
	}
	return "CANCELLED " + r.reason
}

// decide is what becomes of an order that is not in the ledger yet; its units are
// locked if it becomes active.
func (l *ledger) decide(o *sale.Order, batch sale.ID) *row {
	r := &row{Order: *o, batch: batch, dedup: true}
	units := int64(o.Quantity)
	if survivor := l.byKey(o.UserID, o.RequestKey); survivor != nil {
		if l.w.faulty.ignoreDuplicates {
			l.available -= units
			l.locked += units
			return nil
		}
		r.dedup, r.reason = false, sale.ReasonDuplicate
		return r
	}
	switch {
	case l.unitsOf(o.UserID)+o.Quantity > perUserLimit:
		r.reason = sale.ReasonLimitExceeded
	case units > l.available:
		r.reason = sale.ReasonStockRefused
	default:
		r.active = true
		l.available -= units
		l.locked += units
	}
	return r
}

// cancel cancels an order for its shopper, and asks for its units to be given back.
func (l *ledger) cancel(id sale.ID) {
	r := l.byID[id]
	if r == nil || !r.active {
		return
	}
	r.active, r.reason = false, reasonShopper
	l.available += int64(r.Quantity)
	l.locked -= int64(r.Quantity)
	l.tasks = append(l.tasks, &syncTask{order: r, next: l.w.now})
	l.w.note("ledger: %s is cancelled by its shopper", l.w.name(id))
}

const reasonShopper = "BY_SHOPPER"

// cancelledByShopper reports whether that is why an order is not active.
func (l *ledger) cancelledByShopper(id sale.ID) bool {
	r := l.byID[id]
	return r != nil && r.reason == reasonShopper
}

func (l *ledger) byKey(user, key string) *row {
	for _, r := range l.orders {
		if r.dedup && r.UserID == user && r.RequestKey == key {
			return r
		}
	}
	return nil
}

func (l *ledger) unitsOf(user string) int {
	n := 0
	for _, r := range l.orders {
		if r.active && r.UserID == user {
			n += r.Quantity
		}
	}
	return n
}

// activeOrders are the active orders of batches.
func (l *ledger) activeOrders(ids []sale.ID) map[sale.ID][]sale.Order {
	active := make(map[sale.ID][]sale.Order)
	for _, r := range l.orders {
		if r.active && slices.Contains(ids, r.batch) {
			active[r.batch] = append(active[r.batch], r.Order)
		}
	}
	return active
}

func (l *ledger) markSettled(ids []sale.ID, at time.Duration) {
	for _, c := range l.consumed {
		if slices.Contains(ids, c.id) {
			c.settled, c.settledAt, c.markedAt = true, at, l.w.now
		}
	}
}

// setTotal moves the total from version-1 to version.
func (l *ledger) setTotal(total, version int64) (bool, error) {
	switch {
	case l.version >= version:
		return false, nil
	case l.version != version-1:
		return false, fmt.Errorf("%w: version %d after %d", errConflict, version, l.version)
	case l.available+total-l.total < 0:
		return false, fmt.Errorf("%w: %d units are available", errConflict, l.available)
	}
	l.available += total - l.total
	l.total, l.version = total, version
	l.w.note("ledger: total %d, version %d", total, version)
	return true, nil
}

// nextEpoch counts the epochs of the sale's Redis data.
func (l *ledger) nextEpoch() int64 {
	l.epoch++
	if l.w.faulty.epochFromOne {
		l.epoch = 1
	}
	return l.epoch
}

// The reads and writes of a task, each a round trip.

func (t *task) activeOrders(ids []sale.ID) (active map[sale.ID][]sale.Order, err error) {
	err = t.transact(func(l *ledger) error {
		active = l.activeOrders(ids)
		return nil
	})
	return active, err
}

func (t *task) markSettled(ids []sale.ID, at time.Duration) error {
	return t.transact(func(l *ledger) error {
		l.markSettled(ids, at)
		return nil
	})
}

// consumptions says which of the batches the ledger has, and since when.
func (t *task) consumptions(ids []sale.ID) (map[sale.ID]consumedBatch, error) {
	found := make(map[sale.ID]consumedBatch)
	err := t.transact(func(l *ledger) error {
		for _, id := range ids {
			if c := l.consumedBatch(id); c != nil {
				found[id] = *c
			}
		}
		return nil
	})
	return found, err
}

// taskOf reports whether an order's units wait for a task to give them back.
func (t *task) taskOf(order sale.ID) (waits bool, err error) {
	err = t.transact(func(l *ledger) error {
		waits = false
		for _, task := range l.tasks {
			waits = waits || task.order.ID == order && !task.done
		}
		return nil
	})
	return waits, err
}

// inventory is a sale's row.
type inventory struct{ total, available, locked, version int64 }

func (t *task) inventory() (inv inventory, err error) {
	err = t.transact(func(l *ledger) error {
		inv = inventory{l.total, l.available, l.locked, l.version}
		return nil
	})
	return inv, err
}

// rows reads copies of the orders.
func (t *task) rows() (rows []row, err error) {
	err = t.transact(func(l *ledger) error {
		rows = rows[:0]
		for _, r := range l.orders {
			rows = append(rows, *r)
		}
		return nil
	})
	return rows, err
}
