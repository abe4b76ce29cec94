package stock

import (
	"maps"
	"time"

	"flashgate/internal/sale"
)

// model is the protocol in plain Go, without bytes, scripts or time-outs: what §3 of
// the design says, rule by rule. The property test holds the scripts against it.
type model struct {
	loaded  bool
	epoch   int64
	total   int64
	version int64
	stock   int64
	buyers  map[string][]Record // Batch is not kept here
	batches map[sale.ID]BatchRecord
	pending map[sale.ID]bool // true: its deadline has passed
}

func (m *model) held() int64 {
	var units int64
	for _, records := range m.buyers {
		for _, r := range records {
			if !r.Returned {
				units += int64(r.Quantity)
			}
		}
	}
	return units
}

func (m *model) find(user string, order sale.ID) *Record {
	for i := range m.buyers[user] {
		if m.buyers[user][i].OrderID == order {
			return &m.buyers[user][i]
		}
	}
	return nil
}

func (m *model) add(o *sale.Order, batch sale.ID, returned bool) {
	m.buyers[o.UserID] = append(m.buyers[o.UserID], Record{
		OrderID: o.ID, BatchID: batch, UserID: o.UserID, RequestKey: o.RequestKey, Quantity: o.Quantity, Returned: returned,
	})
}

// standing is the state of the batch that a record names.
func (m *model) standing(r *Record) State {
	if b, known := m.batches[r.BatchID]; known {
		return b.State
	}
	if r.Returned {
		return StateAbsent
	}
	return StateSettled
}

func (m *model) named(batch sale.ID) bool {
	for _, records := range m.buyers {
		for _, r := range records {
			if r.BatchID == batch {
				return true
			}
		}
	}
	return false
}

// keyed is the order that a key stands for.
func (m *model) keyed(user, requestKey string) *Record {
	var best *Record
	for i := range m.buyers[user] {
		r := &m.buyers[user][i]
		switch {
		case r.RequestKey != requestKey:
		case best == nil,
			best.Returned && !r.Returned,
			best.Returned == r.Returned && r.OrderID > best.OrderID:
			best = r
		}
	}
	return best
}

func (m *model) reserve(b *sale.Batch, terms Terms, now time.Time, overdue bool) ([]Outcome, error) {
	if !m.loaded {
		return nil, ErrNotReady
	}
	if _, known := m.batches[b.ID]; known {
		return nil, ErrBatchKnown
	}
	out := make([]Outcome, len(b.Orders))
	// A batch that was settled is known by the records that name it.
	for i := range b.Orders {
		if r := m.keyed(b.Orders[i].UserID, b.Orders[i].RequestKey); r != nil && r.BatchID == b.ID {
			return nil, ErrBatchKnown
		}
	}
	var winners []sale.Order
	for i := range b.Orders {
		o := &b.Orders[i]
		var units int
		for _, r := range m.buyers[o.UserID] {
			if !r.Returned {
				units += r.Quantity
			}
		}
		r := m.keyed(o.UserID, o.RequestKey)
		switch {
		case r != nil:
			out[i] = Outcome{Verdict: Replay, OrderID: r.OrderID, BatchID: r.BatchID, Quantity: r.Quantity, Returned: r.Returned, Batch: m.standing(r)}
			if r.BatchID == b.ID {
				out[i].Batch = StateReserved // of this very batch
			}
			if r.Quantity != o.Quantity {
				out[i].Verdict = KeyReused
			}
		case terms.Paused:
			out[i].Verdict = Paused
		case now.Before(terms.StartsAt):
			out[i].Verdict = NotStarted
		case !now.Before(terms.EndsAt):
			out[i].Verdict = Ended
		case units+o.Quantity > terms.PerUserLimit:
			out[i].Verdict = LimitReached
		case m.stock < int64(o.Quantity):
			out[i].Verdict = SoldOut
		default:
			m.stock -= int64(o.Quantity)
			m.add(o, b.ID, false)
			winners = append(winners, *o)
		}
	}
	if len(winners) > 0 {
		m.batches[b.ID] = BatchRecord{ID: b.ID, State: StateReserved, Orders: winners}
		m.pending[b.ID] = overdue
	}
	return out, nil
}

func (m *model) confirm(b *sale.Batch) State {
	if known, ok := m.batches[b.ID]; ok {
		if known.State == StateReserved {
			known.State = StateConfirmed
			m.batches[b.ID] = known
			delete(m.pending, b.ID)
		}
		return known.State
	}
	return m.absent(b.ID, b.Epoch)
}

// absent decides a batch that has no record.
func (m *model) absent(batch sale.ID, epoch int64) State {
	switch {
	case m.named(batch):
		return StateSettled
	case epoch != m.epoch:
		return StateOtherEpoch
	}
	m.batches[batch] = BatchRecord{ID: batch, State: StateVoid}
	return StateVoid
}

func (m *model) release(batch sale.ID, epoch int64, orders []sale.Order) State {
	known, ok := m.batches[batch]
	switch {
	case ok && known.State == StateReserved:
		for user, records := range m.buyers {
			var kept []Record
			for _, r := range records {
				if r.BatchID == batch && !r.Returned {
					m.stock += int64(r.Quantity)
				} else {
					kept = append(kept, r)
				}
			}
			m.put(user, kept)
		}
		m.batches[batch] = BatchRecord{ID: batch, State: StateVoid}
		delete(m.pending, batch)
		return StateVoid
	case ok:
		return known.State
	case orders == nil:
		return StateAbsent
	case epoch == 0:
		epoch = m.epoch
	}
	return m.absent(batch, epoch)
}

func (m *model) put(user string, records []Record) {
	if len(records) == 0 {
		delete(m.buyers, user)
		return
	}
	m.buyers[user] = records
}

// hold gives a record to each of the orders that has none.
func (m *model) hold(orders []sale.Order, batch sale.ID) {
	for i := range orders {
		if m.find(orders[i].UserID, orders[i].ID) == nil {
			m.add(&orders[i], batch, false)
			m.stock -= int64(orders[i].Quantity)
		}
	}
}

func (m *model) adopt(b *sale.Batch) State {
	if known, ok := m.batches[b.ID]; ok {
		return known.State
	}
	state := m.absent(b.ID, b.Epoch)
	if state != StateOtherEpoch {
		return state
	}
	m.hold(b.Orders, b.ID)
	m.batches[b.ID] = BatchRecord{ID: b.ID, State: StateConfirmed, Orders: b.Orders}
	return StateConfirmed
}

// settle returns whether the ledger is asked for the batch's active orders.
func (m *model) settle(batch sale.ID, active []sale.Order) (asked bool) {
	known, ok := m.batches[batch]
	if asked = !ok || known.State == StateVoid; asked {
		m.hold(active, batch)
	}
	delete(m.batches, batch)
	delete(m.pending, batch)
	return asked
}

func (m *model) restore(o *sale.Order, batch sale.ID) bool {
	r := m.find(o.UserID, o.ID)
	switch {
	case r == nil:
		m.add(o, batch, true)
		return false
	case r.Returned:
		return false
	}
	r.Returned = true
	m.stock += int64(r.Quantity)
	return true
}

func (m *model) amend(seen *Record, quantity int, returned bool) bool {
	r := m.find(seen.UserID, seen.OrderID)
	if r == nil || *r != *seen {
		return false
	}
	if !r.Returned {
		m.stock += int64(r.Quantity)
	}
	r.Quantity, r.Returned = quantity, returned
	if !returned {
		m.stock -= int64(quantity)
	}
	return true
}

func (m *model) adjust(total, version int64) bool {
	delta := total - m.total
	switch {
	case m.version >= version:
		return true
	case delta < 0 && m.stock+delta < 0:
		return false
	}
	m.stock += delta
	m.total, m.version = total, version
	return true
}

func (m *model) load(s *sale.Sale, orders []LoadedOrder, undelivered []sale.Batch, owed []LoadedOrder) bool {
	if m.loaded || s.Epoch <= m.epoch {
		return false
	}
	*m = model{
		loaded: true, epoch: s.Epoch, total: s.Total, version: s.Version,
		buyers: map[string][]Record{}, batches: map[sale.ID]BatchRecord{}, pending: map[sale.ID]bool{},
	}
	rows := func(orders []LoadedOrder) {
		for i := range orders {
			o := &orders[i]
			if r := m.find(o.UserID, o.ID); r == nil {
				m.add(&o.Order, o.BatchID, o.Returned)
			} else if o.Returned {
				r.Returned = true
			}
		}
	}
	rows(orders)
	for _, b := range undelivered {
		m.hold(b.Orders, b.ID)
		m.batches[b.ID] = BatchRecord{ID: b.ID, State: StateConfirmed, Orders: b.Orders}
	}
	rows(owed)
	m.stock = m.total - m.held()
	return true
}

func (m *model) purge() (n int) {
	before := len(m.batches)
	maps.DeleteFunc(m.batches, func(_ sale.ID, b BatchRecord) bool { return b.State == StateVoid })
	return before - len(m.batches)
}
