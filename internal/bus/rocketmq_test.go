package bus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/stretchr/testify/require"

	"flashgate/internal/enginetest"
	"flashgate/internal/gather"
	"flashgate/internal/sale"
)

// fakeBroker is name server and broker in one, as far as sending half messages goes.
// It does what a real one does only when it fails: hang, refuse, flush too slowly.
type fakeBroker struct {
	listener net.Listener
	code     atomic.Int32  // what half messages are answered with; hangs if below 0
	halves   atomic.Int32  // half messages that came
	hung     chan struct{} // closed to answer those that hang

	unregistered atomic.Int32 // questions for the cluster's brokers that find none

	ends chan string // commitOrRollback of each end

	mu    sync.Mutex
	conns []net.Conn
}

const hang = -1

func startFakeBroker(t *testing.T) *fakeBroker {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	f := &fakeBroker{listener: listener, hung: make(chan struct{}), ends: make(chan string, 100)}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			go f.serve(c)
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.conns {
			_ = c.Close()
		}
	})
	return f
}

func (f *fakeBroker) address() string { return f.listener.Addr().String() }

func (f *fakeBroker) serve(c net.Conn) {
	var write sync.Mutex
	for {
		header, err := readFrame(c)
		if err != nil {
			return
		}
		go func() {
			answer, body := f.answer(header)
			if answer == nil {
				return
			}
			answer.Opaque, answer.Flag, answer.Language = header.Opaque, 1, "JAVA"
			raw, _ := json.Marshal(answer)
			frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(raw)+len(body)))
			frame = binary.BigEndian.AppendUint32(frame, uint32(len(raw)))
			write.Lock()
			defer write.Unlock()
			_, _ = c.Write(append(append(frame, raw...), body...))
		}()
	}
}

// readFrame reads a request; what comes with it is of no interest.
func readFrame(c net.Conn) (*remotingHeader, error) {
	var lengths [8]byte
	if _, err := io.ReadFull(c, lengths[:]); err != nil {
		return nil, err
	}
	rest := make([]byte, binary.BigEndian.Uint32(lengths[:4])-4)
	if _, err := io.ReadFull(c, rest); err != nil {
		return nil, err
	}
	header := new(remotingHeader)
	return header, json.Unmarshal(rest[:binary.BigEndian.Uint32(lengths[4:])], header)
}

func (f *fakeBroker) answer(request *remotingHeader) (*remotingHeader, string) {
	const sendMessage, endTransaction = 10, 37
	switch request.Code {
	case requestRoute: // with a bare key, as name servers write it
		return &remotingHeader{}, fmt.Sprintf(`{"brokerDatas":[{"brokerAddrs":{0:%q},"brokerName":"fake","cluster":"c"}],`+
			`"queueDatas":[{"brokerName":"fake","perm":6,"readQueueNums":1,"writeQueueNums":1,"topicSynFlag":0}]}`, f.address())
	case requestClusterInfo:
		if f.unregistered.Add(-1) >= 0 {
			return &remotingHeader{}, `{"brokerAddrTable":{},"clusterAddrTable":{}}`
		}
		return &remotingHeader{}, fmt.Sprintf(`{"brokerAddrTable":{"fake":{"brokerAddrs":{0:%q},"brokerName":"fake"}}}`, f.address())
	case sendMessage:
		f.halves.Add(1)
		code := int(f.code.Load())
		if code == hang {
			<-f.hung
			code = responseSuccess
		}
		return &remotingHeader{Code: code, Remark: "by order", ExtFields: map[string]string{
			"msgId": "7F00000100002A9F0000000000000000", "queueId": "0", "queueOffset": "0", "transactionId": "t",
		}}, ""
	case endTransaction:
		f.ends <- request.ExtFields["commitOrRollback"]
		return nil, ""
	default:
		return &remotingHeader{}, ""
	}
}

func openOnFake(t *testing.T, f *fakeBroker) *RocketMQ {
	b, err := OpenRocketMQ(Options{NameServers: []string{f.address()}, Producers: 1, Check: answering(Unknown), Logger: quiet()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	send(t, b, newBatch(1), Commit)
	return b
}

// The types of an end, as the protocol has them.
const (
	endUnknown  = "0"
	endCommit   = "8"
	endRollback = "12"
)

func TestSendFailures(t *testing.T) {
	never := func() Decision { t.Error("local was called"); return Commit }

	t.Run("a refusal or a weak store is an error", func(t *testing.T) {
		f := startFakeBroker(t)
		b := openOnFake(t, f)
		for name, code := range map[string]int32{
			"system error": 1, "system busy": 2, "flush disk timeout": 10, "slave not available": 11,
			"flush slave timeout": 12, "not available": 14, "no permission": 16, "no such topic": 17,
		} {
			f.code.Store(code)
			before := f.halves.Load()
			require.Error(t, b.Send(t.Context(), newBatch(1), never), name)
			require.Equal(t, before+1, f.halves.Load(), "%s: one attempt only", name)
		}
		f.code.Store(responseSuccess)
		send(t, b, newBatch(1), Commit)
	})

	t.Run("a broker that hangs is given up at the deadline", func(t *testing.T) {
		f := startFakeBroker(t)
		b := openOnFake(t, f)
		require.Equal(t, endRollback, <-f.ends, "the warm-up's")
		require.Equal(t, endCommit, <-f.ends)
		f.code.Store(hang)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		require.Error(t, b.Send(ctx, newBatch(1), never))
		require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
		close(f.hung)
		f.code.Store(responseSuccess)
		send(t, b, newBatch(1), Commit)
		require.Equal(t, endCommit, <-f.ends, "what came late got no end, or an unknown one")
	})

	t.Run("too many under way are refused", func(t *testing.T) {
		f := startFakeBroker(t)
		b := openOnFake(t, f)
		b.producers[0].busy.Add(halvesUnderWay)
		require.ErrorIs(t, b.Send(t.Context(), newBatch(1), never), errBusy)
		b.producers[0].busy.Add(-halvesUnderWay)
	})

	t.Run("without a broker it is an error at once", func(t *testing.T) {
		f := startFakeBroker(t)
		address := f.address()
		require.NoError(t, f.listener.Close())
		b, err := OpenRocketMQ(Options{NameServers: []string{address}, Check: answering(Unknown), Logger: quiet()})
		require.NoError(t, err)
		require.ErrorIs(t, b.Send(t.Context(), newBatch(1), never), errNotConnected)
		require.Error(t, b.Ping(t.Context()))
		require.NoError(t, b.Close())
	})
}

// A sender that stopped waiting releases its batch; until that is known, the end of
// its half message may be neither commit nor rollback.
func TestAbandonedHalfIsUnknown(t *testing.T) {
	h := newHalf("topic", "key", nil)
	require.True(t, h.abandon())
	require.Equal(t, Unknown, h.decision())

	h = newHalf("topic", "key", nil)
	h.decided <- Commit
	require.Equal(t, Commit, h.decision())
	require.False(t, h.abandon(), "too late")
}

func TestCheckBack(t *testing.T) {
	asked := 0
	b := &RocketMQ{ctx: t.Context(), log: quiet(), metrics: newMetrics(nil), options: Options{Check: func(_ context.Context, b *sale.Batch) Decision {
		asked++
		return Commit
	}}.withDefaults()}
	l := (*listener)(&producer{bus: b})
	message := func(body []byte) *primitive.MessageExt {
		return &primitive.MessageExt{Message: *primitive.NewMessage("topic", body)}
	}

	body, err := Encode(newBatch(1))
	require.NoError(t, err)
	require.Equal(t, primitive.CommitMessageState, l.CheckLocalTransaction(message(body)))
	require.Equal(t, 1, asked)

	warmUp := message([]byte("{}"))
	warmUp.WithProperty(warmUpProperty, "1")
	require.Equal(t, primitive.RollbackMessageState, l.CheckLocalTransaction(warmUp))
	require.Equal(t, primitive.UnknowState, l.CheckLocalTransaction(message([]byte("{}"))), "unreadable: not lost")
	require.Equal(t, 1, asked)
}

// Half messages that the broker gave up: promised ones reach the handler, unknown ones
// are asked again, and nothing is acknowledged before.
func TestRescue(t *testing.T) {
	promised, void, late := newBatch(1), newBatch(1), newBatch(1)
	asked := map[sale.ID]int{}
	check := func(_ context.Context, b *sale.Batch) Decision {
		asked[b.ID]++
		switch {
		case b.ID == void.ID:
			return Rollback
		case b.ID == late.ID && asked[b.ID] == 1:
			return Unknown
		default:
			return Commit
		}
	}
	message := func(topic string, body []byte) *primitive.MessageExt {
		m := &primitive.MessageExt{Message: *primitive.NewMessage(strandedTopic, body)}
		m.WithProperty(primitive.PropertyRealTopic, topic)
		return m
	}
	encode := func(b *sale.Batch) []byte {
		body, err := Encode(b)
		require.NoError(t, err)
		return body
	}
	warmUp := message("ours", []byte("{}"))
	warmUp.WithProperty(warmUpProperty, "1")
	messages := []*primitive.MessageExt{
		message("ours", encode(promised)), message("ours", encode(void)), message("ours", encode(late)),
		message("ours", []byte("{}")), message("another's", encode(newBatch(1))), warmUp,
	}
	bus := &RocketMQ{log: quiet(), metrics: newMetrics(nil), options: Options{Topic: "ours"}.withDefaults()}
	in := newInbox()
	failures := 0
	r := &rescuer{bus: bus, check: check, giver: &giver{log: quiet(), metrics: bus.metrics, handle: func(ctx context.Context, d []Delivery) error {
		if failures++; failures == 1 {
			return errors.New("ledger away")
		}
		return in.handle(ctx, d)
	}}}
	require.True(t, r.take(t.Context(), t.Context(), messages))
	require.Equal(t, promised, in.get(promised.ID))
	require.Equal(t, late, in.get(late.ID))
	require.Equal(t, 2, in.len())
	require.Len(t, in.poisoned(), 1)

	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, r.take(stopped, t.Context(), messages[:1]), "a stop acknowledges nothing")
}

// Messages that come one by one are gathered until they fill a call of the handler, each
// of them waiting in a callback of the client; and those of a lull are called for.
func TestMessagesGather(t *testing.T) {
	const whole = 200
	b := rocketPlace(t)(t, Options{
		Check: answering(Commit), Logger: quiet(),
		BatchMessages: whole, Handlers: 1, Linger: gather.Linger{Most: time.Hour, Lull: 2 * time.Second},
	})
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	send(t, b, newBatch(1), Commit)
	eventually(t, "a message that comes alone", func() bool { return in.len() == 1 }) // and now the consumer has its queues
	for range whole {
		send(t, b, newBatch(1), Commit)
	}
	eventually(t, "a whole call", func() bool { return in.len() == 1+whole })
	require.Equal(t, []int{1, whole}, in.sizes())
}

// A queue that had messages is left alone for the pull interval: what comes meanwhile comes
// at once, and a call that gathers waits for it.
func TestPullInterval(t *testing.T) {
	const messages = 60
	run := func(t *testing.T, linger gather.Linger) []int {
		b := rocketPlace(t)(t, Options{
			Check: answering(Commit), Logger: quiet(),
			BatchMessages: messages + 1, Handlers: 8, Linger: linger, PullInterval: 2 * time.Second,
		})
		in := newInbox()
		consume(t, b, in.handle, answering(Unknown))
		send(t, b, newBatch(1), Commit)
		eventually(t, "a message that comes alone", func() bool { return in.len() == 1 }) // and now the consumer has its queues
		for range messages {
			send(t, b, newBatch(1), Commit)
		}
		eventually(t, "all messages", func() bool { return in.len() == 1+messages })
		return in.sizes()
	}
	t.Run("many in a pull", func(t *testing.T) {
		require.Less(t, len(run(t, gather.Linger{})), messages/4)
	})
	t.Run("waited for", func(t *testing.T) {
		require.Equal(t, []int{1, messages}, run(t, gather.Linger{Most: time.Hour, Lull: 300 * time.Millisecond}))
	})
}

func TestEnsureTopics(t *testing.T) {
	servers := []string{enginetest.RocketMQ(t)}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	topic := "bus-test-" + randomName()
	for _, step := range []struct {
		queues  int
		changed bool
		want    int
	}{{2, true, 2}, {2, false, 2}, {3, true, 3}, {1, false, 3}} {
		changed, err := EnsureTopics(ctx, servers, topic, step.queues)
		require.NoError(t, err)
		require.Equal(t, step.changed, changed, "%d queues", step.queues)
		r, err := routeOf(ctx, servers, topic)
		require.NoError(t, err)
		require.Equal(t, step.want, r.Queues[0].WriteQueues)
		require.Equal(t, step.want, r.Queues[0].ReadQueues)
	}
	_, err := EnsureTopics(ctx, servers, topic, 0)
	require.Error(t, err)
	require.ErrorIs(t, ping(ctx, servers, "bus-test-"+randomName()), errNoRoute)
	// A name server that is away does not hide one that is there.
	require.NoError(t, ping(ctx, []string{"127.0.0.1:1", servers[0]}, topic))
}

// migrate may run right after the engines start: a broker is up before it is known.
func TestEnsureTopicsWaitsForABroker(t *testing.T) {
	f := startFakeBroker(t)
	f.unregistered.Store(2)
	changed, err := EnsureTopics(t.Context(), []string{f.address()}, "topic", 1)
	require.NoError(t, err)
	require.False(t, changed, "the fake has the topic")
	require.Negative(t, f.unregistered.Load(), "asked until it was known")

	f.unregistered.Store(1_000_000)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = EnsureTopics(ctx, []string{f.address()}, "topic", 1)
	require.Error(t, err)
}

func TestNameServersAreResolved(t *testing.T) {
	n := newNameServers([]string{"localhost:9876", "127.0.0.1:9877"})
	require.Equal(t, []string{"127.0.0.1:9876", "127.0.0.1:9877"}, n.Resolve())
	n.hosts = []string{"no-such-host.invalid:9876"}
	require.Equal(t, []string{"127.0.0.1:9876", "127.0.0.1:9877"}, n.Resolve(), "what was known stays")
}
