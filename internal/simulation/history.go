package simulation

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Player plays histories, one after the other, with or without a planted bug.
type Player struct {
	bug     *Bug
	scripts *interpreter
	log     *slog.Logger
}

// NewPlayer makes a player; bug may be nil.
func NewPlayer(bug *Bug) *Player {
	return &Player{bug: bug, scripts: newInterpreter(bug), log: slog.New(slog.DiscardHandler)}
}

// Play plays the history of a seed and returns the invariant that broke in it, with
// the whole timeline, or nil.
func (p *Player) Play(seed uint64) *Breach {
	if p.play(seed, false).breach == nil {
		return nil
	}
	w := p.play(seed, true)
	if w.breach == nil {
		panic(fmt.Sprintf("BUG: seed %d does not play the same history twice", seed))
	}
	w.breach.Timeline = w.trace
	return w.breach
}

// play returns the world as the history left it.
func (p *Player) play(seed uint64, traced bool) *world {
	rng := rand.New(rand.NewPCG(seed, seed))
	w := &world{
		seed: seed, rng: rng, plan: drawPlan(rng), scripts: p.scripts, ctx: context.Background(), log: p.log,
		quantities: make(map[userKey]int), traced: traced,
	}
	w.denied, w.seen = make(map[sale.ID]time.Duration), make(map[sale.ID]string)
	if traced {
		w.names, w.count = make(map[sale.ID]string), make(map[string]int)
		w.note("%+v", w.plan)
	}
	if p.bug != nil {
		w.faulty = p.bug.faults
		if p.bug.focus != nil {
			p.bug.focus(&w.plan)
		}
	}
	defer func() {
		for _, process := range w.processes {
			process.kill()
		}
	}()
	w.begin()
	w.runUntil(w.plan.length)
	w.rest()
	return w
}

// How long the system is given to come to rest: what is late arrives, who stands
// still goes on, what is reserved is swept.
const (
	settleDown  = maxLateSeconds*time.Second + maxStallSeconds*time.Second + 5*time.Second
	restStep    = 10 * time.Second
	restStepMax = 30

	compareOneIn = 20
)

// rest ends the faults, lets everything be done that is to be done, and checks what
// must be true then.
func (w *world) rest() {
	w.resting = true
	w.note("the faults are over")
	w.brokerDown, w.ledgerDown, w.redis.downUntil = 0, 0, 0
	w.settled(settleDown)
	// What a failover took, and the broker lost, is found by comparing the stores, order
	// by order. That costs as much as all the rest, so it is done where there is something
	// to find, and now and then where there must be nothing.
	c := w.redis.master.contents()
	invariant, _ := w.difference(&c)
	mayDiffer := w.plan.failsOver() || w.plan.losses+w.plan.messageLosses > 0
	if mayDiffer && invariant != "" || w.rng.IntN(compareOneIn) == 0 {
		w.settled(watermark)
		w.comparing = true
		w.settled(2 * restStep)
		w.comparing = false
	}
	w.checkRest()
	w.askAgain()
	w.settled(hold + 2*restStep)
	w.checkRest()
}

// settled lets at least d pass, and then more until there is nothing left to do.
func (w *world) settled(d time.Duration) {
	w.runUntil(w.now + d)
	for range restStepMax {
		if w.breach != nil || w.quiet() {
			return
		}
		w.runUntil(w.now + restStep)
	}
}

// quiet reports whether nothing is left for worker, check-back and reconciler.
func (w *world) quiet() bool {
	for _, m := range w.broker.messages {
		if !m.lost && (m.decision == bus.Unknown || m.decision == bus.Commit && !m.acked) {
			return false
		}
	}
	for _, c := range w.ledger.consumed {
		if !c.settled {
			return false
		}
	}
	for _, task := range w.ledger.tasks {
		if !task.done {
			return false
		}
	}
	c := w.redis.master.contents()
	return c.loaded && c.pending == 0 && c.version == w.ledger.version
}

// checkRest checks what must be true of a system at rest.
func (w *world) checkRest() {
	if w.breach != nil {
		return
	}
	l, c := w.ledger, w.redis.master.contents()
	for _, m := range w.broker.messages {
		switch {
		case m.revived:
			w.broken("5", "%s was rolled back, and then committed", w.name(m.batch))
		case !m.lost && m.decision == bus.Unknown:
			w.broken("7", "the half message of %s has no end", w.name(m.batch))
		case !m.lost && m.decision == bus.Commit && !m.acked:
			w.broken("2", "the message of %s is not consumed", w.name(m.batch))
		}
	}
	for i := range w.promises {
		p := &w.promises[i]
		switch r := l.byID[p.order]; {
		case r == nil:
			w.broken("2", "%s was promised to %s, and the ledger has not got it", w.name(p.order), p.of.user)
		case !r.active && r.reason != reasonShopper && !w.excused(p):
			w.broken("2", "%s was promised to %s, and is cancelled: %s", w.name(p.order), p.of.user, r.reason)
		}
	}
	if !c.loaded {
		w.broken("7", "the sale is not loaded")
		return
	}
	if c.total != l.total || c.version != l.version {
		w.broken("4c", "total %d, version %d in Redis; %d, %d in the ledger", c.total, c.version, l.total, l.version)
	}
	if l.total < w.leastTotal || l.total > w.mostTotal {
		w.broken("4", "the total is %d, the operator made it %d to %d", l.total, w.leastTotal, w.mostTotal)
	}
	if invariant, detail := w.difference(&c); invariant != "" {
		w.broken(invariant, "%s", detail)
	}
}

// difference is the first one between what Redis has and the ledger, order by order, and
// the invariant that it breaks at rest.
func (w *world) difference(c *contents) (invariant, detail string) {
	for _, b := range c.batches {
		switch b.state {
		case stock.StateReserved:
			return "7", w.name(b.id) + " is still RESERVED"
		case stock.StateConfirmed:
			return "4c", w.name(b.id) + " is CONFIRMED and not settled"
		}
	}
	for _, r := range w.ledger.orders {
		record := recordOf(c.records, r.ID)
		switch {
		case r.active && (record == nil || !record.held):
			return "4c", w.name(r.ID) + " is active in the ledger, and not held in Redis"
		case !r.active && record != nil && record.held:
			return "4c", w.name(r.ID) + " is cancelled in the ledger, and held in Redis"
		}
	}
	for i := range c.records {
		if r := &c.records[i]; r.held && w.ledger.byID[r.order] == nil {
			return "4c", w.name(r.order) + " is held in Redis, and the ledger has not got it"
		}
	}
	return "", ""
}

// askAgain has every shopper ask once more with every key he used: now he gets a
// definite answer, and whoever has an order gets that order.
func (w *world) askAgain() {
	if w.breach != nil {
		return
	}
	p := w.process("the last round")
	g := w.gateways[0]
	for u := range w.plan.users {
		for k := range w.plan.keys {
			of := userKey{string(rune('a' + u)), fmt.Sprintf("k%d", k)}
			quantity, used := w.quantities[of]
			if !used {
				continue
			}
			p.start(of.user, func(t *task) {
				a := t.buy(g, sale.Order{
					SaleID: saleID, UserID: of.user, RequestKey: of.key, Quantity: quantity, AmountCents: int64(quantity) * priceCents,
				}, purchaseTimeout)
				w.note("%s is told: %s", of.user, w.describe(&a))
				r := w.ledger.byKey(of.user, of.key)
				switch {
				case a.Code != "" && !definite[a.Code]:
					w.broken("9", "at rest, %s gets no definite answer for key %s: %s", of.user, of.key, a.Code)
				case r != nil && r.active && a.OrderID != r.ID:
					w.broken("9", "key %s of %s is %s in the ledger; told: %s", of.key, of.user, w.name(r.ID), w.describe(&a))
				}
			})
		}
	}
}

// note writes a line of the timeline.
func (w *world) note(format string, args ...any) {
	if w.traced {
		w.trace = append(w.trace, fmt.Sprintf("%9.3fs  ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// noteScript writes what a script did to the timeline.
func (w *world) noteScript(t *task, m *memory, name string, args []string, reply value, err error) {
	if !w.traced || name == "snapshot" || name == "due" {
		return
	}
	where := ""
	if m != w.redis.master {
		where = " on the old master"
	}
	w.note("redis%s: %s of %s %s: %s", where, name, t.p.name, w.argument(name, args), w.replied(name, reply, err))
}

// argument says what a script was called for.
func (w *world) argument(name string, args []string) string {
	switch name {
	case "reserve", "confirm", "release", "adopt", "restore":
		return w.name(sale.IDFromBinary(args[0]))
	case "settle":
		text := args[0]
		for i := 1; i < len(args); i += 2 {
			text += " " + w.name(sale.IDFromBinary(args[i]))
		}
		return text
	case "load":
		if args[0] == "batches" {
			return fmt.Sprintf("%v %s", args[:3], w.name(sale.IDFromBinary(args[3])))
		}
		return fmt.Sprint(args[:3])
	case "lookup", "adjust":
		return fmt.Sprint(args)
	}
	return ""
}

func (w *world) replied(name string, reply value, err error) string {
	if err != nil {
		return err.Error()
	}
	if n, ok := reply.(int64); ok {
		switch name {
		case "confirm", "release", "adopt":
			if n >= 0 {
				return stock.State(n).String()
			}
		}
	}
	return fmt.Sprintf("%q", fmt.Sprint(reply))
}

// named gives an id a short name for the timeline.
func (w *world) named(id sale.ID, what string) {
	if w.traced {
		w.count[what]++
		w.names[id] = fmt.Sprintf("%s %d", what, w.count[what])
	}
}

func (w *world) name(id sale.ID) string {
	if !w.traced {
		return ""
	}
	if name := w.names[id]; name != "" {
		return name
	}
	return id.String()
}

func (w *world) nameOr(id sale.ID) string {
	if id == 0 {
		return ""
	}
	return w.name(id)
}
