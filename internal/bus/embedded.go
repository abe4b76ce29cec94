package bus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"flashgate/internal/sale"
)

// Rows in one read of a listing or of a round of check-backs.
const pageRows = 256

// Embedded is the bus of a single process: it keeps its messages in a SQLite file. A
// half message is on the disk before its local transaction runs.
type Embedded struct {
	options Options
	log     *slog.Logger
	metrics *metrics
	store   *store
	firstID int64 // up to this id, messages are of an earlier process

	wake chan struct{} // a message was committed: one token

	consumed    atomic.Bool
	stopChecks  context.CancelFunc
	checksEnded sync.WaitGroup
}

// OpenEmbedded opens the file and, when Options.Check is set, starts to check back
// the half messages in it, also those of an earlier process.
func OpenEmbedded(options Options) (*Embedded, error) {
	options = options.withDefaults()
	if options.File == "" {
		return nil, fmt.Errorf("bus: no file given")
	}
	e := &Embedded{
		options: options,
		log:     options.Logger.With("bus", "embedded"),
		metrics: newMetrics(options.Registerer),
		wake:    make(chan struct{}, 1),
	}
	var err error
	e.store, err = openStore(options.File, func(err error) {
		e.log.Error("messages not written", "error", err)
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.stopChecks = cancel
	if e.firstID, err = e.store.lastID(ctx); err != nil {
		cancel()
		_ = e.store.close()
		return nil, fmt.Errorf("bus file %s: %w", options.File, err)
	}
	if options.Check != nil {
		e.checksEnded.Go(func() { e.checkBacks(ctx) })
	}
	return e, nil
}

// Send implements Bus. It waits for the disk twice at most: Sends at one time share it.
func (e *Embedded) Send(ctx context.Context, b *sale.Batch, local func() Decision) error {
	body, err := Encode(b)
	if err != nil {
		return err
	}
	return e.send(ctx, b.SaleID, body, local)
}

func (e *Embedded) send(ctx context.Context, saleID string, body []byte, local func() Decision) error {
	if e.options.Check == nil {
		return errSendsNothing
	}
	start := time.Now()
	id, err := e.store.insert(ctx, start.UnixMilli(), saleID, body)
	e.metrics.halfSent(start, err)
	if err != nil {
		return fmt.Errorf("half message: %w", err)
	}
	decision := decideLocal(local, e.log)
	e.metrics.halves[decision].Inc()
	// Not waited for: when it cannot be written, the check-back finds the decision.
	// Not bound to ctx either, which may have ended while local ran.
	if err := e.end(context.WithoutCancel(ctx), id, decision, func(error) {}); err != nil {
		e.log.Warn("end of a half message not written, left to the check-back", "message_id", id, "decision", decision, "error", err)
	}
	return nil
}

// end queues a decision to be written, and wakes the consumer for a commit.
func (e *Embedded) end(ctx context.Context, id int64, d Decision, then func(error)) error {
	return e.store.do(ctx, end(id, d), func(err error) {
		if err == nil && d == Commit {
			e.signal()
		}
		then(err)
	})
}

func (e *Embedded) signal() {
	select {
	case e.wake <- struct{}{}:
	default: // a token is there already
	}
}

// Consume implements Bus. The embedded bus never gives up checking, so the check that
// counts is Options.Check, and the one given here is not used.
func (e *Embedded) Consume(ctx context.Context, handle Handler, _ Checker) error {
	if e.consumed.Swap(true) {
		panic("BUG: Consume called twice")
	}
	c := &embeddedConsumer{
		bus:    e,
		handle: handle,
		slots:  make(chan struct{}, e.options.Handlers),
		inHand: make(map[int64]struct{}),
	}
	return c.run(ctx)
}

// Ping implements Bus.
func (e *Embedded) Ping(ctx context.Context) error {
	_, err := e.store.lastID(ctx)
	return err
}

// Close implements Bus. What was sent before is written first.
func (e *Embedded) Close() error {
	e.stopChecks()
	e.checksEnded.Wait()
	return e.store.close()
}

// Undelivered implements Lister. A message that cannot be read is passed over: the
// consumer reports it.
func (e *Embedded) Undelivered(ctx context.Context, saleID string, each func([]sale.Batch) error) error {
	for after := int64(0); ; {
		page, err := e.store.ofSale(ctx, after, saleID, pageRows)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].id
		batches := make([]sale.Batch, 0, len(page))
		for i := range page {
			if b, err := Decode(page[i].body); err == nil {
				batches = append(batches, *b)
			}
		}
		if len(batches) == 0 {
			continue
		}
		if err := each(batches); err != nil {
			return err
		}
	}
}

// checkBacks asks what became of half messages that wait for their end.
func (e *Embedded) checkBacks(ctx context.Context) {
	for {
		if err := e.checkRound(ctx); err != nil && ctx.Err() == nil {
			e.log.Error("half messages not checked, will be", "error", err)
		}
		if !sleep(ctx, e.options.CheckInterval) {
			return
		}
	}
}

func (e *Embedded) checkRound(ctx context.Context) error {
	for after := int64(0); ; {
		// A message sent since now was read is not of the future: the same slack both ways.
		now, slack := time.Now(), e.options.CheckAfter
		page, err := e.store.undecided(ctx, after, e.firstID, now.Add(-slack).UnixMilli(), now.Add(slack).UnixMilli(), pageRows)
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].id
		for i := range page {
			if err := e.checkBack(ctx, page[i]); err != nil {
				return err
			}
		}
	}
}

func (e *Embedded) checkBack(ctx context.Context, m stored) error {
	b, err := Decode(m.body)
	if err != nil {
		// Left as it is: a later version of this program may know what it promises.
		e.metrics.undecodable.Inc()
		e.log.Error("half message cannot be read, kept", "message_id", m.id, "error", err)
		return nil
	}
	answer := ask(ctx, e.options.Check, e.options.CheckTimeout, b, e.log)
	e.metrics.checkBacks[answer].Inc()
	return e.end(ctx, m.id, answer, func(error) {})
}

var _ interface {
	Bus
	Lister
} = (*Embedded)(nil)
