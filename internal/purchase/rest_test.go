package purchase

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// book is the ledger of a history: what internal/ledger does, in a few lines. It is a
// value: every change makes another.
type book struct {
	Orders       []booked
	Consumed     []sale.ID
	Settled      []sale.ID
	Acknowledged []sale.ID
}

type booked struct {
	Order  sale.Order
	Batch  sale.ID
	Reason string // it was cancelled; "" = active
}

func (b book) acknowledged(id sale.ID) bool { return slices.Contains(b.Acknowledged, id) }

func with(ids []sale.ID, id sale.ID) []sale.ID {
	if slices.Contains(ids, id) {
		return ids
	}
	ids = append(slices.Clone(ids), id)
	slices.Sort(ids)
	return ids
}

func (b book) settle(id sale.ID) book      { b.Settled = with(b.Settled, id); return b }
func (b book) acknowledge(id sale.ID) book { b.Acknowledged = with(b.Acknowledged, id); return b }

// apply is the worker's transaction for one batch.
func (b book) apply(batch *sale.Batch) book {
	if slices.Contains(b.Consumed, batch.ID) {
		return b
	}
	b.Consumed = with(b.Consumed, batch.ID)
	b.Orders = slices.Clone(b.Orders)
	for _, o := range batch.Orders {
		if slices.ContainsFunc(b.Orders, func(r booked) bool { return r.Order.ID == o.ID }) {
			continue
		}
		row := booked{Order: o, Batch: batch.ID}
		for _, r := range b.active() {
			row.Reason = sale.ReasonStockRefused
			if r.Order.UserID == o.UserID && r.Order.RequestKey == o.RequestKey {
				row.Reason = sale.ReasonDuplicate
			}
		}
		b.Orders = append(b.Orders, row)
	}
	return b
}

func (b book) active() (rows []booked) {
	for _, r := range b.Orders {
		if r.Reason == "" {
			rows = append(rows, r)
		}
	}
	return rows
}

// end is what the bus does with a decision: the first one counts.
func (h *history) end(stored *half, d bus.Decision) {
	if d == bus.Rollback && !h.wiped && !h.everywhere(func(c *contents) bool { return c.batches[stored.batch.ID].State == stock.StateVoid }) {
		h.fail("invariant 5: ROLLBACK without a VOID on master and replica")
	}
	if stored.state != bus.Unknown && stored.state != d && !h.wiped {
		h.fail(fmt.Sprintf("batch %d was ended as %v and as %v", stored.batch.ID, stored.state, d))
	}
	if stored.state != bus.Unknown {
		return
	}
	ended := *stored
	ended.state = d
	*stored = ended
}

func (h *history) fail(breach string) {
	if h.x.breach == "" {
		h.x.broke(h, breach)
	}
}

// everywhere: it is so on the master, and wherever a failover may lead.
func (h *history) everywhere(so func(*contents) bool) bool {
	for _, state := range h.redis {
		if !so(&h.x.lab.states[state]) {
			return false
		}
	}
	return true
}

// check holds against every state what is true at any moment.
func (h *history) check() string {
	if h.x.breach != "" {
		return h.x.breach
	}
	for _, state := range h.redis {
		c := &h.x.lab.states[state]
		if !c.Loaded {
			continue
		}
		held := int64(0)
		for _, r := range c.records {
			if !r.Returned {
				held += int64(r.Quantity)
			}
		}
		if held != c.snap.Held || c.snap.Stock+held != c.snap.Total {
			return fmt.Sprintf("invariant 4a: stock %d, held %d (%d in the records), total %d", c.snap.Stock, c.snap.Held, held, c.snap.Total)
		}
	}
	if len(h.book.active()) > 1 {
		return "invariants 1 and 8: more is sold than there is"
	}
	if h.wiped {
		return "" // what Redis says meanwhile is NOT_READY; what counts is the end
	}
	for _, s := range h.answers {
		if !s.told {
			continue
		}
		switch s.answer.Code {
		case "":
			if !h.everywhere(func(c *contents) bool {
				r, ok := c.records[s.answer.OrderID]
				state := c.batches[r.BatchID].State
				return ok && !r.Returned && (state == stock.StateConfirmed || state == stock.StateAbsent)
			}) {
				return "invariants 2 and 9: what was promised to the " + s.by + " is not to be seen in Redis, or would not be after a failover"
			}
		case sale.CodeUnavailable:
			if !h.everywhere(func(c *contents) bool { _, there := c.records[s.order]; return !there }) {
				return "invariants 5 and 9: the " + s.by + " heard UNAVAILABLE, and its units are held"
			}
		}
	}
	return ""
}

// rest lets the system come to rest: the sweeper, check-backs, a worker, the
// reconciler; and once more after what was late has arrived at last.
func (h *history) rest() {
	h.settleDown()
	for _, l := range h.late {
		h.trace = append(h.trace, "late "+l.name+" arrives when all is over")
		l.do()
	}
	h.late = nil
	h.settleDown()
}

func (h *history) settleDown() {
	if !h.now().Loaded {
		h.load(h.undelivered(), h.book.Orders)
	}
	for _, id := range h.reservedBatches() {
		_, _ = h.do(releaseCall(id, 0, nil))
	}
	h.replicated()
	for _, open := range h.undecided() {
		d := Checker(h.checkStock(master{h}), slog.New(slog.DiscardHandler))(context.Background(), clone(&open.batch))
		if d == bus.Unknown {
			h.fail("a check-back with Redis at hand is definite")
		}
		h.end(open, d)
	}
	for _, half := range h.halves {
		if half.state == bus.Commit {
			h.book = h.book.apply(&half.batch).acknowledge(half.batch.ID)
		}
	}
	// What is promised in Redis and came to no worker: the reconciler applies it.
	for _, id := range slices.Sorted(maps.Keys(h.now().batches)) {
		if b := h.now().batches[id]; b.State == stock.StateConfirmed {
			if !slices.Contains(h.book.Consumed, id) && !h.wiped {
				h.fail("a promised batch was rolled back, and Redis had lost nothing")
			}
			for i := range b.Orders {
				b.Orders[i].AmountCents = int64(b.Orders[i].Quantity) * labSale.PriceCents
			}
			h.book = h.book.apply(&sale.Batch{ID: id, SaleID: labSale.ID, Orders: b.Orders})
		}
	}
	for _, id := range h.book.Consumed {
		_, _ = h.do(h.settleCall(id))
		h.book = h.book.settle(id)
	}
	for _, r := range h.book.Orders {
		if r.Reason != "" {
			_, _ = h.do(call{fmt.Sprint("restore ", r), func(ctx context.Context, s *stock.Store) (any, error) {
				return s.Restore(ctx, &r.Order, r.Batch)
			}})
		}
	}
	h.replicated()
}

// master is Redis without faults.
type master struct{ h *history }

func (m master) Release(_ context.Context, _ string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error) {
	v, err := m.h.do(releaseCall(batch, epoch, orders))
	m.h.replicated()
	return v.(stock.State), err
}

func (m master) Adopt(_ context.Context, b *sale.Batch) (stock.State, error) {
	v, err := m.h.do(call{fmt.Sprint("adopt ", *b), func(ctx context.Context, s *stock.Store) (any, error) { return s.Adopt(ctx, clone(b)) }})
	m.h.replicated()
	return v.(stock.State), err
}

// settleCall settles a batch with what the ledger has of it now.
func (h *history) settleCall(id sale.ID) call {
	var orders []sale.Order
	for _, r := range h.book.active() {
		if r.Batch == id {
			orders = append(orders, r.Order)
		}
	}
	forget := h.x.plant == settleForgets
	return call{fmt.Sprint("settle ", id, orders, forget), func(ctx context.Context, s *stock.Store) (any, error) {
		_, err := s.Settle(ctx, labSale.ID, []sale.ID{id}, func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error) {
			return map[sale.ID][]sale.Order{id: orders}, nil
		})
		for _, o := range orders {
			if forget {
				_, err = s.Restore(ctx, &o, id)
			}
		}
		return true, err
	}}
}

// giveBackCall is noVoid.
func (h *history) giveBackCall(id sale.ID) call {
	orders := h.now().batches[id].Orders
	return call{fmt.Sprint("give back ", id), func(ctx context.Context, s *stock.Store) (any, error) {
		for i := range orders {
			if _, err := s.Restore(ctx, &orders[i], id); err != nil {
				return true, err
			}
		}
		return true, nil
	}}
}

// undelivered is what the bus lists for a rebuild: half messages that are undecided,
// and committed ones that no worker has acknowledged.
func (h *history) undelivered() (batches []sale.Batch) {
	for _, half := range h.halves {
		if half.state != bus.Rollback && !h.book.acknowledged(half.batch.ID) && !slices.Contains(h.book.Consumed, half.batch.ID) {
			batches = append(batches, half.batch)
		}
	}
	return batches
}

// load fills Redis under the next epoch.
func (h *history) load(open []sale.Batch, rows []booked) {
	h.epoch++
	next := labSale
	next.Epoch = h.epoch
	_, err := h.do(call{fmt.Sprint("load ", h.epoch, open, rows), func(ctx context.Context, s *stock.Store) (any, error) {
		return s.Load(ctx, &next, stock.LoadSource{
			Batches: func(_ context.Context, each func([]sale.Batch) error) error { return each(open) },
			Orders: func(_ context.Context, each func([]stock.LoadedOrder) error) error {
				loaded := make([]stock.LoadedOrder, len(rows))
				for i, r := range rows {
					loaded[i] = stock.LoadedOrder{Order: r.Order, BatchID: r.Batch, Returned: r.Reason != ""}
				}
				return each(loaded)
			},
		})
	}})
	if err != nil {
		h.fail("load: " + err.Error())
	}
	h.replicated()
}

// atRest holds the end of a history against what was answered on the way.
func (h *history) atRest() string {
	if breach := h.check(); breach != "" {
		return breach
	}
	c, active := h.now(), h.book.active()
	if len(h.reservedBatches()) > 0 {
		return "invariant 7: a reservation is left"
	}
	held := map[sale.ID]bool{}
	for id, r := range c.records {
		if !r.Returned {
			held[id] = true
		}
	}
	for _, r := range active {
		if !held[r.Order.ID] {
			return "invariant 4c: an active order is not held in Redis"
		}
	}
	if len(held) != len(active) {
		return fmt.Sprintf("invariant 4c: %d orders are held in Redis, %d are active in the ledger", len(held), len(active))
	}
	keys := map[string]bool{}
	for _, r := range active {
		key := r.Order.UserID + "\x00" + r.Order.RequestKey
		if keys[key] {
			return "invariant 3: two active orders of one key"
		}
		keys[key] = true
	}
	if !h.wiped && len(active) != len(h.book.Orders) {
		return "the ledger's guards had to cancel an order, and Redis had lost nothing"
	}
	for _, s := range h.answers {
		if breach := h.kept(&s); s.told && breach != "" {
			return breach
		}
	}
	return ""
}

// kept holds one answer against the end.
func (h *history) kept(s *shopped) string {
	find := func(id sale.ID) *booked {
		for i := range h.book.Orders {
			if h.book.Orders[i].Order.ID == id {
				return &h.book.Orders[i]
			}
		}
		return nil
	}
	// A tombstone that was lost with all of Redis may let its half message come back, and
	// take the unit of another: what the docs own up to, and nothing beyond it.
	cameBack := func(r *booked) bool { return slices.Contains(h.voids, r.Batch) }
	switch s.answer.Code {
	case "":
		r := find(s.answer.OrderID)
		switch active := h.book.active(); {
		case r == nil:
			return "invariant 2: the " + s.by + " was promised an order that nobody knows"
		case r.Reason != "" && !cameBack(r) && !cameBack(&active[0]):
			return "invariant 9: the " + s.by + " was promised an order that is cancelled"
		}
	case sale.CodeUnavailable:
		if r := find(s.order); r != nil && !cameBack(r) {
			return "invariant 9: the " + s.by + " heard that nothing was reserved, and has an order"
		}
	case sale.CodeOutcomeUnknown:
	default:
		return "invariant 9: " + string(s.answer.Code) + " is not true of the only shopper there is"
	}
	return ""
}
