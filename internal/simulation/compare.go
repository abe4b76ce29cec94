package simulation

import (
	"slices"
	"time"

	"flashgate/internal/audit"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// watermark is the age from which an order must stand in both stores: here, too, it
// is longer than anything is late.
const watermark = 90 * time.Second

// finding is one difference between the stores.
type finding struct {
	kind  audit.Kind
	order sale.ID
	batch sale.ID
	user  string
}

func (f *finding) invariant() string { return (&audit.Finding{Kind: f.kind}).Invariant() }

// compare holds Redis against the ledger, order by order, and repairs what differs:
// the passes of internal/audit, and the repairs of reconciler.
func (w *world) compare(t *task) {
	findings, err := w.differences(t)
	if err != nil {
		return
	}
	for _, f := range findings {
		still, err := w.again(t, f)
		if err != nil {
			return
		}
		if !still {
			continue
		}
		w.note("%s finds %s %s %s", t.p.name, f.kind, w.nameOr(f.order), w.nameOr(f.batch))
		w.found(f)
		w.repair(t, f)
	}
}

func (w *world) differences(t *task) ([]finding, error) {
	s := simStock{t}
	snap, err := s.snapshot()
	if err != nil || !snap.loaded {
		return nil, err
	}
	bound := sale.FirstIDAt(snap.now.Add(-watermark))
	var findings []finding

	reply, err := t.script(false, "recount", "0", "1000", "", "0", "0")
	if err != nil {
		return nil, err
	}
	if list, _ := reply.([]any); len(list) == 3 && (list[1] != int64(0) || list[2] != int64(0)) {
		findings = append(findings, finding{kind: audit.StockDrift})
	}

	c, err := s.contents()
	if err != nil {
		return nil, err
	}
	open := make(map[sale.ID]bool)
	var ids []sale.ID
	for _, b := range c.batches {
		if b.state != stock.StateVoid {
			open[b.id] = true
			ids = append(ids, b.id)
		}
	}
	consumed, err := t.consumptions(ids)
	if err != nil {
		return nil, err
	}
	for _, b := range c.batches {
		if b.state == stock.StateVoid || b.id >= bound {
			continue
		}
		in, known := consumed[b.id]
		switch {
		case known && w.lagging(in): // its worker is about to settle it
		case known:
			findings = append(findings, finding{kind: audit.ConsumedNotSettled, batch: b.id})
		case b.state == stock.StateConfirmed:
			findings = append(findings, finding{kind: audit.ConfirmedNotPersisted, batch: b.id})
		default:
			findings = append(findings, finding{kind: audit.StuckReservation, batch: b.id})
		}
	}
	if c, err = s.contents(); err != nil {
		return nil, err
	}
	rows, err := t.rows()
	if err != nil {
		return nil, err
	}
	for i := range c.records {
		r := &c.records[i]
		if r.order >= bound || r.batch >= bound || open[r.batch] {
			continue
		}
		if kind := judge(r, orderOf(rows, r.order)); kind != "" {
			findings = append(findings, finding{kind, r.order, r.batch, r.user})
		}
	}
	if rows, err = t.rows(); err != nil {
		return nil, err
	}
	if c, err = s.contents(); err != nil {
		return nil, err
	}
	for i := range rows {
		o := &rows[i]
		if o.active && o.ID < bound && o.batch < bound && recordOf(c.records, o.ID) == nil {
			findings = append(findings, finding{audit.PersistedUnknownToRedis, o.ID, o.batch, o.UserID})
		}
	}
	return findings, nil
}

// judge says how one record differs from its order; o is nil when the ledger has none.
func judge(r *record, o *row) audit.Kind {
	switch {
	case o == nil && !r.held:
		return ""
	case o == nil:
		return audit.HeldWithoutOrder
	case o.Quantity != r.quantity:
		return audit.QuantityDiffers
	case r.held && !o.active:
		return audit.CancelledStillHeld
	case !r.held && o.active:
		return audit.ReturnedButActive
	}
	return ""
}

func orderOf(rows []row, id sale.ID) *row {
	i := slices.IndexFunc(rows, func(r row) bool { return r.ID == id })
	if i < 0 {
		return nil
	}
	return &rows[i]
}

func recordOf(records []record, id sale.ID) *record {
	i := slices.IndexFunc(records, func(r record) bool { return r.order == id })
	if i < 0 {
		return nil
	}
	return &records[i]
}

// again looks a second time at a difference that the passage of an order from one
// store to the other can feign, the stores in the order in which they are written.
func (w *world) again(t *task, f finding) (bool, error) {
	s := simStock{t}
	switch f.kind {
	case audit.StockDrift:
		return true, nil
	case audit.ConfirmedNotPersisted, audit.ConsumedNotSettled, audit.StuckReservation:
		c, err := s.contents()
		return slices.ContainsFunc(c.batches, func(b batchRecord) bool {
			return b.id == f.batch && b.state != stock.StateVoid && (b.state == stock.StateReserved) == (f.kind == audit.StuckReservation)
		}), err
	case audit.PersistedUnknownToRedis:
		return w.unknownStill(t, f)
	}
	c, err := s.contents()
	if err != nil {
		return false, err
	}
	r := recordOf(c.records, f.order)
	if r == nil || slices.ContainsFunc(c.batches, func(b batchRecord) bool { return b.id == r.batch && b.state != stock.StateVoid }) {
		return false, nil // released, or judged as a batch
	}
	rows, err := t.rows()
	if err != nil {
		return false, err
	}
	kind := judge(r, orderOf(rows, f.order))
	if kind != audit.CancelledStillHeld {
		return kind != "", nil
	}
	waits, err := t.taskOf(f.order)
	if err != nil || waits {
		return false, err // the task's business
	}
	c, err = s.contents()
	r = recordOf(c.records, f.order)
	return r != nil && r.held, err
}

// unknownStill looks again for an order that Redis has no record of: the ledger first.
func (w *world) unknownStill(t *task, f finding) (bool, error) {
	consumed, err := t.consumptions([]sale.ID{f.batch})
	if err != nil {
		return false, err
	}
	if in, known := consumed[f.batch]; known && w.lagging(in) {
		return false, nil // settling adopts it
	}
	rows, err := t.rows()
	if err != nil {
		return false, err
	}
	c, err := simStock{t}.contents()
	o := orderOf(rows, f.order)
	return o != nil && o.active && recordOf(c.records, f.order) == nil, err
}

// lagging reports whether settling a batch is still its worker's business.
func (w *world) lagging(c consumedBatch) bool { return !c.settled && w.now-c.at < watermark }

// repair mends one difference by the script or transaction that owns the rule.
func (w *world) repair(t *task, f finding) {
	switch f.kind {
	case audit.ConfirmedNotPersisted:
		if err := w.persist(t, f.batch); err != nil {
			w.note("%s: persist %s: %v", t.p.name, w.name(f.batch), err)
		}
	case audit.ConsumedNotSettled, audit.PersistedUnknownToRedis:
		w.settleWhole(t, f.batch)
	case audit.StuckReservation:
		_, _ = simStock{t}.Release(w.ctx, saleID, f.batch, 0, nil) // found again, if it failed
	case audit.CancelledStillHeld:
		rows, err := t.rows()
		if o := orderOf(rows, f.order); err == nil && o != nil && !o.active {
			_ = simStock{t}.restore(&o.Order, o.batch) // found again, if it failed
		}
	}
}

// persist applies a promised batch that did not come through the bus, from its Redis
// record, once the replica has it.
func (w *world) persist(t *task, id sale.ID) error {
	s := simStock{t}
	c, err := s.contents()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.batches, func(b batchRecord) bool { return b.id == id })
	if i < 0 || c.batches[i].state != stock.StateConfirmed {
		return nil
	}
	b := sale.Batch{ID: id, SaleID: saleID, Epoch: c.epoch, Orders: c.batches[i].orders}
	state, err := s.confirm(&b)
	if err != nil || state != stock.StateConfirmed {
		return err // settled meanwhile, if there is none
	}
	if err := t.transact(func(l *ledger) error {
		l.apply([]*sale.Batch{&b})
		return nil
	}); err != nil {
		return err
	}
	w.settleWhole(t, id)
	return nil
}

// settleWhole settles a batch that the ledger has, and adopts those of its active orders
// that have no record: the first call removes what is open, the second adopts.
func (w *world) settleWhole(t *task, id sale.ID) {
	w.settle(t, []sale.ID{id})
	w.settle(t, []sale.ID{id})
}
