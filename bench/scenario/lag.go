package scenario

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Lag is a run in which workers fall behind while a sale is reconciled again and again.
type Lag struct {
	Rate      float64 // purchases a second
	Duration  time.Duration
	Lag       time.Duration
	Watermark time.Duration
	Runs      int
}

func (l *Lag) check() error {
	switch {
	case l.Rate <= 0 || l.Duration <= 0 || l.Lag <= 0 || l.Runs < 1:
		return errors.New("--rate, --duration, --lag and --runs: want more than 0")
	case l.Lag > l.Duration:
		return errors.New("--lag: want no more than --duration")
	case l.Watermark < time.Second:
		return errors.New("--watermark: want 1s or more")
	}
	return nil
}

// Shoppers is how many the run needs.
func (l *Lag) Shoppers() int { return max(1, int(l.Rate*l.Duration.Seconds())) }

// Run sells, with the workers behind, and reconciles all the while.
func (l *Lag) Run(ctx context.Context, sys *system.System, o *system.Options) (rep *report.Report, err error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	rep = report.New("lag", system.NewSaleID("lag"))
	rep.Set("rate", fmt.Sprintf("%g/s", l.Rate))
	rep.Set("duration", l.Duration.String())
	rep.Set("lag", l.Lag.String())
	rep.Set("watermark", l.Watermark.String())
	config, err := system.WriteConfig(sys.Config, sys.Dir, "reconcile.yaml", system.Setup{Watermark: l.Watermark.String()})
	if err != nil {
		return nil, err
	}
	reconciler := *sys
	reconciler.Config = config
	sale := system.Sale{ID: rep.Sale, Total: l.Shoppers()}
	shoppers, err := sys.Prepare(ctx, l.Shoppers(), sale)
	if err != nil {
		return nil, err
	}

	if err := sys.SignalWorkers(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	// A worker that stands still cannot be stopped in good order.
	defer func() { err = errors.Join(err, sys.SignalWorkers(syscall.SIGCONT)) }()
	began := time.Now()
	var rec *load.Recording
	sold := make(chan error, 1)
	selling, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		var err error
		rec, err = sys.Purchases(shoppers, o.Connections, l.Rate).Run(selling, sys.Progress)
		sold <- err
	}()

	var runs int
	var helped, compared int64
	var longest time.Duration
	lagging, over := true, false
	for !over || runs < l.Runs {
		if lagging && time.Since(began) >= l.Lag {
			sys.Progress.Step("%d reconciles so far, %d batches persisted by them; the workers go on", runs, helped)
			if err := sys.SignalWorkers(syscall.SIGCONT); err != nil {
				return rep, err
			}
			lagging = false
		}
		p, err := reconcileOnce(ctx, &reconciler, rep.Sale)
		if err != nil {
			return rep, fmt.Errorf("%w\n%.2000s", err, p.report)
		}
		runs++
		helped += p.helped
		compared += p.compared
		longest = max(longest, p.Took)
		if p.found > 0 || p.left > 0 {
			rep.Breaches.Add(ruleNothingFound, "after %s: %.1000s", time.Since(began).Round(time.Second), p.report)
		}
		select {
		case err := <-sold:
			if err != nil {
				return rep, err
			}
			over = true
		default:
		}
	}
	orders, asked, err := placedInTheEnd(ctx, sys, rep, rec, shoppers)
	if err != nil {
		return rep, err
	}
	after, bs, err := sys.Settle(ctx, o, []system.Sale{sale}, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, len(orders))
	rep.Figure("asked again", float64(asked), "times, by who had been told 503")
	rep.Figure("reconciles", float64(runs), "that found nothing")
	rep.Figure("orders compared", float64(compared), "in all")
	rep.Figure("helped", float64(helped), "batches persisted ahead of a worker")
	rep.Figure("longest", longest.Seconds(), "s for a reconcile")
	return rep, nil
}
