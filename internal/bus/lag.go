package bus

import (
	"context"
	"fmt"
	"math"
	"time"
)

const (
	// lagInterval is between two looks at how far the workers are behind: as often as
	// metrics are usually scraped.
	lagInterval = 5 * time.Second
	// lagTimeout bounds a look.
	lagTimeout = 2 * time.Second
)

// watchLag keeps the gauge of the workers' lag until ctx ends. While nobody can tell it
// is not a number, rather than an old one.
func (m *metrics) watchLag(ctx context.Context, backlog func(context.Context) (int64, error)) {
	for {
		look, cancel := context.WithTimeout(ctx, lagTimeout)
		n, err := backlog(look)
		cancel()
		if err != nil {
			m.lag.Set(math.NaN())
		} else {
			m.lag.Set(float64(n))
		}
		if !sleep(ctx, lagInterval) {
			return
		}
	}
}

// backlog is how many committed messages wait for the workers, those in hand included.
func (r *RocketMQ) backlog(ctx context.Context) (messages int64, err error) {
	found, err := routeOf(ctx, r.options.NameServers, r.options.Topic)
	if err != nil {
		return 0, err
	}
	queues := make(map[string]int, len(found.Queues))
	for _, q := range found.Queues {
		queues[q.BrokerName] = q.ReadQueues
	}
	for _, b := range found.Brokers {
		n, err := r.backlogOn(ctx, b.Addresses[masterID], queues[b.Name])
		if err != nil {
			return 0, fmt.Errorf("lag on broker %s: %w", b.Name, err)
		}
		messages += n
	}
	return messages, nil
}

func (r *RocketMQ) backlogOn(ctx context.Context, address string, queues int) (messages int64, err error) {
	l, err := dial(ctx, address)
	if err != nil {
		return 0, err
	}
	defer l.close()
	reader := &reader{line: l}
	for id := range queues {
		q := queue{r.options.Topic, id}
		at, err := reader.offset(ctx, q, r.options.ConsumerGroup)
		if err != nil {
			return 0, err
		}
		last, err := reader.last(ctx, q)
		if err != nil {
			return 0, err
		}
		messages += max(last-at, 0)
	}
	return messages, nil
}

// backlog is how many committed messages are in the file.
func (e *Embedded) backlog(ctx context.Context) (messages int64, err error) {
	err = e.store.readers.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages WHERE committed = 1").Scan(&messages)
	return messages, err
}
