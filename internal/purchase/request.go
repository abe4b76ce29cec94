package purchase

import (
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"flashgate/internal/sale"
)

// Answer is what a shopper is told about one request.
type Answer struct {
	Code        sale.Code // "" = accepted: the fields below describe the order
	OrderID     sale.ID
	Quantity    int
	AmountCents int64
	Replayed    bool // the order was made by an earlier request with this key
	Returned    bool // the order has given its units back: it was cancelled
	Settled     bool // the order is in the ledger
}

// Request is one shopper's purchase on its way through the protocol. Two goroutines hold
// it: the shopper's, which waits, and a flusher, which answers. The shopper's puts it back
// into the pool, unless its deadline came first: a flusher may hold it still.
type Request struct {
	Order    sale.Order // with the id that it gets if it wins
	Deadline time.Time  // when the shopper stops waiting
	Span     trace.Span // of the shopper's request, if it is followed; nil otherwise

	state atomic.Int32
	reply chan Answer // holds one: the flusher's, or that of the deadline
	timer *time.Timer // calls expire
}

// The states of a request. Each move is one compare-and-swap.
const (
	queued    = iota // nobody has begun: it may be withdrawn
	taken            // a flusher works on it
	answered         // the answer is in reply
	withdrawn        // the deadline came before a flusher took it
	abandoned        // the deadline came while a flusher worked on it
)

var requests = sync.Pool{New: func() any {
	r := &Request{reply: make(chan Answer, 1)}
	r.timer = time.AfterFunc(time.Hour, r.expire)
	r.timer.Stop()
	return r
}}

// NewRequest returns a request for an order, from the pool.
func NewRequest(order sale.Order, deadline time.Time) *Request {
	r := requests.Get().(*Request)
	r.Order, r.Deadline = order, deadline
	r.state.Store(queued)
	return r
}

func (r *Request) recycle() {
	r.Order, r.Span = sale.Order{}, nil
	requests.Put(r)
}

// Take claims a queued request for the calling flusher. false: the shopper has left, and
// the request is nobody's.
func (r *Request) Take() bool { return r.state.CompareAndSwap(queued, taken) }

// Answer answers a taken request. It never blocks, and the request must not be
// touched afterwards.
func (r *Request) Answer(a Answer) {
	switch {
	case r.state.CompareAndSwap(taken, answered):
		r.reply <- a
	case r.state.Load() != abandoned:
		panic("BUG: request answered twice, or before it was taken")
	}
}

// expire answers at the deadline, unless a flusher was quicker.
func (r *Request) expire() {
	switch {
	case r.state.CompareAndSwap(queued, withdrawn):
		r.reply <- Answer{Code: sale.CodeUnavailable}
	case r.state.CompareAndSwap(taken, abandoned):
		r.reply <- Answer{Code: sale.CodeOutcomeUnknown}
	}
}

// Wait blocks until the request is answered or its deadline has passed, and says
// truthfully which: UNAVAILABLE when nobody had begun, OUTCOME_UNKNOWN when a
// flusher had. The request must not be touched afterwards.
func (r *Request) Wait() Answer {
	r.timer.Reset(time.Until(r.Deadline))
	a := <-r.reply
	if r.timer.Stop() { // or else expire holds it, or what came was the deadline
		r.recycle()
	}
	return a
}

// Discard puts back a request that was never queued.
func (r *Request) Discard() { r.recycle() }
