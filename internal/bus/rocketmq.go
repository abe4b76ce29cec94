package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"flashgate/internal/sale"
	"flashgate/internal/tracing"
)

const (
	// Half messages that one connection has under way at most. A gateway has a few
	// flushers; more than this means that a broker hangs and Sends gave up on it.
	halvesUnderWay = 256
	// Close waits this long for half messages under way, so that their ends go out.
	closeWaitMillis = 3_000
)

var (
	errNotConnected = errors.New("bus: RocketMQ has not been reached yet")
	errBusy         = errors.New("bus: too many half messages are under way")
)

// RocketMQ is the bus on a RocketMQ cluster.
type RocketMQ struct {
	options     Options
	log         *slog.Logger
	metrics     *metrics
	nameServers *nameServers
	producers   []*producer
	failure     atomic.Pointer[error] // why no producer is connected yet
	consumed    atomic.Bool

	ctx    context.Context // ends at Close
	cancel context.CancelFunc

	mu         sync.RWMutex // held for reading where work is begun
	closed     bool
	underWay   sync.WaitGroup // half messages handed to the client
	connecting sync.WaitGroup
}

// OpenRocketMQ makes a bus. It does not wait for RocketMQ: the connections are made
// in the background and kept, and until then Send returns an error at once.
func OpenRocketMQ(options Options) (*RocketMQ, error) {
	options = options.withDefaults()
	const mostMessages, mostCallbacks = 1_024, 100_000 // the client's limits
	const mostHandlers = mostCallbacks/mostMessages - 1
	switch {
	case len(options.NameServers) == 0:
		return nil, errors.New("bus: no name server given")
	case options.BatchMessages < 1 || options.BatchMessages > mostMessages:
		return nil, fmt.Errorf("bus: %d messages a batch, want 1–%d", options.BatchMessages, mostMessages)
	case options.Handlers < 1 || options.Handlers > mostHandlers:
		return nil, fmt.Errorf("bus: %d handlers, want 1–%d", options.Handlers, mostHandlers)
	}
	silenceClient(options.Logger)
	r := &RocketMQ{
		options:     options,
		log:         options.Logger.With("bus", "rocketmq"),
		metrics:     newMetrics(options.Registerer),
		nameServers: newNameServers(options.NameServers),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if options.Check != nil {
		for range options.Producers {
			r.producers = append(r.producers, &producer{bus: r})
		}
		r.connecting.Go(func() { r.connect(r.ctx) })
	}
	return r, nil
}

// connect opens the producers once the topic's broker answers. Not before: a client
// made earlier sends no heartbeat, and so gets no check-backs, for 30 s; nor does it
// forget that it did not find a topic.
func (r *RocketMQ) connect(ctx context.Context) {
	for try := 1; ; try++ {
		err := ping(ctx, r.options.NameServers, r.options.Topic)
		if err == nil {
			break
		}
		r.failure.Store(&err)
		r.log.Warn("RocketMQ not reached, will try again", "try", try, "error", err)
		if !sleep(ctx, pause(try)) {
			return
		}
	}
	for _, p := range r.producers {
		r.connecting.Go(func() {
			if err := p.open(ctx); err != nil {
				r.failure.Store(&err)
				r.log.Error("producer not opened", "error", err)
			}
		})
	}
}

// Send implements Bus. It returns by ctx's deadline, whatever the client does, and
// after 3 s at most: then the half message may or may not be stored.
func (r *RocketMQ) Send(ctx context.Context, b *sale.Batch, local func() Decision) error {
	body, err := Encode(b)
	if err != nil {
		return err
	}
	return r.send(ctx, b.ID.String(), body, local)
}

func (r *RocketMQ) send(ctx context.Context, key string, body []byte, local func() Decision) error {
	start := time.Now()
	h := newHalf(r.options.Topic, key, body)
	if parent := tracing.Parent(ctx); parent != "" {
		h.message.WithProperty(tracing.Property, parent)
	}
	err := r.half(ctx, h)
	r.metrics.halfSent(start, err)
	if err != nil {
		return fmt.Errorf("half message: %w", err)
	}
	decision := decideLocal(local, r.log)
	r.metrics.halves[decision].Inc()
	h.decided <- decision
	return nil
}

// half has h stored, and returns nil when the client waits for its decision.
func (r *RocketMQ) half(ctx context.Context, h *half) error {
	if r.options.Check == nil {
		return errSendsNothing
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := r.leastBusy()
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	err = r.begin(func() {
		defer p.busy.Add(-1)
		failed <- p.send(ctx, h)
	})
	if err != nil {
		p.busy.Add(-1)
		return err
	}
	select {
	case <-h.stored:
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		if h.abandon() {
			return context.Cause(ctx)
		}
		return nil // stored at the last moment
	}
}

// begin runs f beside the caller, unless the bus is closed; Close waits for it.
func (r *RocketMQ) begin(f func()) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return errClosed
	}
	r.underWay.Go(f)
	return nil
}

// leastBusy picks the connected producer with the fewest half messages under way, and
// counts one more on it.
func (r *RocketMQ) leastBusy() (*producer, error) {
	var best *producer
	var bestBusy int64
	for _, p := range r.producers {
		busy := p.busy.Load()
		if p.client.Load() != nil && (best == nil || busy < bestBusy) {
			best, bestBusy = p, busy
		}
	}
	if best == nil {
		if failure := r.failure.Load(); failure != nil {
			return nil, fmt.Errorf("%w: %w", errNotConnected, *failure)
		}
		return nil, errNotConnected
	}
	if best.busy.Add(1) > halvesUnderWay {
		best.busy.Add(-1)
		return nil, errBusy
	}
	return best, nil
}

// Ping implements Bus: a name server answers, knows the topic, and a broker that has
// the topic answers too.
func (r *RocketMQ) Ping(ctx context.Context) error {
	if r.ctx.Err() != nil {
		return errClosed
	}
	return ping(ctx, r.options.NameServers, r.options.Topic)
}

// Close implements Bus. Half messages under way are waited for, within a bound.
func (r *RocketMQ) Close() error {
	r.mu.Lock()
	first := !r.closed
	r.closed = true
	r.mu.Unlock()
	if !first {
		return nil
	}
	ended := make(chan struct{})
	go func() { r.underWay.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeWaitMillis * time.Millisecond):
		r.log.Warn("closed while half messages were under way, left to the check-back")
	}
	r.cancel()
	r.connecting.Wait()
	var failures []error
	for _, p := range r.producers {
		failures = append(failures, p.shutdown())
	}
	return errors.Join(failures...)
}

var _ interface {
	Bus
	Lister
} = (*RocketMQ)(nil)
