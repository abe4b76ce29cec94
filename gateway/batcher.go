package gateway

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
)

// Runner takes queued requests of one sale through the purchase protocol, and
// answers each of them: it is purchase.Protocol.
type Runner interface {
	Run(ctx context.Context, s *sale.Sale, requests []*purchase.Request)
}

// batcher turns single requests into batches, per sale. A lone request is taken by a
// flusher at once; while that is away with one batch the next one gathers, so batches
// grow with the load. What a batch costs the engines hardly depends on its size, so a
// second flusher comes only for a whole batch that waits, or when the others are slow;
// and where many wait when a flusher comes back, those whom it has just answered, and
// who ask again, are waited for.
type batcher struct {
	runner   Runner
	max      int           // requests in a batch
	flushers int           // batches under way, a sale
	linger   time.Duration // how long less than a whole batch may gather after the last, at most
	patience time.Duration // how long nobody may take what waits before another flusher comes
	queue    int           // requests waiting, a sale
	lanesMax int           // sales with a lane
	panicked func(any, []byte)

	depth  atomic.Int64
	flying sync.WaitGroup  // flushers
	ctx    context.Context // of every Run; ends when stop has waited long enough
	cancel context.CancelFunc

	mu      sync.RWMutex
	lanes   map[string]*lane
	stopped bool
}

// lane is the queue of one sale. Its flushers start when there is something to
// take and end when there is not, so an idle lane costs a few bytes.
type lane struct {
	mu        sync.Mutex
	sale      *sale.Sale // the newest view that a request came with
	queue     []*purchase.Request
	head      int // queue[head:] waits
	flushing  int
	takenAt   time.Time // when a flusher took something last
	gathering bool      // less than a whole batch is taken when the linger is over, and not before
	helping   bool      // a look at whether another flusher is needed is due
	dead      bool      // it takes no more: look for the lane again
}

func newBatcher(runner Runner, batchMax, flushers int, linger, patience time.Duration, queueMax, lanesMax int) *batcher {
	b := &batcher{
		runner: runner, max: batchMax, flushers: flushers, linger: linger, patience: patience, queue: queueMax, lanesMax: lanesMax,
		lanes: make(map[string]*lane),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// enqueue queues r for a flusher of its sale. false: the queue is full, or the
// batcher has stopped; r is still the caller's.
func (b *batcher) enqueue(s *sale.Sale, r *purchase.Request) bool {
	for {
		l := b.lane(s.ID)
		if l == nil {
			return false
		}
		if queued, dead := b.push(l, s, r); !dead {
			return queued
		}
	}
}

func (b *batcher) push(l *lane, s *sale.Sale, r *purchase.Request) (queued, dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return false, true
	}
	if len(l.queue)-l.head >= b.queue {
		return false, false
	}
	if l.head > 0 && len(l.queue) == cap(l.queue) {
		n := copy(l.queue, l.queue[l.head:])
		clear(l.queue[n:])
		l.queue, l.head = l.queue[:n], 0
	}
	l.sale = s
	l.queue = append(l.queue, r)
	b.depth.Add(1)
	whole := len(l.queue)-l.head >= b.max
	switch {
	case l.flushing == b.flushers:
	case whole, l.flushing == 0 && !l.gathering:
		l.flushing++
		b.flying.Add(1)
		go b.flush(l)
	case !l.helping:
		l.helping = true
		b.flying.Add(1)
		time.AfterFunc(b.patience, func() { b.help(l) })
	}
	return true, false
}

// help becomes another flusher of a lane in which something waits and nobody has taken
// anything for as long as patience.
func (b *batcher) help(l *lane) {
	l.mu.Lock()
	idle := time.Since(l.takenAt)
	if waiting := len(l.queue) - l.head; waiting > 0 && l.flushing < b.flushers && idle < b.patience {
		time.AfterFunc(b.patience-idle, func() { b.help(l) })
		l.mu.Unlock()
		return
	}
	l.helping = false
	b.join(l)
}

// gathered becomes the flusher of what has gathered.
func (b *batcher) gathered(l *lane) {
	l.mu.Lock()
	l.gathering = false
	b.join(l)
}

// join becomes a flusher of a lane that has work for one more. The lane is locked.
func (b *batcher) join(l *lane) {
	if len(l.queue) == l.head || l.flushing >= b.flushers {
		l.mu.Unlock()
		b.flying.Done()
		return
	}
	l.flushing++
	l.mu.Unlock()
	b.flush(l)
}

// trip is what a flusher comes back from: a batch of so many requests.
type trip struct {
	requests int
	took     time.Duration
}

// crowdShare: those who wait and those just answered are a crowd, which is waited for, if
// they are at least this part of a whole batch.
const crowdShare = 16

// lingers is how long may gather what waits when a flusher comes back. No longer than the
// flusher was away: engines that are quick do not wait for shoppers.
func (b *batcher) lingers(waiting int, last trip) time.Duration {
	if waiting >= b.max || (waiting+last.requests)*crowdShare < b.max {
		return 0
	}
	return min(b.linger, last.took)
}

// take moves the oldest requests into batch. None: the flusher has ended.
func (b *batcher) take(l *lane, batch []*purchase.Request, last trip) ([]*purchase.Request, *sale.Sale) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := l.queue[l.head:]
	if l.gathering && len(waiting) < b.max {
		l.flushing--
		return batch, nil
	}
	if pause := b.lingers(len(waiting), last); pause > 0 {
		l.flushing--
		l.gathering = true
		b.flying.Add(1)
		time.AfterFunc(pause, func() { b.gathered(l) })
		return batch, nil
	}
	if len(waiting) == 0 {
		l.flushing--
		return batch, nil
	}
	l.takenAt = time.Now()
	waiting = waiting[:min(len(waiting), b.max)]
	batch = append(batch, waiting...)
	clear(waiting)
	b.depth.Add(-int64(len(waiting)))
	if l.head += len(waiting); l.head == len(l.queue) {
		l.queue, l.head = l.queue[:0], 0
	}
	return batch, l.sale
}

var batches = sync.Pool{New: func() any { return new([]*purchase.Request) }}

func (b *batcher) flush(l *lane) {
	defer b.flying.Done()
	buf := batches.Get().(*[]*purchase.Request)
	var last trip
	for {
		batch, s := b.take(l, (*buf)[:0], last)
		if len(batch) == 0 {
			break
		}
		began := time.Now()
		b.run(s, batch)
		last = trip{len(batch), time.Since(began)}
		clear(batch)
		*buf = batch
	}
	batches.Put(buf)
}

// run survives a panic: the batch's shoppers get OUTCOME_UNKNOWN at their deadline,
// the others of the sale go on.
func (b *batcher) run(s *sale.Sale, batch []*purchase.Request) {
	defer func() {
		if v := recover(); v != nil {
			b.panicked(v, debug.Stack())
		}
	}()
	b.runner.Run(b.ctx, s, batch)
}

// lane finds or makes the lane of a sale. nil: the batcher has stopped, or as many
// sales as it takes are selling at this moment.
func (b *batcher) lane(saleID string) *lane {
	b.mu.RLock()
	l := b.lanes[saleID]
	b.mu.RUnlock()
	if l != nil {
		return l
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if l = b.lanes[saleID]; l != nil || b.stopped {
		return l
	}
	if len(b.lanes) >= b.lanesMax {
		b.sweep()
	}
	if len(b.lanes) >= b.lanesMax {
		return nil
	}
	l = new(lane)
	b.lanes[saleID] = l
	return l
}

// sweep forgets the lanes in which nothing happens.
func (b *batcher) sweep() {
	for id, l := range b.lanes {
		l.mu.Lock()
		if l.flushing == 0 && len(l.queue) == l.head {
			l.dead = true
			delete(b.lanes, id)
		}
		l.mu.Unlock()
	}
}

// stopGraceMillis is how long stop waits for runs that were told to stop: voiding a
// batch is worth it, a process that does not end is not.
const stopGraceMillis = 2000

// stop refuses new requests and waits until all that are queued or under way are
// through, or ctx has ended; then what still runs is told to stop.
func (b *batcher) stop(ctx context.Context) {
	b.mu.Lock()
	b.stopped = true
	for id, l := range b.lanes {
		l.mu.Lock()
		l.dead = true
		l.mu.Unlock()
		delete(b.lanes, id)
	}
	b.mu.Unlock()
	through := make(chan struct{})
	go func() {
		b.flying.Wait()
		close(through)
	}()
	select {
	case <-through:
	case <-ctx.Done():
	}
	b.cancel()
	select {
	case <-through:
	case <-time.After(stopGraceMillis * time.Millisecond):
	}
}
