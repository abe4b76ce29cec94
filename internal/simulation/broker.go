package simulation

import (
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
)

// broker keeps half messages, gives committed ones to workers at least once and in
// any order, and asks what became of those whose end it has not seen.
type broker struct {
	w        *world
	messages []*message
}

// message is one batch, as its body.
type message struct {
	batch    sale.ID
	body     []byte
	stored   time.Duration
	ended    time.Duration // if it was
	decision bus.Decision  // Unknown: a half message still
	acked    bool          // a worker has it: it is not given out again
	holders  int           // workers that have it in hand
	checked  int           // check-backs since stored
	revived  bool          // it was rolled back, and then committed
	lost     bool          // the broker has lost it
}

const halfTimeout = time.Second

// checkTimeout is how long the answer to a check-back is worth giving. It is less than a
// load waits before it reads the bus: who was asked before Redis lost everything, and
// wakes up after it was loaded again, would adopt a batch that is rolled back by now.
const checkTimeout = 2 * time.Second

// send stores a half message, if it gets there.
func (b *broker) send(t *task, batch *sale.Batch) error {
	body, err := bus.Encode(batch)
	if err != nil {
		panic(err)
	}
	w, id := b.w, batch.ID
	return t.call(halfTimeout, func(reply func(error)) {
		if w.now < w.brokerDown {
			return
		}
		w.note("broker: half message of %s is stored", w.name(id))
		b.messages = append(b.messages, &message{batch: id, body: body, stored: w.now})
		reply(nil)
	})
}

// end tells the broker a decision, one way.
func (b *broker) end(id sale.ID, d bus.Decision) {
	w := b.w
	if d == bus.Unknown {
		return
	}
	if d == bus.Rollback {
		w.rollingBack(id)
	}
	leg := w.leg()
	if leg == never {
		return
	}
	w.after(leg, func() {
		if w.now < w.brokerDown {
			return
		}
		for _, m := range b.messages {
			if m.batch != id {
				continue
			}
			if m.decision == bus.Rollback && d == bus.Commit {
				m.revived = true
			}
			if d == bus.Commit && m.decision != bus.Commit {
				w.note("broker: %s is committed", w.name(id))
			} else if d == bus.Rollback && m.decision == bus.Unknown {
				w.note("broker: %s is rolled back", w.name(id))
			}
			if m.decision == bus.Unknown {
				m.ended = w.now
			}
			// A commit that comes after a rollback is delivered, as RocketMQ would.
			if m.decision != bus.Commit {
				m.decision = d
			}
		}
	})
}

// checkBacks asks, every now and then, any gateway about half messages that wait.
func (b *broker) checkBacks() {
	w := b.w
	w.after(time.Duration(w.rng.Int64N(int64(w.plan.checkEvery))), b.checkBacks)
	if w.now < w.brokerDown {
		return
	}
	for _, m := range b.messages {
		if m.decision == bus.Unknown && !m.lost && w.now-m.stored >= w.plan.checkAfter {
			b.check(m)
		}
	}
}

// check asks one process about one half message.
func (b *broker) check(m *message) {
	w := b.w
	var producers []*process
	for _, g := range w.gateways {
		if !g.p.dead {
			producers = append(producers, g.p)
		}
	}
	if len(producers) == 0 {
		return
	}
	leg := w.leg()
	if leg == never {
		return
	}
	p := producers[w.rng.IntN(len(producers))]
	w.after(leg, func() {
		if p.dead || m.decision != bus.Unknown {
			return
		}
		p.start("check-back of "+w.name(m.batch), func(t *task) {
			batch := decode(m.body)
			d := purchase.Checker(checkStock{simStock{t}, w.now + checkTimeout}, w.log)(w.ctx, batch)
			w.note("%s answers the check-back of %s: %v", p.name, w.name(m.batch), d)
			m.checked++
			b.end(m.batch, d)
		})
	})
}

func decode(body []byte) *sale.Batch {
	batch, err := bus.Decode(body)
	if err != nil {
		panic(err)
	}
	return batch
}

// take gives a worker up to n committed messages, now and then one that another
// worker has as well.
func (b *broker) take(n int) []*message {
	w := b.w
	if w.now < w.brokerDown {
		return nil
	}
	var free []*message
	for _, m := range b.messages {
		if m.decision == bus.Commit && !m.acked && !m.lost && (m.holders == 0 || !w.resting && w.rng.IntN(10) == 0) {
			free = append(free, m)
		}
	}
	w.rng.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	return free[:min(n, len(free))]
}

// lose makes the broker forget a message, whichever.
func (b *broker) lose() {
	w := b.w
	if len(b.messages) == 0 {
		return
	}
	if m := b.messages[w.rng.IntN(len(b.messages))]; !m.acked {
		w.note("broker: LOSES the message of %s", w.name(m.batch))
		m.lost = true
	}
}

// The broker notes an end up to so late: a half message rolled back since then is still
// listed as undecided.
const endNotedLate = 3 * time.Second

// undecided lists the half messages whose end is not known, and delivered those batches
// that are committed and not acknowledged: the two looks of one list, in the direction in
// which messages go.
func (b *broker) undecided() (batches []*sale.Batch) {
	for _, m := range b.messages {
		justEnded := m.decision == bus.Rollback && b.w.now-m.ended < endNotedLate && b.w.coin()
		if !m.lost && (m.decision == bus.Unknown || justEnded) {
			batches = append(batches, decode(m.body))
		}
	}
	return batches
}

func (b *broker) committed() (batches []*sale.Batch) {
	for _, m := range b.messages {
		if !m.lost && !m.acked && m.decision == bus.Commit {
			batches = append(batches, decode(m.body))
		}
	}
	return batches
}
