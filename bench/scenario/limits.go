package scenario

import (
	"context"
	"errors"
	"fmt"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"flashgate/internal/limits"
)

// Limits is storms by turns with limits that are far out of reach and with limits that are
// near and not reached: what is left of the throughput is what holding requests against
// limits leaves. They are turned in the processes that run.
type Limits struct {
	Shoppers int
	Repeat   int
}

const (
	stormOff = "storm, limits far"
	stormOn  = "storm, limits near"
)

// nearLimits is how far above a first storm's rate the near limits are: a storm of warm
// processes does not reach them, and Sentinel's rules, which are asked from half of their
// threshold on, are asked.
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
	rep.Set("near limits", fmt.Sprintf("%g × the rate of a first storm", nearLimits))
	err := system.With(ctx, o, p, "", func(sys *system.System) error {
		far, err := sys.Limits()
		if err != nil {
			return err
		}
		first, err := li.storm("storm, warming up").Run(ctx, sys, o)
		if err = keep(rep, first, err); err != nil {
			return err
		}
		sheet := rep.Sheet()
		rate, _ := report.Of(sheet, first.Scenario+" · "+FigureAnswers)
		near := nearTo(far, nearLimits*rate.Median(), len(sys.Gateways))
		for n := range li.Repeat {
			for turn := range 2 {
				name, rules := stormOff, far
				if (turn+n)%2 == 1 { // neither is always the first
					name, rules = stormOn, near
				}
				p.Step("repeat %d of %d: %s", n+1, li.Repeat, name)
				if err := sys.Tune(ctx, rules); err != nil {
					return err
				}
				run, err := li.storm(name).Run(ctx, sys, o)
				if err := keep(rep, run, err); err != nil {
					return err
				}
			}
		}
		return nil
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
