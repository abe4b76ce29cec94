package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// fakeLedger keeps what it is given; poison names batches that no ledger takes,
// away is how many calls fail before it is back.
type fakeLedger struct {
	mu      sync.Mutex
	poison  map[sale.ID]bool
	away    int
	calls   [][]sale.ID
	applied map[sale.ID]int
	settled map[sale.ID]bool
	dead    []ledger.DeadBatch
}

var errAway = errors.New("the ledger is away")

func (f *fakeLedger) Apply(_ context.Context, batches []sale.Batch) (ledger.Applied, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []sale.ID
	for _, b := range batches {
		ids = append(ids, b.ID)
	}
	f.calls = append(f.calls, ids)
	if f.away > 0 {
		f.away--
		return ledger.Applied{}, errAway
	}
	for _, id := range ids {
		if f.poison[id] {
			return ledger.Applied{}, &driver.MySQLError{Number: 4025, Message: "CONSTRAINT failed"}
		}
	}
	var a ledger.Applied
	for _, id := range ids {
		if f.applied[id]++; f.applied[id] > 1 {
			a.Skipped++
		} else {
			a.Batches++
		}
	}
	return a, nil
}

func (f *fakeLedger) MarkSettled(_ context.Context, ids []sale.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		f.settled[id] = true
	}
	return nil
}

func (f *fakeLedger) ActiveOrders(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error) {
	return nil, nil
}

func (f *fakeLedger) AddDeadBatch(_ context.Context, d *ledger.DeadBatch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = append(f.dead, *d)
	return nil
}

type fakeStock struct {
	ledger *fakeLedger
	err    error
	early  bool // settle was called for a batch that was not applied
	takes  time.Duration
}

func (f *fakeStock) Settle(_ context.Context, _ string, ids []sale.ID, _ func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error)) ([]sale.ID, error) {
	if f.takes > 0 {
		<-time.After(f.takes)
	}
	f.ledger.mu.Lock()
	defer f.ledger.mu.Unlock()
	for _, id := range ids {
		f.early = f.early || f.ledger.applied[id] == 0
	}
	if f.err != nil {
		return nil, f.err
	}
	return ids, nil
}

type nullBus struct{ bus.Bus }

func newTestWorker(l *fakeLedger, s *fakeStock) *Worker {
	return New(Options{
		Bus: nullBus{}, Ledger: l, Stock: s,
		Check:       func(context.Context, *sale.Batch) bus.Decision { return bus.Unknown },
		PoisonTries: 3, BackoffMin: time.Microsecond, BackoffMax: time.Millisecond, SettleTimeout: time.Second,
	})
}

func newFakes(poison ...sale.ID) (*fakeLedger, *fakeStock) {
	l := &fakeLedger{poison: map[sale.ID]bool{}, applied: map[sale.ID]int{}, settled: map[sale.ID]bool{}}
	for _, id := range poison {
		l.poison[id] = true
	}
	return l, &fakeStock{ledger: l}
}

func deliveries(ids ...sale.ID) []bus.Delivery {
	var ds []bus.Delivery
	for _, id := range ids {
		ds = append(ds, bus.Delivery{
			MessageID: id.String(), Body: []byte("{}"),
			Batch: &sale.Batch{ID: id, SaleID: "s", Orders: []sale.Order{{ID: id, SaleID: "s", UserID: "u", Quantity: 1}}},
		})
	}
	return ds
}

func TestManyMessagesAreOneTransaction(t *testing.T) {
	l, s := newFakes()
	require.NoError(t, newTestWorker(l, s).handle(context.Background(), deliveries(1, 2, 3, 2)))
	require.Equal(t, [][]sale.ID{{1, 2, 3}}, l.calls, "one transaction, each batch once")
	require.Len(t, l.settled, 3)
	require.False(t, s.early, "nothing is settled before it is persisted")
}

func TestAnAbsentLedgerIsWaitedFor(t *testing.T) {
	l, s := newFakes()
	l.away = 20
	require.NoError(t, newTestWorker(l, s).handle(context.Background(), deliveries(1)))
	require.Equal(t, 1, l.applied[1])
	require.Empty(t, l.dead, "an engine that is away makes no dead batch")
}

func TestStoppingWhileTheLedgerIsAwayAcknowledgesNothing(t *testing.T) {
	l, s := newFakes()
	l.away = 1 << 30
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.Error(t, newTestWorker(l, s).handle(ctx, deliveries(1)), "an error is what has the message come again")
	require.Empty(t, l.dead)
	require.Empty(t, l.settled)
}

func TestPoisonIsBuriedAndTheRestGoesOn(t *testing.T) {
	l, s := newFakes(4)
	require.NoError(t, newTestWorker(l, s).handle(context.Background(), deliveries(1, 2, 3, 4, 5, 6, 7)))
	for _, id := range []sale.ID{1, 2, 3, 5, 6, 7} {
		require.Equal(t, 1, l.applied[id], "batch %d", id)
		require.True(t, l.settled[id], "batch %d", id)
	}
	require.Zero(t, l.applied[4])
	require.False(t, l.settled[4], "what is not persisted stays open in Redis")
	require.Len(t, l.dead, 1)
	require.Equal(t, sale.ID(4), l.dead[0].BatchID)
	alone := 0
	for _, c := range l.calls {
		if len(c) == 1 && c[0] == 4 {
			alone++
		}
	}
	require.Equal(t, 3, alone, "tries of the poisoned batch alone")
}

func TestAnUnreadableBodyIsBuried(t *testing.T) {
	l, s := newFakes()
	ds := append(deliveries(1), bus.Delivery{MessageID: "m", Body: []byte("{"), Err: errors.New("not JSON")})
	require.NoError(t, newTestWorker(l, s).handle(context.Background(), ds))
	require.Equal(t, 1, l.applied[1])
	require.Len(t, l.dead, 1)
	require.Equal(t, "m", l.dead[0].MessageID)
	require.Equal(t, []byte("{"), l.dead[0].Body, "the body is kept as it came")
}

func TestAFailedSettleIsLeftToTheReconciler(t *testing.T) {
	l, s := newFakes()
	s.err = errors.New("redis is away")
	require.NoError(t, newTestWorker(l, s).handle(context.Background(), deliveries(1)), "the ledger has it: acknowledged")
	require.Equal(t, 1, l.applied[1])
	require.Empty(t, l.settled, "settled_at stays null until Redis has answered")
}

// Each sale of many waits for Redis as long as the slowest, not as long as all of them.
func TestSalesAreSettledSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sales = 2 * besides
		l, s := newFakes()
		s.takes = 400 * time.Millisecond
		var ds []bus.Delivery
		for i := range sales {
			d := deliveries(sale.ID(i + 1))[0]
			d.Batch.SaleID = fmt.Sprint("sale-", i)
			ds = append(ds, d)
		}
		began := time.Now()
		require.NoError(t, newTestWorker(l, s).handle(t.Context(), ds))
		require.Equal(t, 2*s.takes, time.Since(began))
		require.Len(t, l.settled, sales)
	})
}

func TestRedeliveryOfWhatIsPersistedSettlesAgain(t *testing.T) {
	l, s := newFakes()
	w := newTestWorker(l, s)
	require.NoError(t, w.handle(context.Background(), deliveries(1)))
	delete(l.settled, 1)
	require.NoError(t, w.handle(context.Background(), deliveries(1)))
	require.True(t, l.settled[1])
}
