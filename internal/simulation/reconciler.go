package simulation

import (
	"errors"
	"time"

	"flashgate/internal/sale"
)

// How old something is before the reconciler looks after it.
const (
	settleAge = 3 * time.Second
	voidAge   = 2 * time.Minute // longer than a message may be late
)

// reconcile is a reconciler: rounds of small steps, each of which may fail and is
// tried again in the next. Here every reconciler does what only the leader does: it
// has to be safe with a leader that is paused and wakes up late.
func (w *world) reconcile(p *process) {
	p.start("rounds", func(t *task) {
		for {
			t.sleep(w.restOr(w.plan.roundEvery))
			w.round(t)
			if w.compareSoon(p) {
				w.compare(t)
			}
		}
	})
}

func (w *world) round(t *task) {
	s := simStock{t}
	snap, err := s.snapshot()
	if err != nil {
		return
	}
	if !snap.loaded {
		w.rebuild(t)
		return
	}
	if snap.pending > 0 {
		w.sweep(t)
	}
	if w.plan.restocks > 0 || w.faulty.copyTotals {
		w.levelTotal(t)
	}
	w.settleOwed(t)
	w.runTasks(t)
	if w.rng.IntN(20) == 0 {
		w.purge(t)
	}
}

// sweep releases reservations whose deadline has passed.
func (w *world) sweep(t *task) {
	due, err := simStock{t}.due()
	if err != nil {
		return
	}
	for _, id := range due {
		if _, err := (simStock{t}).Release(w.ctx, saleID, id, 0, nil); err != nil {
			return
		}
	}
}

// settleOwed settles what a worker persisted and did not settle.
func (w *world) settleOwed(t *task) {
	if w.faulty.settleOnce {
		return
	}
	var ids []sale.ID
	err := t.transact(func(l *ledger) error {
		ids = ids[:0]
		for _, c := range l.consumed {
			if !c.settled && c.at+settleAge < w.now {
				ids = append(ids, c.id)
			}
		}
		return nil
	})
	if err == nil && len(ids) > 0 {
		w.settle(t, ids)
	}
}

// runTasks gives back to Redis the units of orders that the ledger cancelled.
func (w *world) runTasks(t *task) {
	var due []*syncTask
	err := t.transact(func(l *ledger) error {
		due = due[:0]
		for _, task := range l.tasks {
			if !task.done && task.next <= w.now {
				due = append(due, task)
			}
		}
		return nil
	})
	if err != nil {
		return
	}
	for _, task := range due {
		began := w.now
		err := simStock{t}.restore(&task.order.Order, task.order.batch)
		failed := t.transact(func(*ledger) error {
			if err == nil {
				task.done, task.doneAt = true, began
			} else {
				task.next = w.now + time.Second
			}
			return nil
		})
		if failed != nil {
			return
		}
	}
}

// purge removes old tombstones.
func (w *world) purge(t *task) {
	c, err := simStock{t}.contents()
	if err != nil {
		return
	}
	args := []string{format(voidAge.Milliseconds())}
	for _, b := range c.batches {
		args = append(args, packID(b.id))
	}
	_, _ = t.script(false, "purge", args...) // what is left is for the next time
}

// levelTotal brings the side whose total is behind to the other's version.
func (w *world) levelTotal(t *task) {
	s := simStock{t}
	if w.faulty.copyTotals {
		w.copyTotal(t)
	}
	inv, err := t.inventory()
	if err != nil {
		return
	}
	snap, err := s.snapshot()
	if err != nil || !snap.loaded {
		return
	}
	switch {
	case snap.version < inv.version:
		_, _ = s.adjust(inv.total, inv.version) // tried again in the next round
	case snap.version > inv.version:
		if _, err := s.adjust(snap.total, snap.version); err != nil && !w.faulty.cutUnreplicated {
			return // the replica may not have the cut
		}
		if err := t.setTotal(snap.total, snap.version); errors.Is(err, errConflict) {
			w.takeBackCut(t, inv, snap.version)
		}
	case snap.total != inv.total:
		if version := inv.version + 1; t.setTotal(inv.total, version) == nil {
			_, _ = s.adjust(inv.total, version)
		}
	}
}

// takeBackCut ends a cut that Redis took and the ledger cannot: the units are sold.
func (w *world) takeBackCut(t *task, inv inventory, cut int64) {
	for _, version := range []int64{cut, cut + 1} {
		if t.setTotal(inv.total, version) != nil {
			return
		}
	}
	_, _ = simStock{t}.adjust(inv.total, cut+1)
}

func (t *task) setTotal(total, version int64) error {
	return t.transact(func(l *ledger) error {
		_, err := l.setTotal(total, version)
		return err
	})
}

// operate is an operator who restocks and cuts: a raise is written in the ledger
// first, a cut in Redis first. He names the total that he wants, so he may ask again.
func (w *world) operate(p *process) {
	p.start("operator", func(t *task) {
		for range w.plan.restocks {
			t.sleep(time.Duration(w.rng.Int64N(int64(w.plan.length))))
			by := int64(1 + w.rng.IntN(3))
			if w.rng.IntN(3) == 0 || w.plan.cuts {
				by = -by
			}
			w.restock(t, by)
		}
	})
}

func (w *world) restock(t *task, by int64) {
	w.levelTotal(t)
	s := simStock{t}
	inv, err := t.inventory()
	total, version := inv.total+by, inv.version+1
	if err != nil || total < 1 {
		return
	}
	if by < 0 {
		w.note("operator: cut the total to %d", total)
		w.leastTotal += by
		_, _ = s.adjust(total, version) // if it was taken, a reconciler tells the ledger
		return
	}
	w.note("operator: raise the total to %d", total)
	w.mostTotal += by
	for {
		err := t.transact(func(l *ledger) error {
			_, err := l.setTotal(total, version)
			return err
		})
		if err == nil || errors.Is(err, errConflict) {
			break
		}
		t.sleep(100 * time.Millisecond)
		if !w.faulty.restockTwice {
			continue
		}
		if inv, err = t.inventory(); err == nil {
			total, version = inv.total+by, inv.version+1
		}
	}
	_, _ = s.adjust(total, version) // if Redis does not take it, a reconciler brings it there
}
