package bus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	clientproducer "github.com/apache/rocketmq-client-go/v2/producer"
)

const (
	// warmUpProperty marks the half message with which a producer begins.
	warmUpProperty = "FLASHGATE_WARM_UP"
	// The client compresses bodies from 4 KB on, at the price of more time than they
	// take on the way; brokers take 4 MB.
	compressFromBytes = 4 << 20
)

// half is a half message on its way: the client's goroutine stores it and then waits
// for the decision, which the sender's goroutine makes.
type half struct {
	message *primitive.Message
	state   atomic.Int32 // halfSending, then one of the others
	stored  chan struct{}
	decided chan Decision // one value
}

const (
	halfSending int32 = iota
	halfStored
	halfAbandoned
)

func newHalf(topic, key string, body []byte) *half {
	m := primitive.NewMessage(topic, body)
	m.WithKeys([]string{key})
	return &half{message: m, stored: make(chan struct{}), decided: make(chan Decision, 1)}
}

// abandon makes the sender not wait any longer: false, if the message is stored.
func (h *half) abandon() bool { return h.state.CompareAndSwap(halfSending, halfAbandoned) }

// decision is called once the message is stored. A sender that did not wait for it
// will release its batch: the check-back finds that, and no earlier end may.
func (h *half) decision() Decision {
	if !h.state.CompareAndSwap(halfSending, halfStored) {
		return Unknown
	}
	close(h.stored)
	return <-h.decided
}

// producer is one connection that sends half messages and answers check-backs.
type producer struct {
	bus    *RocketMQ
	client atomic.Pointer[rocketmq.TransactionProducer] // nil until connected
	busy   atomic.Int64                                 // half messages under way
	halves sync.Map                                     // *primitive.Message → *half, while the client has it
}

// open makes the client and warms it up. From then on the client itself finds the
// broker again whenever it was away. An error is one of the options.
func (p *producer) open(ctx context.Context) error {
	client, err := rocketmq.NewTransactionProducer((*listener)(p),
		clientproducer.WithNsResolver(p.bus.nameServers),
		clientproducer.WithGroupName(p.bus.options.ProducerGroup),
		// Clients of one name share a connection, and only the first one's check-backs work.
		clientproducer.WithInstanceName(uniqueName("producer")),
		// An attempt whose outcome is unknown must not become two messages.
		clientproducer.WithRetry(0),
		clientproducer.WithCompressMsgBodyOverHowmuch(compressFromBytes),
		clientproducer.WithCreateTopicKey(p.bus.options.Topic),
	)
	if err != nil {
		return fmt.Errorf("producer: %w", err)
	}
	if err := client.Start(); err != nil {
		return fmt.Errorf("producer: %w", err)
	}
	p.warmUp(ctx, client)
	p.client.Store(&client)
	return nil
}

// warmUp sends a half message that is rolled back at once. Until a producer has looked
// for a topic it sends no heartbeat, and a broker asks nobody from whom it heard none;
// the first heartbeat is due 1 s after Start.
func (p *producer) warmUp(ctx context.Context, client rocketmq.TransactionProducer) {
	for try := 1; ; try++ {
		h := newHalf(p.bus.options.Topic, "warm-up", []byte("{}"))
		h.message.WithProperty(warmUpProperty, "1")
		h.decided <- Rollback
		err := p.sendWith(ctx, client, h)
		if err == nil {
			return
		}
		p.bus.failure.Store(&err)
		p.bus.log.Warn("RocketMQ takes no half message yet, will try again", "try", try, "error", err)
		if !sleep(ctx, pause(try)) {
			return
		}
	}
}

// send hands h to the client and returns when it is ended, or failed.
func (p *producer) send(ctx context.Context, h *half) error {
	return p.sendWith(ctx, *p.client.Load(), h)
}

func (p *producer) sendWith(ctx context.Context, client rocketmq.TransactionProducer, h *half) (err error) {
	p.halves.Store(h.message, h)
	defer p.halves.Delete(h.message)
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("RocketMQ client panicked: %v", v)
		}
	}()
	result, err := client.SendMessageInTransaction(ctx, h.message)
	if err != nil {
		return err
	}
	if result.Status != primitive.SendOK {
		// Stored, but not as durably as the broker is told to; the client rolls it back.
		return fmt.Errorf("broker answers send status %d", result.Status)
	}
	return nil
}

func (p *producer) shutdown() error {
	if client := p.client.Load(); client != nil {
		return (*client).Shutdown()
	}
	return nil
}

// listener is what the client calls.
type listener producer

// ExecuteLocalTransaction implements primitive.TransactionListener: the half message
// is stored.
func (l *listener) ExecuteLocalTransaction(m *primitive.Message) primitive.LocalTransactionState {
	h, ok := l.halves.Load(m)
	if !ok {
		panic("BUG: the client stored a half message that was not sent")
	}
	return transactionState(h.(*half).decision())
}

// CheckLocalTransaction implements primitive.TransactionListener: a check-back. The
// client asks one after the other.
func (l *listener) CheckLocalTransaction(m *primitive.MessageExt) primitive.LocalTransactionState {
	if m.GetProperty(warmUpProperty) != "" {
		return primitive.RollbackMessageState
	}
	b, err := Decode(m.Body)
	if err != nil {
		// Left as it is: another gateway, of a later version, may know what it promises;
		// and if none does, it ends with the stranded ones, where it is seen.
		l.bus.metrics.undecodable.Inc()
		l.bus.log.Error("half message cannot be read, answered unknown", "message_id", m.MsgId, "keys", m.GetKeys(), "error", err)
		return primitive.UnknowState
	}
	answer := ask(l.bus.ctx, l.bus.options.Check, l.bus.options.CheckTimeout, b, l.bus.log)
	l.bus.metrics.checkBacks[answer].Inc()
	return transactionState(answer)
}

func transactionState(d Decision) primitive.LocalTransactionState {
	switch d {
	case Commit:
		return primitive.CommitMessageState
	case Rollback:
		return primitive.RollbackMessageState
	case Unknown:
	}
	return primitive.UnknowState
}
