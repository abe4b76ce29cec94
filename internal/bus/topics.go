package bus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// MaxQueues bounds EnsureTopics: a queue is a file, and a poll of a worker.
	MaxQueues = 1_024
	// A new topic's route is visible as soon as its broker reports; ask this often.
	routePollMillis = 200
	// A broker serves, and says so in its log, before it is known to the name server;
	// when it missed it at its start, it registers within 30 s.
	brokerWaitSeconds = 40
)

// EnsureTopics creates the topic on every broker of the cluster with the given number
// of queues, and waits until the name server knows it. An existing topic gets more
// queues where it has fewer, and never fewer. true: something was changed. Brokers that
// have just started are waited for; a name server that is away is an error at once.
//
// Nothing else needs creating: a consumer group's retry topic, and
// TRANS_CHECK_MAX_TIME_TOPIC, are made by the broker when it first needs them, and it
// refuses to have the latter made by others.
func EnsureTopics(ctx context.Context, nameServers []string, topic string, queues int) (changed bool, err error) {
	if queues < 1 || queues > MaxQueues {
		return false, fmt.Errorf("topic %s: %d queues, want 1–%d", topic, queues, MaxQueues)
	}
	brokers, err := awaitMasters(ctx, nameServers)
	if err != nil {
		return false, err
	}
	missing, err := lacking(ctx, nameServers, brokers, topic, queues)
	if err != nil {
		return false, err
	}
	for name := range missing {
		if err := createTopic(ctx, brokers[name], topic, queues); err != nil {
			return changed, fmt.Errorf("create topic %s on broker %s: %w", topic, name, err)
		}
		changed = true
	}
	for len(missing) > 0 {
		if !sleep(ctx, routePollMillis*time.Millisecond) {
			return changed, fmt.Errorf("topic %s was created, but its route is not visible yet: %w", topic, context.Cause(ctx))
		}
		if missing, err = lacking(ctx, nameServers, brokers, topic, queues); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// awaitMasters is masters, and waits for the first broker to register, within a bound.
func awaitMasters(ctx context.Context, nameServers []string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerWaitSeconds*time.Second)
	defer cancel()
	for {
		brokers, err := masters(ctx, nameServers)
		if !errors.Is(err, errNoBroker) || !sleep(ctx, routePollMillis*time.Millisecond) {
			return brokers, err
		}
	}
}

// lacking names the brokers on which the topic has too few queues, or is not.
func lacking(ctx context.Context, nameServers []string, brokers map[string]string, topic string, queues int) (map[string]struct{}, error) {
	missing := make(map[string]struct{}, len(brokers))
	for name := range brokers {
		missing[name] = struct{}{}
	}
	r, err := routeOf(ctx, nameServers, topic)
	if errors.Is(err, errNoRoute) {
		return missing, nil
	}
	if err != nil {
		return nil, err
	}
	for _, q := range r.Queues {
		if q.ReadQueues >= queues && q.WriteQueues >= queues {
			delete(missing, q.BrokerName)
		}
	}
	return missing, nil
}
