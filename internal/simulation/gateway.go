package simulation

import (
	"errors"
	"fmt"
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// gateway queues attempts and takes them through the protocol in batches: the steps of
// internal/purchase, one call at a time.
type gateway struct {
	w     *world
	p     *process
	ids   *sale.IDs
	queue []*attempt
	// flushing counts the batches under way.
	flushing int
	cutoff   cutoff
}

// attempt is one request of a shopper.
type attempt struct {
	order    sale.Order // with the id that it gets if it wins
	began    time.Duration
	deadline time.Duration
	shopper  *task
	turn     int
	state    attemptState
	answer   purchase.Answer
}

type attemptState uint8

const (
	queued attemptState = iota
	taken
	answered
	withdrawn // the shopper left before a flusher took it
	abandoned // the shopper left while a flusher worked on it
)

const (
	hold         = 20 * time.Second
	flushers     = 2
	batchMax     = 3
	answerMargin = 30 * time.Millisecond
)

func (g *gateway) enqueue(a *attempt) {
	g.queue = append(g.queue, a)
	if g.flushing < flushers {
		g.flushing++
		g.p.start("flusher", g.flush)
	}
}

// flush takes what is queued, and waits for nothing.
func (g *gateway) flush(t *task) {
	for {
		t.stall()
		n := min(len(g.queue), batchMax)
		if n == 0 {
			g.flushing--
			return
		}
		batch := g.queue[:n:n]
		g.queue = g.queue[n:]
		r := run{g: g, t: t, s: simStock{t}}
		for _, a := range batch {
			if a.state == queued {
				a.state = taken
				r.attempts = append(r.attempts, a)
			}
		}
		if len(r.attempts) > 0 && r.reserve() {
			r.replay()
			r.handOver()
		}
	}
}

// run is one batch on its way.
type run struct {
	g        *gateway
	t        *task
	s        simStock
	batch    sale.Batch
	attempts []*attempt
	winners  []*attempt
	twins    []replayed
	replays  []replayedBatch
	open     []*attempt // met a RESERVED batch
	opens    []replayed // the same, with what they met
}

type replayed struct {
	attempt *attempt
	answer  purchase.Answer
	batch   sale.ID
}

type replayedBatch struct {
	id      sale.ID
	replays []replayed
}

func latest(attempts []*attempt) time.Duration {
	d := attempts[0].deadline
	for _, a := range attempts[1:] {
		d = max(d, a.deadline)
	}
	return d - answerMargin
}

// reserve is step 1; false: all are answered.
func (r *run) reserve() bool {
	w := r.t.w
	r.batch = sale.Batch{ID: r.g.ids.Next(0), SaleID: saleID}
	w.named(r.batch.ID, "batch")
	for _, a := range r.attempts {
		r.batch.Orders = append(r.batch.Orders, a.order)
	}
	epoch, outcomes, err := r.s.reserve(&r.batch, &w.terms, hold)
	r.batch.Epoch = epoch
	if err != nil {
		code := sale.CodeUnavailable
		if !errors.Is(err, errNotReady) && !errors.Is(err, errNotRun) {
			r.batch.Epoch = 0
			code = r.void()
		}
		r.answerAll(r.attempts, code)
		return false
	}
	r.batch.Orders = r.batch.Orders[:0]
	for i, a := range r.attempts {
		o := &outcomes[i]
		switch o.Verdict {
		case stock.Reserved:
			r.batch.Orders = append(r.batch.Orders, a.order)
			r.winners = append(r.winners, a)
		case stock.Replay:
			r.sortReplay(a, o)
		default:
			a.reply(w, purchase.Answer{Code: refusals[o.Verdict]})
		}
	}
	return true
}

var refusals = map[stock.Verdict]sale.Code{
	stock.KeyReused:    sale.CodeKeyReused,
	stock.Paused:       sale.CodePaused,
	stock.NotStarted:   sale.CodeNotStarted,
	stock.Ended:        sale.CodeEnded,
	stock.LimitReached: sale.CodeLimitReached,
	stock.SoldOut:      sale.CodeSoldOut,
}

func (r *run) sortReplay(a *attempt, o *stock.Outcome) {
	answer := purchase.Answer{OrderID: o.OrderID, Quantity: o.Quantity, Replayed: true, Returned: o.Returned}
	switch {
	case o.Returned || o.Batch == stock.StateSettled:
		answer.Settled = true
		a.reply(r.t.w, answer)
	case o.BatchID == r.batch.ID:
		r.twins = append(r.twins, replayed{a, answer, o.BatchID})
	case o.Batch == stock.StateConfirmed:
		for i := range r.replays {
			if r.replays[i].id == o.BatchID {
				r.replays[i].replays = append(r.replays[i].replays, replayed{a, answer, o.BatchID})
				return
			}
		}
		r.replays = append(r.replays, replayedBatch{o.BatchID, []replayed{{a, answer, o.BatchID}}})
	default:
		r.open = append(r.open, a)
		r.opens = append(r.opens, replayed{a, answer, o.BatchID})
	}
}

// void releases a batch that shall not happen, and returns what is true then. It goes
// on past the shoppers' deadline, but not for ever.
func (r *run) void() sale.Code {
	state, err := r.s.Release(r.t.w.ctx, saleID, r.batch.ID, r.batch.Epoch, r.batch.Orders)
	if err == nil && state == stock.StateVoid {
		return sale.CodeUnavailable
	}
	return sale.CodeOutcomeUnknown
}

// replay answers those whose key has an order in another batch.
func (r *run) replay() {
	for _, b := range r.replays {
		r.replayConfirmed(&b)
	}
	if len(r.open) > 0 {
		open, opens := r.open, r.opens
		r.g.p.start("waiter", func(t *task) { r.g.await(t, open, opens) })
	}
}

func (r *run) replayConfirmed(met *replayedBatch) {
	b := sale.Batch{ID: met.id, SaleID: saleID, Epoch: r.batch.Epoch}
	attempts := make([]*attempt, len(met.replays))
	for i, p := range met.replays {
		attempts[i] = p.attempt
		o := p.attempt.order
		o.ID = p.answer.OrderID
		b.Orders = append(b.Orders, o)
	}
	state, err := r.confirm(&b, latest(attempts))
	for _, p := range met.replays {
		switch {
		case err != nil:
			p.attempt.reply(r.t.w, purchase.Answer{Code: sale.CodeOutcomeUnknown})
		case state == stock.StateVoid:
			p.attempt.reply(r.t.w, purchase.Answer{Code: sale.CodeUnavailable})
		default:
			p.answer.Settled = state == stock.StateSettled
			p.attempt.reply(r.t.w, p.answer)
		}
	}
}

// await asks again, pause by pause, for those that met an open reservation.
func (g *gateway) await(t *task, attempts []*attempt, opens []replayed) {
	const shortest, longest = 5 * time.Millisecond, 80 * time.Millisecond
	limit := latest(attempts)
	for pause := shortest; len(attempts) > 0; pause = min(2*pause, longest) {
		if limit-t.w.now <= pause {
			(&run{g: g, t: t}).answerAll(attempts, sale.CodeOutcomeUnknown)
			return
		}
		t.sleep(pause)
		if t.w.faulty.absentIsSettled {
			attempts, opens = g.pollBatches(t, opens)
			continue
		}
		r := run{g: g, t: t, s: simStock{t}, attempts: attempts}
		if !r.reserve() {
			return
		}
		attempts, opens = r.open, r.opens
		r.open = nil
		r.replay()
		r.handOver()
	}
}

// handOver is steps 2 to 4 for the winners.
func (r *run) handOver() {
	w := r.t.w
	if len(r.winners) == 0 {
		return
	}
	limit := latest(r.winners)
	if err := w.broker.send(r.t, &r.batch); err != nil {
		w.note("%s: half message of %s: %v", r.g.p.name, w.name(r.batch.ID), err)
		r.answerWinners(r.void())
		return
	}
	if w.faulty.answerEarly {
		r.answerWinners("")
	}
	state, err := r.confirm(&r.batch, limit)
	switch {
	case err != nil:
		r.answerWinners(sale.CodeOutcomeUnknown)
	case state == stock.StateVoid:
		r.answerWinners(sale.CodeUnavailable)
		w.broker.end(r.batch.ID, bus.Rollback)
	default:
		r.answerWinners("")
		w.broker.end(r.batch.ID, bus.Commit)
	}
}

func (r *run) answerWinners(code sale.Code) {
	for _, twin := range r.twins {
		if code != "" {
			twin.answer = purchase.Answer{Code: code}
		}
		twin.attempt.reply(r.t.w, twin.answer)
	}
	r.twins = nil
	for i, a := range r.winners {
		if code != "" {
			a.reply(r.t.w, purchase.Answer{Code: code})
			continue
		}
		o := &r.batch.Orders[i]
		a.reply(r.t.w, purchase.Answer{OrderID: o.ID, Quantity: o.Quantity})
	}
	r.winners = nil
}

var errOtherEpoch = errors.New("the sale's epoch has changed")

// confirm is step 3: it asks until the outcome is definite or limit has passed.
func (r *run) confirm(b *sale.Batch, limit time.Duration) (stock.State, error) {
	const shortest, longest = 10 * time.Millisecond, 200 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		state, err := r.s.confirm(b)
		if err == nil {
			if state == stock.StateOtherEpoch {
				return state, errOtherEpoch
			}
			return state, nil
		}
		if limit-r.t.w.now <= pause {
			return stock.StateAbsent, fmt.Errorf("confirm: %w", err)
		}
		r.t.sleep(pause)
	}
}

func (r *run) answerAll(attempts []*attempt, code sale.Code) {
	for _, a := range attempts {
		a.reply(r.t.w, purchase.Answer{Code: code})
	}
}

// reply answers a taken attempt; a shopper who has left does not hear it.
func (a *attempt) reply(w *world, answer purchase.Answer) {
	if a.state == answered {
		return // answered early, by a planted bug
	}
	w.answered(a, &answer)
	if a.state != taken {
		return
	}
	a.state, a.answer = answered, answer
	shopper, turn := a.shopper, a.turn
	w.after(0, func() { shopper.wake(turn) })
}

// buy queues an attempt at a gateway and waits for its answer, as the handler of the
// request does.
func (t *task) buy(g *gateway, order sale.Order, wait time.Duration) purchase.Answer {
	w := t.w
	if g.p.dead {
		return purchase.Answer{Code: noAnswer}
	}
	order.ID = g.ids.Next(sale.ShardOf(order.UserID))
	w.named(order.ID, "order")
	a := &attempt{order: order, began: w.now, deadline: w.now + wait, shopper: t, turn: t.turn}
	w.note("%s asks %s for %d with key %s as %s", order.UserID, g.p.name, order.Quantity, order.RequestKey, w.name(order.ID))
	if g.refuses(order.UserID) {
		w.note("%s knows all buyers", g.p.name)
		a.state, a.answer = answered, purchase.Answer{Code: sale.CodeSoldOut}
		w.answered(a, &a.answer)
		return a.answer
	}
	g.enqueue(a)
	t.wakeAfter(wait)
	t.wait()
	switch a.state {
	case answered:
		if a.answer.Code == sale.CodeSoldOut {
			g.soldOut()
		}
		return a.answer
	case queued:
		a.state = withdrawn
		if g.p.dead {
			return purchase.Answer{Code: noAnswer}
		}
		a.answer = purchase.Answer{Code: sale.CodeUnavailable}
		w.answered(a, &a.answer)
	default:
		a.state = abandoned
		a.answer = purchase.Answer{Code: sale.CodeOutcomeUnknown}
		if g.p.dead {
			a.answer.Code = noAnswer
		}
	}
	return a.answer
}

// noAnswer is what a shopper gets whose gateway died: nothing.
const noAnswer sale.Code = "(connection lost)"
