package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// accept is a run in which every shopper gets a unit.
type accept struct {
	shoppers int
	duration time.Duration // ends it early; 0 = when all have sent
	warmup   int           // shoppers who buy in a sale of their own before the clock starts
}

func (ac *accept) run(ctx context.Context, sys *system, o *options) (*report, error) {
	if ac.warmup > 0 {
		sys.progress.step("warming up: %d purchases", ac.warmup)
		if _, _, err := ac.send(ctx, sys, o, newSaleID("warmup"), ac.warmup, 0); err != nil {
			return nil, err
		}
	}
	rep := newReport("accept", newSaleID("accept"))
	rep.set("shoppers", ac.shoppers)
	rep.set("connections", o.connections)
	rep.set("gateways", len(sys.gateways))
	rep.set("warm-up", ac.warmup)
	if ac.duration > 0 {
		rep.set("duration", ac.duration.String())
	}

	rec, shoppers, err := ac.send(ctx, sys, o, rep.Sale, ac.shoppers, ac.duration)
	if err != nil {
		return nil, err
	}
	answers, again, err := askAgain(ctx, sys, rep.Sale, shoppers, rec)
	if err != nil {
		return nil, err
	}
	rep.answered(rec)
	rep.set("asked again", again)
	cut := ac.duration > 0 && rec.took >= ac.duration
	rep.Breaches = checkAccept(answers, rec.kinds, cut)
	orders := distinct(answers, func(i int) *shopper { return &shoppers[i] })
	accepted := func(a *answer) bool { return a.status == http.StatusAccepted }
	first := countOf(rec.answers, accepted)
	if first == 0 {
		return rep, errors.New("no purchase was accepted")
	}
	after, bs, err := sys.settle(ctx, o, rep.Sale, orders, ac.shoppers)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = after.audit
	rep.set("audited", fmt.Sprintf("%d of %d orders across both stores", after.compared, len(orders)))

	// The rate is of what was accepted at the first send, up to the last of those:
	// no refusal counts, nor the pauses before someone asks again.
	burst := lastAccepted(rec.answers)
	whole := after.drained.Sub(rec.began)
	rep.figure(figureAccepted, float64(first)/burst.Seconds(), "/s")
	rep.figure("persisted", float64(len(orders))/whole.Seconds(), "/s, from the first send until drained")
	rep.figure("burst", burst.Seconds(), "s")
	rep.figure("drain", (whole - lastAccepted(answers)).Seconds(), "s after the last 202")
	rep.latency("202", rec.answers, accepted)
	return rep, nil
}

const (
	// askAgainRounds and the pause before each: 503 carries Retry-After: 1.
	askAgainRounds      = 5
	askAgainPauseMillis = 1000
)

// askAgain does as the API tells those who were answered 503: ask again with the
// same key, which finds out. It returns everyone's last answer, with times from the
// start of rec's load, and how many times someone asked again.
func askAgain(ctx context.Context, sys *system, saleID string, shoppers []shopper, rec *recording) (last []answer, asked int, err error) {
	last = slices.Clone(rec.answers)
	for range askAgainRounds {
		var who []int
		for s := range last {
			if last[s].status == http.StatusServiceUnavailable {
				who = append(who, s)
			}
		}
		if len(who) == 0 {
			return last, asked, nil
		}
		sys.progress.step("%d shoppers were answered 503 and ask again with their keys", len(who))
		select {
		case <-ctx.Done():
			return last, asked, ctx.Err()
		case <-time.After(askAgainPauseMillis * time.Millisecond):
		}
		l := &load{
			addrs:       sys.gateways,
			connections: min(len(who), lookUpConnections),
			requests:    len(who),
			timeout:     sys.timeout,
			kinds:       rec.kinds,
			build: func(buf []byte, addr string, i int) []byte {
				return appendPurchase(buf, addr, saleID, &shoppers[who[i]])
			},
			read: readPurchase,
		}
		more, err := l.run(ctx, sys.progress)
		if err != nil {
			return last, asked, err
		}
		if more.stopped {
			return last, asked, ctx.Err()
		}
		asked += len(who)
		for i, s := range who {
			a := more.answers[i]
			a.doneNanos += int64(more.began.Sub(rec.began))
			a.replayed = false // as it may be: of OUTCOME_UNKNOWN, the first send has bought
			last[s] = a
		}
	}
	return last, asked, nil
}

func countOf(answers []answer, chosen func(*answer) bool) (n int) {
	for i := range answers {
		if chosen(&answers[i]) {
			n++
		}
	}
	return n
}

const figureAccepted = "accepted"

// send opens a sale with a unit for everyone and has everyone buy.
func (ac *accept) send(ctx context.Context, sys *system, o *options, saleID string, n int, d time.Duration) (*recording, []shopper, error) {
	shoppers, err := sys.prepare(ctx, saleID, n, n)
	if err != nil {
		return nil, nil, err
	}
	sys.progress.step("accept: %d shoppers for as many units", n)
	l := &load{
		addrs:       sys.gateways,
		connections: o.connections,
		requests:    n,
		duration:    d,
		timeout:     sys.timeout,
		build: func(buf []byte, addr string, i int) []byte {
			return appendPurchase(buf, addr, saleID, &shoppers[i])
		},
		read: readPurchase,
	}
	rec, err := l.run(ctx, sys.progress)
	if err == nil && rec.stopped {
		err = ctx.Err()
	}
	return rec, shoppers, err
}

// prepare opens a sale and makes its shoppers.
func (s *system) prepare(ctx context.Context, saleID string, shoppers, total int) ([]shopper, error) {
	s.progress.step("sale %s: %d units, %d shoppers with tokens", saleID, total, shoppers)
	if err := s.openSale(ctx, saleID, total); err != nil {
		return nil, err
	}
	return s.newShoppers(ctx, shoppers, saleID)
}

// lastAccepted is when the last 202 came, from the start of the load.
func lastAccepted(answers []answer) time.Duration {
	var last int64
	for i := range answers {
		if a := &answers[i]; a.status == http.StatusAccepted {
			last = max(last, a.doneNanos)
		}
	}
	return time.Duration(last)
}
