package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// lag is a run in which workers fall behind while a sale is reconciled again and again.
type lag struct {
	rate      float64 // purchases a second
	duration  time.Duration
	lag       time.Duration
	watermark time.Duration
	runs      int
}

func (l *lag) check() error {
	switch {
	case l.rate <= 0 || l.duration <= 0 || l.lag <= 0 || l.runs < 1:
		return errors.New("--rate, --duration, --lag and --runs: want more than 0")
	case l.lag > l.duration:
		return errors.New("--lag: want no more than --duration")
	case l.watermark < time.Second:
		return errors.New("--watermark: want 1s or more")
	}
	return nil
}

func (l *lag) shoppers() int { return max(1, int(l.rate*l.duration.Seconds())) }

func (l *lag) run(ctx context.Context, sys *system, o *options) (rep *report, err error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	rep = newReport("lag", newSaleID("lag"))
	rep.set("rate", fmt.Sprintf("%g/s", l.rate))
	rep.set("duration", l.duration.String())
	rep.set("lag", l.lag.String())
	rep.set("watermark", l.watermark.String())
	config, err := writeConfig(sys.config, sys.dir, "reconcile.yaml", setup{watermark: l.watermark.String()})
	if err != nil {
		return nil, err
	}
	reconciler := *sys
	reconciler.config = config
	shoppers, err := sys.prepare(ctx, rep.Sale, l.shoppers(), l.shoppers())
	if err != nil {
		return nil, err
	}

	if err := sys.signalWorkers(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	// A worker that stands still cannot be stopped in good order.
	defer func() { err = errors.Join(err, sys.signalWorkers(syscall.SIGCONT)) }()
	began := time.Now()
	var rec *recording
	sold := make(chan error, 1)
	selling, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		var err error
		rec, err = sys.purchases(rep.Sale, shoppers, o.connections, l.rate).run(selling, sys.progress)
		sold <- err
	}()

	var runs int
	var helped, compared int64
	var longest time.Duration
	lagging, over := true, false
	for !over || runs < l.runs {
		if lagging && time.Since(began) >= l.lag {
			sys.progress.step("%d reconciles so far, %d batches persisted by them; the workers go on", runs, helped)
			if err := sys.signalWorkers(syscall.SIGCONT); err != nil {
				return rep, err
			}
			lagging = false
		}
		p, err := reconciler.reconcile(ctx, rep.Sale)
		if err != nil {
			return rep, fmt.Errorf("%w\n%.2000s", err, p.report)
		}
		runs++
		helped += p.helped
		compared += p.compared
		longest = max(longest, p.took)
		if p.found > 0 || p.left > 0 {
			rep.Breaches.add(ruleNothingFound, "after %s: %.1000s", time.Since(began).Round(time.Second), p.report)
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
	after, bs, err := sys.settle(ctx, o, rep.Sale, orders, len(shoppers))
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = after.audit
	rep.set("audited", fmt.Sprintf("%d of %d orders across both stores", after.compared, len(orders)))
	rep.figure("asked again", float64(asked), "times, by who had been told 503")
	rep.figure("reconciles", float64(runs), "that found nothing")
	rep.figure("orders compared", float64(compared), "in all")
	rep.figure("helped", float64(helped), "batches persisted ahead of a worker")
	rep.figure("longest", longest.Seconds(), "s for a reconcile")
	return rep, nil
}

// signalWorkers sends a signal to every worker that the run started.
func (s *system) signalWorkers(sig syscall.Signal) error {
	for _, d := range s.daemons {
		if strings.HasPrefix(d.name, "worker") {
			if err := d.cmd.Process.Signal(sig); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	return nil
}
