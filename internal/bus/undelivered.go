package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/apache/rocketmq-client-go/v2/primitive"

	"flashgate/internal/sale"
)

// Where a broker keeps half messages and the ends of those it has seen, one queue each,
// and the group in whose name it notes how far it has checked both (TransactionalMessageUtil
// and MixAll in RocketMQ's source).
const (
	halfTopic   = "RMQ_SYS_TRANS_HALF_TOPIC"
	endTopic    = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
	brokerGroup = "CID_RMQ_SYS_TRANS"
	// retryPrefix names the topic of what a consumer sent back. Ours sends nothing back;
	// should it ever, it is found here.
	retryPrefix = "%RETRY%"
	// readerSuffix makes the group in whose name queues are read here. It has no consumers
	// and keeps no offsets.
	readerSuffix = "-reader"

	pullMessages = 1_024 // the most that one pull asks for
	sliceBatches = 64    // in one call of each: some 4,000 orders
	wordBits     = 64
)

// Undelivered implements Lister: it reads the queues of every broker past their consumers,
// in the direction in which messages go, so that one on its way meanwhile is met at least
// once, and some twice:
//
//	half messages   from the broker's own offset on, which passes a half message only when it
//	                is ended, or was written again behind the others and asked about; those
//	                whose end is noted are left out
//	stranded ones   that the broker gave up checking, from our offset on
//	the topic       from the workers' offset on, which passes a message only once its handler
//	                took it, so that the ledger has it
//
// A broker notes an end up to 3 s late (transactionOpBatchInterval): what was rolled back a
// moment ago is still listed.
func (r *RocketMQ) Undelivered(ctx context.Context, saleID string, each func([]sale.Batch) error) error {
	found, err := routeOf(ctx, r.options.NameServers, r.options.Topic)
	if err != nil {
		return err
	}
	queues := make(map[string]int, len(found.Queues))
	for _, q := range found.Queues {
		queues[q.BrokerName] = q.ReadQueues
	}
	for _, b := range found.Brokers {
		address := b.Addresses[masterID]
		if address == "" {
			return fmt.Errorf("bus: broker %s has no master: what it holds cannot be read", b.Name)
		}
		if err := r.undeliveredOn(ctx, address, queues[b.Name], saleID, each); err != nil {
			return fmt.Errorf("read broker %s: %w", b.Name, err)
		}
	}
	return nil
}

func (r *RocketMQ) undeliveredOn(ctx context.Context, address string, queues int, saleID string, each func([]sale.Batch) error) error {
	l, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer l.close()
	group := r.options.ConsumerGroup
	reader := &reader{line: l, group: group + readerSuffix}
	c := &collector{topic: r.options.Topic, saleID: []byte(saleID), each: each, undecodable: func(m *primitive.MessageExt, err error) {
		r.log.Error("a message that may be of this sale cannot be read, left out", "sale", saleID, "message_id", m.MsgId, "keys", m.GetKeys(), "error", err)
	}}
	if err := reader.undecided(ctx, c); err != nil {
		return err
	}
	read := func(topic string, id int, group string) error {
		q := queue{topic, id}
		from, err := reader.offset(ctx, q, group)
		if err != nil {
			return err
		}
		to, err := reader.last(ctx, q)
		if err != nil {
			return err
		}
		return reader.read(ctx, q, from, to, c.take)
	}
	if err := read(strandedTopic, 0, group+strandedSuffix); err != nil {
		return err
	}
	for id := range queues {
		if err := read(r.options.Topic, id, group); err != nil {
			return err
		}
	}
	if err := read(retryPrefix+group, 0, group); err != nil {
		return err
	}
	return c.flush()
}

// collector picks the batches of one sale out of messages.
type collector struct {
	topic       string
	saleID      []byte
	each        func([]sale.Batch) error
	undecodable func(*primitive.MessageExt, error)
	slice       []sale.Batch
}

// mayBeOurs is a cheap look at a message before it is decoded: false, if it is no batch
// of the sale. A sale id has no character that JSON escapes.
func (c *collector) mayBeOurs(m *primitive.MessageExt) bool {
	// Topics of the broker's own hold the messages of all topics.
	if topic := m.GetProperty(primitive.PropertyRealTopic); topic != "" && topic != c.topic && m.Topic != c.topic {
		return false
	}
	return bytes.Contains(m.Body, c.saleID)
}

// ours is the batch in a message; nil, if it is none of the sale's.
func (c *collector) ours(m *primitive.MessageExt) *sale.Batch {
	if !c.mayBeOurs(m) || m.GetProperty(warmUpProperty) != "" {
		return nil
	}
	b, err := Decode(m.Body)
	if err != nil {
		c.undecodable(m, err)
		return nil
	}
	if b.SaleID != string(c.saleID) {
		return nil
	}
	return b
}

func (c *collector) take(m *primitive.MessageExt) error {
	if b := c.ours(m); b != nil {
		return c.add(b)
	}
	return nil
}

func (c *collector) add(b *sale.Batch) error {
	if c.slice = append(c.slice, *b); len(c.slice) < sliceBatches {
		return nil
	}
	return c.flush()
}

func (c *collector) flush() error {
	if len(c.slice) == 0 {
		return nil
	}
	slice := c.slice
	c.slice = nil
	return c.each(slice)
}

// queue is one queue of a topic on a broker.
type queue struct {
	topic string
	id    int
}

func (q queue) fields() map[string]string {
	return map[string]string{"topic": q.topic, "queueId": strconv.Itoa(q.id)}
}

// reader reads the queues of one broker.
type reader struct {
	line  *line
	group string
}

// undecided gives c the half messages that no end is known of. A half message that was
// asked about stands in the queue twice for a while; what is known of the later copy counts.
func (r *reader) undecided(ctx context.Context, c *collector) error {
	halves, ends := queue{halfTopic, 0}, queue{endTopic, 0}
	// The ends' offset is read before the halves': an end that the broker has dealt with in
	// between is then of a half message that it has passed as well.
	firstEnd, err := r.offset(ctx, ends, brokerGroup)
	if err != nil {
		return err
	}
	from, err := r.offset(ctx, halves, brokerGroup)
	if err != nil {
		return err
	}
	to, err := r.last(ctx, halves)
	if err != nil {
		return err
	}
	// And the ends are read after the halves were counted: what is ended by then is past us
	// on its way, and met again behind.
	lastEnd, err := r.last(ctx, ends)
	if err != nil {
		return err
	}
	ended := endedHalves{first: from, bits: make([]uint64, max(0, to-from)/wordBits+1), last: to}
	if err := r.read(ctx, ends, firstEnd, lastEnd, ended.note); err != nil {
		return err
	}
	open := make(map[string]*sale.Batch) // by the message's key; as many as were in hand when something broke
	err = r.read(ctx, halves, from, to, func(m *primitive.MessageExt) error {
		if ended.has(m.QueueOffset) {
			delete(open, m.GetKeys())
		} else if b := c.ours(m); b != nil {
			open[m.GetKeys()] = b
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, b := range open {
		if err := c.add(b); err != nil {
			return err
		}
	}
	return nil
}

// endedHalves are the offsets of half messages whose end is known, one bit each.
type endedHalves struct {
	first, last int64
	bits        []uint64
}

// note reads one message of endTopic: offsets, each with a comma behind.
func (e *endedHalves) note(m *primitive.MessageExt) error {
	for field := range bytes.SplitSeq(m.Body, []byte{','}) {
		if len(field) == 0 {
			continue
		}
		offset, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return fmt.Errorf("%s, offset %d: %w", endTopic, m.QueueOffset, err)
		}
		if offset >= e.first && offset < e.last {
			e.bits[(offset-e.first)/wordBits] |= 1 << ((offset - e.first) % wordBits)
		}
	}
	return nil
}

func (e *endedHalves) has(offset int64) bool {
	return e.bits[(offset-e.first)/wordBits]&(1<<((offset-e.first)%wordBits)) != 0
}

// offset is how far a group has come in a queue: its start, for a group that has not begun.
func (r *reader) offset(ctx context.Context, q queue, group string) (int64, error) {
	first, err := r.number(ctx, requestMinOffset, q.fields())
	if err != nil {
		return 0, err
	}
	fields := q.fields()
	fields["consumerGroup"] = group
	fields["setZeroIfNotFound"] = "false"
	at, err := r.number(ctx, requestGroupOffset, fields)
	var response *responseError
	if errors.As(err, &response) && response.code == responseNoGroupOffset {
		return max(first, 0), nil
	}
	return max(first, at, 0), err
}

// last is one past a queue's last message; 0 of a queue that is not there.
func (r *reader) last(ctx context.Context, q queue) (int64, error) {
	return r.number(ctx, requestMaxOffset, q.fields())
}

func (r *reader) number(ctx context.Context, code int, fields map[string]string) (int64, error) {
	answer, _, err := r.line.ask(ctx, code, fields)
	if err != nil {
		return 0, fmt.Errorf("offset in %s: %w", fields["topic"], err)
	}
	n, err := strconv.ParseInt(answer["offset"], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("offset in %s: answered %v", fields["topic"], answer)
	}
	return n, nil
}

// read calls f with the messages of a queue from one offset up to another, in order. What
// the broker has deleted meanwhile is passed over.
func (r *reader) read(ctx context.Context, q queue, from, to int64, f func(*primitive.MessageExt) error) error {
	const subscribed = 1 << 2 // the request says what it wants; nothing is committed, nor waited for
	for from < to {
		fields := q.fields()
		fields["consumerGroup"] = r.group
		fields["queueOffset"] = strconv.FormatInt(from, 10)
		fields["maxMsgNums"] = strconv.FormatInt(min(pullMessages, to-from), 10)
		fields["sysFlag"] = strconv.Itoa(subscribed)
		fields["subscription"], fields["expressionType"] = "*", "TAG"
		fields["commitOffset"], fields["suspendTimeoutMillis"], fields["subVersion"] = "0", "0", "0"
		answer, body, err := r.line.ask(ctx, requestPull, fields)
		var response *responseError
		switch {
		case err == nil:
		case errors.As(err, &response) && (response.code == responsePullNotFound || response.code == responsePullAgain || response.code == responsePullMoved):
		default:
			return fmt.Errorf("read %s: %w", q.topic, err)
		}
		next, failed := strconv.ParseInt(answer["nextBeginOffset"], 10, 64)
		if failed != nil || next <= from {
			return fmt.Errorf("read %s, queue %d: no way past offset %d of %d: %v", q.topic, q.id, from, to, answer)
		}
		for _, m := range primitive.DecodeMessage(body) {
			if m.QueueOffset >= to {
				return nil
			}
			if err := f(m); err != nil {
				return err
			}
		}
		from = next
	}
	return nil
}
