package system

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
)

const (
	// NewestWatched is how many of the newest orders are watched one by one until they are
	// in the ledger, after one in spreadWatched of all, or spreadMost in all: nearly every
	// batch has one, whichever queue it went through. The rest is asked for once, when
	// these have arrived: watching all would load the machine whose drain is timed.
	NewestWatched = 256
	spreadWatched = 50
	spreadMost    = 2000

	restPauseMillis = 200 // before those that were still missing are asked for again

	// LookUpConnections is far below what a gateway bounds its reads of the ledger
	// at, so that a look is not refused.
	LookUpConnections = 64
)

// The rules that orders are held to once they were promised.
const (
	RulePersisted = "every order that was promised reaches the ledger [2]"
	RuleKept      = "no promise is cancelled in a run without faults [2]"
	RuleVisible   = "a promised order is shown to its owner [9]"
)

// Placed is an order that was promised to a shopper.
type Placed struct {
	Order int64
	Owner *load.Shopper
}

// newestFirst sorts by id, which is by time.
func newestFirst(orders []Placed) {
	slices.SortFunc(orders, func(a, b Placed) int { return cmp.Compare(b.Order, a.Order) })
}

// Drain waits until every order is in the ledger, as the orders API shows it, and
// returns when the last one was seen there. Orders that don't arrive before the
// deadline, or in a state they should not be in, are breaches. orders is newest
// first.
func (s *System) Drain(ctx context.Context, orders []Placed, deadline time.Duration) (at time.Time, bs report.Breaches, err error) {
	s.Progress.Step("waiting until %d orders are in the ledger", len(orders))
	limit := time.Now().Add(deadline)
	if err := s.drainSpread(ctx, orders, limit); err != nil {
		return time.Now(), nil, err
	}
	at, err = s.drainNewest(ctx, orders[:min(len(orders), NewestWatched)], limit)
	if err != nil {
		return at, nil, err
	}
	left := orders
	for again := false; ; again = true {
		rec, err := s.lookUp(ctx, left)
		if err != nil {
			return at, bs, err
		}
		if again {
			at = time.Now()
		}
		var missing []Placed
		late := time.Now().After(limit)
		for i := range rec.Answers {
			a, o := &rec.Answers[i], left[i]
			if !known(rec.Kinds.At(a.Kind)) {
				missing = append(missing, o)
				if !late {
					continue
				}
			}
			checkPlaced(&bs, o, a, rec.Kinds)
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

// drainSpread waits until none of the orders that stand for their batches is PROCESSING,
// or the time is up.
func (s *System) drainSpread(ctx context.Context, orders []Placed, limit time.Time) error {
	var left []Placed
	for i := 0; i < len(orders); i += max(spreadWatched, len(orders)/spreadMost) {
		left = append(left, orders[i])
	}
	for {
		rec, err := s.lookUp(ctx, left)
		if err != nil {
			return err
		}
		var missing []Placed
		for i := range rec.Answers {
			if !known(rec.Kinds.At(rec.Answers[i].Kind)) {
				missing = append(missing, left[i])
			}
		}
		if left = missing; len(left) == 0 || time.Now().After(limit) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(restPauseMillis * time.Millisecond):
		}
	}
}

// drainNewest waits, one order after the other, until none of them is PROCESSING or
// the time is up; which it was, the look at all orders will show.
func (s *System) drainNewest(ctx context.Context, newest []Placed, limit time.Time) (time.Time, error) {
	c, r := load.NewConn(s.Gateways[0], s.Timeout), &load.Reader{Kinds: load.NewKinds()}
	defer c.Close()
	ticker := time.NewTicker(pollMillis * time.Millisecond)
	defer ticker.Stop()
	for i := 0; i < len(newest) && time.Now().Before(limit); {
		if err := ctx.Err(); err != nil {
			return time.Now(), err
		}
		if err := c.Do(appendLookUp(nil, c.Addr, newest[i])); err == nil {
			// An answer that can't be read is no PROCESSING either; checkPlaced judges it.
			if a, _ := load.ReadOrder(r, &c.Resp); known(r.Kinds.At(a.Kind)) {
				i++
				continue
			}
		}
		s.Progress.Update("%d of the newest %d orders are in the ledger", i, len(newest))
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return time.Now(), nil
}

// lookUp asks for every order once, as its owner.
func (s *System) lookUp(ctx context.Context, orders []Placed) (*load.Recording, error) {
	l := &load.Load{
		Addrs:       s.Gateways,
		Connections: LookUpConnections,
		Requests:    len(orders),
		Timeout:     s.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return appendLookUp(buf, addr, orders[i])
		},
		Read: load.ReadOrder,
	}
	rec, err := l.Run(ctx, s.Progress)
	if err == nil && rec.Stopped {
		err = ctx.Err()
	}
	return rec, err
}

func appendLookUp(buf []byte, addr string, o Placed) []byte {
	return load.AppendGet(buf, addr, fmt.Sprintf("/v1/orders/%d?sale_id=%s", o.Order, o.Owner.Sale), o.Owner.Token)
}

// known tells whether a look at an order found out what became of it. One that was
// put off or not answered is repeated, as a shopper would.
func known(k load.Kind) bool {
	switch k.Status {
	case 0, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return false
	default:
		return k.Code != "PROCESSING"
	}
}

// checkPlaced holds what is shown of a promised order to the promise.
func checkPlaced(bs *report.Breaches, o Placed, a *load.Answer, ks *load.Kinds) {
	k := ks.At(a.Kind)
	switch {
	case k.Code == "PROCESSING":
		bs.Add(RulePersisted, "order %d of user %s: still PROCESSING when the time was up", o.Order, o.Owner.User)
	case k.Status != http.StatusOK || a.Order != o.Order:
		bs.Add(RuleVisible, "order %d of user %s: %s", o.Order, o.Owner.User, k)
	case k.Code != "PENDING_PAYMENT":
		bs.Add(RuleKept, "order %d of user %s: %s", o.Order, o.Owner.User, k.Code)
	}
}
