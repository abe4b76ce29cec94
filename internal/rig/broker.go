package rig

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// What a broker itself calls its half messages and the one who reads them.
const (
	halfTopic = "RMQ_SYS_TRANS_HALF_TOPIC"
	halfGroup = "CID_RMQ_SYS_TRANS"
)

// Backlog is what a broker still holds for someone, in messages.
type Backlog struct {
	Halves   int64 // half messages that the broker has not found decided
	Messages int64 // committed and not acknowledged, of one topic and group
}

// Backlog asks the broker. The broker learns what was decided and what was
// acknowledged some seconds late, never early.
func (r *Rig) Backlog(ctx context.Context, topic, group string, queues int) (b Backlog, err error) {
	if b.Halves, err = r.behind(ctx, halfTopic, halfGroup, 0); err != nil {
		return b, err
	}
	for queue := range queues {
		n, err := r.behind(ctx, topic, group, queue)
		if err != nil {
			return b, err
		}
		b.Messages += n
	}
	return b, nil
}

// behind is how many messages of a queue a group has not consumed.
func (r *Rig) behind(ctx context.Context, topic, group string, queue int) (int64, error) {
	of := map[string]string{"topic": topic, "consumerGroup": group, "queueId": strconv.Itoa(queue)}
	end, err := r.offset(ctx, codeMaxOffset, of)
	if err != nil {
		return 0, err
	}
	consumed, err := r.offset(ctx, codeConsumerOffset, of)
	var refused *remotingError
	if errors.As(err, &refused) && refused.code == codeOffsetNotFound {
		consumed, err = 0, nil
	}
	return end - consumed, err
}

func (r *Rig) offset(ctx context.Context, code int, of map[string]string) (int64, error) {
	fields, _, err := remotingExchange(ctx, r.brokerAddr(), code, of, nil)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(fields["offset"], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the broker's answer to request %d has no offset: %v", code, fields)
	}
	return n, nil
}

func (r *Rig) brokerAddr() string { return address(r.options.Ports.Broker) }

// Send puts a message straight into a queue of a topic, as no producer of flashgate
// would: poison, or one that was delivered before.
func (r *Rig) Send(ctx context.Context, topic string, queue int, body []byte) error {
	_, _, err := remotingExchange(ctx, r.brokerAddr(), codeSendMessage, map[string]string{
		"producerGroup": "rig", "topic": topic, "queueId": strconv.Itoa(queue),
		"defaultTopic": "TBW102", "defaultTopicQueueNums": "4",
		"sysFlag": "0", "flag": "0", "reconsumeTimes": "0", "properties": "",
		"bornTimestamp": strconv.FormatInt(time.Now().UnixMilli(), 10),
	}, body)
	return err
}
