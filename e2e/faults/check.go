package faults

import (
	"cmp"
	"fmt"
	"slices"
)

// breach is a broken invariant, by its number in ARCHITECTURE.md.
type breach struct {
	invariant string
	what      string
}

func (b breach) String() string { return "invariant " + b.invariant + ": " + b.what }

// evidence is what is known of one sale when all is at rest.
type evidence struct {
	offer   *offer
	answers []answer                  // of this sale, in any order
	wanted  map[string]map[string]int // user → key → quantity: all that anybody asked for
	ledger  ledgerView
	redis   redisView
	// lossy: Redis has lost all it knew of the sale in this round, so that a batch which was
	// given up may come back, and a promise may end as CANCELLED for it (ARCHITECTURE.md, "What
	// a promise is worth").
	lossy bool
	// weak: 202 is no promise, since no replica was waited for.
	weak bool
}

// verdict is what a check found.
type verdict struct {
	breaches  []breach
	cancelled int             // promises that ended as CANCELLED, where that may be
	broken    map[string]bool // orders whose 202 turned out otherwise, where that may be
}

// promise notes that an answer of an order's turned out otherwise: a breach, unless 202
// is none.
func (v *verdict) promise(e *evidence, order, invariant, format string, args ...any) {
	if !e.weak {
		v.breach(invariant, format, args...)
		return
	}
	if v.broken == nil {
		v.broken = make(map[string]bool)
	}
	v.broken[order] = true
}

func (v *verdict) breach(invariant, format string, args ...any) {
	v.breaches = append(v.breaches, breach{invariant, fmt.Sprintf(format, args...)})
}

// check holds what shoppers were told against both stores, and these against each other.
func check(e *evidence) verdict {
	var v verdict
	slices.SortStableFunc(e.answers, func(a, b answer) int { return cmp.Compare(a.from, b.from) })
	byID := make(map[string]*order, len(e.ledger.orders))
	for i := range e.ledger.orders {
		byID[e.ledger.orders[i].id] = &e.ledger.orders[i]
	}
	e.checkPromises(&v, byID)
	e.checkKeys(&v)
	e.checkLooks(&v, byID)
	e.checkLedger(&v)
	e.checkRedis(&v, byID)
	return v
}

// one describes an answer for a breach.
func one(a *answer) string {
	result := fmt.Sprintf("%d %s", a.status, a.code)
	if a.status == 0 {
		result = a.failure
	}
	return fmt.Sprintf("%s by %s, key %q, %d units, gateway %d, %.3f–%.3f s: %s %s %s",
		a.deed, a.user, a.key, a.quantity, a.gateway, a.from.Seconds(), a.to.Seconds(), result, a.order, a.got.Status)
}

// checkPromises: every 202 is an order of the ledger (2), as it was asked for (9).
func (e *evidence) checkPromises(v *verdict, byID map[string]*order) {
	cancelled := make(map[string]bool)
	fresh := make(map[string]int)
	for i := range e.answers {
		a := &e.answers[i]
		if a.status != 202 {
			continue
		}
		if a.deed == reuse {
			v.promise(e, a.order, "9", "a key was taken with another quantity: %s", one(a))
			continue
		}
		if !a.replayed {
			if fresh[a.order]++; fresh[a.order] > 1 {
				v.breach("9", "order %s was answered as new twice: %s", a.order, one(a))
			}
		}
		if a.got.Quantity != a.quantity || a.got.AmountCents != int64(a.quantity)*e.offer.priceCents || a.got.SaleID != e.offer.id {
			v.breach("9", "the answer is not what was asked for: %s: %+v", one(a), a.got)
		}
		o := byID[a.order]
		switch {
		case o == nil:
			v.promise(e, a.order, "2", "a promised order is not in the ledger: %s", one(a))
		case o.user != a.user || o.key != a.key || o.quantity != a.quantity || o.amount != a.got.AmountCents:
			v.breach("9", "the ledger has another order under the promised id: %s: %+v", one(a), *o)
		case !o.active() && !e.lossy && a.got.Status != "CANCELLED":
			v.promise(e, a.order, "2", "a promised order is %s (%s): %s", o.status, o.reason, one(a))
		case !o.active() && o.reason == "":
			v.breach("2", "a promised order is %s without a reason: %s", o.status, one(a))
		case !o.active():
			cancelled[a.order] = true
		}
	}
	v.cancelled = len(cancelled)
}

// tries are all tries of one (user, key).
type tries struct {
	answers []*answer
	orders  []*order
}

// checkKeys: one key is one order (3), and what was refused was not made (9).
func (e *evidence) checkKeys(v *verdict) {
	type id struct{ user, key string }
	all := make(map[id]*tries)
	of := func(user, key string) *tries {
		t := all[id{user, key}]
		if t == nil {
			t = new(tries)
			all[id{user, key}] = t
		}
		return t
	}
	for i := range e.answers {
		if a := &e.answers[i]; a.deed == buy {
			t := of(a.user, a.key)
			t.answers = append(t.answers, a)
		}
	}
	for i := range e.ledger.orders {
		o := &e.ledger.orders[i]
		t := of(o.user, o.key)
		t.orders = append(t.orders, o)
		if quantity, asked := e.wanted[o.user][o.key]; !asked || quantity != o.quantity {
			v.breach("9", "nobody asked for order %+v", *o)
		}
	}
	for who, t := range all {
		var active, promised []string
		for _, o := range t.orders {
			if o.active() {
				active = append(active, o.id)
			}
		}
		definite := true
		var first *answer
		for _, a := range t.answers {
			definite = definite && a.outcome() == refused && (!e.lossy || a.code != "UNAVAILABLE")
			if a.status == 202 {
				if !slices.Contains(promised, a.order) {
					promised = append(promised, a.order)
				}
				if first == nil || a.to < first.to {
					first = a
				}
			}
		}
		if len(active) > 1 {
			v.breach("3", "user %s, key %q has active orders %v", who.user, who.key, active)
		}
		if len(promised) > 1 && !e.lossy {
			v.promise(e, promised[0], "3", "user %s, key %q was promised orders %v", who.user, who.key, promised)
		}
		if definite && len(t.answers) > 0 && len(t.orders) > 0 {
			v.breach("9", "every try of user %s, key %q was refused, the last %s; the ledger has %+v",
				who.user, who.key, one(t.answers[len(t.answers)-1]), *t.orders[0])
		}
		for _, a := range t.answers {
			// 429 and UNAVAILABLE speak of that try alone.
			if first != nil && a.from > first.to && (a.status == 409 || a.status == 422) {
				v.promise(e, first.order, "9", "refused though promised before: %s; promised at %.3f s", one(a), first.to.Seconds())
			}
		}
	}
}

// checkLooks: what polls and lists show (9).
func (e *evidence) checkLooks(v *verdict, byID map[string]*order) {
	known := make(map[string][]*answer) // user → accepted purchases, by time of beginning
	gone := make(map[string]*answer)    // order → an answer that showed it CANCELLED
	for i := range e.answers {
		a := &e.answers[i]
		if a.status == 500 || a.status == 404 && a.deed != poll || a.status == 401 || a.status == 400 {
			v.breach("9", "no such answer is due: %s", one(a))
		}
		if a.deed == buy && a.status == 202 {
			known[a.user] = append(known[a.user], a)
		}
	}
	for i := range e.answers {
		a := &e.answers[i]
		var orders []shown
		switch {
		case a.deed == poll && a.status == 404:
			v.promise(e, a.order, "9", "a promised order was not found: %s", one(a))
		case a.deed == poll && a.status == 200:
			orders = []shown{a.got}
		case a.deed == list && a.status == 200:
			orders = a.listed
			for _, b := range known[a.user] {
				if b.to < a.from && !slices.ContainsFunc(orders, func(o shown) bool { return o.OrderID == b.order }) {
					v.promise(e, b.order, "9", "a promised order %s is not in the list: %s", b.order, one(a))
				}
			}
		}
		for _, got := range orders {
			o := byID[got.OrderID]
			if o == nil {
				v.promise(e, got.OrderID, "9", "an order that was shown, %+v, is not in the ledger: %s", got, one(a))
				continue
			}
			if o.user != a.user || o.quantity != got.Quantity || o.amount != got.AmountCents || got.SaleID != e.offer.id {
				v.breach("9", "%+v was shown of %+v", got, *o)
			}
			if was := gone[got.OrderID]; was != nil && was.to < a.from && got.Status != "CANCELLED" {
				v.breach("9", "order %s was CANCELLED, then %s: %s", got.OrderID, got.Status, one(a))
			}
			if got.Status == "CANCELLED" {
				if o.active() {
					v.breach("9", "order %s was shown CANCELLED and is %s: %s", got.OrderID, o.status, one(a))
				}
				gone[got.OrderID] = a
			}
		}
	}
}

// checkLedger: the ledger by itself (1, 3, 4b, 8).
func (e *evidence) checkLedger(v *verdict) {
	l := &e.ledger
	var active, pending int64
	users := make(map[string]int)
	batches := make(map[string]int64)
	for i := range l.orders {
		o := &l.orders[i]
		if _, ok := l.consumed[o.batch]; !ok {
			v.breach("3", "order %s is of batch %s, which is not consumed", o.id, o.batch)
		}
		if o.amount != int64(o.quantity)*e.offer.priceCents {
			v.breach("9", "order %s of %d units costs %d", o.id, o.quantity, o.amount)
		}
		if !o.active() {
			if o.reason == "" {
				v.breach("2", "order %s is CANCELLED without a reason", o.id)
			}
			continue
		}
		active += int64(o.quantity)
		batches[o.batch] += int64(o.quantity)
		users[o.user] += o.quantity
		if o.status == "PENDING_PAYMENT" {
			pending += int64(o.quantity)
		}
	}
	if active > l.total {
		v.breach("1", "%d units are sold of %d", active, l.total)
	}
	if l.available+l.locked+l.sold != l.total || l.locked != pending || l.sold != active-pending {
		v.breach("4b", "available %d, locked %d, sold %d of %d; the orders say locked %d, sold %d",
			l.available, l.locked, l.sold, l.total, pending, active-pending)
	}
	for user, units := range users {
		if units > l.limit {
			v.breach("8", "user %s has %d units, the limit is %d", user, units, l.limit)
		}
	}
	for batch, settled := range l.consumed {
		if !settled {
			v.breach("4c", "batch %s is consumed and not settled", batch)
		}
	}
	for batch, units := range l.lockedOf {
		var sum int64
		for _, n := range units {
			sum += n
		}
		if len(units) > 1 || sum != batches[batch] {
			v.breach("3", "batch %s locked %v units, its active orders have %d", batch, units, batches[batch])
		}
	}
	if l.tasks > 0 {
		v.breach("7", "%d tasks are left", l.tasks)
	}
}

// checkRedis: Redis by itself (4a) and against the ledger (4c, 7).
func (e *evidence) checkRedis(v *verdict, byID map[string]*order) {
	r := &e.redis
	if !r.loaded {
		v.breach("4c", "the sale is not loaded")
		return
	}
	var held int64
	seen := make(map[string]bool)
	keys := make(map[string]string)
	for i := range r.records {
		c := &r.records[i]
		if seen[c.order] {
			v.breach("6", "order %s has two records", c.order)
		}
		seen[c.order] = true
		o := byID[c.order]
		if !c.held {
			if o != nil && o.active() {
				v.breach("6", "order %s gave its units back and is %s", c.order, o.status)
			}
			continue
		}
		held += int64(c.quantity)
		name := c.user + "\x00" + c.key
		if other := keys[name]; other != "" {
			v.breach("3", "user %s, key %q holds orders %s and %s", c.user, c.key, other, c.order)
		}
		keys[name] = c.order
		switch {
		case o == nil:
			v.breach("4c", "Redis holds %+v, which the ledger has not", *c)
		case !o.active():
			v.breach("4c", "Redis holds %+v, which is %s (%s)", *c, o.status, o.reason)
		case o.user != c.user || o.key != c.key || o.quantity != c.quantity || o.batch != c.batch:
			v.breach("4c", "Redis holds %+v, the ledger %+v", *c, *o)
		}
	}
	for _, o := range byID {
		if o.active() && !seen[o.id] {
			v.breach("4c", "Redis has no record of %+v", *o)
		}
	}
	if r.held != held {
		v.breach("4a", "meta says %d units held, the records %d", r.held, held)
	}
	if r.stock+held != r.total {
		v.breach("4a", "stock %d + held %d is not total %d", r.stock, held, r.total)
	}
	if r.total != e.ledger.total || r.version != e.ledger.version {
		v.breach("4c", "total %d (version %d) in Redis, %d (%d) in the ledger", r.total, r.version, e.ledger.total, e.ledger.version)
	}
	if r.stock != e.ledger.available {
		v.breach("7", "%d units are free in Redis, %d in the ledger", r.stock, e.ledger.available)
	}
	if len(r.open) > 0 || r.pending > 0 {
		v.breach("7", "open batches %v, %d pending", r.open, r.pending)
	}
}
