package purchase

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// history is one order of events among the actors of a cast. Actors are goroutines that
// stop before each of their steps; of all who wait, and of all that may happen to each
// one's step, the explorer chooses.
type history struct {
	x      *explorer
	actors []*actor
	// baton orders what actors that time has woken do after what the history did before:
	// the race detector sees no such order in the time of a bubble.
	baton  sync.Mutex
	faults int  // that may still happen
	over   bool // nothing is chosen any more: whoever is left ends
	trace  []string

	redis   []int     // states a failover may fall back to, the newest last: the first is on the replica
	wiped   bool      // Redis has lost everything once, and with it
	voids   []sale.ID // these tombstones
	wipedAt time.Time
	halves  []*half
	late    []lateCall
	book    book
	epoch   int64 // of the last load
	answers [2]shopped
}

// lateCall was lost on its way, and arrives when it is chosen.
type lateCall struct {
	name string
	do   func()
}

// shopped is an attempt of the shopper, and how it was answered.
type shopped struct {
	by     string
	told   bool    // it has its answer
	order  sale.ID // that it would get
	answer Answer
}

// actor is one goroutine of a history.
type actor struct {
	name    string
	h       *history
	resume  chan struct{}
	step    string          // it waits before
	options func() []option // of that step, now; nil = it does not wait
	ended   bool
	dead    bool
	// What it has been through, since when its request runs, and when it was last seen:
	// by these, code that leaves nothing to chance is where it is.
	log              []string
	heard            string // what the step that was just done told it
	began, resumedAt time.Time
}

// option is one thing that may happen to a step.
type option struct {
	name string
	do   func()
}

// pause stops an actor before a step until one of its options has been chosen and done.
// false: the history is over.
func (a *actor) pause(step string, options func() []option) bool {
	a.h.baton.Lock()
	over := a.h.over
	if !over {
		a.step, a.options = step, options
	}
	a.h.baton.Unlock()
	if over {
		return false
	}
	<-a.resume
	return !a.h.over
}

// start runs an actor; its first step is chosen like any other.
func (h *history) start(name string, run func(a *actor)) {
	a := &actor{name: name, h: h, resume: make(chan struct{})}
	h.actors = append(h.actors, a)
	go func() {
		run(a)
		h.baton.Lock()
		a.ended = true
		h.baton.Unlock()
	}()
}

// choice is an option of somebody's step; actor nil is the passing of time, or the
// arrival of what is late.
type choice struct {
	actor *actor
	option
}

// choices are all that can happen next. None: the actors have ended, or are dead.
func (h *history) choices() []choice {
	var all []choice
	asleep := false
	for _, a := range h.actors {
		switch {
		case a.ended || a.dead:
		case a.options == nil:
			asleep = true
		default:
			for _, o := range a.options() {
				all = append(all, choice{a, o})
			}
		}
	}
	for i, l := range h.late {
		all = append(all, choice{nil, option{"late " + l.name + " arrives", func() {
			h.late = slices.Delete(slices.Clone(h.late), i, i+1)
			l.do()
		}}})
	}
	if asleep {
		all = append(all, choice{nil, option{"time passes", h.sleep}})
	}
	return all
}

// sleep lets time pass until somebody waits before a step, or has ended.
func (h *history) sleep() {
	waiting := func() (n int) {
		h.baton.Lock()
		defer h.baton.Unlock()
		for _, a := range h.actors {
			if a.options != nil || a.ended {
				n++
			}
		}
		return n
	}
	for before := waiting(); waiting() == before; synctest.Wait() {
		<-time.After(time.Millisecond) // of the bubble's time
	}
}

// take makes a choice come true.
func (h *history) take(c choice) {
	name := c.name
	if c.actor != nil {
		name = c.actor.name + ": " + c.actor.step + " " + c.name
	}
	h.trace = append(h.trace, name)
	if c.actor != nil {
		c.actor.heard = ""
	}
	c.do()
	if a := c.actor; a != nil && !a.dead {
		a.log = append(a.log, name+a.heard)
		a.step, a.options, a.resumedAt = "", nil, time.Now()
		a.resume <- struct{}{}
	}
	synctest.Wait()
}

// finish ends every actor that is left.
func (h *history) finish() {
	h.baton.Lock()
	h.over = true
	h.baton.Unlock()
	for _, a := range h.actors {
		if a.options != nil {
			a.options = nil
			a.resume <- struct{}{}
		}
	}
	running := func() bool {
		h.baton.Lock()
		defer h.baton.Unlock()
		return slices.ContainsFunc(h.actors, func(a *actor) bool { return !a.ended })
	}
	for running() {
		<-time.After(time.Millisecond) // of the bubble's time
		synctest.Wait()
	}
}

// fingerprint is all on which the rest of the history depends.
func (h *history) fingerprint() string {
	var b strings.Builder
	fmt.Fprint(&b, h.faults, h.redis, h.wiped, h.voids, h.epoch)
	for _, half := range h.halves {
		fmt.Fprint(&b, " half ", half.batch.ID, half.state)
	}
	for _, l := range h.late {
		fmt.Fprint(&b, " late ", l.name)
	}
	for _, s := range h.answers {
		fmt.Fprint(&b, s)
	}
	fmt.Fprint(&b, h.book)
	for _, g := range h.x.gateways {
		fmt.Fprint(&b, g.confirmed.epochs)
	}
	for _, a := range h.actors {
		fmt.Fprint(&b, "\n", a.name, a.step, a.ended, a.dead, a.log)
		if !a.ended && !a.began.IsZero() {
			fmt.Fprint(&b, time.Since(a.began))
		}
		if !a.ended && a.options == nil {
			fmt.Fprint(&b, time.Since(a.resumedAt))
		}
	}
	return b.String()
}

// now is the state that Redis's master has.
func (h *history) now() *contents { return &h.x.lab.states[h.redis[len(h.redis)-1]] }

// call is a script, named with all its arguments.
type call struct {
	name string
	do   func(context.Context, *stock.Store) (any, error)
}

// do runs a script on the master.
func (h *history) do(c call) (any, error) {
	r := h.x.lab.run(h.redis[len(h.redis)-1], c.name, c.do)
	if r.state != h.redis[len(h.redis)-1] {
		h.redis = append(h.redis[:len(h.redis):len(h.redis)], r.state)
	}
	return r.value, r.err
}

// replicated: a WAIT was answered.
func (h *history) replicated() { h.redis = h.redis[len(h.redis)-1:] }

// engines are Redis and the bus as one process reaches them.
type engines struct{ *actor }

// script is a call by a process, with all that may happen to it. waits: a WAIT follows.
func script[T any](ctx context.Context, a *actor, c call, waits bool) (value T, err error) {
	h, silent := a.h, false
	run := func() {
		v, failed := h.do(c)
		if err = failed; failed == nil {
			value = v.(T)
		}
	}
	lost := func() { err = errLost }
	unheard := func() {
		if run(); err == nil && waits {
			h.replicated()
		}
		value, err = *new(T), errLost
	}
	fails := func(name string, do func()) option {
		return option{name, func() { h.faults--; do() }}
	}
	told := func(options []option) []option {
		for i := range options {
			do := options[i].do
			options[i].do = func() { do(); a.heard = fmt.Sprint(" → ", value, err) }
		}
		return options
	}
	if !a.pause(strings.SplitN(c.name, " ", 2)[0], func() []option {
		options := []option{{"works", func() {
			if run(); err == nil && waits {
				h.replicated()
			}
		}}}
		if h.faults == 0 {
			return told(options)
		}
		arrive := func() {
			lost()
			h.late = append(h.late[:len(h.late):len(h.late)], lateCall{a.name + "'s " + c.name, func() { _, _ = h.do(c) }})
		}
		options = append(options, fails("is lost", lost), fails("is answered to nobody", unheard), fails("is late", arrive),
			fails("is never made: the process died", func() { a.dead = true }))
		if !waits {
			return told(append(options, fails("is refused", func() { err = stock.ErrNotRun })))
		}
		unreplicated := func() {
			if run(); h.x.plant != noWait {
				value, err = *new(T), stock.ErrNotReplicated
			}
		}
		options = append(options, fails("runs, and no replica says that it has it", unreplicated))
		if _, bounded := ctx.Deadline(); bounded {
			for _, o := range []option{{"is lost", lost}, {"is answered to nobody", unheard}, {"is late", arrive}, {"is not replicated", unreplicated}} {
				options = append(options, fails(o.name+", and the caller waits till its deadline", func() { silent = true; o.do() }))
			}
		}
		return told(options)
	}) {
		return value, errOver
	}
	if silent {
		<-ctx.Done()
	}
	return value, err
}

// errOver ends an actor: it says that the script was not run.
var errOver = fmt.Errorf("%w: the history is over", stock.ErrNotRun)

// reserved is what Reserve returns.
type reserved struct {
	epoch    int64
	outcomes []stock.Outcome
}

func reserveCall(b *sale.Batch, terms stock.Terms, hold time.Duration) call {
	b = clone(b)
	return call{fmt.Sprint("reserve ", *b), func(ctx context.Context, s *stock.Store) (any, error) {
		out := make([]stock.Outcome, len(b.Orders))
		epoch, err := s.Reserve(ctx, clone(b), terms, hold, out)
		return reserved{epoch, out}, err
	}}
}

func (e engines) Reserve(ctx context.Context, b *sale.Batch, terms stock.Terms, hold time.Duration, out []stock.Outcome) (int64, error) {
	r, err := script[reserved](ctx, e.actor, reserveCall(b, terms, hold), false)
	copy(out, r.outcomes)
	return r.epoch, err
}

func (e engines) Confirm(ctx context.Context, b *sale.Batch) (stock.State, error) {
	if e.h.over {
		return stock.StateVoid, nil // or it would ask till its deadline
	}
	b = clone(b)
	return script[stock.State](ctx, e.actor, call{fmt.Sprint("confirm ", *b), func(ctx context.Context, s *stock.Store) (any, error) {
		return s.Confirm(ctx, clone(b))
	}}, true)
}

func releaseCall(batch sale.ID, epoch int64, orders []sale.Order) call {
	orders = slices.Clone(orders)
	return call{fmt.Sprint("release ", batch, epoch, orders), func(ctx context.Context, s *stock.Store) (any, error) {
		return s.Release(ctx, labSale.ID, batch, epoch, orders)
	}}
}

func (e engines) Release(ctx context.Context, _ string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error) {
	return script[stock.State](ctx, e.actor, releaseCall(batch, epoch, orders), true)
}

func (e engines) Adopt(ctx context.Context, b *sale.Batch) (stock.State, error) {
	b = clone(b)
	return script[stock.State](ctx, e.actor, call{fmt.Sprint("adopt ", *b), func(ctx context.Context, s *stock.Store) (any, error) {
		return s.Adopt(ctx, clone(b))
	}}, true)
}

// Send stores a half message, has its local transaction run, and ends it one-way.
func (e engines) Send(_ context.Context, b *sale.Batch, local func() bus.Decision) error {
	h, b := e.h, clone(b)
	stored, err := new(half), error(nil)
	store := func() {
		stored = &half{batch: *b}
		h.halves = append(h.halves[:len(h.halves):len(h.halves)], stored)
	}
	if !e.pause("half", func() []option {
		options := []option{{"works", store}}
		if h.faults > 0 {
			options = append(options,
				option{"is lost", func() { h.faults--; err = errLost }},
				option{"is stored, and answered to nobody", func() { h.faults--; store(); err = errLost }},
				option{"is late", func() {
					h.faults--
					h.late = append(h.late[:len(h.late):len(h.late)], lateCall{e.name + "'s half", store})
					err = errLost
				}},
				option{"is never sent: the process died", func() { h.faults--; e.dead = true }})
		}
		return options
	}) || err != nil {
		return errLost
	}
	d := local()
	e.end(stored, d)
	return nil
}

// end tells the bus what became of a half message.
func (e engines) end(stored *half, d bus.Decision) {
	h := e.h
	if d == bus.Unknown {
		return
	}
	e.pause("end as "+d.String(), func() []option {
		options := []option{{"works", func() { h.end(stored, d) }}}
		if h.faults > 0 {
			options = append(options,
				option{"is lost", func() { h.faults-- }},
				option{"is late", func() {
					h.faults--
					h.late = append(h.late[:len(h.late):len(h.late)], lateCall{e.name + "'s " + d.String(), func() { h.end(stored, d) }})
				}})
		}
		return options
	})
}
