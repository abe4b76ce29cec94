package simulation

import (
	"context"
	"time"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Bug is a mistake that can be planted in the protocol.
type Bug struct {
	Name    string
	patches []patch // of scripts; each must fit
	faults  faults  // of the steps
	// focus makes histories in which it can show more frequent; nil: any will do.
	focus func(*plan)
}

// whenLost has many shoppers ask for little over bad connections, a master cut off, and
// then Redis lose everything: of what comes back as sales, the ledger cancels the most.
func whenLost(p *plan) {
	p.users, p.total, p.keys = 4, min(p.total, 2), 2
	p.losses, p.failovers, p.lossPerMille = max(p.losses, 1), 1, 100
	p.messageLosses, p.restocks = 0, 0
	p.reconcilers, p.roundEvery = 2, 2*time.Second
}

// twoMasters has a master go on after its replica was promoted, while a load reads what
// was settled.
func twoMasters(p *plan) {
	p.losses, p.failovers, p.duringLoad, p.unreplicated = 2, 3, true, true
	p.messageLosses, p.restocks, p.lossPerMille, p.kills, p.lease = 0, 0, 0, 0, 0
	p.users, p.devices, p.keys, p.total, p.reconcilers, p.roundEvery, p.length = 6, 2, 3, 60, 1, 300*time.Millisecond, 40*time.Second
}

// stragglers has check-backs asked early and often, and answered late.
func stragglers(p *plan) {
	p.losses, p.failovers, p.lossPerMille, p.restocks, p.messageLosses = 1, 0, 60, 0, 0
	p.stallOnly, p.stallPerMille = "check-back", 300
	p.checkAfter, p.checkEvery = 50*time.Millisecond, 400*time.Millisecond
	p.reconcilers, p.roundEvery = 2, 2*time.Second
}

// forgetful has failovers take what nobody waits for, and shoppers cancel while workers
// stand still.
func forgetful(p *plan) {
	p.failovers, p.unreplicated, p.cancels, p.losses = 2, true, true, 0
	p.stallOnly, p.stallPerMille = "consumer", 300
	p.reconcilers, p.roundEvery = 2, 2*time.Second
}

// cutting has an operator cut the total of a sale that sells out, and failovers.
func cutting(p *plan) {
	p.users, p.total, p.devices, p.triesMax, p.keys = 4, 4, 2, 2, 1
	p.failovers, p.unreplicated, p.losses, p.messageLosses = 2, false, 0, 0
	p.restocks, p.cuts, p.lossPerMille = 3, true, 100
	p.length, p.roundEvery = 10*time.Second, 10*time.Second
}

// failing has failovers over bad connections, and shoppers who ask again and again.
func failing(p *plan) {
	p.users, p.devices, p.keys, p.triesMax = 3, 2, 1, 2
	p.failovers, p.unreplicated, p.lossPerMille, p.losses = 2, false, 100, 0
	p.retryWithin, p.checkAfter, p.checkEvery = 500*time.Millisecond, 300*time.Millisecond, time.Second
	p.length = 8 * time.Second
}

// killing has processes die.
func killing(p *plan) {
	p.kills, p.losses, p.failovers, p.messageLosses, p.lossPerMille = 3, 0, 0, 0, 60
	p.length = 5 * time.Second
}

// sellingOut has many shoppers come back at once for what is sold out, and sometimes is
// not.
func sellingOut(p *plan) {
	p.users, p.total, p.devices, p.triesMax, p.keys = 3, 1, 4, 4, 1
	p.losses, p.messageLosses, p.restocks, p.cuts, p.cancels = 0, 0, 3, false, false
	p.lossPerMille, p.retryWithin, p.length, p.ends = 60, 300*time.Millisecond, 4*time.Second, time.Hour
	p.lease = 2 * time.Second
}

// sellingOutLate is the same while those who keep the lease stand still for longer than it.
func sellingOutLate(p *plan) {
	sellingOut(p)
	p.lease, p.stallOnly, p.stallPerMille = 300*time.Millisecond, "keeper", 150
}

// sellingOutAnew is the same while Redis fails over.
func sellingOutAnew(p *plan) {
	sellingOut(p)
	p.failovers, p.unreplicated = 2, false
}

// patch replaces text of a script, or ("") of every one that has it.
type patch struct{ script, old, new string }

func (p *patch) applies(name string) bool { return p.script == "" || p.script == name }

// faults are the mistakes in steps.
type faults struct {
	answerEarly      bool // 202 before confirm is known
	noWait           bool // nobody waits for the replica
	commitUnknown    bool // a check-back commits a batch that Redis does not know
	absentIsSettled  bool // a waiter takes an absent batch for a settled one
	settleOnce       bool // nobody settles what a worker failed to settle
	ignoreDuplicates bool // the ledger skips rows, and locks their units
	copyTotals       bool // stock is set from two stores in flight
	restockTwice     bool // a restock with an unknown outcome is added again
	cutUnreplicated  bool // the ledger takes a cut that the replica may not have
	epochFromOne     bool // epochs start again at 1
	ledgerBeforeBus  bool // a rebuild reads the ledger first
	checkAnyTime     bool // a check-back is answered however late
	oldMasterSettles bool // a load takes for settled what a master that was cut off has settled
	ackBeforeCommit  bool // a worker acknowledges what it has not committed yet

	leaseUnreplicated bool // a sold-out lease counts without the replica
	leaseFromReply    bool // it counts from when the gateway hears of it
	buyersFirst       bool // the buyers are read before there is a lease
	buyersOnce        bool // they are taken for the same whatever the mark
}

const (
	notLoadedGuard = "if redis.call('EXISTS', stock) == 0 then return NOT_READY end"
	writeVoid      = "redis.call('HSET', batches, batch, 'V' .. now_ms())"
)

// Bugs are all that can be planted. TestSimulationFindsPlantedBugs finds each.
var Bugs = []Bug{
	{Name: "answer before confirm is known", faults: faults{answerEarly: true}},
	{Name: "sweep without VOID", patches: []patch{{"release", "  move(stock, meta, 0 - back)\n  " + writeVoid, "  move(stock, meta, 0 - back)"}}},
	{Name: "no WAIT before the 202", faults: faults{noWait: true}},
	{Name: "check-back commits every unknown batch", faults: faults{commitUnknown: true}, focus: failing},
	{Name: "confirm does not look at the buyer's record", patches: []patch{{"confirm", "if named(buyers, orders, batch) then", "if false then"}}},
	{Name: "a waiter takes absent for settled", faults: faults{absentIsSettled: true}, focus: failing},
	{Name: "settle tried once", faults: faults{settleOnce: true}},
	{Name: "give-back by count, not by record", patches: []patch{{"restore", "if state == RETURNED then return 0 end", ""}}},
	{Name: "restore forgets absent orders", patches: []patch{{"restore", "  redis.call('HSET', buyers, user, records .. RETURNED .. entry .. batch)\n", ""}}, focus: forgetful},
	{Name: "insert-ignore locks units for skipped rows", faults: faults{ignoreDuplicates: true}},
	{Name: "a total repaired from two stores in flight", faults: faults{copyTotals: true}},
	{Name: "scripts act on an unloaded sale", patches: []patch{{"", notLoadedGuard, ""}}},
	{Name: "dedup after stock", patches: []patch{{"reserve", "  if from then\n", "  if from and want <= left - units then\n"}}},
	{Name: "limit before replay", patches: []patch{{"reserve", "  if from then\n", "  if from and held + want <= limit then\n"}}},
	{Name: "a restock applied twice", faults: faults{restockTwice: true}},
	{Name: "the ledger takes a cut that the replica has not", faults: faults{cutUnreplicated: true}, focus: cutting},
	{Name: "a load over a loaded sale", patches: []patch{{"load", "if redis.call('EXISTS', stock) == 1 then return LOADED end", ""}}, focus: whenLost},
	{Name: "an epoch that starts again at 1", faults: faults{epochFromOne: true}},
	{Name: "a rebuild reads the ledger before the bus", faults: faults{ledgerBeforeBus: true}},
	{Name: "a load believes what an old master settled", faults: faults{oldMasterSettles: true}, focus: twoMasters},
	{Name: "a reserve lands on a VOID", patches: []patch{{"reserve", "if redis.call('HEXISTS', batches, batch) == 1 then return { BATCH_KNOWN } end", ""}}},
	{Name: "a worker acknowledges before it commits", faults: faults{ackBeforeCommit: true}, focus: killing},
	{Name: "a check-back answered after a rebuild that it does not know of", faults: faults{checkAnyTime: true}, focus: stragglers},
	{Name: "what is found done is not written again for WAIT", patches: []patch{{"", "  redis.call('HSET', key, field, value)\n", ""}}, focus: failing},
	{Name: "reserve sells during a sold-out lease", patches: []patch{{"reserve", "if left > 0 and known[2] and leased(meta, known[2], now, process()) > 0 then left = 0 end", ""}}, focus: sellingOut},
	{Name: "a sold-out lease that no replica has", faults: faults{leaseUnreplicated: true}, focus: sellingOutAnew},
	{Name: "a sold-out lease counted from its reply", faults: faults{leaseFromReply: true}, focus: sellingOutLate},
	{Name: "the buyers read before the lease", faults: faults{buyersFirst: true}, focus: sellingOut},
	{Name: "the buyers taken for the same ones", faults: faults{buyersOnce: true}, focus: sellingOutLate},
	{Name: "a load goes on after it lost steps", patches: []patch{{"load", "if now[3] + 1 ~= tonumber(number) then return MISSING end", ""}, {"load", "  if now[3] ~= number then return MISSING end\n", ""}}, focus: func(p *plan) {
		whenLost(p)
		p.duringLoad = true
	}},
}

// checkStock is what a check-back asks, until its time is over.
type checkStock struct {
	simStock
	until time.Duration
}

func (s checkStock) over() bool { return s.t.w.now > s.until && !s.t.w.faulty.checkAnyTime }

// Release implements purchase.CheckStock.
func (s checkStock) Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error) {
	if s.over() {
		return stock.StateAbsent, errNotRun
	}
	if s.t.w.faulty.commitUnknown {
		orders = nil
	}
	state, err := s.simStock.Release(ctx, saleID, batch, epoch, orders)
	if err == nil && orders == nil && state == stock.StateAbsent {
		return stock.StateSettled, nil
	}
	return state, err
}

// Adopt implements purchase.CheckStock.
func (s checkStock) Adopt(ctx context.Context, b *sale.Batch) (stock.State, error) {
	if s.over() {
		return stock.StateAbsent, errNotRun
	}
	return s.simStock.Adopt(ctx, b)
}

var _ purchase.CheckStock = checkStock{}

// pollBatches is the waiter that looks at the batch alone.
func (g *gateway) pollBatches(t *task, opens []replayed) ([]*attempt, []replayed) {
	c, err := simStock{t}.contents()
	var left []*attempt
	var met []replayed
	for _, o := range opens {
		state := stock.StateAbsent
		for _, b := range c.batches {
			if b.id == o.batch {
				state = b.state
			}
		}
		switch {
		case err != nil || state == stock.StateReserved:
			left, met = append(left, o.attempt), append(met, o)
		case state == stock.StateAbsent:
			o.attempt.reply(t.w, o.answer)
		default:
			o.attempt.reply(t.w, purchase.Answer{Code: sale.CodeOutcomeUnknown})
		}
	}
	return left, met
}

// copyTotal sets stock to what the two stores say, read one after the other.
func (w *world) copyTotal(t *task) {
	c, err := simStock{t}.contents()
	if err != nil {
		return
	}
	var inFlight int64
	for _, b := range c.batches {
		for _, o := range b.orders {
			inFlight += int64(o.Quantity)
		}
	}
	inv, err := t.inventory()
	if err != nil {
		return
	}
	drift := inv.available - inFlight - c.stock
	if drift == 0 {
		return
	}
	_ = t.call(callTimeout, func(reply func(error)) { // whoever repairs so does not look
		w.redis.serve(t.p.stale, false, func(m *memory) error {
			_, err := m.do(0, []string{"INCRBY", "stock", format(drift)})
			return err
		}, reply)
	})
}
