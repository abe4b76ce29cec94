package worker

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// killed ends a worker at its n-th call of an engine, before the engine has it or after:
// what it has in hand is lost, as with kill -9. Each of its goroutines ends at its next call.
type killed struct {
	left  int
	after bool
}

func (k *killed) call(do func()) {
	k.left--
	if k.left < 0 || k.left == 0 && !k.after {
		runtime.Goexit()
	}
	do()
	if k.left == 0 {
		runtime.Goexit()
	}
}

type mortalLedger struct {
	*ledger.Ledger
	k *killed
}

func (m mortalLedger) Apply(ctx context.Context, batches []sale.Batch) (a ledger.Applied, err error) {
	m.k.call(func() { a, err = m.Ledger.Apply(ctx, batches) })
	return a, err
}

func (m mortalLedger) MarkSettled(ctx context.Context, ids []sale.ID) (err error) {
	m.k.call(func() { err = m.Ledger.MarkSettled(ctx, ids) })
	return err
}

func (m mortalLedger) ActiveOrders(ctx context.Context, ids []sale.ID) (o map[sale.ID][]sale.Order, err error) {
	m.k.call(func() { o, err = m.Ledger.ActiveOrders(ctx, ids) })
	return o, err
}

func (m mortalLedger) AddDeadBatch(ctx context.Context, d *ledger.DeadBatch) (err error) {
	m.k.call(func() { err = m.Ledger.AddDeadBatch(ctx, d) })
	return err
}

type mortalStock struct {
	*stock.Store
	k *killed
}

func (m mortalStock) Settle(ctx context.Context, saleID string, ids []sale.ID,
	active func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error)) (done []sale.ID, err error) {
	m.k.call(func() { done, err = m.Store.Settle(ctx, saleID, ids, active) })
	return done, err
}

// TestKilledAtAnyCall: a worker dies before or after any of its calls of an engine, so
// nothing is acknowledged, and the bus gives the same messages to another (which the
// bus's conformance holds it to). Each order is in the ledger once, each unit is locked
// once, and Redis is settled, wherever the first one died (invariants 2, 3, 4).
func TestKilledAtAnyCall(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, after := range []bool{false, true} {
			for call, more := 1, true; more; call++ {
				t.Run(fmt.Sprintf("call %d, after it: %v", call, after), func(t *testing.T) {
					sl := s.LoadedSale(10, 2)
					one, two := s.Batch(sl, time.Hour, "a", "b"), s.Batch(sl, time.Hour, "c")
					s.Confirm(sl, one)
					s.Confirm(sl, two)
					unknown := s.Batch(sl, time.Hour, "d") // names a sale that there is not: poison
					unknown.SaleID, unknown.Orders[0].SaleID = sl.ID+"-not", sl.ID+"-not"
					var messages []bus.Delivery
					for _, b := range []*sale.Batch{one, unknown, two} {
						body, err := bus.Encode(b)
						require.NoError(t, err)
						messages = append(messages, bus.Delivery{MessageID: b.ID.String(), Body: body, Batch: b})
					}
					newWorker := func(k *killed) *Worker {
						return New(Options{
							Bus: nullBus{}, Ledger: mortalLedger{s.Ledger, k}, Stock: mortalStock{s.Stock, k},
							Check:       func(context.Context, *sale.Batch) bus.Decision { return bus.Unknown },
							PoisonTries: 2, BackoffMin: time.Microsecond, BackoffMax: time.Millisecond, SettleTimeout: time.Minute,
						})
					}
					k := &killed{left: call, after: after}
					var life sync.WaitGroup
					life.Go(func() { _ = newWorker(k).handle(ctx, messages) })
					life.Wait()
					more = k.left <= 0
					require.NoError(t, newWorker(&killed{left: math.MaxInt}).handle(ctx, messages), "the next worker acknowledges")

					for _, o := range append(one.Orders, two.Orders...) {
						row, err := s.Ledger.Order(ctx, o.ID)
						require.NoError(t, err)
						require.Equal(t, sale.PendingPayment, row.Status)
					}
					inv, err := s.Ledger.Inventory(ctx, sl.ID)
					require.NoError(t, err)
					require.Equal(t, int64(3), inv.Locked)
					snap := s.Snapshot(sl.ID)
					require.Equal(t, int64(7), snap.Stock)
					require.Equal(t, int64(3), snap.Held)
					require.Zero(t, snap.Batches, "settled")
					owed, err := s.Ledger.Owed(ctx, sl.ID, time.Now().Add(time.Hour), 10)
					require.NoError(t, err)
					require.Empty(t, owed)
					dead, err := s.Ledger.DeadBatches(ctx, 100)
					require.NoError(t, err)
					found := 0
					for i := range dead {
						if dead[i].BatchID == unknown.ID {
							found++
						}
					}
					require.Equal(t, 1, found, "poison is buried once")
					report, err := (&audit.Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Minute}).Audit(ctx, sl.ID)
					require.NoError(t, err)
					require.True(t, report.OK, "%+v", report.Breaches)
				})
				require.Less(t, call, 50)
			}
		}
	})
}
