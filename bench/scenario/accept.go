package scenario

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"flashgate/bench/usage"
)

// Accept is a run in which every shopper gets a unit.
type Accept struct {
	Name     string
	Shoppers int
	Sales    int           // they are spread over so many
	Rate     float64       // purchases a second; 0 = closed loop
	Duration time.Duration // ends it early; 0 = when all have sent
	Warmup   int           // shoppers who buy in a sale of their own before the clock starts
}

// Check refuses what makes no sense.
func (ac *Accept) Check() error {
	if ac.Sales < 1 || ac.Sales > ac.Shoppers || ac.Rate < 0 {
		return errors.New("want sales, no more of them than shoppers, and no negative rate")
	}
	return nil
}

// Names of figures that others are held against.
const (
	FigureAccepted  = "accepted"
	FigurePersisted = "persisted"
	FigureBurst     = "burst"
	FigureDrain     = "drain"
	FigureMemory    = "Redis memory"
)

// Run is the run.
func (ac *Accept) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	if ac.Warmup > 0 {
		sys.Progress.Step("warming up: %d purchases", ac.Warmup)
		warm := *ac
		warm.Duration = 0
		_, _, watch, err := warm.send(ctx, sys, o, system.NewSales(system.NewSaleID("warmup"), 1, ac.Warmup), ac.Warmup)
		if err != nil {
			return nil, err
		}
		watch.Stop()
	}
	rep := report.New(ac.Name, system.NewSaleID(ac.Name))
	rep.Set("shoppers", ac.Shoppers)
	rep.Set("sales", ac.Sales)
	setLoop(rep, o, ac.Rate)
	rep.Set("gateways", len(sys.Gateways))
	rep.Set("warm-up", ac.Warmup)
	if ac.Duration > 0 {
		rep.Set("duration", ac.Duration.String())
	}

	sales := system.NewSales(rep.Sale, ac.Sales, (ac.Shoppers+ac.Sales-1)/ac.Sales)
	rec, shoppers, watch, err := ac.send(ctx, sys, o, sales, ac.Shoppers)
	if err != nil {
		return nil, err
	}
	defer watch.Stop()
	answers, again, err := askAgain(ctx, sys, shoppers, rec)
	if err != nil {
		return nil, err
	}
	rep.Answered(rec)
	rep.Set("asked again", again)
	cut := ac.Duration > 0 && rec.Took >= ac.Duration
	rep.Breaches = checkAccept(answers, rec.Kinds, cut)
	orders := distinct(answers, func(i int) *load.Shopper { return &shoppers[i] })
	accepted := func(a *load.Answer) bool { return a.Status == http.StatusAccepted }
	first := countOf(rec.Answers, accepted)
	if first == 0 {
		return rep, errors.New("no purchase was accepted")
	}
	after, bs, err := sys.Settle(ctx, o, sales, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, len(orders))

	// The rate is of what was accepted at the first send, up to the last of those:
	// no refusal counts, nor the pauses before someone asks again.
	burst := lastAccepted(rec.Answers)
	whole := after.Drained.Sub(rec.Began)
	rep.Figure(FigureAccepted, float64(first)/burst.Seconds(), "/s")
	rep.Figure(FigurePersisted, float64(len(orders))/whole.Seconds(), "/s, from the first send until drained")
	rep.Figure(FigureBurst, burst.Seconds(), "s")
	rep.Figure(FigureDrain, max(0, (whole-lastAccepted(answers)).Seconds()), "s after the last 202")
	rep.Latency("202", rec.Answers, accepted)
	rep.Throughput(rec)
	rep.Took(watch.Between(rec.Began, after.Drained), len(orders))
	bytes, err := sys.RedisBytes(ctx, sales)
	if bytes > 0 {
		rep.Figure(FigureMemory, float64(bytes)/float64(len(orders)), "B a settled order")
	}
	return rep, err
}

const (
	// AskAgainRounds and the pause before each: 503 carries Retry-After: 1.
	AskAgainRounds      = 5
	askAgainPauseMillis = 1000
)

// askAgain does as the API tells those who were answered 503: ask again with the
// same key, which finds out. It returns everyone's last answer, with times from the
// start of rec's load, and how many times someone asked again.
func askAgain(ctx context.Context, sys *system.System, shoppers []load.Shopper, rec *load.Recording) (last []load.Answer, asked int, err error) {
	last = slices.Clone(rec.Answers)
	for range AskAgainRounds {
		var who []int
		for s := range last {
			if last[s].Status == http.StatusServiceUnavailable {
				who = append(who, s)
			}
		}
		if len(who) == 0 {
			return last, asked, nil
		}
		sys.Progress.Step("%d shoppers were answered 503 and ask again with their keys", len(who))
		select {
		case <-ctx.Done():
			return last, asked, ctx.Err()
		case <-time.After(askAgainPauseMillis * time.Millisecond):
		}
		l := &load.Load{
			Addrs:       sys.Gateways,
			Connections: min(len(who), system.LookUpConnections),
			Requests:    len(who),
			Timeout:     sys.Timeout,
			Kinds:       rec.Kinds,
			Build: func(buf []byte, addr string, i int) []byte {
				return load.AppendPurchase(buf, addr, &shoppers[who[i]])
			},
			Read: load.ReadPurchase,
		}
		more, err := l.Run(ctx, sys.Progress)
		if err != nil {
			return last, asked, err
		}
		if more.Stopped {
			return last, asked, ctx.Err()
		}
		asked += len(who)
		for i, s := range who {
			a := more.Answers[i]
			a.DoneNanos += int64(more.Began.Sub(rec.Began))
			a.Replayed = false // as it may be: of OUTCOME_UNKNOWN, the first send has bought
			last[s] = a
		}
	}
	return last, asked, nil
}

func countOf(answers []load.Answer, chosen func(*load.Answer) bool) (n int) {
	for i := range answers {
		if chosen(&answers[i]) {
			n++
		}
	}
	return n
}

// send opens sales with a unit for everyone and has everyone buy. What the processes take
// is watched from then on.
func (ac *Accept) send(ctx context.Context, sys *system.System, o *system.Options, sales []system.Sale, n int) (*load.Recording, []load.Shopper, *usage.Watch, error) {
	shoppers, err := sys.Prepare(ctx, n, sales...)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := sys.Quiet(ctx); err != nil {
		return nil, nil, nil, err
	}
	sys.Progress.Step("%s: %d shoppers for as many units", ac.Name, n)
	l := sys.Purchases(shoppers, o.Connections, ac.Rate)
	l.Duration = ac.Duration
	watch := sys.Watch()
	rec, err := l.Run(ctx, sys.Progress)
	if err == nil && rec.Stopped {
		err = ctx.Err()
	}
	if err != nil {
		watch.Stop()
	}
	return rec, shoppers, watch, err
}

// lastAccepted is when the last 202 came, from the start of the load.
func lastAccepted(answers []load.Answer) time.Duration {
	var last int64
	for i := range answers {
		if a := &answers[i]; a.Status == http.StatusAccepted {
			last = max(last, a.DoneNanos)
		}
	}
	return time.Duration(last)
}
