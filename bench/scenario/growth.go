package scenario

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"flashgate/bench/usage"
)

// Growth sells to so many buyers in one sale, slice by slice: what a purchase costs must
// not depend on how many came before.
type Growth struct {
	Buyers int
	Slices int
}

// slice is what one slice took.
type slice struct {
	accepted float64 // a second
	micros   float64 // of processors, of all but the driver, a purchase
	by       []usage.Usage
}

// Run is the run.
func (g *Growth) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	each := max(1, g.Buyers/g.Slices)
	sale := system.Sale{ID: system.NewSaleID("growth"), Total: each * g.Slices}
	rep := report.New(fmt.Sprintf("growth, %d buyers", sale.Total), sale.ID)
	rep.Set("buyers", sale.Total)
	rep.Set("slices", g.Slices)
	setLoop(rep, o, 0)
	if err := sys.Open(ctx, sale); err != nil {
		return nil, err
	}
	parts := make([]slice, g.Slices)
	drained := time.Now()
	var answers []load.Answer
	for n := range parts {
		sys.Progress.Step("growth: slice %d of %d", n+1, g.Slices)
		// A slice's buyers are gone with it: a million tokens are not kept.
		shoppers, err := sys.NewShoppers(ctx, each, sale)
		if err != nil {
			return rep, err
		}
		watch := sys.Watch()
		rec, err := sys.Purchases(shoppers, o.Connections, 0).Run(ctx, sys.Progress)
		watch.Stop()
		if err != nil {
			return rep, err
		}
		orders, err := allPlaced(rep, rec, shoppers)
		if err != nil {
			return rep, err
		}
		at, bs, err := sys.Drain(ctx, orders, o.Drain)
		rep.Breaches = append(rep.Breaches, bs...)
		if err != nil || len(bs) > 0 {
			return rep, err
		}
		drained = at
		by := slices.DeleteFunc(watch.Between(rec.Began, rec.Began.Add(rec.Took)), func(u usage.Usage) bool {
			return u.Name == "driver" || u.Name == usage.Stolen.Name // no purchase costs these
		})
		cpu := 0.0
		for _, u := range by {
			cpu += u.CPUSeconds
		}
		parts[n] = slice{accepted: float64(each) / rec.Took.Seconds(), micros: cpu * 1e6 / float64(each), by: by}
		answers = append(answers, rec.Answers...)
	}
	after, bs, err := sys.Verify(ctx, o, []system.Sale{sale}, map[string]int{sale.ID: sale.Total}, drained)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, sale.Total)
	for n, s := range parts {
		rep.Figure(fmt.Sprintf("accepted, after %d", n*each), s.accepted, "/s")
		rep.Figure(fmt.Sprintf("CPU, after %d", n*each), s.micros, "µs a purchase, driver left out")
	}
	first, last := parts[0], parts[len(parts)-1]
	if first.micros > 0 {
		rep.Figure("CPU of the last slice ÷ the first", last.micros/first.micros, "×")
	}
	for i, u := range first.by {
		if i < len(last.by) && last.by[i].Name == u.Name {
			rep.Figure("CPU "+u.Name+", last slice", last.by[i].CPUSeconds*1e6/float64(each), "µs a purchase")
			rep.Figure("CPU "+u.Name+", first slice", u.CPUSeconds*1e6/float64(each), "µs a purchase")
		}
	}
	rep.Latency("202", answers, func(a *load.Answer) bool { return a.Status == http.StatusAccepted })
	return rep, nil
}
