package scenario

import (
	"context"
	"errors"
	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Accept is a run in which every shopper gets a unit.
type Accept struct {
	Shoppers int
	Duration time.Duration // ends it early; 0 = when all have sent
	Warmup   int           // shoppers who buy in a sale of their own before the clock starts
}

func (ac *Accept) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	if ac.Warmup > 0 {
		sys.Progress.Step("warming up: %d purchases", ac.Warmup)
		if _, _, err := ac.send(ctx, sys, o, system.NewSaleID("warmup"), ac.Warmup, 0); err != nil {
			return nil, err
		}
	}
	rep := report.New("accept", system.NewSaleID("accept"))
	rep.Set("shoppers", ac.Shoppers)
	rep.Set("connections", o.Connections)
	rep.Set("gateways", len(sys.Gateways))
	rep.Set("warm-up", ac.Warmup)
	if ac.Duration > 0 {
		rep.Set("duration", ac.Duration.String())
	}

	rec, shoppers, err := ac.send(ctx, sys, o, rep.Sale, ac.Shoppers, ac.Duration)
	if err != nil {
		return nil, err
	}
	answers, again, err := askAgain(ctx, sys, rep.Sale, shoppers, rec)
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
	after, bs, err := sys.Settle(ctx, o, rep.Sale, orders, ac.Shoppers)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = after.Audit
	rep.Set("audited", fmt.Sprintf("%d of %d orders across both stores", after.Compared, len(orders)))

	// The rate is of what was accepted at the first send, up to the last of those:
	// no refusal counts, nor the pauses before someone asks again.
	burst := lastAccepted(rec.Answers)
	whole := after.Drained.Sub(rec.Began)
	rep.Figure(FigureAccepted, float64(first)/burst.Seconds(), "/s")
	rep.Figure("persisted", float64(len(orders))/whole.Seconds(), "/s, from the first send until drained")
	rep.Figure("burst", burst.Seconds(), "s")
	rep.Figure("drain", (whole - lastAccepted(answers)).Seconds(), "s after the last 202")
	rep.Latency("202", rec.Answers, accepted)
	return rep, nil
}

const (
	// askAgainRounds and the pause before each: 503 carries Retry-After: 1.
	AskAgainRounds      = 5
	askAgainPauseMillis = 1000
)

// askAgain does as the API tells those who were answered 503: ask again with the
// same key, which finds out. It returns everyone's last answer, with times from the
// start of rec's load, and how many times someone asked again.
func askAgain(ctx context.Context, sys *system.System, saleID string, shoppers []load.Shopper, rec *load.Recording) (last []load.Answer, asked int, err error) {
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
				return load.AppendPurchase(buf, addr, saleID, &shoppers[who[i]])
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

const FigureAccepted = "accepted"

// send opens a sale with a unit for everyone and has everyone buy.
func (ac *Accept) send(ctx context.Context, sys *system.System, o *system.Options, saleID string, n int, d time.Duration) (*load.Recording, []load.Shopper, error) {
	shoppers, err := sys.Prepare(ctx, saleID, n, n)
	if err != nil {
		return nil, nil, err
	}
	sys.Progress.Step("accept: %d shoppers for as many units", n)
	l := &load.Load{
		Addrs:       sys.Gateways,
		Connections: o.Connections,
		Requests:    n,
		Duration:    d,
		Timeout:     sys.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, saleID, &shoppers[i])
		},
		Read: load.ReadPurchase,
	}
	rec, err := l.Run(ctx, sys.Progress)
	if err == nil && rec.Stopped {
		err = ctx.Err()
	}
	return rec, shoppers, err
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
