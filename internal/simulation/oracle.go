package simulation

import (
	"fmt"
	"time"

	"flashgate/internal/audit"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// oracle is what the shoppers wrote down, and what must be true for that.
type oracle struct {
	promises []promise
	denied   map[sale.ID]time.Duration // order ids of attempts that were told no, and when these began
	seen     map[sale.ID]string        // what polls said last of an order: active or cancelled
	lost     bool                      // Redis has lost everything, the last time at
	lostAt   time.Duration
	load     loadTimes
	// The total is somewhere between: a raise counts once, a cut may be refused.
	leastTotal, mostTotal int64
	comparing             bool
}

// loadTimes are when the last load began, had listed what the bus had, and finished, or
// shortly before each.
type loadTimes struct{ began, listed, finished time.Duration }

// promise is a 202.
type promise struct {
	order sale.ID
	of    userKey
	at    time.Duration
}

// Breach is an invariant that broke.
type Breach struct {
	Seed      uint64
	Invariant string // its number in ARCHITECTURE.md
	Detail    string
	At        time.Duration // since the history began
	Timeline  []string
}

func (b *Breach) Error() string {
	return fmt.Sprintf("seed %d: invariant %s broke at %v: %s", b.Seed, b.Invariant, b.At, b.Detail)
}

// broken notes the first breach; the history ends there.
func (w *world) broken(invariant, format string, args ...any) {
	if w.plan.unreplicated && promised[invariant] {
		return
	}
	if w.breach == nil {
		w.breach = &Breach{Seed: w.seed, Invariant: invariant, Detail: fmt.Sprintf(format, args...), At: w.now}
		w.note("INVARIANT %s: %s", invariant, w.breach.Detail)
	}
}

// promised are the invariants that need a replica behind every promise.
var promised = map[string]bool{"2": true, "5": true, "9": true}

func (w *world) promiseOf(id sale.ID) *promise {
	for i := range w.promises {
		if w.promises[i].order == id {
			return &w.promises[i]
		}
	}
	return nil
}

// answered hears what a shopper is told.
func (w *world) answered(a *attempt, answer *purchase.Answer) {
	if a.state == abandoned {
		return // he has left, and was told that nobody knows
	}
	of := userKey{a.order.UserID, a.order.RequestKey}
	switch {
	case answer.Code == sale.CodeOutcomeUnknown:
	case answer.Code != "":
		w.denied[a.order.ID] = a.began
		if answer.Code == sale.CodeUnavailable {
			return
		}
		for _, p := range w.promises {
			if p.of == of && p.at < a.began {
				w.broken("9", "%s has %s with key %s, and is told %s", of.user, w.name(p.order), of.key, answer.Code)
			}
		}
	case answer.Quantity != a.order.Quantity:
		w.broken("9", "%s asked for %d and is promised %d", of.user, a.order.Quantity, answer.Quantity)
	case !answer.Returned:
		for _, p := range w.promises {
			if p.of == of && p.order != answer.OrderID && !w.lost {
				w.broken("9", "key %s of %s was promised as %s, and is as %s", of.key, of.user, w.name(p.order), w.name(answer.OrderID))
			}
		}
		if w.promiseOf(answer.OrderID) == nil {
			w.promises = append(w.promises, promise{answer.OrderID, of, w.now})
		}
	case !w.lost && !w.ledger.cancelledByShopper(answer.OrderID):
		w.broken("2", "%s is told that %s was cancelled", of.user, w.name(answer.OrderID))
	}
}

// polled hears what a poll says.
func (w *world) polled(id sale.ID, promised bool, status string) {
	switch status {
	case pollNotFound:
		if promised {
			w.broken("9", "%s was promised, and a poll does not find it", w.name(id))
		}
	case pollActive, pollCancelled:
		if before := w.seen[id]; before != "" && before != status && !w.ledger.cancelledByShopper(id) {
			w.broken("9", "a poll said %s of %s, a later one %s", before, w.name(id), status)
		}
		w.seen[id] = status
	}
}

// checkLedger looks at the ledger after a transaction.
func (w *world) checkLedger() {
	l := w.ledger
	units := make(map[string]int, 4)
	keys := make(map[userKey]sale.ID, len(l.orders))
	var active int64
	for _, r := range l.orders {
		if !r.active {
			continue
		}
		active += int64(r.Quantity)
		units[r.UserID] += r.Quantity
		if units[r.UserID] > perUserLimit {
			w.broken("8", "%s has %d units in the ledger", r.UserID, units[r.UserID])
		}
		of := userKey{r.UserID, r.RequestKey}
		if other, ok := keys[of]; ok {
			w.broken("3", "%s and %s are both of key %s of %s", w.name(other), w.name(r.ID), of.key, of.user)
		}
		keys[of] = r.ID
		if at, ok := w.denied[r.ID]; ok && !w.forgotten(at) {
			w.broken("9", "%s is in the ledger, and its shopper was told no", w.name(r.ID))
		}
	}
	if active > l.total {
		w.broken("1", "%d units are sold of %d", active, l.total)
	}
	if l.available < 0 || l.available+l.locked != l.total || l.locked != active {
		w.broken("4b", "available %d + locked %d, total %d, active orders %d", l.available, l.locked, l.total, active)
	}
}

// forgotten reports whether what Redis knew at a time may be lost: a half message that
// comes back then may sell what was refused.
func (w *world) forgotten(at time.Duration) bool { return w.lost && at <= w.lostAt }

// checkRedis looks at Redis after a write.
func (w *world) checkRedis() {
	m := w.redis.master
	text, _ := m.find("stock", kindString)
	buyers, _ := m.find("buyers", kindHash)
	meta, _ := m.find("meta", kindHash)
	if text == nil {
		return
	}
	var held int64
	if buyers != nil {
		for _, f := range buyers.hash {
			units := 0
			for rest := f.value; rest != ""; {
				var r record
				if r, rest = readRecord(rest, f.name); !r.held {
					continue
				}
				units += r.quantity
				if at, ok := w.denied[r.order]; ok && !w.forgotten(at) {
					w.broken("9", "%s holds units in Redis, and its shopper was told no", w.name(r.order))
				}
			}
			if held += int64(units); units > perUserLimit && !w.lost && !w.plan.unreplicated {
				w.broken("8", "%s holds %d units in Redis", f.name, units)
			}
		}
	}
	stock, total, counted := number(text.text, true), number(meta.get("total")), number(meta.get("held"))
	if stock+held != total || held != counted {
		w.broken("4a", "stock %d + held %d, total %d; the records hold %d", stock, counted, total, held)
	}
}

// rollingBack looks, before a ROLLBACK is sent, for the tombstone.
func (w *world) rollingBack(id sale.ID) {
	if w.lost {
		return
	}
	for _, m := range []*memory{w.redis.master, w.redis.tail[0]} {
		for _, b := range m.contents().batches {
			if b.id == id && b.state != stock.StateVoid {
				w.broken("5", "%s is rolled back, and Redis has it %v", w.name(id), b.state)
			}
		}
	}
}

func (w *world) lostAll() {
	w.lost, w.lostAt = true, w.now
}

// loaded looks at Redis right after a load under an epoch.
func (w *world) loaded(epoch string, times loadTimes) {
	c := w.redis.master.contents()
	if format(c.epoch) != epoch || w.redis.sure >= times.finished {
		return // it was an old master's, or is gone again
	}
	w.load = times
	for _, r := range w.ledger.orders {
		in := w.ledger.consumedBatch(r.batch)
		if r.active && in.at < times.listed && recordOf(c.records, r.ID) == nil {
			w.broken("4c", "%s is in the ledger, and the load has not got it", w.name(r.ID))
		}
	}
	for i := range w.promises {
		if p := &w.promises[i]; p.at < times.began && recordOf(c.records, p.order) == nil && w.ledger.byID[p.order] == nil {
			w.broken("2", "%s was promised, and the load has not got it", w.name(p.order))
		}
	}
}

// excused reports whether a promise may be cancelled all the same. One of a batch that
// was reserved before Redis lost everything may: the half messages of that time come back
// as sales, with those that were void, or reserved on a master cut off, among them. One
// that was reserved since then, of units that were still free with all of those counted,
// may only if another such message was stored after the load had listed the bus.
func (w *world) excused(p *promise) bool {
	if !w.lost {
		return false
	}
	late := false
	for _, m := range w.broker.messages {
		b := decode(m.body)
		old := b.Epoch < w.ledger.epoch
		late = late || old && m.stored >= w.load.listed
		for i := range b.Orders {
			if b.Orders[i].ID == p.order && old {
				return true
			}
		}
	}
	return late
}

// found hears of a difference that a comparison found and repairs. Some the protocol
// leaves to it: what the broker lost, and what Redis was told and a failover took.
func (w *world) found(f finding) {
	told := time.Duration(-1)
	switch f.kind {
	case audit.ConfirmedNotPersisted:
		if w.lost || w.plan.messageLosses > 0 {
			return
		}
	case audit.ConsumedNotSettled, audit.PersistedUnknownToRedis:
		c := w.ledger.consumedBatch(f.batch)
		if c != nil && c.settled {
			told = c.settledAt
		}
		if c != nil && c.at < w.load.listed {
			told = max(told, w.load.finished)
		}
	case audit.CancelledStillHeld:
		for _, task := range w.ledger.tasks {
			if task.order.ID == f.order && task.done {
				told = task.doneAt
			}
		}
	default:
		told = w.now
	}
	if told > w.redis.sure || told == -1 && w.resting {
		w.broken(f.invariant(), "%s %s %s", f.kind, w.nameOr(f.order), w.nameOr(f.batch))
	}
}
