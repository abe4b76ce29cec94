package bus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"

	"flashgate/internal/gather"
	"flashgate/internal/tracing"
)

const (
	// strandedTopic is where a broker puts half messages that it gave up checking. The
	// broker creates it with the first of them.
	strandedTopic = "TRANS_CHECK_MAX_TIME_TOPIC"
	// strandedSuffix makes the group that reads it, of its own: a group must have the
	// same subscriptions everywhere.
	strandedSuffix = "-stranded"

	// Deliveries are retried here until they are taken, so the client must not send a
	// message back on its own: it would take a failed send-back for success.
	consumeTimeoutHours = 24 * 365
	// What one queue holds in memory before the client pulls no more.
	queueMebibytes  = 32
	queueMessages   = 4 // times the messages of a batch
	maxQueueFetched = 65_535

	// After a handler's return the client still has to note the offset; given this long
	// before the consumer closes. Cut short, the messages come again.
	acknowledgeMillis = 50
)

// Consume implements Bus. Two consumers run: one has the topic, one, in a group of its
// own, the half messages that brokers gave up checking. Both wait for their topics.
func (r *RocketMQ) Consume(ctx context.Context, handle Handler, check Checker) error {
	if r.consumed.Swap(true) {
		panic("BUG: Consume called twice")
	}
	work, cancel := draining(ctx, r.options.DrainTimeout)
	defer cancel()
	linger := r.options.Linger
	linger.Gap = r.options.PullInterval // a queue that has more brings it so much later
	together := gather.New(r.options.Handlers, r.options.BatchMessages, linger, func(ctx context.Context, deliveries []Delivery) ([]struct{}, error) {
		return nil, handle(ctx, deliveries)
	})
	g := &giver{metrics: r.metrics, log: r.log, handle: func(ctx context.Context, deliveries []Delivery) error {
		_, err := together.Do(ctx, deliveries...)
		return err
	}}
	var consumers sync.WaitGroup
	consumers.Go(func() { r.metrics.watchLag(ctx, r.backlog) })
	for _, s := range []*subscription{
		{topic: r.options.Topic, group: r.options.ConsumerGroup, take: g.takeMessages},
		{topic: strandedTopic, group: r.options.ConsumerGroup + strandedSuffix, take: (&rescuer{bus: r, giver: g, check: check}).take},
	} {
		s.bus, s.stop, s.work, s.released = r, ctx, work, make(chan struct{})
		consumers.Go(s.run)
	}
	consumers.Wait()
	together.Wait()
	return nil
}

// takeMessages hands messages to the handler until it takes them, or stop ends.
func (g *giver) takeMessages(stop, work context.Context, messages []*primitive.MessageExt) bool {
	deliveries := make([]Delivery, len(messages))
	for i, m := range messages {
		deliveries[i] = read(m.MsgId, m.Body)
		deliveries[i].Trace = m.GetProperty(tracing.Property)
	}
	return g.give(stop, work, deliveries)
}

// subscription is one consumer group on one topic.
type subscription struct {
	bus   *RocketMQ
	topic string
	group string
	// take deals with messages until they may be acknowledged: false, if stop ended first.
	take func(stop, work context.Context, messages []*primitive.MessageExt) bool

	stop     context.Context // ends when no more may be taken
	work     context.Context // ends a while later
	released chan struct{}   // closed when the client is shut down

	mu       sync.Mutex
	stopping bool
	inHand   sync.WaitGroup
}

// pushConsumer is what we use of the client's consumer.
type pushConsumer interface {
	Subscribe(topic string, selector consumer.MessageSelector, f func(context.Context, ...*primitive.MessageExt) (consumer.ConsumeResult, error)) error
	Unsubscribe(topic string) error
	Start() error
	Rebalance()
	PersistConsumerOffset() error
	Shutdown() error
}

// run consumes until stop ends, and returns when nothing is in hand any more.
func (s *subscription) run() {
	client := s.connect()
	if client == nil {
		return
	}
	<-s.stop.Done()
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.inHand.Wait()
	sleep(context.WithoutCancel(s.stop), acknowledgeMillis*time.Millisecond)

	// Offsets first, of all queues at once: letting go of one queue makes the client
	// forget those of the others.
	if err := client.PersistConsumerOffset(); err != nil {
		s.bus.log.Warn("offsets not kept, messages come again", "topic", s.topic, "error", err)
	}
	// Without its subscription the consumer lets go of its queues; on its own, Shutdown
	// can meet a pull that just came back, and panics.
	if err := client.Unsubscribe(s.topic); err != nil {
		s.bus.log.Warn("not unsubscribed", "topic", s.topic, "error", err)
	}
	client.Rebalance()
	if err := client.Shutdown(); err != nil {
		s.bus.log.Warn("consumer not shut down", "topic", s.topic, "error", err)
	}
	// Only now: what these messages' callbacks return is no longer heard, so they are
	// not acknowledged and come again.
	close(s.released)
}

// connect returns a started client, or nil when stop ended before.
func (s *subscription) connect() pushConsumer {
	for try := 1; ; try++ {
		client, err := s.open()
		if err == nil {
			return client
		}
		// Without a route the stranded topic has never had a message: nothing is wrong.
		if s.topic != strandedTopic || !errors.Is(err, errNoRoute) {
			s.bus.log.Warn("not consuming yet, will try again", "topic", s.topic, "try", try, "error", err)
		}
		if !sleep(s.stop, pause(try)) {
			return nil
		}
	}
}

func (s *subscription) open() (pushConsumer, error) {
	options := s.bus.options
	if err := ping(s.stop, options.NameServers, s.topic); err != nil {
		return nil, err
	}
	client, err := consumer.NewPushConsumer(
		consumer.WithNsResolver(s.bus.nameServers),
		consumer.WithGroupName(s.group),
		consumer.WithInstance(uniqueName("consumer")),
		consumer.WithConsumerModel(consumer.Clustering),
		// A new group must not skip what was sold before it.
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithConsumeMessageBatchMaxSize(options.BatchMessages),
		consumer.WithPullBatchSize(int32(options.BatchMessages)),
		// A callback brings what one pull of one queue did, one message while they come one
		// by one. So this many fill all calls of the handler, and one more that gathers.
		consumer.WithConsumeGoroutineNums(options.BatchMessages*(options.Handlers+1)),
		consumer.WithConsumeTimeout(consumeTimeoutHours*time.Hour),
		// Nothing is sent back; if anything ever is, it must not end as a dead letter.
		consumer.WithMaxReconsumeTimes(math.MaxInt32),
		consumer.WithPullThresholdForQueue(int64(min(queueMessages*options.BatchMessages, maxQueueFetched))),
		consumer.WithPullThresholdSizeForQueue(queueMebibytes),
		// A pull costs broker and worker as much for one message as for many. The client waits
		// after every pull; one that found nothing yet is held, and answered with the next message.
		consumer.WithPullInterval(options.PullInterval),
	)
	if err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	if err := client.Subscribe(s.topic, consumer.MessageSelector{}, s.receive); err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	if err := client.Start(); err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	return client, nil
}

// receive is the client's callback. It answers ConsumeRetryLater only when nobody
// listens any more.
func (s *subscription) receive(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
	if s.begin() {
		taken := s.take(s.stop, s.work, messages)
		s.inHand.Done()
		if taken {
			return consumer.ConsumeSuccess, nil
		}
	}
	<-s.released
	return consumer.ConsumeRetryLater, nil
}

func (s *subscription) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.inHand.Add(1)
	}
	return !s.stopping
}

// rescuer decides half messages that a broker gave up checking.
type rescuer struct {
	bus   *RocketMQ
	giver *giver
	check Checker
}

// take asks about each message until it is known: what was promised goes to the handler,
// as if its commit had arrived, and so does what cannot be read.
func (r *rescuer) take(stop, work context.Context, messages []*primitive.MessageExt) bool {
	for try := 1; ; try++ {
		var unknown []*primitive.MessageExt
		var deliveries []Delivery
		for _, m := range messages {
			// All topics of the broker share this one.
			if m.GetProperty(primitive.PropertyRealTopic) != r.bus.options.Topic || m.GetProperty(warmUpProperty) != "" {
				continue
			}
			d := read(m.MsgId, m.Body)
			d.Trace = m.GetProperty(tracing.Property)
			if d.Err != nil {
				deliveries = append(deliveries, d)
				continue
			}
			answer := ask(work, r.check, r.bus.options.CheckTimeout, d.Batch, r.bus.log)
			if try == 1 || answer != Unknown {
				r.bus.metrics.stranded[answer].Inc()
				r.bus.log.Error("half message was given up by the broker", "batch_id", d.Batch.ID, "sale_id", d.Batch.SaleID, "answer", answer)
			}
			switch answer {
			case Commit:
				deliveries = append(deliveries, d)
			case Unknown:
				unknown = append(unknown, m)
			case Rollback:
			}
		}
		if len(deliveries) > 0 && !r.giver.give(stop, work, deliveries) {
			return false
		}
		if len(unknown) == 0 {
			return true
		}
		messages = unknown
		if !sleep(stop, pause(try)) {
			return false
		}
	}
}
