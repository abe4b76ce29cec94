package reconciler

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// traffic is a sale going on: gateways, lagging workers, shoppers who pay or let their
// orders lapse, and an operator who restocks. Its ids are all older than the watermark, so
// that only what the stores say of each order tells what is on its way.
type traffic struct {
	s       *storetest.Stores
	sl      *sale.Sale
	t       *testing.T
	made    sync.Mutex // of batches, and of the sale's versions
	users   atomic.Int64
	apply   chan *sale.Batch // promised, on the bus
	settle  chan *sale.Batch // persisted
	version int64
	total   int64
}

// trafficOrders is how many orders are asked for.
const trafficOrders = 2000

// lag waits a moment that nobody can foresee, or until the end.
func (x *traffic) lag(ctx context.Context, most time.Duration) bool {
	timer := time.NewTimer(rand.N(most))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (x *traffic) check(err error) {
	if err != nil {
		x.t.Errorf("%+v", err)
	}
}

// gateway sells, and now and then gives a batch up.
func (x *traffic) gateway(ctx context.Context) {
	background := context.Background()
	for x.users.Load() < trafficOrders && x.lag(ctx, 10*time.Millisecond) {
		var users []string
		for range 1 + rand.N(5) {
			users = append(users, fmt.Sprintf("s%d", x.users.Add(1)))
		}
		x.made.Lock()
		b := x.s.Batch(x.sl, old, users...)
		x.made.Unlock()
		out := make([]stock.Outcome, len(b.Orders))
		terms := stock.Terms{StartsAt: x.sl.StartsAt, EndsAt: x.sl.EndsAt, PerUserLimit: 2}
		if _, err := x.s.Stock.Reserve(background, b, terms, time.Minute, out); err != nil {
			x.check(err)
			return
		}
		won := b.Orders[:0]
		for i := range out {
			if out[i].Verdict == stock.Reserved {
				won = append(won, b.Orders[i])
			}
		}
		if b.Orders = won; len(won) == 0 {
			continue
		}
		x.lag(ctx, 2*time.Millisecond)
		if rand.N(8) == 0 {
			_, err := x.s.Stock.Release(background, x.sl.ID, b.ID, b.Epoch, b.Orders)
			x.check(err)
			continue
		}
		state, err := x.s.Stock.Confirm(background, b)
		x.check(err)
		if state == stock.StateConfirmed {
			x.apply <- b
		}
	}
}

// worker persists, late, and settles, later.
func (x *traffic) worker() {
	for b := range x.apply {
		x.lag(context.Background(), 20*time.Millisecond)
		_, err := x.s.Ledger.Apply(context.Background(), []sale.Batch{*b})
		x.check(err)
		x.settle <- b
	}
}

func (x *traffic) settler() {
	for b := range x.settle {
		x.lag(context.Background(), 200*time.Millisecond)
		done, err := x.s.Stock.Settle(context.Background(), x.sl.ID, []sale.ID{b.ID}, x.s.Ledger.ActiveOrders)
		x.check(err)
		x.check(x.s.Ledger.MarkSettled(context.Background(), done))
	}
}

// life pays for orders, and cancels others, as the ledger does it: order, units and task
// in one transaction, and the task run a moment later.
func (x *traffic) life(ctx context.Context) {
	for x.lag(ctx, 5*time.Millisecond) {
		var id int64
		err := x.s.SQL.QueryRow("SELECT id FROM orders WHERE sale_id = ? AND status = 'PENDING_PAYMENT' ORDER BY persisted_at DESC, id % 7 LIMIT 1", x.sl.ID).Scan(&id)
		if err != nil {
			continue // there is none now
		}
		o, err := x.s.Ledger.Order(context.Background(), sale.ID(id))
		x.check(err)
		tx, err := x.s.SQL.Begin()
		if err != nil {
			continue // SQLite is busy
		}
		statements := []string{
			fmt.Sprintf("UPDATE inventory SET locked = locked - %d, sold = sold + %[1]d WHERE sale_id = '%s'", o.Quantity, x.sl.ID),
			fmt.Sprintf("UPDATE orders SET status = 'PAID' WHERE id = %d AND status = 'PENDING_PAYMENT'", id),
		}
		cancel := rand.N(2) == 0
		if cancel {
			statements = []string{
				fmt.Sprintf("UPDATE inventory SET locked = locked - %d, available = available + %[1]d WHERE sale_id = '%s'", o.Quantity, x.sl.ID),
				fmt.Sprintf("UPDATE orders SET status = 'CANCELLED' WHERE id = %d AND status = 'PENDING_PAYMENT'", id),
				fmt.Sprintf(`INSERT INTO stock_sync_tasks (order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, next_try, state, created_at)
					SELECT id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, created_at, 'OPEN', created_at FROM orders WHERE id = %d`, id),
			}
		}
		changed := int64(1)
		for _, statement := range statements {
			var result sql.Result
			if result, err = tx.Exec(statement); err != nil {
				break
			}
			n, err := result.RowsAffected()
			x.check(err)
			changed = min(changed, n) // 0: another got there first
		}
		if err != nil || changed == 0 {
			_ = tx.Rollback()
			continue
		}
		if tx.Commit() != nil || !cancel {
			continue
		}
		x.lag(ctx, 50*time.Millisecond)
		_, err = x.s.Stock.Restore(context.Background(), &o.Order, o.BatchID)
		x.check(err)
		tasks, err := x.s.Ledger.TasksOf(context.Background(), []sale.ID{o.ID})
		x.check(err)
		x.check(x.s.Ledger.TasksDone(context.Background(), tasks[o.ID].ID))
	}
}

// operator raises the total, in the ledger first.
func (x *traffic) operator(ctx context.Context) {
	for x.lag(ctx, 50*time.Millisecond) {
		x.total += 5
		x.version++
		_, err := x.s.Ledger.SetTotal(context.Background(), x.sl.ID, x.total, x.version, "more")
		x.check(err)
		_, err = x.s.Stock.Adjust(context.Background(), x.sl.ID, x.total, x.version)
		x.check(err)
	}
}

// TestNothingIsFoundInASaleThatRuns reconciles and audits all the while a sale runs, with
// workers behind: what is on its way is help or nothing.
func TestNothingIsFoundInASaleThatRuns(t *testing.T) {
	t.Parallel()
	const runs = 25
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		ctx, stop := context.WithCancel(context.Background())
		sl := s.LoadedSale(1_000_000, 2)
		x := &traffic{s: s, sl: sl, t: t, apply: make(chan *sale.Batch, 100_000), settle: make(chan *sale.Batch, 100_000), version: 1, total: sl.Total}
		var makers, workers, settlers sync.WaitGroup
		start := func(g *sync.WaitGroup, f func()) {
			g.Add(1)
			go func() {
				defer g.Done()
				f()
			}()
		}
		for range 3 {
			start(&makers, func() { x.gateway(ctx) })
		}
		for range 3 {
			start(&makers, func() { x.life(ctx) })
		}
		start(&makers, func() { x.operator(ctx) })
		// Workers persist more slowly than gateways sell, and settle more slowly than that.
		start(&workers, x.worker)
		start(&workers, x.worker)
		for range 16 {
			start(&settlers, x.settler)
		}

		end := sync.OnceFunc(func() {
			stop()
			makers.Wait()
			close(x.apply)
			workers.Wait()
			close(x.settle)
			settlers.Wait()
		})
		defer end() // before the stores are closed

		r := newReconciler(s, func(o *Options) { o.Log = quiet })
		var helped int64
		for i := range runs {
			report, err := r.Reconcile(context.Background(), Query{SaleID: sl.ID, DryRun: i%4 != 3})
			require.NoError(t, err)
			require.Zero(t, report.Found, "run %d: %+v", i, report.Sales[0].Items)
			helped += report.Helped
			checked, err := r.o.Auditor.Audit(context.Background(), sl.ID)
			require.NoError(t, err)
			for _, b := range checked.Breaches {
				require.Equal(t, audit.ConfirmedNotPersisted, b.Kind, "audit %d: %+v", i, b)
			}
			if t.Failed() {
				break
			}
		}
		end()
		report, err := r.Reconcile(context.Background(), Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, report.Found+report.Helped, "%+v", report.Sales[0].Items)
		audited(t, s, sl.ID)
		require.Positive(t, helped, "the workers were behind")
		require.Greater(t, report.Sales[0].LedgerOrders, int64(100))
		t.Logf("%d orders, %d batches helped", report.Sales[0].LedgerOrders, helped)
	})
}
