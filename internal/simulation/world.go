package simulation

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// The one sale.
const (
	saleID       = "s"
	priceCents   = 100
	perUserLimit = 2
)

// plan is what may happen in one history, drawn from its seed. Most histories have a
// few kinds of faults and not all, so that each also meets a system that is otherwise
// well.
type plan struct {
	users, devices, keys, triesMax int
	total                          int64
	gateways, workers, reconcilers int
	length                         time.Duration // of the time in which shoppers come
	retryWithin                    time.Duration
	roundEvery                     time.Duration // a reconciler's round, at most
	checkAfter, checkEvery         time.Duration // of half messages
	ends                           time.Duration // the sale's end

	lossPerMille  int    // of messages: lost, late and slow, so many of each
	stallPerMille int    // of calls: the caller stands still
	kills         int    // of processes
	failovers     int    // of Redis
	unreplicated  bool   // nobody waits for the replica: promises may break, nothing else
	stallOnly     string // only tasks whose names begin with it stand still; "": all
	losses        int    // of all that Redis has
	duringLoad    bool   // a failover while what was lost is loaded again
	messageLosses int    // of messages that the broker has
	outages       int    // of broker or ledger
	restocks      int
	cuts          bool          // only that
	cancels       bool          // shoppers cancel some orders
	lease         time.Duration // of a sold-out sale; 0: gateways refuse nobody by themselves
}

func drawPlan(rng *rand.Rand) plan {
	p := plan{
		users: 2 + rng.IntN(3), devices: 1 + rng.IntN(2), keys: 1 + rng.IntN(2), triesMax: 1 + rng.IntN(2),
		total:    int64(1 + rng.IntN(5)),
		gateways: 2 + rng.IntN(2), workers: 1 + rng.IntN(2), reconcilers: 1 + rng.IntN(2),
		length:      time.Duration(1+rng.IntN(30)) * time.Second,
		retryWithin: time.Duration(100+rng.IntN(8_000)) * time.Millisecond,
		roundEvery:  time.Duration(2+rng.IntN(8)) * time.Second,
		checkAfter:  time.Duration(300+rng.IntN(6_000)) * time.Millisecond,
		checkEvery:  time.Duration(500+rng.IntN(5_000)) * time.Millisecond,
		ends:        time.Hour,
	}
	sometimes := func(oneIn, most int) int {
		if rng.IntN(oneIn) > 0 {
			return 0
		}
		return 1 + rng.IntN(most)
	}
	p.lossPerMille = sometimes(2, 60)
	p.stallPerMille = sometimes(3, 20)
	p.kills = sometimes(3, 3)
	p.failovers = sometimes(3, 2)
	p.unreplicated = p.failovers > 0 && rng.IntN(5) == 0
	p.losses = sometimes(4, 2)
	p.duringLoad = p.losses > 0 && rng.IntN(3) == 0
	if p.losses == 0 { // either one alone restores what was promised, both lost nobody can
		p.messageLosses = sometimes(6, 2)
	}
	p.outages = sometimes(6, 2)
	p.restocks = sometimes(4, 3)
	p.cancels = rng.IntN(3) == 0
	if rng.IntN(2) == 0 {
		p.lease = time.Duration(50+rng.IntN(500)) * time.Millisecond
	}
	if rng.IntN(6) == 0 {
		p.ends = time.Duration(rng.Int64N(int64(p.length)))
	}
	return p
}

// world is one history under way.
type world struct {
	seed    uint64
	rng     *rand.Rand
	plan    plan
	faulty  faults
	scripts *interpreter
	ctx     context.Context
	log     *slog.Logger

	now     time.Duration
	planned int64
	events  []event
	// resting: the faults are over, and what is left to do gets done.
	resting bool

	redis      *redis
	broker     *broker
	brokerDown time.Duration // until
	ledger     *ledger
	ledgerDown time.Duration // until
	terms      stock.Terms

	processes   []*process // all that run
	gateways    []*gateway
	workers     []*process
	reconcilers []*process
	nodes       int // node numbers leased so far
	quantities  map[userKey]int
	calls       int // of engines, so far
	triggers    []trigger

	oracle
	breach *Breach
	traced bool
	trace  []string
	names  map[sale.ID]string
	count  map[string]int
}

type userKey struct{ user, key string }

func (w *world) coin() bool { return w.rng.IntN(2) == 0 }

func (w *world) process(name string) *process {
	p := &process{w: w, name: name}
	w.processes = append(w.processes, p)
	return p
}

// begin starts everything that runs.
func (w *world) begin() {
	w.redis, w.broker, w.ledger = newRedis(w), &broker{w: w}, newLedger(w, w.plan.total)
	w.leastTotal, w.mostTotal = w.plan.total, w.plan.total
	w.terms = stock.Terms{StartsAt: began.Add(-time.Hour), EndsAt: began.Add(w.plan.ends), PerUserLimit: perUserLimit}
	w.firstLoad()
	for i := range w.plan.gateways {
		w.gateways = append(w.gateways, nil)
		w.startGateway(i)
	}
	for i := range w.plan.workers {
		w.workers = append(w.workers, nil)
		w.startWorker(i)
	}
	for i := range w.plan.reconcilers {
		w.reconcilers = append(w.reconcilers, nil)
		w.startReconciler(i)
	}
	outside := w.process("outside")
	for u := range w.plan.users {
		for range w.plan.devices {
			w.shop(outside, string(rune('a'+u)))
		}
	}
	if w.plan.restocks > 0 {
		w.operate(outside)
	}
	w.after(w.plan.checkEvery, w.broker.checkBacks)
	w.planFaults()
}

// firstLoad loads the sale before it is published.
func (w *world) firstLoad() {
	epoch, m := w.ledger.nextEpoch(), w.redis.master
	for _, args := range [][]string{
		{"begin", format(epoch), "0"},
		{"finish", format(epoch), "0", format(w.plan.total), "1"},
	} {
		reply, err := w.scripts.run(m, w.clock().UnixMicro(), "load", keysOf["load"], args)
		if err != nil || reply != int64(1) {
			panic(fmt.Sprintf("BUG: first load: %v %v", reply, err))
		}
	}
	w.redis.synced()
}

func (w *world) startGateway(i int) {
	w.nodes++
	skew := time.Duration(w.rng.Int64N(int64(2*time.Second))) - time.Second
	g := &gateway{w: w, p: w.process(fmt.Sprintf("gateway %d", w.nodes))}
	g.ids = sale.NewIDs(w.nodes, func() time.Time { return w.clock().Add(skew) })
	w.gateways[i] = g
}

func (w *world) startWorker(i int) {
	w.workers[i] = w.process(fmt.Sprintf("worker %d", i+1))
	w.work(w.workers[i])
}

func (w *world) startReconciler(i int) {
	w.reconcilers[i] = w.process(fmt.Sprintf("reconciler %d", i+1))
	w.reconcile(w.reconcilers[i])
}

// trigger lets something happen right after so many calls of engines: most of what can
// go wrong goes wrong while something is under way.
type trigger struct {
	calls  int
	happen func()
}

// called counts a call.
func (w *world) called() {
	w.calls++
	for _, t := range w.triggers {
		if t.calls == w.calls {
			w.after(time.Duration(w.rng.Int64N(int64(10*time.Millisecond))), t.happen)
		}
	}
}

// triggerCalls is within which of the first calls triggers fire: those that most
// histories come to before they rest.
const triggerCalls = 80

// planFaults plans when which fault comes, all within the time of the shoppers.
func (w *world) planFaults() {
	during := func(n int, happen func()) {
		for range n {
			unlessResting := func() {
				if !w.resting {
					happen()
				}
			}
			if w.coin() {
				w.triggers = append(w.triggers, trigger{1 + w.rng.IntN(triggerCalls), unlessResting})
			} else {
				w.after(time.Duration(w.rng.Int64N(int64(w.plan.length))), unlessResting)
			}
		}
	}
	during(w.plan.kills, w.killOne)
	during(w.plan.failovers, w.redis.failOver)
	during(w.plan.losses, w.redis.loseAll)
	during(w.plan.messageLosses, w.broker.lose)
	during(w.plan.outages, func() {
		until := w.now + time.Duration(w.rng.Int64N(int64(8*time.Second)))
		if w.coin() {
			w.note("the broker is down for a while")
			w.brokerDown = until
		} else {
			w.note("the ledger is down for a while")
			w.ledgerDown = until
		}
	})
}

// failsOver reports whether a replica may ever become the master.
func (p *plan) failsOver() bool { return p.failovers > 0 || p.duringLoad }

// killOne kills a process, and starts another in its place later.
func (w *world) killOne() {
	var p *process
	var again func()
	switch i := w.rng.IntN(len(w.gateways) + len(w.workers) + len(w.reconcilers)); {
	case i < len(w.gateways):
		p, again = w.gateways[i].p, func() { w.startGateway(i) }
	case i < len(w.gateways)+len(w.workers):
		i -= len(w.gateways)
		p, again = w.workers[i], func() { w.startWorker(i) }
	default:
		i -= len(w.gateways) + len(w.workers)
		p, again = w.reconcilers[i], func() { w.startReconciler(i) }
	}
	if p.dead {
		return
	}
	w.note("%s is KILLED", p.name)
	p.kill()
	w.after(time.Duration(w.rng.Int64N(int64(10*time.Second))), func() {
		w.note("%s is started again", p.name)
		again()
	})
}

// restOr is how long a process pauses between two looks for work: up to d, and at rest,
// when nobody waits for it, a fixed while.
func (w *world) restOr(d time.Duration) time.Duration {
	if w.resting {
		return restStep
	}
	return time.Duration(w.rng.Int64N(int64(d)))
}

// compareSoon reports whether a reconciler compares the stores now: by chance, and when
// it is asked to.
func (w *world) compareSoon(p *process) bool {
	if w.resting {
		return w.comparing && p == w.reconcilers[0]
	}
	return w.rng.IntN(30) == 0
}
