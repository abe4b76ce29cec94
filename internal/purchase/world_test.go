package purchase

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// fault is what happens to one call of an engine.
type fault string

const (
	works   fault = "works"
	refused fault = "certainly not run"
	before  fault = "lost before it ran"
	after   fault = "ran, reply lost"
	late    fault = "lost, runs when all is over"
)

var errLost = errors.New("i/o timeout")

// world is the real scripts on miniredis, a bus in memory, and faults in between.
type world struct {
	t     testing.TB
	redis *miniredis.Miniredis
	store *stock.Store
	sale  sale.Sale
	p     *Protocol

	mu     sync.Mutex
	faults map[string][]fault // by call, in turn; then it works
	halves map[sale.ID]*half
	late   []func()
	// between is called between half and confirm.
	between func()
}

type half struct {
	batch sale.Batch
	state bus.Decision
}

func newWorld(t testing.TB, total int64) *world {
	w := &world{t: t, redis: miniredis.RunT(t), faults: map[string][]fault{}, halves: map[sale.ID]*half{}}
	var err error
	w.store, err = stock.Open(stock.Options{Addresses: []string{w.redis.Addr()}})
	require.NoError(t, err)
	t.Cleanup(w.store.Close)
	now := time.Now().UTC()
	w.sale = sale.Sale{
		ID: "s", Title: "S", PriceCents: 100, Currency: "CNY", Total: total, PerUserLimit: 2,
		StartsAt: now.Add(-time.Minute), EndsAt: now.Add(time.Hour), Status: sale.Opened, Epoch: 1, Version: 1,
	}
	loaded, err := w.store.Load(context.Background(), &w.sale, stock.LoadSource{})
	require.NoError(t, err)
	require.True(t, loaded)
	w.p = New(Options{
		Stock: w, Bus: w, IDs: sale.NewIDs(1, time.Now),
		Hold: 20 * time.Second, HalfTimeout: time.Second, ReleaseTimeout: time.Second,
	})
	return w
}

func (w *world) next(call string) fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	queue := w.faults[call]
	if len(queue) == 0 {
		return works
	}
	w.faults[call] = queue[1:]
	return queue[0]
}

// through makes one call of an engine with the next fault in turn. again is the same
// call on copies, for when it comes late.
func through[T any](w *world, call string, do func() (T, error), again func()) (T, error) {
	var zero T
	switch w.next(call) {
	case refused:
		return zero, fmt.Errorf("%w: %s", stock.ErrNotRun, call)
	case before:
		return zero, errLost
	case after:
		_, _ = do()
		return zero, errLost
	case late:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.late = append(w.late, again)
		return zero, errLost
	default:
		return do()
	}
}

func (w *world) Reserve(ctx context.Context, b *sale.Batch, terms stock.Terms, hold time.Duration, out []stock.Outcome) (int64, error) {
	copied := clone(b)
	return through(w, "reserve",
		func() (int64, error) { return w.store.Reserve(ctx, b, terms, hold, out) },
		func() {
			_, _ = w.store.Reserve(context.Background(), copied, terms, hold, make([]stock.Outcome, len(copied.Orders)))
		})
}

func (w *world) Confirm(ctx context.Context, b *sale.Batch) (stock.State, error) {
	copied := clone(b)
	return through(w, "confirm",
		func() (stock.State, error) { return w.store.Confirm(ctx, b) },
		func() { _, _ = w.store.Confirm(context.Background(), copied) })
}

func (w *world) Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error) {
	copied := append([]sale.Order(nil), orders...)
	return through(w, "release",
		func() (stock.State, error) { return w.store.Release(ctx, saleID, batch, epoch, orders) },
		func() { _, _ = w.store.Release(context.Background(), saleID, batch, epoch, copied) })
}

func clone(b *sale.Batch) *sale.Batch {
	copied := *b
	copied.Orders = append([]sale.Order(nil), b.Orders...)
	return &copied
}

func (w *world) Send(_ context.Context, b *sale.Batch, local func() bus.Decision) error {
	copied := clone(b)
	store := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.halves[copied.ID] = &half{batch: *copied}
	}
	switch w.next("half") {
	case refused, before:
		return errLost
	case after:
		store()
		return errLost
	case late:
		w.late = append(w.late, store)
		return errLost
	}
	store()
	if w.between != nil {
		w.between()
	}
	w.end(b.ID, local())
	return nil
}

func (w *world) end(id sale.ID, d bus.Decision) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.halves[id]
	if h.state != bus.Unknown && d != bus.Unknown && h.state != d {
		w.t.Errorf("batch %d was ended as %v, and as %v", id, h.state, d)
	}
	if d != bus.Unknown {
		h.state = d
	}
}

// buy runs requests as one batch and returns their answers.
func (w *world) buy(requests ...*Request) []Answer {
	answers := make([]Answer, len(requests))
	var wg sync.WaitGroup
	for i, q := range requests {
		wg.Add(1)
		go func() {
			defer wg.Done()
			answers[i] = q.Wait()
		}()
	}
	w.p.Run(context.Background(), &w.sale, requests)
	wg.Wait()
	w.p.Wait()
	return answers
}

func (w *world) request(user, key string, quantity int) *Request {
	return NewRequest(sale.Order{
		ID: w.p.o.IDs.Next(0), SaleID: w.sale.ID, UserID: user, RequestKey: key,
		Quantity: quantity, AmountCents: int64(quantity) * w.sale.PriceCents,
	}, time.Now().Add(300*time.Millisecond))
}

// held is the units held at this moment.
func (w *world) held() int64 {
	snap, err := w.store.Snapshot(context.Background(), w.sale.ID)
	require.NoError(w.t, err)
	return snap.Held
}

// rest lets the system come to rest: what is late arrives, then the sweeper past every
// deadline, a check-back for every open half message, and a worker for every committed one.
func (w *world) rest() {
	ctx := context.Background()
	w.faults = map[string][]fault{}
	for _, arrive := range w.late {
		arrive()
	}
	w.late = nil
	w.redis.SetTime(time.Now().Add(time.Minute))
	due, err := w.store.Due(ctx, w.sale.ID, 100)
	require.NoError(w.t, err)
	for _, id := range due {
		_, err := w.store.Release(ctx, w.sale.ID, id, 0, nil)
		require.NoError(w.t, err)
	}
	check := Checker(w.store, nil)
	for id, h := range w.halves {
		if h.state == bus.Unknown {
			w.end(id, check(ctx, &h.batch))
		}
		require.NotEqual(w.t, bus.Unknown, h.state, "a check-back with Redis at hand is definite")
	}
	for id, h := range w.halves {
		if h.state == bus.Commit {
			_, err := w.store.Settle(ctx, w.sale.ID, []sale.ID{id}, func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error) {
				return map[sale.ID][]sale.Order{id: h.batch.Orders}, nil
			})
			require.NoError(w.t, err)
		}
	}
}

// committed is the orders that a worker gets.
func (w *world) committed() map[sale.ID]sale.Order {
	orders := make(map[sale.ID]sale.Order)
	for _, h := range w.halves {
		if h.state == bus.Commit {
			for _, o := range h.batch.Orders {
				orders[o.ID] = o
			}
		}
	}
	return orders
}

// conserved checks invariants 4a and, at rest, 4c.
func (w *world) conserved() {
	ctx := context.Background()
	snap, err := w.store.Snapshot(ctx, w.sale.ID)
	require.NoError(w.t, err)
	require.Equal(w.t, w.sale.Total, snap.Stock+snap.Held, "invariant 4a")
	require.Zero(w.t, snap.Pending, "nothing is reserved at rest")
	held := make(map[sale.ID]bool)
	require.NoError(w.t, w.store.Buyers(ctx, w.sale.ID, func(records []stock.Record) error {
		for _, r := range records {
			held[r.OrderID] = !r.Returned
		}
		return nil
	}))
	committed := w.committed()
	require.Len(w.t, held, len(committed), "invariant 4c: Redis holds what the ledger gets")
	for id := range committed {
		require.True(w.t, held[id], "invariant 4c: order %d", id)
	}
}
