package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Rebuild is a run in which Redis loses a sale that sells.
type Rebuild struct {
	Orders  int
	Rate    float64 // purchases a second
	Window  time.Duration
	Longest time.Duration // until the sale sells again
	Redis   string        // host:port of a node of the cluster
	Probes  int           // shoppers who find out when it sells again: one a gateway
}

// Check refuses what makes no sense.
func (rb *Rebuild) Check() error {
	switch {
	case rb.Redis == "":
		return errors.New("--flushall: want host:port of a Redis Cluster; its master that owns the sale is emptied, with all that it holds")
	case rb.Orders < 1:
		return errors.New("--orders: want 1 or more")
	case rb.Rate <= 0 || rb.Window <= 0 || rb.Longest <= 0:
		return errors.New("--rate, --window and --longest: want more than 0")
	}
	return nil
}

// steady is the number of shoppers at most beside those who buy first.
func (rb *Rebuild) steady() int { return int(rb.Rate * (2*rb.Window + rb.Longest).Seconds()) }

// Shoppers is how many there are.
func (rb *Rebuild) Shoppers() int { return rb.Orders + rb.steady() + rb.Probes }

// Run is the run.
func (rb *Rebuild) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	rep := report.New("rebuild", system.NewSaleID("rebuild"))
	rep.Set("orders before", rb.Orders)
	rep.Set("rate", fmt.Sprintf("%g/s", rb.Rate))
	total := rb.Shoppers()
	sale := system.Sale{ID: rep.Sale, Total: total}
	shoppers, err := sys.Prepare(ctx, total, sale)
	if err != nil {
		return nil, err
	}
	sys.Progress.Step("selling %d units first", rb.Orders)
	first, err := sys.Purchases(shoppers[:rb.Orders], o.Connections, 0).Run(ctx, sys.Progress)
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

	steady, probes := shoppers[rb.Orders:total-rb.Probes], shoppers[total-rb.Probes:]
	sys.Progress.Step("selling at %g/s", rb.Rate)
	rec, flushed, sellsAgain, err := rb.flush(ctx, sys, rep.Sale, steady, probes)
	if err != nil {
		return rep, err
	}
	before := countOf(rec.Answers, func(a *load.Answer) bool {
		return a.Status == http.StatusAccepted && a.DoneNanos <= int64(flushed)
	})
	after := countOf(rec.Answers, func(a *load.Answer) bool { return a.Status == http.StatusAccepted }) - before
	if before == 0 {
		return rep, errors.New("nothing was sold at --rate before the sale was lost: a longer --window, or a lower --rate")
	}

	since, asked, err := placedInTheEnd(ctx, sys, rep, rec, steady)
	if err != nil {
		return rep, err
	}
	orders = append(orders, since...)
	probed, err := sys.Purchases(probes, len(probes), 0).Run(ctx, sys.Progress) // again: their orders' ids
	if err != nil {
		return rep, err
	}
	for i := range probed.Answers {
		if a := &probed.Answers[i]; a.Order == 0 || !a.Replayed {
			rep.Breaches.Add(RuleTruthful, "probe %d: %s", i, probed.Kinds.At(a.Kind))
		} else {
			orders = append(orders, system.Placed{Order: a.Order, Owner: &probes[i]})
		}
	}
	if len(rep.Breaches) > 0 {
		return rep, report.ErrBroken
	}

	out, bs, err := sys.Settle(ctx, o, []system.Sale{sale}, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &out, len(orders))
	rep.Figure("sells again", sellsAgain.Seconds(), "s after the loss, at every gateway")
	rep.Figure("sold meanwhile", float64(before), "at the rate before the loss")
	rep.Figure("sold since", float64(after), "after it, at the first try")
	rep.Figure("asked again", float64(asked), "times, by who had been told 503")
	rep.Figure("lost", 0, "orders that were promised: all were found again, each by its owner")
	return rep, nil
}

// flush sells, empties the sale's master after a window, and goes on selling for a
// window after every gateway sells again. flushed is from the start of the recording,
// sellsAgain from there.
func (rb *Rebuild) flush(ctx context.Context, sys *system.System, saleID string, steady, probes []load.Shopper) (rec *load.Recording, flushed, sellsAgain time.Duration, err error) {
	selling, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	began := time.Now()
	go func() {
		var err error
		rec, err = sys.Purchases(steady, reconcileConnections, rb.Rate).Run(selling, sys.Progress)
		ended <- err
	}()
	failed := func(err error) (*load.Recording, time.Duration, time.Duration, error) {
		stop()
		return nil, 0, 0, errors.Join(err, <-ended)
	}

	if !load.SleepUntil(ctx, began.Add(rb.Window)) {
		return failed(ctx.Err())
	}
	lost, err := system.FlushOwner(ctx, rb.Redis, saleID)
	if err != nil {
		return failed(err)
	}
	sys.Progress.Step("the sale is gone from Redis")
	waiting, cancel := context.WithDeadline(ctx, lost.Add(rb.Longest))
	defer cancel()
	for i, addr := range sys.Gateways {
		if err := sys.AwaitPurchase(waiting, addr, &probes[i]); err != nil {
			return failed(err)
		}
	}
	again := time.Now()
	sys.Progress.Step("every gateway sells again after %s", again.Sub(lost).Round(time.Millisecond))
	if !load.SleepUntil(ctx, again.Add(rb.Window)) {
		return failed(ctx.Err())
	}
	stop()
	if err := <-ended; err != nil {
		return nil, 0, 0, err
	}
	return rec, lost.Sub(rec.Began), again.Sub(lost), ctx.Err()
}
