package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

const (
	// newestWatched is how many of the newest orders are watched one by one until
	// they are in the ledger. They lie in the last batches of every queue. The rest
	// is asked for once, when these have arrived: watching all would load the
	// machine whose drain is timed.
	newestWatched = 256

	restPauseMillis = 200 // before those that were still missing are asked for again

	// lookUpConnections is far below what a gateway bounds its reads of the ledger
	// at, so that a look is not refused.
	lookUpConnections = 64
)

// The rules that orders are held to once they were promised.
const (
	rulePersisted = "every order that was promised reaches the ledger [2]"
	ruleKept      = "no promise is cancelled in a run without faults [2]"
	ruleVisible   = "a promised order is shown to its owner [9]"
)

// placed is an order that was promised to a shopper.
type placed struct {
	order int64
	owner *shopper
}

// newestFirst sorts by id, which is by time.
func newestFirst(orders []placed) {
	slices.SortFunc(orders, func(a, b placed) int { return cmp.Compare(b.order, a.order) })
}

// drain waits until every order is in the ledger, as the orders API shows it, and
// returns when the last one was seen there. Orders that don't arrive before the
// deadline, or in a state they should not be in, are breaches. orders is newest
// first.
func (s *system) drain(ctx context.Context, saleID string, orders []placed, deadline time.Duration) (at time.Time, bs breaches, err error) {
	s.progress.step("waiting until %d orders are in the ledger", len(orders))
	limit := time.Now().Add(deadline)
	at, err = s.drainNewest(ctx, saleID, orders[:min(len(orders), newestWatched)], limit)
	if err != nil {
		return at, nil, err
	}
	left := orders
	for again := false; ; again = true {
		rec, err := s.lookUp(ctx, saleID, left)
		if err != nil {
			return at, bs, err
		}
		if again {
			at = time.Now()
		}
		var missing []placed
		late := time.Now().After(limit)
		for i := range rec.answers {
			a, o := &rec.answers[i], left[i]
			if !known(rec.kinds.at(a.kind)) {
				missing = append(missing, o)
				if !late {
					continue
				}
			}
			checkPlaced(&bs, o, a, rec.kinds)
		}
		if late || len(missing) == 0 {
			return at, bs, nil
		}
		select {
		case <-ctx.Done():
			return at, bs, ctx.Err()
		case <-time.After(restPauseMillis * time.Millisecond):
		}
		left = missing
	}
}

// drainNewest waits, one order after the other, until none of them is PROCESSING or
// the time is up; which it was, the look at all orders will show.
func (s *system) drainNewest(ctx context.Context, saleID string, newest []placed, limit time.Time) (time.Time, error) {
	c, r := newConn(s.gateways[0], s.timeout), &reader{kinds: newKinds()}
	defer c.close()
	ticker := time.NewTicker(pollMillis * time.Millisecond)
	defer ticker.Stop()
	for i := 0; i < len(newest) && time.Now().Before(limit); {
		if err := ctx.Err(); err != nil {
			return time.Now(), err
		}
		if err := c.do(appendLookUp(nil, c.addr, saleID, newest[i])); err == nil {
			// An answer that can't be read is no PROCESSING either; checkPlaced judges it.
			if a, _ := readOrder(r, &c.resp); known(r.kinds.at(a.kind)) {
				i++
				continue
			}
		}
		s.progress.update("%d of the newest %d orders are in the ledger", i, len(newest))
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return time.Now(), nil
}

// lookUp asks for every order once, as its owner.
func (s *system) lookUp(ctx context.Context, saleID string, orders []placed) (*recording, error) {
	l := &load{
		addrs:       s.gateways,
		connections: lookUpConnections,
		requests:    len(orders),
		timeout:     s.timeout,
		build: func(buf []byte, addr string, i int) []byte {
			return appendLookUp(buf, addr, saleID, orders[i])
		},
		read: readOrder,
	}
	rec, err := l.run(ctx, s.progress)
	if err == nil && rec.stopped {
		err = ctx.Err()
	}
	return rec, err
}

func appendLookUp(buf []byte, addr, saleID string, o placed) []byte {
	return appendGet(buf, addr, fmt.Sprintf("/v1/orders/%d?sale_id=%s", o.order, saleID), o.owner.token)
}

// known tells whether a look at an order found out what became of it. One that was
// put off or not answered is repeated, as a shopper would.
func known(k kind) bool {
	switch k.Status {
	case 0, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return false
	default:
		return k.Code != "PROCESSING"
	}
}

// checkPlaced holds what is shown of a promised order to the promise.
func checkPlaced(bs *breaches, o placed, a *answer, ks *kinds) {
	k := ks.at(a.kind)
	switch {
	case k.Code == "PROCESSING":
		bs.add(rulePersisted, "order %d of user %s: still PROCESSING when the time was up", o.order, o.owner.user)
	case k.Status != http.StatusOK || a.order != o.order:
		bs.add(ruleVisible, "order %d of user %s: %s", o.order, o.owner.user, k)
	case k.Code != "PENDING_PAYMENT":
		bs.add(ruleKept, "order %d of user %s: %s", o.order, o.owner.user, k.Code)
	}
}

// The rules that stocks are held to when a run is over.
const (
	ruleStockLeft = "stock_left is the total less the orders [4]"
	ruleLedger    = "the ledger holds exactly the orders that were promised [1, 2, 4]"
	ruleAudit     = "flashgate audit finds no breach"
)

// auditMargin is for clocks: an order's time is its gateway's.
const auditMargin = 200 * time.Millisecond

// settled is what stands after a run.
type settled struct {
	drained  time.Time
	audit    json.RawMessage
	compared int64 // orders that the audit held against each other in both stores
}

// compared is the number of orders that an audit compared: those younger than the
// watermark of a process that runs with its own config are not.
func compared(findings json.RawMessage) (n int64) {
	var audit struct {
		Sales []struct {
			Orders  int64 `json:"ledger_orders_compared"`
			Records int64 `json:"redis_records_compared"`
		} `json:"sales"`
	}
	if json.Unmarshal(findings, &audit) != nil {
		return 0 // shown as it is: nothing that is known to be compared
	}
	for _, s := range audit.Sales {
		n += min(s.Orders, s.Records)
	}
	return n
}

// settle waits until all orders of a sale are in the ledger and checks the stores
// from outside: every order by its owner, stock_left, MySQL's own rows if they are
// to be counted, and the audit.
func (s *system) settle(ctx context.Context, o *options, saleID string, orders []placed, total int) (settled, breaches, error) {
	newestFirst(orders)
	at, bs, err := s.drain(ctx, saleID, orders, o.drain)
	if err != nil {
		return settled{}, bs, fmt.Errorf("waiting for the orders: %w", err)
	}
	out := settled{drained: at}
	left, status := int64(total-len(orders)), "OPEN"
	if left <= 0 {
		left, status = 0, "SOLD_OUT"
	}
	if err := s.awaitSale(ctx, saleID, status, left, stockTimeoutSeconds*time.Second); err != nil {
		if ctx.Err() != nil {
			return out, bs, err
		}
		bs.add(ruleStockLeft, "%v", err)
	}
	if o.mysql {
		if err := checkMySQL(ctx, &bs, saleID, len(orders), total); err != nil {
			return out, bs, err
		}
	}
	select { // until the youngest order is past the watermark too
	case <-ctx.Done():
		return out, bs, ctx.Err()
	case <-time.After(time.Until(at.Add(auditWatermark + auditMargin))):
	}
	s.progress.step("flashgate audit --sale %s", saleID)
	findings, ok, err := s.audit(ctx, saleID)
	if err != nil {
		return out, bs, err
	}
	out.audit = findings
	out.compared = compared(findings)
	if !ok {
		bs.add(ruleAudit, "%.2000s", findings) // the JSON report has all of it
	}
	return out, bs, nil
}
