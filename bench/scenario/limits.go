package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"flashgate/internal/limits"
)

// Limits is storms by turns with limits that are far out of reach and with limits that are
// near and not reached: what is left of the throughput is what holding requests against
// limits leaves. They are turned in the processes that run. In the end comes a rush that
// meets the panic profile.
type Limits struct {
	Shoppers int
	Repeat   int
	Panic    string // the profile's file
}

const (
	stormOff = "storm, limits far"
	stormOn  = "storm, limits near"
)

// nearLimits is how far above the fastest storm so far the near limits are: the next does
// not reach them, and Sentinel's rules, which are asked from half of their threshold on,
// are asked.
const nearLimits = 2.5

// blockedOfEach is how many users and networks the near limits block: others.
const blockedOfEach = 1000

// Check refuses what makes no sense.
func (li *Limits) Check(o *system.Options) error {
	switch {
	case li.Repeat < 1 || li.Repeat > maxRepeat:
		return fmt.Errorf("want 1–%d repeats", maxRepeat)
	case o.Start == system.StartNone:
		return errors.New("limits starts the processes itself: --start daemons, embedded or auto")
	case o.Limits != system.LimitsRaised:
		return errors.New("limits turns the limits itself: --limits raised")
	}
	return nil
}

// Run is the run. What is in the report up to an error stands.
func (li *Limits) Run(ctx context.Context, o *system.Options, p *load.Progress) (*report.Report, error) {
	rep := report.New("limits", "")
	rep.Set("repeats", li.Repeat)
	rep.Set("near limits", fmt.Sprintf("%g × the rate of the fastest storm so far", nearLimits))
	err := system.With(ctx, o, p, "", func(sys *system.System) error {
		far, err := sys.Limits()
		if err != nil {
			return err
		}
		first, err := li.storm("storm, warming up").Run(ctx, sys, o)
		if err = keep(rep, first, err); err != nil {
			return err
		}
		fastest := first.Value(FigureAnswers)
		for n := range li.Repeat {
			for turn := range 2 {
				name, rules := stormOff, far
				if (turn+n)%2 == 1 { // neither is always the first
					name, rules = stormOn, nearTo(far, nearLimits*fastest, len(sys.Gateways))
				}
				p.Step("repeat %d of %d: %s", n+1, li.Repeat, name)
				if err := sys.Tune(ctx, rules); err != nil {
					return err
				}
				run, err := li.storm(name).Run(ctx, sys, o)
				if err := keep(rep, run, err); err != nil {
					return err
				}
				fastest = max(fastest, run.Value(FigureAnswers))
			}
		}
		run, err := li.panics(ctx, sys, o)
		return keep(rep, run, err)
	})
	if err != nil {
		return rep, err
	}
	sheet := rep.Sheet()
	off, _ := report.Of(sheet, stormOff+" · "+FigureAnswers)
	on, _ := report.Of(sheet, stormOn+" · "+FigureAnswers)
	rep.Figures = append(rep.Figures, report.Figure{
		Name: "limits near ÷ far", Value: on.Median() / off.Median(), Unit: "×", Target: report.AtLeast(0.9, 0.97),
	})
	return rep, nil
}

// panics is everyone at once, twice, for a sale with a unit for each, under the panic
// profile as it ships: to it, all shoppers of this machine are one address.
func (li *Limits) panics(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	const name = "panic"
	rules, err := limits.Load(li.Panic)
	if err != nil {
		return nil, err
	}
	rep := report.New(name, system.NewSaleID(name))
	shoppers, err := sys.Prepare(ctx, li.Shoppers, system.Sale{ID: rep.Sale, Total: li.Shoppers})
	if err != nil {
		return nil, err
	}
	sys.Progress.Step("%s: %d shoppers, twice", name, li.Shoppers)
	if err := sys.Tune(ctx, rules); err != nil {
		return nil, err
	}
	l := &load.Load{
		Addrs: sys.Gateways, Connections: o.Connections, Requests: 2 * len(shoppers), Timeout: sys.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, &shoppers[i%len(shoppers)])
		},
		Read: load.ReadPurchase,
	}
	rec, err := l.Run(ctx, sys.Progress)
	if err != nil {
		return nil, err
	}
	if rec.Stopped {
		return nil, ctx.Err()
	}
	shed := 0
	for i := range rec.Answers {
		switch rec.Answers[i].Status {
		case http.StatusTooManyRequests:
			shed++
		case http.StatusAccepted:
		default:
			rep.Breaches.Add(ruleShed, "%d", rec.Answers[i].Status)
		}
	}
	rep.Answered(rec)
	rep.Figures = append(rep.Figures, report.Figure{
		Name: "shed", Value: hundred * float64(shed) / float64(len(rec.Answers)), Unit: "%", Target: report.AtLeast(99, 99.9),
	})
	rep.Figure(FigureAnswers, float64(len(rec.Answers))/rec.Took.Seconds(), "/s")
	rep.Latency("let in", rec.Answers, func(a *load.Answer) bool { return a.Status == http.StatusAccepted })
	return rep, nil
}

// ruleShed is what a rush under the panic profile is held to.
const ruleShed = "a shopper is let in or told to wait"

func (li *Limits) storm(name string) *Sends {
	st := NewStorm(li.Shoppers)
	st.Name = name
	return st
}

// nearTo is limits of rate requests a second in all, with every kind of limit on: a
// client's address stands for all of them here. Users are held to what is shipped.
func nearTo(far *limits.Rules, rate float64, gateways int) *limits.Rules {
	r := *far
	one := rate / float64(gateways)
	bucket := limits.Bucket{Rate: one, Burst: max(1, int(one))}
	for _, p := range []*limits.PerClass{&r.Gateway, &r.Address, &r.Sale} {
		p.Purchase = bucket
	}
	r.User.Purchase = limits.Bucket{Rate: 10, Burst: 20}
	r.Flow.PurchaseQPS, r.Hotspot.PurchaseQPS, r.System.InboundQPS = one, one, one
	r.Cluster = limits.Cluster{
		Enabled: true, Gateways: gateways,
		Purchase: limits.Bucket{Rate: rate, Burst: max(1, int(rate))}, Read: far.Cluster.Read,
	}
	r.Proxies.Trusted = []string{"192.0.2.0/24"}
	for i := range blockedOfEach {
		r.Block.Users = append(r.Block.Users, fmt.Sprint("blocked-", i))
		r.Block.Addresses = append(r.Block.Addresses, fmt.Sprintf("198.18.%d.%d", i/256, i%256))
	}
	return &r
}
