package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// ReconcileLoad is a run in which a large sale is reconciled while it sells.
type ReconcileLoad struct {
	Orders    int
	Rate      float64 // purchases a second
	Rounds    int
	Window    time.Duration
	Longest   time.Duration // of a reconcile
	Watermark time.Duration
}

// The rules that a reconcile of a sound sale is held to.
const (
	ruleNothingFound = "a reconcile of a sound sale finds nothing"
	ruleAllCompared  = "a reconcile compares every order older than the watermark"
)

// reconcileConnections is enough to keep to a rate through a pause of some seconds.
const reconcileConnections = 64

func (rl *ReconcileLoad) check() error {
	switch {
	case rl.Orders < 1 || rl.Rounds < 1:
		return errors.New("--orders and --rounds: want 1 or more")
	case rl.Rate <= 0 || rl.Window <= 0 || rl.Longest <= 0:
		return errors.New("--rate, --window and --longest: want more than 0")
	case rl.Watermark < time.Second:
		return errors.New("--watermark: want 1s or more")
	}
	return nil
}

// steady is the number of shoppers of one round at most.
func (rl *ReconcileLoad) steady() int {
	return int(rl.Rate * (rl.Window + rl.Longest).Seconds())
}

// Shoppers is how many the run needs at most.
func (rl *ReconcileLoad) Shoppers() int { return rl.Orders + rl.Rounds*rl.steady() }

// pass is what one reconcile took and saw.
type pass struct {
	system.Usage
	found, left, helped, compared int64
	report                        []byte
}

// reconcileOnce runs one of a sale.
func reconcileOnce(ctx context.Context, s *system.System, saleID string) (pass, error) {
	out, used, err := s.Measured(ctx, "reconcile", "--once", "--sale", saleID, "--json")
	p := pass{Usage: used, report: out}
	var r struct {
		Found  int64 `json:"found"`
		Left   int64 `json:"left"`
		Helped int64 `json:"helped"`
		Sales  []struct {
			Orders int64 `json:"ledger_orders_compared"`
		} `json:"sales"`
	}
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	p.found, p.left, p.helped = r.Found, r.Left, r.Helped
	for _, s := range r.Sales {
		p.compared += s.Orders
	}
	return p, err
}

// Run sells with and without a reconcile, by turns.
func (rl *ReconcileLoad) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	if err := rl.check(); err != nil {
		return nil, err
	}
	rep := report.New("reconcile", system.NewSaleID("reconcile"))
	rep.Set("orders before", rl.Orders)
	rep.Set("rate", fmt.Sprintf("%g/s", rl.Rate))
	rep.Set("rounds", rl.Rounds)
	config, err := system.WriteConfig(sys.Config, sys.Dir, "reconcile.yaml", system.Setup{Watermark: rl.Watermark.String()})
	if err != nil {
		return nil, err
	}
	reconciler := *sys
	reconciler.Config = config

	total := rl.Shoppers()
	sale := system.Sale{ID: rep.Sale, Total: total}
	shoppers, err := sys.Prepare(ctx, total, sale)
	if err != nil {
		return nil, err
	}
	sys.Progress.Step("selling %d units first", rl.Orders)
	first, err := sys.Purchases(shoppers[:rl.Orders], o.Connections, 0).Run(ctx, sys.Progress)
	if err != nil {
		return nil, err
	}
	orders, _, err := placedInTheEnd(ctx, sys, rep, first, shoppers)
	if err != nil {
		return rep, err
	}
	if _, bs, err := sys.Drain(ctx, slices.Clone(newest(orders)), o.Drain); err != nil || len(bs) > 0 {
		rep.Breaches = append(rep.Breaches, bs...)
		return rep, err
	}
	if !load.SleepUntil(ctx, time.Now().Add(rl.Watermark)) {
		return rep, ctx.Err()
	}

	var without, with []load.Answer
	var passes []pass
	next := shoppers[rl.Orders:]
	for n := range rl.Rounds {
		sys.Progress.Step("round %d of %d: %s without a reconcile", n+1, rl.Rounds, rl.Window)
		quiet := sys.Purchases(next[:int(rl.Rate*rl.Window.Seconds())], reconcileConnections, rl.Rate)
		rec, err := quiet.Run(ctx, sys.Progress)
		if err != nil {
			return rep, err
		}
		without = append(without, rec.Answers...)
		found, err := allPlaced(rep, rec, next)
		if err != nil {
			return rep, err
		}
		orders, next = append(orders, found...), next[len(rec.Answers):]

		sys.Progress.Step("round %d of %d: with one", n+1, rl.Rounds)
		known := int64(len(orders))
		rec, p, err := rl.reconcile(ctx, sys, &reconciler, rep.Sale, next[:int(rl.Rate*rl.Longest.Seconds())])
		if err != nil {
			return rep, err
		}
		with = append(with, rec.Answers...)
		if found, err = allPlaced(rep, rec, next); err != nil {
			return rep, err
		}
		orders, next = append(orders, found...), next[len(rec.Answers):]
		passes = append(passes, p)
		if p.found > 0 || p.left > 0 {
			rep.Breaches.Add(ruleNothingFound, "round %d: found %d, left %d", n+1, p.found, p.left)
		}
		// Those of the last window may be younger than the watermark.
		if least := known - int64(rl.Rate*(rl.Watermark+rl.Window).Seconds()); p.compared < least {
			rep.Breaches.Add(ruleAllCompared, "round %d: %d, of %d or more", n+1, p.compared, least)
		}
	}

	after, bs, err := sys.Settle(ctx, o, []system.Sale{sale}, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, len(orders))
	rl.figures(rep, passes, without, with)
	return rep, nil
}

func (rl *ReconcileLoad) figures(rep *report.Report, passes []pass, without, with []load.Answer) {
	slices.SortFunc(passes, func(a, b pass) int { return int(a.Took - b.Took) })
	median := passes[len(passes)/2]
	peak := slices.MaxFunc(passes, func(a, b pass) int { return int(a.PeakBytes - b.PeakBytes) })
	rep.Figure("reconcile", median.Took.Seconds(), "s, median")
	rep.Figure("orders compared", float64(median.compared), "")
	rep.Figure("compared", float64(median.compared)/median.Took.Seconds(), "/s")
	rep.Figure("processor", median.CPU.Seconds(), "s")
	rep.Figure("memory", float64(peak.PeakBytes)/(1<<20), "MiB at its peak")
	accepted := func(a *load.Answer) bool { return a.Status == http.StatusAccepted }
	rep.Latency("without", without, accepted)
	rep.Latency("with", with, accepted)
	rep.Figure("P99 with ÷ without", rep.Value("with P99")/rep.Value("without P99"), "×")
}

// allPlaced checks that everyone who asked was told yes, and returns their orders. It
// cuts off what the end of a load left unsent.
func allPlaced(rep *report.Report, rec *load.Recording, shoppers []load.Shopper) ([]system.Placed, error) {
	cutUnsent(rec)
	rep.Breaches = append(rep.Breaches, checkAccept(rec.Answers, rec.Kinds, rec.Stopped)...)
	if len(rep.Breaches) > 0 {
		rep.Answered(rec)
		return nil, report.ErrBroken
	}
	return ordersOf(rec.Answers, shoppers), nil
}

// placedInTheEnd has those who were answered 503 ask again, checks that everyone who
// asked has an order in the end, and returns the orders, and how often someone asked
// again. It cuts off what the end of a load left unsent.
func placedInTheEnd(ctx context.Context, sys *system.System, rep *report.Report, rec *load.Recording, shoppers []load.Shopper) ([]system.Placed, int, error) {
	cutUnsent(rec)
	last, asked, err := askAgain(ctx, sys, shoppers, rec)
	rep.Answered(rec)
	if err != nil {
		return nil, asked, err
	}
	rep.Breaches = append(rep.Breaches, checkAccept(last, rec.Kinds, rec.Stopped)...)
	if len(rep.Breaches) > 0 {
		return nil, asked, report.ErrBroken
	}
	return ordersOf(last, shoppers), asked, nil
}

// cutUnsent drops the answers to what was not sent, which are the last.
func cutUnsent(rec *load.Recording) {
	sent := len(rec.Answers)
	for sent > 0 && rec.Answers[sent-1].Kind == load.KindNotSent {
		sent--
	}
	rec.Answers = rec.Answers[:sent]
}

// ordersOf are the orders of the shoppers' answers.
func ordersOf(answers []load.Answer, shoppers []load.Shopper) []system.Placed {
	orders := make([]system.Placed, 0, len(answers))
	for i := range answers {
		if a := &answers[i]; a.Order != 0 {
			orders = append(orders, system.Placed{Order: a.Order, Owner: &shoppers[i]})
		}
	}
	return orders
}

// newest are the last of the orders.
func newest(orders []system.Placed) []system.Placed {
	return orders[max(0, len(orders)-system.NewestWatched):]
}

// reconcile runs a reconcile beside a load that lasts as long.
func (rl *ReconcileLoad) reconcile(ctx context.Context, sys, reconciler *system.System, saleID string, shoppers []load.Shopper) (*load.Recording, pass, error) {
	var p pass
	loading, done := context.WithCancel(ctx)
	defer done()
	failed := make(chan error, 1)
	go func() {
		defer done()
		var err error
		p, err = reconcileOnce(ctx, reconciler, saleID)
		failed <- err
	}()
	rec, err := sys.Purchases(shoppers, reconcileConnections, rl.Rate).Run(loading, sys.Progress)
	ended := <-failed
	if err == nil {
		err = ended
	}
	if err == nil && ctx.Err() == nil && !rec.Stopped {
		err = fmt.Errorf("the reconcile took longer than --longest %s", rl.Longest)
	}
	return rec, p, errors.Join(err, ctx.Err())
}
