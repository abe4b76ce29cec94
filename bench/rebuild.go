package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/redis/rueidis"
)

// rebuild is a run in which Redis loses a sale that sells.
type rebuild struct {
	orders  int
	rate    float64 // purchases a second
	window  time.Duration
	longest time.Duration // until the sale sells again
	redis   string        // host:port of a node of the cluster
	probes  int
}

func (rb *rebuild) check() error {
	switch {
	case rb.redis == "":
		return errors.New("--flushall: want host:port of a Redis Cluster; its master that owns the sale is emptied, with all that it holds")
	case rb.orders < 1:
		return errors.New("--orders: want 1 or more")
	case rb.rate <= 0 || rb.window <= 0 || rb.longest <= 0:
		return errors.New("--rate, --window and --longest: want more than 0")
	}
	return nil
}

// steady is the number of shoppers at most beside those who buy first.
func (rb *rebuild) steady() int { return int(rb.rate * (2*rb.window + rb.longest).Seconds()) }

func (rb *rebuild) shoppers() int { return rb.orders + rb.steady() + rb.probes }

func (rb *rebuild) run(ctx context.Context, sys *system, o *options) (*report, error) {
	rep := newReport("rebuild", newSaleID("rebuild"))
	rep.set("orders before", rb.orders)
	rep.set("rate", fmt.Sprintf("%g/s", rb.rate))
	total := rb.shoppers()
	shoppers, err := sys.prepare(ctx, rep.Sale, total, total)
	if err != nil {
		return nil, err
	}
	sys.progress.step("selling %d units first", rb.orders)
	first, err := sys.purchases(rep.Sale, shoppers[:rb.orders], o.connections, 0).run(ctx, sys.progress)
	if err != nil {
		return nil, err
	}
	orders, err := allPlaced(rep, first, shoppers)
	if err != nil {
		return rep, err
	}
	if _, bs, err := sys.drain(ctx, rep.Sale, slices.Clone(newest(orders)), o.drain); err != nil || len(bs) > 0 {
		rep.Breaches = append(rep.Breaches, bs...)
		return rep, err
	}

	steady, probes := shoppers[rb.orders:total-rb.probes], shoppers[total-rb.probes:]
	sys.progress.step("selling at %g/s", rb.rate)
	rec, flushed, sellsAgain, err := rb.flush(ctx, sys, rep.Sale, steady, probes)
	if err != nil {
		return rep, err
	}
	before := countOf(rec.answers, func(a *answer) bool {
		return a.status == http.StatusAccepted && a.doneNanos <= int64(flushed)
	})
	after := countOf(rec.answers, func(a *answer) bool { return a.status == http.StatusAccepted }) - before
	if before == 0 {
		return rep, errors.New("nothing was sold at --rate before the sale was lost: a longer --window, or a lower --rate")
	}

	since, asked, err := placedInTheEnd(ctx, sys, rep, rec, steady)
	if err != nil {
		return rep, err
	}
	orders = append(orders, since...)
	probed, err := sys.purchases(rep.Sale, probes, len(probes), 0).run(ctx, sys.progress) // again: their orders' ids
	if err != nil {
		return rep, err
	}
	for i := range probed.answers {
		if a := &probed.answers[i]; a.order == 0 || !a.replayed {
			rep.Breaches.add(ruleTruthful, "probe %d: %s", i, probed.kinds.at(a.kind))
		} else {
			orders = append(orders, placed{a.order, &probes[i]})
		}
	}
	if len(rep.Breaches) > 0 {
		return rep, errBroken
	}

	out, bs, err := sys.settle(ctx, o, rep.Sale, orders, total)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = out.audit
	rep.set("audited", fmt.Sprintf("%d of %d orders across both stores", out.compared, len(orders)))
	rep.figure("sells again", sellsAgain.Seconds(), "s after the loss, at every gateway")
	rep.figure("sold meanwhile", float64(before), "at the rate before the loss")
	rep.figure("sold since", float64(after), "after it, at the first try")
	rep.figure("asked again", float64(asked), "times, by who had been told 503")
	rep.figure("lost", 0, "orders that were promised: all were found again, each by its owner")
	return rep, nil
}

// flush sells, empties the sale's master after a window, and goes on selling for a
// window after every gateway sells again. flushed is from the start of the recording,
// sellsAgain from there.
func (rb *rebuild) flush(ctx context.Context, sys *system, saleID string, steady, probes []shopper) (rec *recording, flushed, sellsAgain time.Duration, err error) {
	selling, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	began := time.Now()
	go func() {
		var err error
		rec, err = sys.purchases(saleID, steady, reconcileConnections, rb.rate).run(selling, sys.progress)
		ended <- err
	}()
	failed := func(err error) (*recording, time.Duration, time.Duration, error) {
		stop()
		return nil, 0, 0, errors.Join(err, <-ended)
	}

	if !sleepUntil(ctx, began.Add(rb.window)) {
		return failed(ctx.Err())
	}
	lost, err := flushOwner(ctx, rb.redis, saleID)
	if err != nil {
		return failed(err)
	}
	sys.progress.step("the sale is gone from Redis")
	waiting, cancel := context.WithDeadline(ctx, lost.Add(rb.longest))
	defer cancel()
	for i, addr := range sys.gateways {
		if err := sys.awaitPurchase(waiting, addr, saleID, &probes[i]); err != nil {
			return failed(err)
		}
	}
	again := time.Now()
	sys.progress.step("every gateway sells again after %s", again.Sub(lost).Round(time.Millisecond))
	if !sleepUntil(ctx, again.Add(rb.window)) {
		return failed(ctx.Err())
	}
	stop()
	if err := <-ended; err != nil {
		return nil, 0, 0, err
	}
	return rec, lost.Sub(rec.began), again.Sub(lost), ctx.Err()
}

// placedInTheEnd has those who were answered 503 ask again, checks that everyone who
// asked has an order in the end, and returns the orders, and how often someone asked
// again. It cuts off what the end of a load left unsent.
func placedInTheEnd(ctx context.Context, sys *system, rep *report, rec *recording, shoppers []shopper) ([]placed, int, error) {
	rec.cutUnsent()
	last, asked, err := askAgain(ctx, sys, rep.Sale, shoppers, rec)
	rep.answered(rec)
	if err != nil {
		return nil, asked, err
	}
	rep.Breaches = append(rep.Breaches, checkAccept(last, rec.kinds, rec.stopped)...)
	if len(rep.Breaches) > 0 {
		return nil, asked, errBroken
	}
	return ordersOf(last, shoppers), asked, nil
}

// awaitPurchase has a shopper ask one gateway until it sells.
func (s *system) awaitPurchase(ctx context.Context, addr, saleID string, who *shopper) error {
	c, request := newConn(addr, s.timeout), appendPurchase(nil, addr, saleID, who)
	defer c.close()
	return await(ctx, func() error {
		if err := c.do(request); err != nil {
			return fmt.Errorf("gateway %s: %w", addr, err)
		}
		if got := c.resp.StatusCode(); got != http.StatusAccepted {
			return fmt.Errorf("gateway %s: %d %.300s", addr, got, c.resp.Body())
		}
		return nil
	})
}

// flushOwner empties the master of a cluster that owns a sale, and says when that was
// done.
func flushOwner(ctx context.Context, addr, saleID string) (time.Time, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, DisableRetry: true})
	if err != nil {
		return time.Time{}, fmt.Errorf("--flushall %s: %w", addr, err)
	}
	defer client.Close()
	for node, c := range client.Nodes() {
		// Every node but the owner answers MOVED.
		n, err := c.Do(ctx, c.B().Exists().Key("fg:{"+saleID+"}:stock").Build()).AsInt64()
		if err != nil || n == 0 {
			continue
		}
		if err := c.Do(ctx, c.B().Flushall().Build()).Error(); err != nil {
			return time.Time{}, fmt.Errorf("FLUSHALL at %s: %w", node, err)
		}
		return time.Now(), nil
	}
	return time.Time{}, fmt.Errorf("--flushall %s: no node of this cluster has sale %s", addr, saleID)
}
