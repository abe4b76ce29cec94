package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/plant"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Drift is a run in which differences of every kind are planted in a sale that sells, and
// reconciled.
type Drift struct {
	Sizes     []int   // orders of each kind, one round after the other
	Rate      float64 // purchases a second, all the while
	Longest   time.Duration
	Watermark time.Duration
	Last      int // units that are left for a storm in the end
}

// The rules that a reconcile of a drifted sale is held to.
const (
	ruleFound    = "a reconcile finds and names every difference [4]"
	ruleRepaired = "a reconcile repairs every difference"
	ruleSecond   = "a second reconcile finds nothing"
	ruleTakenUp  = "what was cancelled stays so, and nothing else is"
)

const (
	spareBatch    = 128 // orders more than planted, where whole batches are taken: batch.max as it ships
	fuseShare     = 100 // the fuse blows above 1 % of a sale's units: reconciler.fuse_percent
	stormAUnit    = 5   // shoppers who ask for one of the last units
	maxDriftOrder = 20_000
)

// Check refuses what makes no sense.
func (d *Drift) Check() error {
	switch {
	case len(d.Sizes) == 0 || slices.Min(d.Sizes) < 1 || slices.Max(d.Sizes) > maxDriftOrder:
		return fmt.Errorf("--orders: want numbers of 1 to %d", maxDriftOrder)
	case d.Rate <= 0 || d.Longest <= 0:
		return errors.New("--rate and --longest: want more than 0")
	case d.Watermark < time.Second:
		return errors.New("--watermark: want 1s or more")
	case d.Last < 1:
		return errors.New("--last: want 1 or more")
	}
	return nil
}

// first is how many orders the plants need.
func (d *Drift) first() (n int) {
	for _, p := range plant.Plants {
		for _, size := range d.Sizes {
			switch p.Takes {
			case plant.SomeOrders:
				n += size
			case plant.WholeBatches:
				n += size + spareBatch
			}
		}
	}
	return n
}

func (d *Drift) steady() int { return int(d.Rate * d.Longest.Seconds()) }

// Shoppers is how many the run needs at most.
func (d *Drift) Shoppers() int { return d.first() + d.steady() + stormAUnit*d.Last }

// units are enough that no fuse blows, and for everyone.
func (d *Drift) units() int {
	moved := 0
	for _, p := range plant.Plants {
		moved += p.Units * slices.Max(d.Sizes)
	}
	return d.Shoppers() + fuseShare*moved
}

// planted is what became of one plant.
type planted struct {
	*plant.Plant
	orders []plant.Order
	want   int64 // differences
	found  int64
}

// Run is the run.
func (d *Drift) Run(ctx context.Context, sys *system.System, o *system.Options) (rep *report.Report, err error) {
	rep = report.New("drift", system.NewSaleID("drift"))
	rep.Set("orders of each kind", fmt.Sprint(d.Sizes))
	rep.Set("rate", fmt.Sprintf("%g/s", d.Rate))
	config, err := system.WriteConfig(sys.Config, sys.Dir, "reconcile.yaml", system.Setup{Watermark: d.Watermark.String()})
	if err != nil {
		return nil, err
	}
	reconciler := *sys
	reconciler.Config = config
	sale := system.Sale{ID: rep.Sale, Total: d.units()}
	shoppers, err := sys.Prepare(ctx, d.Shoppers(), sale)
	if err != nil {
		return nil, err
	}
	first, rest := shoppers[:d.first()], shoppers[d.first():]
	steady, last := rest[:d.steady()], rest[d.steady():]
	sys.Progress.Step("selling %d units first", len(first))
	rec, err := sys.Purchases(first, o.Connections, 0).Run(ctx, sys.Progress)
	if err != nil {
		return nil, err
	}
	orders, _, err := placedInTheEnd(ctx, sys, rep, rec, first)
	if err != nil {
		return rep, err
	}
	if _, bs, err := sys.Drain(ctx, slices.Clone(orders), o.Drain); err != nil || len(bs) > 0 {
		rep.Breaches = append(rep.Breaches, bs...)
		return rep, err
	}
	if !load.SleepUntil(ctx, time.Now().Add(d.Watermark)) {
		return rep, ctx.Err()
	}

	hand, err := plant.Open(sale.ID, sys.Secret(system.EnvMySQLDSN), sys.Redis())
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, hand.Close()) }()
	all, err := hand.Orders(ctx)
	if err != nil {
		return rep, err
	}
	selling, stop := context.WithCancel(ctx)
	defer stop()
	sold := make(chan error, 1)
	go func() {
		var err error
		rec, err = sys.Purchases(steady, reconcileConnections, d.Rate).Run(selling, sys.Progress)
		sold <- err
	}()
	var cancelled []plant.Order
	for _, size := range d.Sizes {
		var plants []planted
		if plants, all, err = d.round(ctx, &reconciler, rep, hand, all, size); err != nil {
			break
		}
		for _, p := range plants {
			if p.Cancels {
				cancelled = append(cancelled, p.orders...)
			}
			if p.Kind == "TOTAL_DIFFERS" {
				sale.Total += size
			}
		}
	}
	stop()
	if err := errors.Join(err, <-sold, ctx.Err()); err != nil {
		return rep, err
	}
	if !rec.Stopped {
		return rep, fmt.Errorf("the reconciles took longer than --longest %s", d.Longest)
	}
	found, err := allPlaced(rep, rec, steady)
	if err != nil {
		return rep, err
	}
	orders = append(orders, found...)
	if n, err := hand.Cancelled(ctx, cancelled); err != nil {
		return rep, err
	} else if n != len(cancelled) {
		rep.Breaches.Add(ruleTakenUp, "%d of %d orders", n, len(cancelled))
	}
	orders = without(orders, cancelled)

	storm, err := d.sellOut(ctx, sys, rep, &sale, len(orders), last)
	if err != nil {
		return rep, err
	}
	orders = append(orders, storm...)
	after, bs, err := sys.Settle(ctx, o, []system.Sale{sale}, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, len(orders))
	rep.Latency("202", rec.Answers, func(a *load.Answer) bool { return a.Status == http.StatusAccepted })
	rep.Figure("sold meanwhile", float64(len(found)), "orders: everyone who asked")
	rep.Figure("sold in the end", float64(len(storm)), "orders, of as many units, to a storm")
	return rep, nil
}

// round plants every kind and reconciles twice. It returns what is left of the orders.
func (d *Drift) round(ctx context.Context, sys *system.System, rep *report.Report, hand *plant.Sale, all []plant.Order, size int) (plants []planted, rest []plant.Order, err error) {
	sys.Progress.Step("planting %d of each of %d kinds", size, len(plant.Plants))
	before, err := hand.LastReport(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range plant.Plants {
		p := planted{Plant: &plant.Plants[i]}
		if p.orders, all, err = deal(p.Takes, all, size); err != nil {
			return nil, nil, err
		}
		p.want = p.Found(p.orders, size)
		if err := p.Make(ctx, hand, p.orders, size); err != nil {
			return nil, nil, fmt.Errorf("planting %s: %w", p.Name, err)
		}
		plants = append(plants, p)
	}
	sys.Progress.Step("reconciling")
	reconciled, err := reconcileOnce(ctx, sys, hand.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("%w\n%.2000s", err, reconciled.report)
	}
	// The reconciler that runs may have come before, on its own account.
	reported, err := hand.Reported(ctx, before)
	if err != nil {
		return nil, nil, err
	}
	for i := range plants {
		p := &plants[i]
		c := reported[p.Kind]
		p.found = c.Found
		if p.Help {
			p.found = c.Helped
		}
		if p.found < p.want && !p.Round {
			rep.Breaches.Add(ruleFound, "%s, %d of each: %d of %d", p.Kind, size, p.found, p.want)
		}
		if c.Left > 0 {
			rep.Breaches.Add(ruleRepaired, "%s, %d of each: %d left", p.Kind, size, c.Left)
		}
	}
	sys.Progress.Step("reconciling again")
	again, err := reconcileOnce(ctx, sys, hand.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("%w\n%.2000s", err, again.report)
	}
	if again.found > 0 || again.helped > 0 {
		rep.Breaches.Add(ruleSecond, "%d of each: found %d, helped with %d: %.1500s", size, again.found, again.helped, again.report)
	}
	rep.Figure(fmt.Sprintf("reconcile, %d of each", size), reconciled.Took.Seconds(), "s")
	rep.Figure(fmt.Sprintf("the second, %d of each", size), again.Took.Seconds(), "s, nothing found")
	if size == slices.Max(d.Sizes) {
		for i := range plants {
			p := &plants[i]
			unit := fmt.Sprintf("found, of %d: %s", p.want, p.Name)
			if p.Round {
				unit += " (mended by the next round, if that comes first)"
			}
			rep.Figure(p.Kind, float64(p.found), unit)
		}
	}
	return plants, all, nil
}

// deal takes orders for a plant off those that are sorted by batch, smaller ones first:
// whole batches from the front, others from the back.
func deal(takes plant.Takes, all []plant.Order, size int) (dealt, rest []plant.Order, err error) {
	n := size
	switch takes {
	case plant.Nothing:
		return nil, all, nil
	case plant.SomeOrders:
		if n > len(all) {
			return nil, nil, errors.New("BUG: too few orders for the plants")
		}
		return all[len(all)-n:], all[:len(all)-n], nil
	}
	for n < len(all) && all[n].Batch == all[n-1].Batch {
		n++
	}
	if n >= len(all) {
		return nil, nil, fmt.Errorf("the batches are too large to plant: this run wants batch.max of no more than %d", spareBatch)
	}
	return all[:n], all[n:], nil
}

// without is the orders but for some.
func without(orders []system.Placed, some []plant.Order) []system.Placed {
	gone := make(map[int64]bool, len(some))
	for i := range some {
		gone[some[i].ID] = true
	}
	return slices.DeleteFunc(orders, func(p system.Placed) bool { return gone[p.Order] })
}

// sellOut cuts the sale's total to a few units more than are sold, and has a storm buy
// these: a unit that a repair made up or forgot would be sold, or missing, now.
func (d *Drift) sellOut(ctx context.Context, sys *system.System, rep *report.Report, sale *system.Sale, sold int, storm []load.Shopper) ([]system.Placed, error) {
	sys.Progress.Step("a storm of %d shoppers for the last %d units", len(storm), d.Last)
	if err := sys.Restock(ctx, sale, sold, d.Last); err != nil {
		return nil, err
	}
	rec, err := sys.Purchases(storm, reconcileConnections, 0).Run(ctx, sys.Progress)
	if err != nil {
		return nil, err
	}
	if rec.Stopped {
		return nil, ctx.Err()
	}
	rep.Breaches = append(rep.Breaches, checkSends(rec.Answers, 1, rec.Kinds, d.Last)...)
	if len(rep.Breaches) > 0 {
		rep.Answered(rec)
		return nil, report.ErrBroken
	}
	return ordersOf(rec.Answers, storm), nil
}
