package simulation

import (
	"fmt"
	"time"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

const purchaseTimeout = 3 * time.Second

// shop is one device of a shopper: it buys with a few keys, asks again with the same
// key when it got no definite answer, and sometimes when it did, and looks at what it
// was promised. Several devices may share a user and their keys.
func (w *world) shop(p *process, user string) {
	p.start("shopper", func(t *task) {
		t.sleep(time.Duration(w.rng.Int64N(int64(w.plan.length))))
		for range 1 + w.rng.IntN(w.plan.triesMax) {
			if w.resting {
				return
			}
			key := fmt.Sprintf("k%d", w.rng.IntN(w.plan.keys))
			w.shopFor(t, user, key, w.quantityOf(user, key))
			t.sleep(time.Duration(w.rng.Int64N(int64(w.plan.length / 4))))
		}
	})
}

// quantityOf is how many units a user wants with a key: the same each time.
func (w *world) quantityOf(user, key string) int {
	wanted := userKey{user, key}
	if n, ok := w.quantities[wanted]; ok {
		return n
	}
	n := 1 + w.rng.IntN(perUserLimit)
	w.quantities[wanted] = n
	return n
}

func (w *world) shopFor(t *task, user, key string, quantity int) {
	for range 1 + w.rng.IntN(4) {
		a := t.buy(w.anyGateway(), sale.Order{
			SaleID: saleID, UserID: user, RequestKey: key, Quantity: quantity, AmountCents: int64(quantity) * priceCents,
		}, purchaseTimeout)
		w.note("%s is told: %s", user, w.describe(&a))
		if a.Code == "" && w.coin() {
			t.sleep(time.Duration(w.rng.Int64N(int64(10 * time.Second))))
			if w.poll(t, user, a.OrderID) == pollActive && w.plan.cancels && w.coin() {
				_ = t.transact(func(l *ledger) error { // he does not insist
					l.cancel(a.OrderID)
					return nil
				})
			}
		}
		if w.resting || (a.Code == "" || definite[a.Code]) && w.rng.IntN(3) > 0 {
			return
		}
		t.sleep(time.Duration(w.rng.Int64N(int64(w.plan.retryWithin))))
	}
}

// definite are the answers that end an attempt for good.
var definite = map[sale.Code]bool{
	sale.CodeSoldOut: true, sale.CodeLimitReached: true, sale.CodeEnded: true, sale.CodePaused: true,
	sale.CodeNotStarted: true, sale.CodeKeyReused: true,
}

func (w *world) describe(a *purchase.Answer) string {
	if a.Code != "" {
		return string(a.Code)
	}
	text := "202 " + w.name(a.OrderID)
	switch {
	case a.Returned:
		text += ", a replay, cancelled"
	case a.Replayed:
		text += ", a replay"
	}
	return text
}

// anyGateway is one that runs.
func (w *world) anyGateway() *gateway {
	return w.gateways[w.rng.IntN(len(w.gateways))]
}

// What a poll says of an order.
const (
	pollUnavailable = "503"
	pollNotFound    = "404"
	pollProcessing  = "PROCESSING"
	pollActive      = "PENDING_PAYMENT"
	pollCancelled   = "CANCELLED"
)

// poll looks an order up as a gateway does: in the ledger, and what that does not
// have, in Redis.
func (w *world) poll(t *task, user string, id sale.ID) string {
	promisedBefore := w.promiseOf(id) != nil
	status := w.lookUpOrder(t, user, id)
	w.note("%s polls %s: %s", user, w.name(id), status)
	w.polled(id, promisedBefore, status)
	return status
}

func (w *world) lookUpOrder(t *task, user string, id sale.ID) string {
	status, err := w.ledgerStatus(t, id)
	if err == nil && status != "" {
		return status
	}
	away := err != nil
	records, states, err := simStock{t}.lookup(user)
	if err != nil {
		return pollUnavailable
	}
	for i := range records {
		r := &records[i]
		promised := !r.held || states[i] == stock.StateConfirmed || states[i] == stock.StateSettled
		if r.order != id || !promised {
			continue
		}
		if !away && (!r.held || states[i] == stock.StateSettled) {
			if status, err := w.ledgerStatus(t, id); err == nil && status != "" {
				return status
			}
		}
		if !r.held {
			return pollUnavailable
		}
		return pollProcessing
	}
	if away {
		return pollUnavailable
	}
	return pollNotFound
}

func (w *world) ledgerStatus(t *task, id sale.ID) (status string, err error) {
	err = t.transact(func(l *ledger) error {
		status = ""
		if r := l.byID[id]; r != nil && r.active {
			status = pollActive
		} else if r != nil {
			status = pollCancelled
		}
		return nil
	})
	return status, err
}
