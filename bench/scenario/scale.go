package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Scale changes one thing at a time and measures: daemons, sales, connections, stock.
// An empty list leaves its thing out.
type Scale struct {
	Gateways, Workers, Sales, Connections, Stock []int

	Orders int           // of each point
	Buyers int           // of the one large sale; 0 = none
	Slices int           // of the one large sale
	Limit  time.Duration // no point begins later than this
}

const (
	maxDaemons   = 64
	maxScaleSale = 1_000_000_000 // units: what a sale may have
	scaleWarmup  = 2_000
)

// Check refuses what makes no sense.
func (sc *Scale) Check() error {
	within := func(list []int, most int) bool {
		return len(list) == 0 || slices.Min(list) >= 1 && slices.Max(list) <= most
	}
	switch {
	case !within(sc.Gateways, maxDaemons) || !within(sc.Workers, maxDaemons):
		return fmt.Errorf("--gateway-counts and --worker-counts: want 1–%d", maxDaemons)
	case !within(sc.Sales, sc.Orders) || !within(sc.Stock, maxScaleSale):
		return errors.New("--sales: want 1 or more, no more than --orders; --stock: what a sale may have")
	case sc.Limit <= 0 || sc.Slices < 1 || sc.Buyers < 0:
		return errors.New("--limit and --slices: want more than 0; --buyers: 0 or more")
	}
	return nil
}

// Shoppers is the most that a point has.
func (sc *Scale) Shoppers() int { return max(sc.Orders, sc.Buyers) }

// errLimit ends the points in good order.
var errLimit = errors.New("the time for it is over")

// Run is all points. One whose checks fail ends it; what was measured before stands.
func (sc *Scale) Run(ctx context.Context, o *system.Options, p *load.Progress) (*report.Report, error) {
	rep := report.New("scale", "")
	rep.Set("engines", o.Start)
	rep.Set("orders a point", sc.Orders)
	began := time.Now()
	err := sc.points(ctx, o, p, func(name string, o *system.Options, sys *system.System, r runner) error {
		if took := time.Since(began); took > sc.Limit {
			rep.Set("ended before", fmt.Sprintf("%s, after %s", name, took.Round(time.Second)))
			return errLimit
		}
		p.Step("point: %s, after %s", name, time.Since(began).Round(time.Second))
		run, err := r.Run(ctx, sys, o)
		if run != nil {
			run.Scenario = name
		}
		return keep(rep, run, err)
	})
	if errors.Is(err, errLimit) {
		err = nil
	}
	rep.Set("took", time.Since(began).Round(time.Second).String())
	return rep, err
}

// points calls measure for one point after the other, on a system of its own where the
// daemons change.
func (sc *Scale) points(ctx context.Context, o *system.Options, p *load.Progress, measure func(string, *system.Options, *system.System, runner) error) error {
	accept := func() *Accept { return &Accept{Name: "accept", Shoppers: sc.Orders, Sales: 1} }
	daemons := func(count int, of string, set func(*system.Options)) error {
		one := *o
		set(&one)
		return system.With(ctx, &one, p, "", func(sys *system.System) error {
			warm := accept()
			warm.Warmup = min(scaleWarmup, sc.Orders)
			return measure(fmt.Sprintf("%s: %d", of, count), &one, sys, warm)
		})
	}
	if o.Start == system.StartDaemons { // embedded, there is one of each
		for _, n := range sc.Gateways {
			if err := daemons(n, "gateways", func(o *system.Options) { o.GatewayCount = n }); err != nil {
				return err
			}
		}
		for _, n := range sc.Workers {
			if err := daemons(n, "workers", func(o *system.Options) { o.WorkerCount = n }); err != nil {
				return err
			}
		}
	}
	return system.With(ctx, o, p, "", func(sys *system.System) error {
		for _, n := range sc.Sales {
			of := accept()
			of.Sales = n
			if err := measure(fmt.Sprintf("sales: %d", n), o, sys, of); err != nil {
				return err
			}
		}
		for _, n := range sc.Connections {
			one := *o
			one.Connections = n
			if err := measure(fmt.Sprintf("connections: %d", n), &one, sys, accept()); err != nil {
				return err
			}
		}
		for _, n := range sc.Stock {
			of := &Sends{Name: "stock", Shoppers: sc.Orders, Total: n, Sends: 1}
			if err := measure(fmt.Sprintf("stock: %d", n), o, sys, of); err != nil {
				return err
			}
		}
		if sc.Buyers == 0 {
			return nil
		}
		return measure(fmt.Sprintf("buyers: %d", sc.Buyers), o, sys, &Growth{Buyers: sc.Buyers, Slices: sc.Slices})
	})
}
