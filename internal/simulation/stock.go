package simulation

import (
	"context"
	"strconv"
	"time"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// simStock calls the scripts as internal/stock does: the same arguments, the same two
// looks, the same waits for the replica. A test holds the two against each other.
type simStock struct{ t *task }

const (
	lookOnly  = "0"
	decideNow = "1"
)

func format(n int64) string { return strconv.FormatInt(n, 10) }

// reserve asks for all orders of b; out gets an outcome for each.
func (s simStock) reserve(b *sale.Batch, terms *stock.Terms, hold time.Duration) (epoch int64, out []stock.Outcome, err error) {
	paused := "0"
	if terms.Paused {
		paused = "1"
	}
	id := packID(b.ID)
	args := []string{
		id, format(terms.StartsAt.UnixMilli()), format(terms.EndsAt.UnixMilli()),
		paused, format(int64(terms.PerUserLimit)), format(hold.Milliseconds()), packOrders(b.Orders),
	}
	for i := range b.Orders {
		args = append(args, b.Orders[i].UserID, "H"+string(appendEntry(nil, &b.Orders[i]))+id)
	}
	reply, err := s.t.script(false, "reserve", args...)
	if err != nil {
		return 0, nil, err
	}
	list, ok := reply.([]any)
	if ok && len(list) == 1 && list[0] == int64(0) {
		return 0, nil, errBatchKnown
	}
	if !ok || len(list) < 3 {
		return 0, nil, malformed("reserve", reply)
	}
	verdicts, _ := list[2].(string)
	if len(verdicts) != len(b.Orders) {
		return 0, nil, malformed("reserve", reply)
	}
	epoch, _ = list[1].(int64)
	found := list[3:]
	out = make([]stock.Outcome, len(verdicts))
	for i := range out {
		out[i].Verdict = stock.Verdict(verdicts[i] - '0')
		if out[i].Verdict != stock.Replay && out[i].Verdict != stock.KeyReused {
			continue
		}
		r, state := readRecord(found[0].(string), "")
		found = found[1:]
		out[i].OrderID, out[i].BatchID, out[i].Quantity, out[i].Returned = r.order, r.batch, r.quantity, !r.held
		out[i].Batch = stock.State(state[0])
	}
	return epoch, out, nil
}

func (s simStock) state(name string, args ...string) (stock.State, error) {
	reply, err := s.t.script(true, name, args...)
	if err != nil {
		return stock.StateAbsent, err
	}
	code, ok := reply.(int64)
	if !ok {
		return stock.StateAbsent, malformed(name, reply)
	}
	return stock.State(code), nil
}

func (s simStock) confirm(b *sale.Batch) (stock.State, error) {
	state, err := s.state("confirm", packID(b.ID), format(b.Epoch), lookOnly, "")
	if err != nil || state != stock.StateAbsent {
		return state, err
	}
	return s.state("confirm", packID(b.ID), format(b.Epoch), decideNow, packOrders(b.Orders))
}

// Release implements purchase.CheckStock.
func (s simStock) Release(_ context.Context, _ string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error) {
	state, err := s.state("release", packID(batch), format(epoch), lookOnly, "")
	if err != nil || state != stock.StateAbsent || orders == nil {
		return state, err
	}
	return s.state("release", packID(batch), format(epoch), decideNow, packOrders(orders))
}

// Adopt implements purchase.CheckStock.
func (s simStock) Adopt(_ context.Context, b *sale.Batch) (stock.State, error) {
	return s.state("adopt", packID(b.ID), format(b.Epoch), packOrders(b.Orders))
}

// settle settles batches, and returns those that are settled now.
func (s simStock) settle(ids []sale.ID, active func([]sale.ID) (map[sale.ID][]sale.Order, error)) ([]sale.ID, error) {
	done, err := s.settleIn("remove", ids, nil)
	if err != nil {
		return nil, err
	}
	var settled, rest []sale.ID
	for i, id := range ids {
		if done[i] == '1' {
			settled = append(settled, id)
		} else {
			rest = append(rest, id)
		}
	}
	if len(rest) == 0 {
		return settled, nil
	}
	orders, err := active(rest)
	if err != nil {
		return settled, err
	}
	if _, err := s.settleIn("adopt", rest, orders); err != nil {
		return settled, err
	}
	return append(settled, rest...), nil
}

func (s simStock) settleIn(mode string, ids []sale.ID, orders map[sale.ID][]sale.Order) (string, error) {
	args := []string{mode}
	for _, id := range ids {
		args = append(args, packID(id), packOrders(orders[id]))
	}
	reply, err := s.t.script(false, "settle", args...)
	if err != nil {
		return "", err
	}
	if list, ok := reply.([]any); ok && len(list) == 2 {
		if done, _ := list[1].(string); len(done) == len(ids) {
			return done, nil
		}
	}
	return "", malformed("settle", reply)
}

func (s simStock) restore(o *sale.Order, batch sale.ID) error {
	_, err := s.t.script(false, "restore", packID(batch), o.UserID, packEntry(o))
	return err
}

func (s simStock) adjust(total, version int64) (bool, error) {
	reply, err := s.t.script(true, "adjust", format(total), format(version))
	return reply == int64(1), err
}

// lease is a sold-out lease, counted from when Redis gave it; 0: there is none.
type lease struct {
	left time.Duration
	mark stock.BuyersMark
}

func (s simStock) soldOut(d time.Duration) (lease, error) {
	reply, err := s.t.script(!s.t.w.faulty.leaseUnreplicated, "soldout", format(d.Milliseconds()), "1000")
	if err != nil {
		return lease{}, err
	}
	list, _ := reply.([]any)
	if len(list) == 1 {
		return lease{}, nil
	}
	if len(list) != 6 {
		return lease{}, malformed("soldout", reply)
	}
	var n [4]int64
	for i := range n {
		n[i], _ = list[i+1].(int64)
	}
	process, _ := list[5].(string)
	return lease{time.Duration(n[0]-1) * time.Millisecond, stock.BuyersMark{Epoch: n[1], Moves: n[2], Process: process}}, nil
}

// buyers are all users with a record.
func (s simStock) buyers() (users []string, err error) {
	err = s.t.read(func(m *memory) {
		e, _ := m.find("buyers", kindHash)
		for i := 0; e != nil && i < len(e.hash); i++ {
			users = append(users, e.hash[i].name)
		}
	})
	return users, err
}

// snapshot is what the script of that name says.
type snapshot struct {
	loaded                       bool
	now                          time.Time
	stock, held, total           int64
	version, epoch, moves, buyer int64
	batches, pending             int64
}

func (s simStock) snapshot() (snapshot, error) {
	reply, err := s.t.script(false, "snapshot")
	if err != nil {
		return snapshot{}, err
	}
	list, _ := reply.([]any)
	n := make([]int64, len(list))
	for i := range list {
		n[i], _ = list[i].(int64)
	}
	switch len(n) {
	case 2:
		return snapshot{now: time.UnixMilli(n[1])}, nil
	case 10:
		return snapshot{true, time.UnixMilli(n[0]), n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9]}, nil
	}
	return snapshot{}, malformed("snapshot", reply)
}

func (s simStock) due() ([]sale.ID, error) {
	reply, err := s.t.script(false, "due", "1000")
	if err != nil {
		return nil, err
	}
	list, _ := reply.([]any)
	var ids []sale.ID
	for _, id := range list[1:] {
		ids = append(ids, sale.IDFromBinary(id.(string)))
	}
	return ids, nil
}

// lookup reads a user's records, each with its batch's state.
func (s simStock) lookup(user string) ([]record, []stock.State, error) {
	reply, err := s.t.script(false, "lookup", user)
	if err != nil {
		return nil, nil, err
	}
	list, ok := reply.([]any)
	if !ok || len(list) != 3 {
		return nil, nil, malformed("lookup", reply)
	}
	var records []record
	var states []stock.State
	digits := list[2].(string)
	for rest := list[1].(string); rest != ""; {
		var r record
		r, rest = readRecord(rest, user)
		states = append(states, stock.State(digits[len(records)]-'0'))
		records = append(records, r)
	}
	return records, states, nil
}

// batchRecord is one unsettled batch.
type batchRecord struct {
	id     sale.ID
	state  stock.State
	orders []sale.Order
}

// contents is what Redis holds of the sale, decoded.
type contents struct {
	loaded                      bool
	stock                       int64
	total, held, version, epoch int64
	records                     []record
	batches                     []batchRecord
	pending                     int
}

// number is an integer that Redis holds, or 0.
func number(text string, ok bool) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil {
		return 0
	}
	return n
}

func (m *memory) contents() contents {
	var c contents
	for i := range m.keys {
		switch e := &m.keys[i]; e.name {
		case "stock":
			c.loaded, c.stock = true, number(e.text, true)
		case "meta":
			c.total, c.held = number(e.get("total")), number(e.get("held"))
			c.version, c.epoch = number(e.get("version")), number(e.get("epoch"))
		case "buyers":
			for _, f := range e.hash {
				for rest := f.value; rest != ""; {
					var r record
					r, rest = readRecord(rest, f.name)
					c.records = append(c.records, r)
				}
			}
		case "batches":
			for _, f := range e.hash {
				b := batchRecord{id: sale.IDFromBinary(f.name)}
				switch f.value[0] {
				case 'R':
					b.state = stock.StateReserved
				case 'C':
					b.state = stock.StateConfirmed
				default:
					b.state = stock.StateVoid
				}
				if b.state != stock.StateVoid {
					b.orders = readOrders(f.value[1:])
				}
				c.batches = append(c.batches, b)
			}
		case "pending":
			c.pending = len(e.zset)
		}
	}
	return c
}

// contents reads everything there is of the sale at one instant.
func (s simStock) contents() (c contents, err error) {
	err = s.t.read(func(m *memory) { c = m.contents() })
	if err == nil && !c.loaded {
		err = errNotReady
	}
	return c, err
}
