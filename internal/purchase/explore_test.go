package purchase

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// plant is a fault of the protocol itself, to see that the exploration finds it.
type plant string

const (
	noWait        plant = "what is on no replica passes for confirmed"
	noVoid        plant = "the sweeper gives back and leaves the batch as it is"
	noTombstone   plant = "a reserve that may come yet is not voided"
	blindCommit   plant = "a check-back commits what Redis does not know"
	hopeful       plant = "a confirm without an answer passes for a yes"
	ledgerFirst   plant = "a rebuild reads the ledger before the bus"
	settleForgets plant = "settling removes the buyer's record with the batch"
)

// cast is who takes part in the histories of one exploration.
type cast struct {
	name   string
	faults int // that may happen in one history
	// The purchase and its check-back are always there.
	sweeper, retry, worker, failover, rebuild bool
}

// explorer goes through every history of a cast: the choices of one are run again up
// to a point, and there another is made. A point that some other order of the same
// events has led to is not gone through again.
type explorer struct {
	t     *testing.T
	lab   *lab
	cast  cast
	plant plant

	gateways [2]*Protocol
	loaded   int // the state of Redis that a history begins with
	path     []int
	widths   []int
	seen     map[[16]byte]bool
	ends     map[string]int // by the shopper's answers
	leaves   int
	joined   int
	breach   string
}

// explore returns what broke, or "".
func explore(t *testing.T, l *lab, c cast, p plant) *explorer {
	x := &explorer{t: t, lab: l, cast: c, plant: p, seen: map[[16]byte]bool{}, ends: map[string]int{}}
	x.loaded = l.run(0, "first load", func(ctx context.Context, s *stock.Store) (any, error) {
		first := labSale
		first.Epoch = 1
		return s.Load(ctx, &first, stock.LoadSource{})
	}).state
	// A request holds a timer and a channel, which belong to one bubble of time.
	fresh := func() { requests = sync.Pool{New: requests.New} }
	fresh()
	defer fresh()
	synctest.Test(t, func(*testing.T) {
		for i := range x.gateways {
			x.gateways[i] = New(Options{
				Stock: engines{}, Bus: engines{}, IDs: sale.NewIDs(i+1, func() time.Time { return labNow }),
				Hold: 20 * time.Second, HalfTimeout: time.Second, ReleaseTimeout: releaseMillis * time.Millisecond,
				Log: slog.New(slog.DiscardHandler),
			})
		}
		for more := true; more && x.breach == ""; more = x.next() {
			x.history()
		}
	})
	return x
}

// next moves to the next path; false: there is none.
func (x *explorer) next() bool {
	for i := len(x.path) - 1; i >= 0; i-- {
		if x.path[i]+1 < x.widths[i] {
			x.path, x.widths = x.path[:i+1], x.widths[:i+1]
			x.path[i]++
			return true
		}
	}
	return false
}

// history goes along the path, and on from its end by the first choice each time.
func (x *explorer) history() {
	h := &history{x: x, faults: x.cast.faults, redis: []int{x.loaded}, epoch: 1}
	for _, g := range x.gateways { // they remember nothing of other histories
		g.confirmed.epochs, g.confirmed.order, g.confirmed.next = nil, nil, 0
	}
	h.play()
	synctest.Wait()
	for depth := 0; ; depth++ {
		if breach := h.check(); breach != "" {
			x.broke(h, breach)
			break
		}
		choices := h.choices()
		if len(choices) == 0 {
			h.rest()
			x.leaves++
			x.ends[h.ending()]++
			if breach := h.atRest(); breach != "" {
				x.broke(h, breach)
			}
			break
		}
		if depth == len(x.path) {
			sum := sha256.Sum256([]byte(h.fingerprint()))
			key := [16]byte(sum[:16])
			if x.seen[key] {
				x.joined++
				break
			}
			x.seen[key] = true
			x.path, x.widths = append(x.path, 0), append(x.widths, len(choices))
		}
		h.take(choices[x.path[depth]])
	}
	h.finish()
}

func (x *explorer) broke(h *history, breach string) {
	x.breach = breach + ", after:\n  " + strings.Join(h.trace, "\n  ")
}

// ending is how the shopper was answered.
func (h *history) ending() string {
	told := map[string]string{}
	for _, s := range h.answers {
		switch {
		case !s.told:
		case s.answer.Code == "":
			told[s.by] = "202"
		default:
			told[s.by] = string(s.answer.Code)
		}
	}
	return fmt.Sprint(told)
}

// play starts the actors.
func (h *history) play() {
	h.shop("gateway", 0)
	if h.x.cast.retry {
		h.shop("retry", 1)
	}
	if h.x.cast.sweeper {
		h.start("sweeper", h.sweep)
	}
	h.start("check-back", func(a *actor) { h.checkBack(engines{a}) })
	if h.x.cast.worker {
		h.start("worker", h.work)
	}
	if h.x.cast.failover {
		h.start("failover", h.failOver)
	}
	if h.x.cast.rebuild {
		h.start("rebuild", h.rebuild)
	}
}

// How long the shopper waits, long enough to ask twice; and the protocol for a release. None of their sums are equal: what happens at one instant
// happens in any order, and a history must come out the same each time.
const (
	requestMillis = answerMarginMillis + 13
	releaseMillis = 53
)

// shop is one attempt of the shopper, by one of two gateways, and its answer.
func (h *history) shop(name string, gateway int) {
	p := h.x.gateways[gateway]
	ids := sale.NewIDs(gateway+1, func() time.Time { return labNow })
	h.start(name, func(a *actor) {
		if name != "gateway" && !a.pause("send", func() []option { return []option{{"begins", func() {}}} }) {
			return
		}
		p.o.Stock, p.o.Bus, p.o.IDs = engines{a}, engines{a}, ids
		switch h.x.plant {
		case hopeful:
			p.o.Stock = optimist{engines{a}}
		case noTombstone:
			p.o.Stock = negligent{engines{a}}
		}
		a.began = time.Now()
		q := NewRequest(sale.Order{
			ID: ids.Next(0), SaleID: labSale.ID, UserID: "a", RequestKey: "k", Quantity: 1, AmountCents: labSale.PriceCents,
		}, time.Now().Add(requestMillis*time.Millisecond))
		order, answered := q.Order.ID, make(chan struct{})
		go func() {
			defer close(answered)
			answer := q.Wait()
			if !h.over {
				h.answers[gateway] = shopped{name, true, order, answer}
			}
		}()
		p.Run(context.Background(), &labSale, []*Request{q})
		p.Wait()
		<-answered
	})
}

// optimist is hopeful.
type optimist struct{ engines }

func (e optimist) Confirm(ctx context.Context, b *sale.Batch) (stock.State, error) {
	state, err := e.engines.Confirm(ctx, b)
	if err != nil {
		state = stock.StateConfirmed
	}
	return state, nil
}

// negligent is noTombstone.
type negligent struct{ engines }

func (e negligent) Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, _ []sale.Order) (stock.State, error) {
	state, err := e.engines.Release(ctx, saleID, batch, epoch, nil)
	if err == nil && state == stock.StateAbsent {
		state = stock.StateVoid
	}
	return state, err
}

// sweep releases a RESERVED batch, as if its deadline had passed. (A due batch that is
// RESERVED no more is left alone: that it was looked for before makes no difference.)
func (h *history) sweep(a *actor) {
	a.pause("release", func() (options []option) {
		for _, id := range h.reservedBatches() {
			c := releaseCall(id, 0, nil)
			if h.x.plant == noVoid {
				c = h.giveBackCall(id)
			}
			options = append(options, option{c.name + " works", func() {
				_, _ = h.do(c)
				h.replicated()
			}})
			if h.faults > 0 {
				options = append(options, option{c.name + " runs, and no replica has it", func() {
					h.faults--
					_, _ = h.do(c)
				}})
			}
		}
		return options
	})
}

func (h *history) reservedBatches() []sale.ID {
	var ids []sale.ID
	for id, b := range h.now().batches {
		if b.State == stock.StateReserved {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// undecided are the half messages that the bus asks about.
func (h *history) undecided() (open []*half) {
	for _, half := range h.halves {
		if half.state == bus.Unknown {
			open = append(open, half)
		}
	}
	return open
}

// checkBack asks once what became of a half message.
func (h *history) checkBack(e engines) {
	var asked *half
	if !e.pause("ask", func() (options []option) {
		for _, half := range h.undecided() {
			options = append(options, option{"about " + half.batch.ID.String(), func() { asked = half }})
		}
		return options
	}) {
		return
	}
	d := Checker(h.checkStock(e), slog.New(slog.DiscardHandler))(context.Background(), clone(&asked.batch))
	e.end(asked, d)
}

func (h *history) checkStock(s CheckStock) CheckStock {
	if h.x.plant == blindCommit {
		return credulous{s, h}
	}
	return s
}

// credulous is blindCommit: what Redis does not know it takes for settled.
type credulous struct {
	CheckStock
	h *history
}

func (c credulous) Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error) {
	if _, known := c.h.now().batches[batch]; !known && c.h.now().Loaded {
		return stock.StateSettled, nil
	}
	return c.CheckStock.Release(ctx, saleID, batch, epoch, orders)
}

// failOver is a replica promoted, once: it has all or a part of what was not waited for.
func (h *history) failOver(a *actor) {
	a.pause("master", func() (options []option) {
		for i := range h.redis[:len(h.redis)-1] {
			options = append(options, option{fmt.Sprintf("dies, the last %d writes are lost", len(h.redis)-1-i), func() {
				h.redis = []int{h.redis[i]}
			}})
		}
		return options
	})
}

// work is a worker that takes one committed batch, and may die at each step.
func (h *history) work(a *actor) {
	step := func(name string, do func()) bool {
		return a.pause(name, func() []option {
			options := []option{{"works", do}}
			if h.faults > 0 {
				options = append(options, option{"is never made: the worker died", func() { h.faults--; a.dead = true }})
			}
			return options
		})
	}
	var taken *half
	if !a.pause("take", func() (options []option) {
		for _, half := range h.halves {
			if half.state == bus.Commit && !h.book.acknowledged(half.batch.ID) {
				options = append(options, option{half.batch.ID.String(), func() { taken = half }})
			}
		}
		return options
	}) {
		return
	}
	if !step("transaction", func() { h.book = h.book.apply(&taken.batch) }) {
		return
	}
	if _, err := script[bool](context.Background(), a, h.settleCall(taken.batch.ID), false); err == nil {
		h.book = h.book.settle(taken.batch.ID)
	}
	step("acknowledgement", func() { h.book = h.book.acknowledge(taken.batch.ID) })
}

// rebuild is Redis losing everything, and the reconciler loading it anew under a new
// epoch: from the bus, then from the ledger. It waits first until no gateway has in hand
// what it reserved before, since the half message of that may not be on the bus yet.
func (h *history) rebuild(a *actor) {
	var open []sale.Batch
	var rows []booked
	readBus := func() { open = h.undelivered() }
	readLedger := func() { rows = h.book.Orders }
	if h.x.plant == ledgerFirst {
		readBus, readLedger = readLedger, readBus
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"all of Redis is lost", h.wipe},
		{"the bus is read", readBus},
		{"the ledger is read", readLedger},
		{"the sale is loaded", func() { h.load(open, rows) }},
	} {
		if !a.pause(step.name, func() []option {
			if h.inHand() {
				return nil
			}
			return []option{{"", func() { step.do(); a.heard = fmt.Sprint(open, rows) }}}
		}) {
			return
		}
	}
}

// inHand reports whether a gateway works on a request that it had before Redis was lost.
func (h *history) inHand() bool {
	return h.wiped && slices.ContainsFunc(h.actors, func(a *actor) bool {
		return !a.began.IsZero() && !a.began.After(h.wipedAt) && !a.ended && !a.dead
	})
}

func (h *history) wipe() {
	for _, id := range slices.Sorted(maps.Keys(h.now().batches)) {
		if h.now().batches[id].State == stock.StateVoid {
			h.voids = append(h.voids, id)
		}
	}
	h.redis, h.wiped, h.wipedAt = []int{0}, true, time.Now()
}

// TestEveryInterleaving goes through every order in which a purchase, its check-back
// and others can come, with every fault at every step, and holds the invariants against
// each state on the way and at the end of each (2, 3, 4, 5, 6, 8, 9).
func TestEveryInterleaving(t *testing.T) {
	l := newLab(t)
	began, leaves, joined := time.Now(), 0, 0
	for _, c := range []cast{
		{name: "sweeper, two faults", faults: 2, sweeper: true},
		{name: "retry", faults: 1, retry: true},
		{name: "sweeper and retry", faults: 0, sweeper: true, retry: true},
		{name: "worker and retry", faults: 1, worker: true, retry: true},
		{name: "failover and worker", faults: 1, failover: true, worker: true},
		{name: "failover and sweeper, two faults", faults: 2, failover: true, sweeper: true},
		{name: "failover, sweeper and retry", faults: 0, failover: true, sweeper: true, retry: true},
		{name: "rebuild and sweeper", faults: 1, rebuild: true, sweeper: true},
		{name: "rebuild and worker", faults: 1, rebuild: true, worker: true},
		{name: "rebuild and retry", faults: 0, rebuild: true, retry: true},
	} {
		if raceEnabled {
			c.faults = min(c.faults, 1) // some ten times slower
			c.retry = false
		}
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			x := explore(t, l, c, "")
			leaves, joined = leaves+x.leaves, joined+x.joined
			t.Logf("%d ends, %d histories that joined another, %d states on the way, %s", x.leaves, x.joined, len(x.seen), time.Since(start).Round(time.Millisecond))
			for _, end := range slices.Sorted(maps.Keys(x.ends)) {
				t.Logf("  %6d × %s", x.ends[end], end)
			}
			if x.breach != "" {
				t.Fatal(x.breach)
			}
		})
	}
	t.Logf("%d ends of histories, %d that joined another, %d states of Redis, %d calls of scripts, %s",
		leaves, joined, len(l.states), len(l.known), time.Since(began).Round(time.Millisecond))
}

// TestPlantedFaultsAreFound: an exploration that finds nothing proves something only if
// it would have found it.
func TestPlantedFaultsAreFound(t *testing.T) {
	l := newLab(t)
	for p, c := range map[plant]cast{
		noWait:        {faults: 1, failover: true, sweeper: true},
		noVoid:        {faults: 1, sweeper: true},
		noTombstone:   {faults: 1},
		blindCommit:   {faults: 1, failover: true},
		hopeful:       {faults: 1, sweeper: true},
		ledgerFirst:   {faults: 0, rebuild: true, worker: true, retry: true},
		settleForgets: {faults: 0, worker: true},
	} {
		t.Run(string(p), func(t *testing.T) {
			x := explore(t, l, c, p)
			if x.breach == "" {
				t.Fatalf("not found in %d histories", x.leaves)
			}
			t.Logf("found after %d histories: %s", x.leaves, x.breach)
		})
	}
}
