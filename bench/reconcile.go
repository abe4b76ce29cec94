package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// reconcileLoad is a run in which a large sale is reconciled while it sells.
type reconcileLoad struct {
	orders    int
	rate      float64 // purchases a second
	rounds    int
	window    time.Duration
	longest   time.Duration // of a reconcile
	watermark time.Duration
}

// The rules that a reconcile of a sound sale is held to.
const (
	ruleNothingFound = "a reconcile of a sound sale finds nothing"
	ruleAllCompared  = "a reconcile compares every order older than the watermark"
)

// reconcileConnections is enough to keep to a rate through a pause of some seconds.
const reconcileConnections = 64

func (rl *reconcileLoad) check() error {
	switch {
	case rl.orders < 1 || rl.rounds < 1:
		return errors.New("--orders and --rounds: want 1 or more")
	case rl.rate <= 0 || rl.window <= 0 || rl.longest <= 0:
		return errors.New("--rate, --window and --longest: want more than 0")
	case rl.watermark < time.Second:
		return errors.New("--watermark: want 1s or more")
	}
	return nil
}

// steady is the number of shoppers of one round at most.
func (rl *reconcileLoad) steady() int {
	return int(rl.rate * (rl.window + rl.longest).Seconds())
}

func (rl *reconcileLoad) shoppers() int { return rl.orders + rl.rounds*rl.steady() }

// pass is what one reconcile took and saw.
type pass struct {
	usage
	found, left, helped, compared int64
	report                        []byte
}

// reconcile runs one of a sale.
func (s *system) reconcile(ctx context.Context, saleID string) (pass, error) {
	out, used, err := s.measured(ctx, "reconcile", "--once", "--sale", saleID, "--json")
	p := pass{usage: used, report: out}
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

func (rl *reconcileLoad) run(ctx context.Context, sys *system, o *options) (*report, error) {
	if err := rl.check(); err != nil {
		return nil, err
	}
	rep := newReport("reconcile", newSaleID("reconcile"))
	rep.set("orders before", rl.orders)
	rep.set("rate", fmt.Sprintf("%g/s", rl.rate))
	rep.set("rounds", rl.rounds)
	config, err := writeConfig(sys.config, sys.dir, "reconcile.yaml", setup{watermark: rl.watermark.String()})
	if err != nil {
		return nil, err
	}
	reconciler := *sys
	reconciler.config = config

	total := rl.shoppers()
	shoppers, err := sys.prepare(ctx, rep.Sale, total, total)
	if err != nil {
		return nil, err
	}
	sys.progress.step("selling %d units first", rl.orders)
	first, err := sys.purchases(rep.Sale, shoppers[:rl.orders], o.connections, 0).run(ctx, sys.progress)
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
	if !sleepUntil(ctx, time.Now().Add(rl.watermark)) {
		return rep, ctx.Err()
	}

	var without, with []answer
	var passes []pass
	next := shoppers[rl.orders:]
	for n := range rl.rounds {
		sys.progress.step("round %d of %d: %s without a reconcile", n+1, rl.rounds, rl.window)
		quiet := sys.purchases(rep.Sale, next[:int(rl.rate*rl.window.Seconds())], reconcileConnections, rl.rate)
		rec, err := quiet.run(ctx, sys.progress)
		if err != nil {
			return rep, err
		}
		without = append(without, rec.answers...)
		found, err := allPlaced(rep, rec, next)
		if err != nil {
			return rep, err
		}
		orders, next = append(orders, found...), next[len(rec.answers):]

		sys.progress.step("round %d of %d: with one", n+1, rl.rounds)
		known := int64(len(orders))
		rec, p, err := rl.reconcile(ctx, sys, &reconciler, rep.Sale, next[:int(rl.rate*rl.longest.Seconds())])
		if err != nil {
			return rep, err
		}
		with = append(with, rec.answers...)
		if found, err = allPlaced(rep, rec, next); err != nil {
			return rep, err
		}
		orders, next = append(orders, found...), next[len(rec.answers):]
		passes = append(passes, p)
		if p.found > 0 || p.left > 0 {
			rep.Breaches.add(ruleNothingFound, "round %d: found %d, left %d", n+1, p.found, p.left)
		}
		// Those of the last window may be younger than the watermark.
		if least := known - int64(rl.rate*(rl.watermark+rl.window).Seconds()); p.compared < least {
			rep.Breaches.add(ruleAllCompared, "round %d: %d, of %d or more", n+1, p.compared, least)
		}
	}

	after, bs, err := sys.settle(ctx, o, rep.Sale, orders, total)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = after.audit
	rep.set("audited", fmt.Sprintf("%d of %d orders across both stores", after.compared, len(orders)))
	rl.figures(rep, passes, without, with)
	return rep, nil
}

func (rl *reconcileLoad) figures(rep *report, passes []pass, without, with []answer) {
	slices.SortFunc(passes, func(a, b pass) int { return int(a.took - b.took) })
	median := passes[len(passes)/2]
	peak := slices.MaxFunc(passes, func(a, b pass) int { return int(a.peakBytes - b.peakBytes) })
	rep.figure("reconcile", median.took.Seconds(), "s, median")
	rep.figure("orders compared", float64(median.compared), "")
	rep.figure("compared", float64(median.compared)/median.took.Seconds(), "/s")
	rep.figure("processor", median.cpu.Seconds(), "s")
	rep.figure("memory", float64(peak.peakBytes)/(1<<20), "MiB at its peak")
	accepted := func(a *answer) bool { return a.status == http.StatusAccepted }
	rep.latency("without", without, accepted)
	rep.latency("with", with, accepted)
	rep.figure("P99 with ÷ without", rep.value("with P99")/rep.value("without P99"), "×")
}

// purchases is a load in which every shopper buys a unit.
func (s *system) purchases(saleID string, shoppers []shopper, connections int, rate float64) *load {
	return &load{
		addrs: s.gateways, connections: connections, requests: len(shoppers), rate: rate, timeout: s.timeout,
		build: func(buf []byte, addr string, i int) []byte {
			return appendPurchase(buf, addr, saleID, &shoppers[i])
		},
		read: readPurchase,
	}
}

// allPlaced checks that everyone who asked was told yes, and returns their orders. It
// cuts off what the end of a load left unsent.
func allPlaced(rep *report, rec *recording, shoppers []shopper) ([]placed, error) {
	rec.cutUnsent()
	rep.Breaches = append(rep.Breaches, checkAccept(rec.answers, rec.kinds, rec.stopped)...)
	if len(rep.Breaches) > 0 {
		rep.answered(rec)
		return nil, errBroken
	}
	return ordersOf(rec.answers, shoppers), nil
}

// cutUnsent drops the answers to what was not sent, which are the last.
func (rec *recording) cutUnsent() {
	sent := len(rec.answers)
	for sent > 0 && rec.answers[sent-1].kind == kindNotSent {
		sent--
	}
	rec.answers = rec.answers[:sent]
}

// ordersOf are the orders of the shoppers' answers.
func ordersOf(answers []answer, shoppers []shopper) []placed {
	orders := make([]placed, 0, len(answers))
	for i := range answers {
		if a := &answers[i]; a.order != 0 {
			orders = append(orders, placed{a.order, &shoppers[i]})
		}
	}
	return orders
}

// newest are the last of the orders.
func newest(orders []placed) []placed {
	return orders[max(0, len(orders)-newestWatched):]
}

// reconcile runs a reconcile beside a load that lasts as long.
func (rl *reconcileLoad) reconcile(ctx context.Context, sys, reconciler *system, saleID string, shoppers []shopper) (*recording, pass, error) {
	var p pass
	loading, done := context.WithCancel(ctx)
	defer done()
	failed := make(chan error, 1)
	go func() {
		defer done()
		var err error
		p, err = reconciler.reconcile(ctx, saleID)
		failed <- err
	}()
	rec, err := sys.purchases(saleID, shoppers, reconcileConnections, rl.rate).run(loading, sys.progress)
	ended := <-failed
	if err == nil {
		err = ended
	}
	if err == nil && ctx.Err() == nil && !rec.stopped {
		err = fmt.Errorf("the reconcile took longer than --longest %s", rl.longest)
	}
	return rec, p, errors.Join(err, ctx.Err())
}
