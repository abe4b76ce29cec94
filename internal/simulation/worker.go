package simulation

import (
	"time"

	"flashgate/internal/sale"
)

// work is a worker: it takes committed batches, applies them to the ledger, settles
// them in Redis and acknowledges.
func (w *world) work(p *process) {
	p.start("consumer", func(t *task) {
		for {
			messages := w.broker.take(1 + w.rng.IntN(3))
			if len(messages) == 0 {
				t.sleep(w.restOr(time.Second))
				continue
			}
			for _, m := range messages {
				m.holders++
			}
			p.inHand = append(p.inHand, messages...)
			w.handle(t, messages)
			p.release(messages)
		}
	})
}

// release gives messages back to the broker, acknowledged or not.
func (p *process) release(messages []*message) {
	for _, m := range messages {
		m.holders--
	}
	p.inHand = p.inHand[len(messages):]
}

func (w *world) handle(t *task, messages []*message) {
	var batches []*sale.Batch
	var ids []sale.ID
	for _, m := range messages {
		b := decode(m.body)
		batches, ids = append(batches, b), append(ids, b.ID)
	}
	if w.faulty.ackBeforeCommit {
		w.acknowledge(messages)
	}
	for t.transact(func(l *ledger) error {
		l.apply(batches)
		return nil
	}) != nil {
		t.sleep(200 * time.Millisecond)
	}
	w.settle(t, ids)
	w.acknowledge(messages)
}

// acknowledge tells the broker; a lost acknowledgement brings them again.
func (w *world) acknowledge(messages []*message) {
	if w.leg() == never {
		return
	}
	for _, m := range messages {
		m.acked = true
	}
}

// settle tells Redis that batches are persisted, and notes in the ledger what Redis
// has answered for.
func (w *world) settle(t *task, ids []sale.ID) {
	began := w.now
	settled, err := simStock{t}.settle(ids, t.activeOrders)
	if err != nil {
		w.note("%s: settle: %v", t.p.name, err)
		if w.faulty.settleOnce {
			settled = ids
		}
	}
	if len(settled) > 0 {
		_ = t.markSettled(settled, began) // what is not noted is settled again
	}
}
