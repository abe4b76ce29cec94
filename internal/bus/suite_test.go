package bus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/enginetest"
	"flashgate/internal/sale"
)

// patience bounds what a test waits for: a RocketMQ consumer may need 20 s to be given
// its queues, and a check-back of a broker set up like production comes after 6 s, and
// again every 5 s.
const patience = 90 * time.Second

// testBus is a bus, and the way to send a body that Encode would refuse.
type testBus interface {
	Bus
	Lister
	sendBody(ctx context.Context, body []byte, local func() Decision) error
}

type embeddedBus struct{ *Embedded }

func (b embeddedBus) sendBody(ctx context.Context, body []byte, local func() Decision) error {
	return b.send(ctx, "", body, local)
}

type rocketBus struct{ *RocketMQ }

func (b rocketBus) sendBody(ctx context.Context, body []byte, local func() Decision) error {
	return b.send(ctx, "poison", body, local)
}

// engine makes a place for messages; open may be called on it again after a Close.
type engine struct {
	name  string
	place func(testing.TB) (open func(testing.TB, Options) testBus)
}

var engines = []engine{
	{"embedded", embeddedPlace},
	{"rocketmq", rocketPlace},
}

func embeddedPlace(t testing.TB) func(testing.TB, Options) testBus {
	file := filepath.Join(t.TempDir(), "bus.db")
	return func(t testing.TB, o Options) testBus {
		o.File = file
		setDefault(&o.CheckAfter, 50*time.Millisecond)
		setDefault(&o.CheckInterval, 20*time.Millisecond)
		b, err := OpenEmbedded(o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return embeddedBus{b}
	}
}

func rocketPlace(t testing.TB) func(testing.TB, Options) testBus {
	server := enginetest.RocketMQ(t)
	name := "bus-test-" + randomName()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	changed, err := EnsureTopics(ctx, []string{server}, name, 2)
	require.NoError(t, err)
	require.True(t, changed)
	return func(t testing.TB, o Options) testBus {
		o.NameServers, o.Topic = []string{server}, name
		o.ProducerGroup, o.ConsumerGroup = name+"-gateway", name+"-worker"
		setDefault(&o.Producers, 2)
		b, err := OpenRocketMQ(o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return rocketBus{b}
	}
}

func randomName() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

var testIDs = sale.NewIDs(1, time.Now)

// newBatch is a batch of n orders.
func newBatch(n int) *sale.Batch {
	b := &sale.Batch{ID: testIDs.Next(0), SaleID: "spring", Epoch: 3}
	for i := range n {
		b.Orders = append(b.Orders, sale.Order{
			ID: testIDs.Next(i), SaleID: b.SaleID, UserID: "8f14e45f-ceea-467f-a9d6-" + randomName(),
			RequestKey: "3c59dc04-8e88-5024-9be8-" + randomName(), Quantity: 1 + i%3, AmountCents: 1999,
		})
	}
	return b
}

// inbox is a handler that remembers what it was given.
type inbox struct {
	mu      sync.Mutex
	batches map[sale.ID]*sale.Batch
	times   map[sale.ID]int
	poison  []Delivery
	calls   []int // how many deliveries each had
}

func newInbox() *inbox { return &inbox{batches: map[sale.ID]*sale.Batch{}, times: map[sale.ID]int{}} }

func (in *inbox) handle(_ context.Context, deliveries []Delivery) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.calls = append(in.calls, len(deliveries))
	for _, d := range deliveries {
		if d.Err != nil {
			in.poison = append(in.poison, d)
			continue
		}
		in.batches[d.Batch.ID] = d.Batch
		in.times[d.Batch.ID]++
	}
	return nil
}

func (in *inbox) get(id sale.ID) *sale.Batch {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.batches[id]
}

func (in *inbox) len() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.batches)
}

func (in *inbox) sizes() []int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.Clone(in.calls)
}

func (in *inbox) poisoned() []Delivery {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]Delivery(nil), in.poison...)
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, what)
}

// send sends until the bus takes the batch.
func send(t testing.TB, b Bus, batch *sale.Batch, d Decision) {
	t.Helper()
	require.NoError(t, trySend(t.Context(), func(ctx context.Context) error {
		return b.Send(ctx, batch, func() Decision { return d })
	}))
}

// trySend asks again while the bus is not connected, or a broker that has just started
// pleads busy: no local transaction has run then.
func trySend(ctx context.Context, send func(context.Context) error) error {
	for deadline := time.Now().Add(patience); ; {
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := send(one)
		cancel()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		sleep(ctx, 10*time.Millisecond)
	}
}

// consume runs Consume; stop ends it and waits.
func consume(t testing.TB, b Bus, handle Handler, check Checker) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Consume(ctx, handle, check) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(patience):
			require.Fail(t, "Consume did not return")
		}
	})
	t.Cleanup(stop)
	return stop
}

// answering is a check-back that always gives d.
func answering(d Decision) Checker {
	return func(context.Context, *sale.Batch) Decision { return d }
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
