package bus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// fakeQueue is a queue of a fakeShelf.
type fakeQueue struct {
	first    int64
	messages []*primitive.MessageExt // from first on
	deleted  int64                   // those below are not to be had, whatever first says
	group    map[string]int64        // how far each has come
}

// fakeShelf is a broker whose queues a test fills by hand: with what a real one holds for a
// few moments only.
type fakeShelf struct {
	listener net.Listener
	queues   map[string]*fakeQueue // by topic and id
	pulls    int
}

func startFakeShelf(t *testing.T) *fakeShelf {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	f := &fakeShelf{listener: listener, queues: make(map[string]*fakeQueue)}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return f
}

// serve answers one request after the other.
func (f *fakeShelf) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		request, err := readFrame(c)
		if err != nil {
			return
		}
		answer, body := f.answer(request)
		raw, _ := json.Marshal(answer)
		frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(raw)+len(body)))
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(raw)))
		if _, err := c.Write(append(append(frame, raw...), body...)); err != nil {
			return
		}
	}
}

func (f *fakeShelf) answer(request *remotingHeader) (*remotingHeader, []byte) {
	number := func(n int64) (*remotingHeader, []byte) {
		return &remotingHeader{ExtFields: map[string]string{"offset": strconv.FormatInt(n, 10)}}, nil
	}
	fields := request.ExtFields
	q := f.queues[fields["topic"]+"/"+fields["queueId"]]
	if q == nil {
		q = &fakeQueue{}
	}
	last := q.first + int64(len(q.messages))
	switch request.Code {
	case requestRoute:
		return &remotingHeader{}, []byte(fmt.Sprintf(`{"brokerDatas":[{"brokerAddrs":{0:%q},"brokerName":"fake"}],"queueDatas":[{"brokerName":"fake","readQueueNums":2,"writeQueueNums":2}]}`, f.listener.Addr()))
	case requestMinOffset:
		return number(q.first)
	case requestMaxOffset:
		return number(last)
	case requestGroupOffset:
		if at, ok := q.group[fields["consumerGroup"]]; ok {
			return number(at)
		}
		return &remotingHeader{Code: responseNoGroupOffset}, nil
	case requestPull:
		const most = 2 // messages: what is read takes several pulls
		f.pulls++
		from, _ := strconv.ParseInt(fields["queueOffset"], 10, 64)
		if from < q.deleted {
			return &remotingHeader{Code: responsePullMoved, ExtFields: map[string]string{"nextBeginOffset": strconv.FormatInt(q.deleted, 10)}}, nil
		}
		var body []byte
		next := min(last, from+most)
		for at := from; at < next; at++ {
			body = appendMessage(body, at, q.messages[at-q.first])
		}
		return &remotingHeader{ExtFields: map[string]string{"nextBeginOffset": strconv.FormatInt(next, 10)}}, body
	}
	return &remotingHeader{Code: 1, Remark: "not expected"}, nil
}

// appendMessage writes a message as a broker stores it.
func appendMessage(to []byte, offset int64, m *primitive.MessageExt) []byte {
	var properties strings.Builder
	for k, v := range m.GetProperties() {
		properties.WriteString(k + "\x01" + v + "\x02")
	}
	b := make([]byte, 20, 128+len(m.Body)) // size, magic, checksum, queue and flag: not looked at
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = append(b, make([]byte, 8+4+8+8+8+8+4+8)...) // up to the body: places, times and hosts
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Body)))
	b = append(b, m.Body...)
	b = append(append(b, byte(len(m.Topic))), m.Topic...)
	b = binary.BigEndian.AppendUint16(b, uint16(properties.Len()))
	b = append(b, properties.String()...)
	return append(to, b...)
}

// halfOf is b as a half message.
func halfOf(t *testing.T, b *sale.Batch) *primitive.MessageExt {
	body, err := Encode(b)
	require.NoError(t, err)
	m := &primitive.MessageExt{Message: primitive.Message{Topic: halfTopic, Body: body}}
	m.WithProperty(primitive.PropertyRealTopic, "ours")
	m.WithKeys([]string{b.ID.String()})
	return m
}

func endsOf(offsets string) *primitive.MessageExt {
	m := &primitive.MessageExt{Message: primitive.Message{Topic: endTopic, Body: []byte(offsets)}}
	m.WithTag("d")
	return m
}

func (f *fakeShelf) list(t *testing.T) (ids []sale.ID, err error) {
	b, err := OpenRocketMQ(Options{NameServers: []string{f.listener.Addr().String()}, Topic: "ours", ConsumerGroup: "workers", Logger: quiet()})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	err = b.Undelivered(context.Background(), "spring", func(batches []sale.Batch) error {
		for i := range batches {
			ids = append(ids, batches[i].ID)
		}
		return nil
	})
	return ids, err
}

// TestUndecided: which half messages count, by all that a broker's queues can show.
func TestUndecided(t *testing.T) {
	f := startFakeShelf(t)
	var batches []*sale.Batch
	var halves []*primitive.MessageExt
	for range 8 {
		batches = append(batches, newBatch(1))
		halves = append(halves, halfOf(t, batches[len(batches)-1]))
	}
	foreign := halfOf(t, newBatch(1))
	foreign.WithProperty(primitive.PropertyRealTopic, "theirs")
	warmUp := halfOf(t, newBatch(1))
	warmUp.WithProperty(warmUpProperty, "1")
	unreadable := halfOf(t, newBatch(1))
	unreadable.Body = []byte(`{"v":1,"sale_id":"spring"`)

	f.queues[halfTopic+"/0"] = &fakeQueue{first: 100, group: map[string]int64{brokerGroup: 102}, messages: []*primitive.MessageExt{
		halves[0], halves[1], // 100, 101: passed by the broker
		halves[2], // 102: open
		halves[3], // 103: ended
		halves[4], // 104: asked about, and again at 109
		halves[5], // 105: asked about, again at 110, and ended there
		foreign, warmUp, unreadable,
		halves[4], halves[5], // 109, 110
		halves[6], halves[7], // 111: ended, 112: open
	}}
	f.queues[endTopic+"/0"] = &fakeQueue{group: map[string]int64{brokerGroup: 1}, messages: []*primitive.MessageExt{
		endsOf("102,"), // dealt with; in truth it cannot name what is open
		endsOf("7,103,"), endsOf("110,111,"), endsOf("104,999,"),
	}}
	ids, err := f.list(t)
	require.NoError(t, err)
	// 104 was ended after it had been asked about: the later copy is open, and is asked again.
	require.ElementsMatch(t, []sale.ID{batches[2].ID, batches[4].ID, batches[7].ID}, ids)
	require.Equal(t, 8, f.pulls, "3 ends and 11 half messages, two a pull")

	f.queues[endTopic+"/0"].messages[1].Body = []byte("103,x")
	_, err = f.list(t)
	require.ErrorContains(t, err, endTopic, "what cannot be read is not passed over")
}

// TestCommittedOnShelf: from where each queue of messages is read.
func TestCommittedOnShelf(t *testing.T) {
	message := func(topic string, b *sale.Batch) *primitive.MessageExt {
		m := halfOf(t, b)
		m.Topic = topic
		return m
	}
	f := startFakeShelf(t)
	old, first, second, sentBack, stranded, both := newBatch(1), newBatch(1), newBatch(1), newBatch(1), newBatch(1), newBatch(1)
	f.queues["ours/0"] = &fakeQueue{group: map[string]int64{"workers": 1}, messages: []*primitive.MessageExt{message("ours", old), message("ours", first)}}
	f.queues["ours/1"] = &fakeQueue{messages: []*primitive.MessageExt{message("ours", second), message("ours", both)}} // no worker has come so far
	f.queues[retryPrefix+"workers/0"] = &fakeQueue{messages: []*primitive.MessageExt{message(retryPrefix+"workers", sentBack)}}
	f.queues[strandedTopic+"/0"] = &fakeQueue{first: 4, group: map[string]int64{"workers" + strandedSuffix: 2}, messages: []*primitive.MessageExt{
		message(strandedTopic, stranded), message(strandedTopic, both),
	}}
	ids, err := f.list(t)
	require.NoError(t, err)
	require.ElementsMatch(t, []sale.ID{first.ID, second.ID, both.ID, both.ID, sentBack.ID, stranded.ID}, ids)

	f.queues["ours/1"].deleted = 1 // by age, since its first offset was asked for
	ids, err = f.list(t)
	require.NoError(t, err)
	require.NotContains(t, ids, second.ID)
	require.Contains(t, ids, both.ID)
}
