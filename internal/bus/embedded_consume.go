package bus

import (
	"context"
	"strconv"
	"sync"
	"time"
)

// How long the consumer rests at most when no commit wakes it: only a read that
// failed leaves messages without a signal.
const idleMillis = 1_000

// embeddedConsumer hands committed messages to a handler, a batch a slot.
type embeddedConsumer struct {
	bus    *Embedded
	handle Handler
	slots  chan struct{} // one token a handler under way

	mu     sync.Mutex
	inHand map[int64]struct{} // read and not yet acknowledged; at most slots × batch
}

func (c *embeddedConsumer) run(ctx context.Context) error {
	work, cancel := draining(ctx, c.bus.options.DrainTimeout)
	defer cancel()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	handlers.Go(func() { c.bus.metrics.watchLag(ctx, c.bus.backlog) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case c.slots <- struct{}{}:
		}
		taken := c.take(ctx)
		if len(taken) == 0 {
			<-c.slots
			if !c.rest(ctx) {
				return nil
			}
			continue
		}
		handlers.Go(func() {
			c.give(ctx, work, taken)
			<-c.slots
		})
	}
}

// take reads the oldest committed messages that nobody has in hand.
func (c *embeddedConsumer) take(ctx context.Context) []stored {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken, err := c.bus.store.committed(ctx, c.inHand, c.bus.options.BatchMessages)
	if err != nil {
		if ctx.Err() == nil {
			c.bus.log.Error("messages not read, will be", "error", err)
		}
		return nil
	}
	for i := range taken {
		c.inHand[taken[i].id] = struct{}{}
	}
	return taken
}

// rest waits for a commit: false, when ctx ended.
func (c *embeddedConsumer) rest(ctx context.Context) bool {
	timer := time.NewTimer(idleMillis * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-c.bus.wake:
	case <-timer.C:
	}
	return true
}

func (c *embeddedConsumer) give(stop, work context.Context, taken []stored) {
	deliveries := make([]Delivery, len(taken))
	for i := range taken {
		deliveries[i] = read(strconv.FormatInt(taken[i].id, 10), taken[i].body)
		deliveries[i].Trace = taken[i].trace
	}
	g := giver{metrics: c.bus.metrics, log: c.bus.log, handle: func(ctx context.Context, d []Delivery) error {
		if err := c.handle(ctx, d); err != nil {
			return err
		}
		// An acknowledgement that cannot be written is a delivery not taken.
		return c.bus.store.remove(ctx, taken)
	}}
	g.give(stop, work, deliveries)
	c.mu.Lock()
	for i := range taken {
		delete(c.inHand, taken[i].id)
	}
	c.mu.Unlock()
}
