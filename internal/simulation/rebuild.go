package simulation

import (
	"errors"
	"slices"
	"time"

	"flashgate/internal/sale"
)

var errLoadRefused = errors.New("another load has the sale, or took a part of it")

// rebuild fills Redis with a sale whose stock key is absent.
func (w *world) rebuild(t *task) {
	var epoch int64
	err := t.transact(func(l *ledger) error {
		epoch = l.nextEpoch()
		return nil
	})
	if err != nil {
		return
	}
	w.note("%s: load under epoch %d", t.p.name, epoch)
	l := loader{t: t, epoch: format(epoch), times: loadTimes{began: w.now}}
	if err := l.run(); err != nil {
		w.note("%s: load under epoch %d: %v", t.p.name, epoch, err)
	}
}

// loader is one load under way: the steps of internal/stock and reconciler.
type loader struct {
	t     *task
	epoch string
	steps int64
	times loadTimes
}

// rebuildWait is how long a load waits for half messages that gateways have in hand.
// and a broker to note an end.
const rebuildWait = 6 * time.Second

// run reads the ledger's orders first, then what the bus has not delivered, then what is
// owed to Redis: a batch that the ledger takes after its orders were read is not settled
// while the sale is not loaded, so it is owed; one that it takes after that was on the bus.
func (l *loader) run() error {
	w := l.t.w
	inv, err := l.t.inventory()
	if err != nil {
		return err
	}
	if err := l.call("begin", 0); err != nil {
		return err
	}
	if w.plan.duringLoad && !w.resting {
		w.after(time.Duration(w.rng.Int64N(int64(2*rebuildWait))), w.redis.failOver)
	}
	rows, err := l.t.rows()
	if err != nil {
		return err
	}
	if err := l.orders(rows); err != nil {
		return err
	}
	l.t.sleep(rebuildWait)
	l.times.listed = w.now
	undelivered, err := l.undelivered()
	if err != nil {
		return err
	}
	for _, b := range undelivered {
		if err := l.step("batches", packID(b.ID), packOrders(b.Orders)); err != nil {
			return err
		}
	}
	if !w.faulty.ledgerBeforeBus {
		if rows, err = l.owed(); err != nil {
			return err
		}
		if err := l.orders(rows); err != nil {
			return err
		}
	}
	l.times.finished = w.now
	if err := l.call("finish", l.steps, format(inv.total), format(inv.version)); err != nil {
		return err
	}
	w.loaded(l.epoch, l.times)
	return nil
}

func (l *loader) orders(rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	var packed string
	for i := range rows {
		packed += packRow(&rows[i])
	}
	return l.step("orders", "", packed)
}

// owed are the active orders of batches that the ledger has consumed and Redis not settled,
// or settled only since the load began: a master that was cut off may have.
func (l *loader) owed() (rows []row, err error) {
	err = l.t.transact(func(ledger *ledger) error {
		rows = rows[:0]
		for _, c := range ledger.consumed {
			for _, r := range ledger.orders {
				if (!c.settled || c.markedAt >= l.times.began && !l.t.w.faulty.oldMasterSettles) && r.active && r.batch == c.id {
					rows = append(rows, *r)
				}
			}
		}
		return nil
	})
	return rows, err
}

// undelivered is what the bus holds and the ledger has not consumed.
func (l *loader) undelivered() ([]*sale.Batch, error) {
	w := l.t.w
	var held []*sale.Batch
	for _, look := range []func() []*sale.Batch{w.broker.undecided, w.broker.committed} {
		err := l.t.call(callTimeout, func(reply func(error)) {
			if w.now < w.brokerDown {
				return
			}
			for _, b := range look() {
				if !slices.ContainsFunc(held, func(h *sale.Batch) bool { return h.ID == b.ID }) {
					held = append(held, b)
				}
			}
			reply(nil)
		})
		if err != nil {
			return nil, err
		}
	}
	var ids []sale.ID
	for _, b := range held {
		ids = append(ids, b.ID)
	}
	consumed, err := l.t.consumptions(ids)
	if err != nil {
		return nil, err
	}
	var batches []*sale.Batch
	for _, b := range held {
		if _, known := consumed[b.ID]; !known {
			batches = append(batches, b)
		}
	}
	return batches, nil
}

func (l *loader) step(name string, args ...string) error {
	l.steps++
	return l.call(name, l.steps, args...)
}

func (l *loader) call(step string, number int64, args ...string) error {
	reply, err := l.t.script(false, "load", append([]string{step, l.epoch, format(number)}, args...)...)
	if err == nil && reply != int64(1) {
		err = errLoadRefused
	}
	return err
}
