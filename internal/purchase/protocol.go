// Package purchase is the purchase protocol: how a batch of requests becomes orders
// that stand in Redis and on the bus before anyone is told so, and how a check-back
// finds out what became of one.
//
//	1 reserve   units are held, the batch is RESERVED        Redis
//	2 half      the winners are stored as a half message     bus
//	3 confirm   the batch is CONFIRMED, on a replica too     Redis
//	            the winners are told
//	4 commit    the half message becomes visible             bus
//
// Whatever fails in between, the answer given is one that no later event contradicts.
package purchase

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"flashgate/internal/bus"
	"flashgate/internal/failpoint"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/tracing"
)

// Stock is the part of stock.Store that the protocol uses.
type Stock interface {
	Reserve(ctx context.Context, b *sale.Batch, terms stock.Terms, hold time.Duration, out []stock.Outcome) (epoch int64, err error)
	Confirm(ctx context.Context, b *sale.Batch) (stock.State, error)
	Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error)
}

// Sender is the part of bus.Bus that the protocol uses.
type Sender interface {
	Send(ctx context.Context, b *sale.Batch, local func() bus.Decision) error
}

// Breaker stands before an engine: it either calls do and returns its error, or
// does not call it and returns an error of its own.
type Breaker interface {
	Do(ctx context.Context, do func(context.Context) error) error
}

// BusBreaker is a Breaker that can be looked at without a call.
type BusBreaker interface {
	Breaker
	Open() bool // calls are refused, or the next one is to try the engine out
}

// Options are the protocol's bounds and parts.
type Options struct {
	Stock        Stock
	Bus          Sender
	RedisBreaker Breaker    // nil = none
	BusBreaker   BusBreaker // nil = none
	IDs          *sale.IDs
	Hold         time.Duration // how long a reservation lasts before the sweeper releases it
	HalfTimeout  time.Duration // of storing a half message
	// ReleaseTimeout bounds the release of a batch that failed; it runs past the
	// shoppers' deadline, since what it does is for those who come next.
	ReleaseTimeout time.Duration
	Log            *slog.Logger
	Registerer     prometheus.Registerer
}

// Protocol runs purchases. It is safe for many goroutines.
type Protocol struct {
	o       Options
	metrics metrics
	scratch sync.Pool
	waits   sync.WaitGroup
	// confirmed are the batches whose promises need no second look.
	confirmed confirmed
	// busProbe is when, in Unix ms, a batch may try the bus out again while its breaker
	// is open.
	busProbe atomic.Int64
}

// New makes a protocol; it starts nothing.
func New(o Options) *Protocol {
	if o.Stock == nil || o.IDs == nil {
		panic("BUG: purchase.New wants a stock and a source of ids")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	p := &Protocol{o: o, metrics: newMetrics(o.Registerer)}
	p.scratch.New = func() any { return new(run) }
	return p
}

// A replay that meets a reservation whose outcome is open asks again after the
// first of these, then after twice as long, up to the second.
const (
	awaitMinMillis = 5
	awaitMaxMillis = 80
)

// maxReplayConfirms is how many batches of one run's replays are confirmed side by
// side; each holds a dedicated connection for a round trip.
const maxReplayConfirms = 8

// run is the working memory of one Run.
type run struct {
	batch    sale.Batch
	requests []*Request
	outcomes []stock.Outcome
	winners  []*Request
	twins    []twin
	replays  map[sale.ID][]replay // by batch, CONFIRMED ones
	open     []*Request           // met a RESERVED batch
}

// twin is a replay of a winner in the same batch: it shares the winner's outcome.
type twin struct {
	request *Request
	answer  Answer
}

type replay struct {
	request *Request
	answer  Answer
}

func (r *run) reset() {
	clear(r.requests)
	clear(r.winners)
	clear(r.twins)
	clear(r.open)
	clear(r.batch.Orders)
	clear(r.replays)
	*r = run{
		batch:    sale.Batch{Orders: r.batch.Orders[:0]},
		requests: r.requests[:0],
		outcomes: r.outcomes[:0],
		winners:  r.winners[:0],
		twins:    r.twins[:0],
		replays:  r.replays,
		open:     r.open[:0],
	}
}

// Run takes queued requests of one sale through the protocol as one batch, and
// answers each of them exactly once; some after it has returned (see Wait).
func (p *Protocol) Run(ctx context.Context, s *sale.Sale, requests []*Request) {
	r := p.scratch.Get().(*run)
	defer func() {
		r.reset()
		p.scratch.Put(r)
	}()
	for _, q := range requests {
		if q.Take() {
			r.requests = append(r.requests, q)
		}
	}
	p.run(ctx, s, r)
}

// Wait blocks until every request that Run has left waiting is answered; each is
// bounded by its own deadline.
func (p *Protocol) Wait() { p.waits.Wait() }

func (p *Protocol) run(ctx context.Context, s *sale.Sale, r *run) {
	if len(r.requests) == 0 {
		return
	}
	if p.busAway() {
		answerAll(r.requests, Answer{Code: sale.CodeUnavailable})
		return
	}
	ctx, span := tracing.Join(ctx, "batch", r.followed())
	defer span.End()
	if p.reserve(ctx, s, r) {
		p.replay(ctx, s, r)
		p.handOver(ctx, r)
	}
}

// followed are the spans of the requests that have one.
func (r *run) followed() (spans []trace.Span) {
	for _, q := range r.requests {
		if q.Span != nil {
			spans = append(spans, q.Span)
		}
	}
	return spans
}

// busProbeMillis is how often a batch with winners is let through to a bus whose
// breaker is open: were there none, the breaker could never find out that it is back.
const busProbeMillis = 500

// busAway reports whether a batch shall be refused before anything is reserved that
// could not be handed over.
func (p *Protocol) busAway() bool {
	return p.o.BusBreaker != nil && p.o.BusBreaker.Open() && time.Now().UnixMilli() < p.busProbe.Load()
}

// answerMarginMillis is how long before the shoppers' deadline the protocol gives up
// asking, so that what it found out still reaches them.
const answerMarginMillis = 30

// deadline is shortly before the latest of the requests' deadlines: work for a batch
// is worth doing as long as one of its shoppers is there.
func deadline(requests []*Request) time.Time {
	latest := requests[0].Deadline
	for _, q := range requests[1:] {
		if q.Deadline.After(latest) {
			latest = q.Deadline
		}
	}
	return latest.Add(-answerMarginMillis * time.Millisecond)
}

// reserve is step 1. It sorts the requests by outcome; false means that every one
// has been answered.
func (p *Protocol) reserve(ctx context.Context, s *sale.Sale, r *run) bool {
	r.batch.ID = p.o.IDs.Next(sale.ShardOf(s.ID))
	r.batch.SaleID = s.ID
	for _, q := range r.requests {
		r.batch.Orders = append(r.batch.Orders, q.Order)
	}
	if n := len(r.requests); cap(r.outcomes) < n {
		r.outcomes = make([]stock.Outcome, n)
	} else {
		r.outcomes = r.outcomes[:n]
	}

	terms := stock.Terms{StartsAt: s.StartsAt, EndsAt: s.EndsAt, Paused: s.Status == sale.Paused, PerUserLimit: s.PerUserLimit}
	began := time.Now()
	inStep, span := tracing.Child(ctx, "reserve")
	err := guard(inStep, p.o.RedisBreaker, func(ctx context.Context) error {
		ctx, cancel := context.WithDeadline(ctx, deadline(r.requests))
		defer cancel()
		epoch, err := p.o.Stock.Reserve(ctx, &r.batch, terms, p.o.Hold, r.outcomes)
		r.batch.Epoch = epoch
		return err
	})
	tracing.End(span, err)
	p.metrics.step("reserve", began, err)
	p.metrics.batchOrders.Observe(float64(len(r.requests)))
	if err != nil {
		answerAll(r.requests, Answer{Code: p.failedReserve(ctx, r, err)})
		return false
	}

	for i, q := range r.requests {
		o := &r.outcomes[i]
		p.metrics.outcome(o.Verdict)
		switch o.Verdict {
		case stock.Reserved:
			r.batch.Orders[len(r.winners)] = q.Order
			r.winners = append(r.winners, q)
		case stock.Replay:
			r.sortReplay(q, o)
		default:
			q.Answer(Answer{Code: refusals[o.Verdict]})
		}
	}
	clear(r.batch.Orders[len(r.winners):])
	r.batch.Orders = r.batch.Orders[:len(r.winners)]
	return true
}

// refusals are the codes of reserve's verdicts.
var refusals = [...]sale.Code{
	stock.KeyReused:    sale.CodeKeyReused,
	stock.Paused:       sale.CodePaused,
	stock.NotStarted:   sale.CodeNotStarted,
	stock.Ended:        sale.CodeEnded,
	stock.LimitReached: sale.CodeLimitReached,
	stock.SoldOut:      sale.CodeSoldOut,
}

// failedReserve decides what a failed reserve meant. When it may have run, the
// batch is voided, so that it cannot take effect later.
func (p *Protocol) failedReserve(ctx context.Context, r *run, err error) sale.Code {
	if errors.Is(err, stock.ErrNotReady) || errors.Is(err, stock.ErrNotRun) || errors.Is(err, errNotCalled) {
		return sale.CodeUnavailable
	}
	p.o.Log.WarnContext(ctx, "reserve has an unknown outcome", "sale", r.batch.SaleID, "batch", r.batch.ID, "orders", orderIDs(r.batch.Orders), "err", err)
	// Epoch 0: whichever epoch Redis is at, no half message of this batch exists.
	r.batch.Epoch = 0
	return p.void(ctx, &r.batch)
}

// void releases a batch that shall not happen, and returns the code that is true
// then: UNAVAILABLE once its VOID is on the replicas, OUTCOME_UNKNOWN otherwise.
func (p *Protocol) void(ctx context.Context, b *sale.Batch) sale.Code {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.o.ReleaseTimeout)
	defer cancel()
	ctx, span := tracing.Child(ctx, "release")
	state, err := p.o.Stock.Release(ctx, b.SaleID, b.ID, b.Epoch, b.Orders)
	tracing.End(span, err)
	if err == nil && state == stock.StateVoid {
		p.metrics.released.Inc()
		return sale.CodeUnavailable
	}
	p.o.Log.WarnContext(ctx, "release has an unknown outcome; the sweeper or a check-back will find it",
		"sale", b.SaleID, "batch", b.ID, "orders", orderIDs(b.Orders), "state", state, "err", err)
	return sale.CodeOutcomeUnknown
}

// sortReplay files a request whose key has an order already.
func (r *run) sortReplay(q *Request, o *stock.Outcome) {
	// The amount of an order is its quantity × the price, which never changes.
	a := Answer{
		OrderID: o.OrderID, Quantity: o.Quantity, AmountCents: q.Order.AmountCents,
		Replayed: true, Returned: o.Returned,
	}
	switch {
	case o.Returned || o.Batch == stock.StateSettled:
		a.Settled = true
		q.Answer(a)
	case o.BatchID == r.batch.ID:
		r.twins = append(r.twins, twin{q, a})
	case o.Batch == stock.StateConfirmed:
		if r.replays == nil {
			r.replays = make(map[sale.ID][]replay)
		}
		r.replays[o.BatchID] = append(r.replays[o.BatchID], replay{q, a})
	default:
		r.open = append(r.open, q)
	}
}

// handOver is steps 2 to 4 for the winners.
func (p *Protocol) handOver(ctx context.Context, r *run) {
	if len(r.winners) == 0 {
		return
	}
	failpoint.Hit(failpoint.AfterReserve)
	limit := deadline(r.winners)
	ended := false
	end := func(code sale.Code) {
		ended = true
		r.answerWinners(code)
	}
	began := time.Now()
	half, cancel := context.WithTimeout(ctx, p.o.HalfTimeout)
	defer cancel()
	half, span := tracing.Child(half, "half")
	local := func() bus.Decision {
		tracing.End(span, nil)
		p.metrics.step("half", began, nil)
		failpoint.Hit(failpoint.AfterHalf)
		state, err := p.confirm(ctx, &r.batch, limit)
		switch {
		case err != nil:
			end(sale.CodeOutcomeUnknown)
			return bus.Unknown
		case state == stock.StateVoid:
			end(sale.CodeUnavailable)
			return bus.Rollback
		default:
			p.metrics.accepted.Add(float64(len(r.winners)))
			failpoint.Hit(failpoint.AfterConfirm)
			end("")
			failpoint.Hit(failpoint.BeforeCommit)
			return bus.Commit
		}
	}
	send := func(ctx context.Context) error { return p.o.Bus.Send(ctx, &r.batch, local) }
	var err error
	if p.o.BusBreaker == nil {
		err = send(half)
	} else {
		err = guard(half, p.o.BusBreaker, send)
	}
	failpoint.Hit(failpoint.AfterCommit)
	if err == nil || ended {
		return
	}
	tracing.End(span, err)
	p.busProbe.Store(time.Now().UnixMilli() + busProbeMillis)
	p.metrics.step("half", began, err)
	p.o.Log.WarnContext(ctx, "half message was not stored, or nobody knows", "sale", r.batch.SaleID, "batch", r.batch.ID, "orders", orderIDs(r.batch.Orders), "err", err)
	end(p.void(ctx, &r.batch))
}

// answerWinners tells the winners and their twins what became of their batch.
func (r *run) answerWinners(code sale.Code) {
	for _, t := range r.twins {
		if code != "" {
			t.answer = Answer{Code: code}
		}
		t.request.Answer(t.answer)
	}
	for i, q := range r.winners {
		if code != "" {
			q.Answer(Answer{Code: code})
			continue
		}
		o := &r.batch.Orders[i]
		q.Answer(Answer{OrderID: o.ID, Quantity: o.Quantity, AmountCents: o.AmountCents})
	}
}

// errOtherEpoch: Redis was rebuilt since the batch was reserved, and only a
// check-back can tell what becomes of it.
var errOtherEpoch = errors.New("purchase: the sale's epoch has changed")

// A confirm without a definite outcome is asked again after the first of these,
// then after twice as long, up to the second.
const (
	confirmMinMillis = 10
	confirmMaxMillis = 200
)

// confirm is step 3: it asks until the outcome is definite or limit has passed.
// Confirming is idempotent, so asking again after a lost reply does no harm.
func (p *Protocol) confirm(ctx context.Context, b *sale.Batch, limit time.Time) (stock.State, error) {
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), limit)
	defer cancel()
	pause := confirmMinMillis * time.Millisecond
	for {
		began := time.Now()
		inStep, span := tracing.Child(ctx, "confirm")
		state, err := p.o.Stock.Confirm(inStep, b)
		tracing.End(span, err)
		p.metrics.step("confirm", began, err)
		if err == nil {
			switch state {
			case stock.StateOtherEpoch:
				return state, errOtherEpoch
			case stock.StateConfirmed, stock.StateSettled:
				p.confirmed.add(b.ID, b.Epoch)
			}
			return state, nil
		}
		if !sleep(ctx, pause) {
			p.o.Log.WarnContext(ctx, "confirm has an unknown outcome; a check-back will find it",
				"sale", b.SaleID, "batch", b.ID, "orders", orderIDs(b.Orders), "err", err)
			return stock.StateAbsent, err
		}
		pause = min(2*pause, confirmMaxMillis*time.Millisecond)
	}
}

func answerAll(requests []*Request, a Answer) {
	for _, q := range requests {
		q.Answer(a)
	}
}

// errNotCalled: a breaker was open, so the engine was not asked.
var errNotCalled = errors.New("purchase: breaker is open")

func guard(ctx context.Context, b Breaker, do func(context.Context) error) error {
	if b == nil {
		return do(ctx)
	}
	called := false
	err := b.Do(ctx, func(ctx context.Context) error {
		called = true
		return do(ctx)
	})
	if !called {
		return errNotCalled
	}
	return err
}

// sleep waits for d or until ctx ends; false means it ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
