package faults

import (
	"sync"
	"time"
)

// deed is what a shopper asked for.
type deed string

const (
	buy   deed = "buy"   // POST a purchase
	reuse deed = "reuse" // POST another quantity under a key that has an order
	poll  deed = "poll"  // GET the order's Location
	list  deed = "list"  // GET all own orders of the sale
)

// outcome is what an answer to a purchase means for that attempt.
type outcome int

const (
	unknown  outcome = iota // no answer, or one that says so: an order may have been made
	refused                 // nothing was reserved by it
	accepted                // 202
)

// answer is one question of a shopper and what came back.
type answer struct {
	deed     deed
	sale     string
	user     string
	key      string
	quantity int    // asked for
	order    string // 202, poll: the order's id
	gateway  int
	from, to time.Duration // since the round began

	status   int    // 0 = none came back
	code     string // of a problem
	replayed bool
	got      shown   // 202, and a poll's 200
	listed   []shown // a list's 200
	failure  string  // why none came back
}

// shown is an order as the API shows it.
type shown struct {
	OrderID     string `json:"order_id"`
	SaleID      string `json:"sale_id"`
	Quantity    int    `json:"quantity"`
	AmountCents int64  `json:"amount_cents"`
	Status      string `json:"status"`
	Reason      string `json:"reason"`
}

// outcome is of a purchase.
func (a *answer) outcome() outcome {
	switch {
	case a.status == 202:
		return accepted
	case a.status == 409, a.status == 422, a.status == 429,
		a.status == 503 && a.code == "UNAVAILABLE":
		return refused
	}
	return unknown
}

// history is what all shoppers of a round were told.
type history struct {
	began time.Time

	mu      sync.Mutex
	answers []answer
}

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(a *answer) {
	h.mu.Lock()
	h.answers = append(h.answers, *a)
	h.mu.Unlock()
}
