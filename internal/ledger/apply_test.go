package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// apply must succeed.
func (r *rig) apply(t require.TestingT, batches ...sale.Batch) Applied {
	applied, err := r.Apply(context.Background(), batches)
	require.NoError(t, err)
	return applied
}

func (r *rig) status(t require.TestingT, o sale.Order) (sale.OrderStatus, string) {
	got, err := r.Order(context.Background(), o.ID)
	require.NoError(t, err)
	return got.Status, got.Reason
}

func (r *rig) requireStatus(t require.TestingT, o sale.Order, status sale.OrderStatus, reason string) {
	s, why := r.status(t, o)
	require.Equal(t, status, s)
	require.Equal(t, reason, why)
}

func (r *rig) requireUnits(t require.TestingT, saleID string, available, locked int64) {
	got, err := r.Inventory(context.Background(), saleID)
	require.NoError(t, err)
	require.Equal(t, available, got.Available, "available")
	require.Equal(t, locked, got.Locked, "locked")
}

func testApplyCommon(t *testing.T, r *rig) {
	id := r.newSale(t, 100, 3)
	b1 := batch(order(id, "ann", "k1", 1), order(id, "bob", "", 2))
	b2 := batch(order(id, "ann", "k2", 2), order(id, "cyd", "k1", 3))
	require.Equal(t, Applied{Batches: 2, Orders: 4}, r.apply(t, b1, b2))
	r.requireUnits(t, id, 92, 8)
	r.checkInvariants(t, id)

	got, err := r.Order(context.Background(), b1.Orders[1].ID)
	require.NoError(t, err)
	require.Equal(t, b1.Orders[1], got.Order)
	require.Equal(t, b1.ID, got.BatchID)
	require.Equal(t, sale.PendingPayment, got.Status)
	require.WithinDuration(t, time.Now(), got.PersistedAt, time.Minute)
	require.Equal(t, moment{b1.Orders[0].CreatedAt()}.text(), r.createdAt(t, b1.Orders[0].ID))
	require.Zero(t, r.count(t, "SELECT COUNT(*) FROM order_status_log AS g JOIN orders AS o ON o.id = g.order_id WHERE o.sale_id = ?", id),
		"a common insert logs no transition")

	empty, err := r.Apply(context.Background(), nil)
	require.NoError(t, err)
	require.Zero(t, empty)
}

func (r *rig) createdAt(t require.TestingT, id sale.ID) string {
	var at moment
	require.NoError(t, r.pools[0].QueryRow("SELECT created_at FROM orders WHERE id = ?", int64(id)).Scan(&at))
	return at.text()
}

func testApplyOnce(t *testing.T, r *rig) {
	id := r.newSale(t, 100, 3)
	b1, b2, b3 := batch(order(id, "ann", "", 1)), batch(order(id, "bob", "", 1)), batch(order(id, "cyd", "", 1))
	require.Equal(t, Applied{Batches: 2, Orders: 2, Skipped: 1}, r.apply(t, b1, b2, b1), "twice in one call")
	require.Equal(t, Applied{Batches: 1, Orders: 1, Skipped: 2}, r.apply(t, b2, b3, b1), "brought again with a new one")
	require.Equal(t, Applied{Skipped: 3}, r.apply(t, b1, b2, b3))
	r.requireUnits(t, id, 97, 3)
	r.checkInvariants(t, id)
}

func testApplyDuplicates(t *testing.T, r *rig) {
	id := r.newSale(t, 100, 3)
	first := order(id, "ann", "k", 1)
	r.apply(t, batch(first))

	again := order(id, "ann", "k", 1)
	require.Equal(t, Applied{Batches: 1, Cancelled: 1, Refused: []string{id}}, r.apply(t, batch(again)))
	r.requireStatus(t, again, sale.Cancelled, "DUPLICATE of "+first.ID.String())

	one, two := order(id, "bob", "k", 1), order(id, "bob", "k", 1)
	require.Equal(t, Applied{Batches: 2, Orders: 1, Cancelled: 1, Refused: []string{id}}, r.apply(t, batch(one), batch(two)),
		"among the call's own batches")
	r.requireStatus(t, one, sale.PendingPayment, "")
	r.requireStatus(t, two, sale.Cancelled, "DUPLICATE of "+one.ID.String())

	survivor, err := r.OrderByKey(context.Background(), id, "bob", "k")
	require.NoError(t, err)
	require.Equal(t, one.ID, survivor.ID)
	r.requireUnits(t, id, 98, 2)
	r.checkInvariants(t, id)
}

func testApplyLimits(t *testing.T, r *rig) {
	id := r.newSale(t, 100, 3)
	r.apply(t, batch(order(id, "ann", "k1", 2)))
	over, fits := order(id, "ann", "k2", 2), order(id, "ann", "k3", 1)
	bystander := order(id, "bob", "", 3)
	require.Equal(t, Applied{Batches: 1, Orders: 2, Cancelled: 1, Refused: []string{id}},
		r.apply(t, batch(over, bystander, fits)), "a smaller order still fits")
	r.requireStatus(t, over, sale.Cancelled, sale.ReasonLimitExceeded)
	r.requireStatus(t, fits, sale.PendingPayment, "")
	r.requireStatus(t, bystander, sale.PendingPayment, "")

	within := []sale.Order{order(id, "cyd", "a", 2), order(id, "cyd", "b", 2), order(id, "cyd", "c", 1)}
	require.Equal(t, Applied{Batches: 3, Orders: 2, Cancelled: 1, Refused: []string{id}},
		r.apply(t, batch(within[0]), batch(within[1]), batch(within[2])), "among the call's own batches")
	r.requireStatus(t, within[1], sale.Cancelled, sale.ReasonLimitExceeded)

	later := order(id, "ann", "k2", 1)
	r.apply(t, batch(later))
	r.requireStatus(t, later, sale.Cancelled, "DUPLICATE of "+over.ID.String())
	r.requireUnits(t, id, 91, 9)
	r.checkInvariants(t, id)
}

// One buyer of very many orders is held to the limit too: their pairs are not counted.
func testApplyLimitOfOneBuyer(t *testing.T, r *rig) {
	const limit, each = 100, 20
	id := r.newSale(t, 1000, limit)
	keys := 0
	many := func() sale.Batch {
		orders := make([]sale.Order, each)
		for i := range orders {
			keys++
			orders[i] = order(id, "ann", fmt.Sprint("k", keys), 1)
		}
		return batch(orders...)
	}
	for range limit / each {
		require.Equal(t, Applied{Batches: 1, Orders: each}, r.apply(t, many()))
	}
	require.Equal(t, Applied{Batches: 1, Cancelled: each, Refused: []string{id}}, r.apply(t, many()))
	r.requireUnits(t, id, 1000-limit, limit)
	r.checkInvariants(t, id)
}

func testApplyStock(t *testing.T, r *rig) {
	id := r.newSale(t, 5, 4)
	orders := []sale.Order{order(id, "ann", "", 3), order(id, "bob", "", 4), order(id, "cyd", "", 1), order(id, "dan", "", 1), order(id, "eve", "", 1)}
	require.Equal(t, Applied{Batches: 2, Orders: 3, Cancelled: 2, Refused: []string{id}},
		r.apply(t, batch(orders[:2]...), batch(orders[2:]...)))
	for i, status := range []sale.OrderStatus{sale.PendingPayment, sale.Cancelled, sale.PendingPayment, sale.PendingPayment, sale.Cancelled} {
		reason := ""
		if status == sale.Cancelled {
			reason = sale.ReasonStockRefused
		}
		r.requireStatus(t, orders[i], status, reason)
	}
	r.requireUnits(t, id, 0, 5)
	r.checkInvariants(t, id)
}

func testApplyKnownOrder(t *testing.T, r *rig) {
	id := r.newSale(t, 5, 2)
	o := order(id, "ann", "k", 1)
	r.apply(t, batch(o))
	require.Equal(t, Applied{Batches: 1, Orders: 1}, r.apply(t, batch(o, order(id, "bob", "k", 1))), "the same order in another batch")
	require.Equal(t, Applied{Batches: 1}, r.apply(t, batch(o)))
	r.requireUnits(t, id, 3, 2)
	r.checkInvariants(t, id)

	stolen := order(id, "cyd", "k", 1)
	stolen.ID = o.ID
	_, err := r.Apply(context.Background(), []sale.Batch{batch(stolen, order(id, "dan", "", 1))})
	require.True(t, Poison(err), "%v", err)
	r.requireUnits(t, id, 3, 2)
}

func testApplySales(t *testing.T, r *rig) {
	one, two := r.newSale(t, 5, 2), r.newSale(t, 1, 2)
	require.Equal(t, Applied{Batches: 3, Orders: 2, Cancelled: 1, Refused: []string{two}},
		r.apply(t, batch(order(two, "ann", "", 1)), batch(order(one, "ann", "", 1)), batch(order(two, "bob", "", 1))))
	r.requireUnits(t, one, 4, 1)
	r.requireUnits(t, two, 0, 1)
	r.checkInvariants(t, one)
	r.checkInvariants(t, two)
}

func testApplyLarge(t *testing.T, r *rig) {
	const batches, size = 60, 100 // 72,000 values
	id := r.newSale(t, batches*size, 1)
	many := make([]sale.Batch, batches)
	for i := range many {
		orders := make([]sale.Order, size)
		for j := range orders {
			orders[j] = order(id, fmt.Sprintf("user-%d-%d", i, j), "", 1)
		}
		many[i] = batch(orders...)
	}
	require.Equal(t, Applied{Batches: batches, Orders: batches * size}, r.apply(t, many...))

	var again []sale.Order
	for i := range many {
		o := many[i].Orders[0]
		o.ID = testIDs.Next(0)
		again = append(again, o, order(id, "late-"+o.UserID, "", 1))
	}
	require.Equal(t, Applied{Batches: 1, Cancelled: 2 * batches, Refused: []string{id}}, r.apply(t, batch(again...)), "carefully")
	r.requireUnits(t, id, 0, batches*size)
	r.checkInvariants(t, id)
}

func testApplyBytes(t *testing.T, r *rig) {
	id := r.newSale(t, 100, 1)
	users := []string{"Bob", "bob", "bob ", " bob", "bòb", "BÓB", "b\x00b", "b\x00", "\xff\xfe", `b'ob"\`, "%", "1e3", "1000", "01000",
		strings.Repeat("ü", 32)}
	var orders []sale.Order
	for _, user := range users {
		orders = append(orders, order(id, user, user, 1))
	}
	require.Equal(t, Applied{Batches: 1, Orders: len(users)}, r.apply(t, batch(orders...)), "each is a user of its own")
	for i, user := range users {
		got, err := r.OrderByKey(context.Background(), id, user, user)
		require.NoError(t, err, "%q", user)
		require.Equal(t, orders[i], got.Order)
		mine, err := r.OrdersOf(context.Background(), user, id, 10)
		require.NoError(t, err)
		require.Len(t, mine, 1, "%q", user)
		over := order(id, user, "another", 1)
		require.Equal(t, Applied{Batches: 1, Cancelled: 1, Refused: []string{id}}, r.apply(t, batch(over)), "%q", user)
	}
	r.checkInvariants(t, id)
}

func testApplyPoison(t *testing.T, r *rig) {
	id := r.newSale(t, 100, 2)
	long := strings.Repeat("x", 65)
	for name, spoil := range map[string]func(b *sale.Batch){
		"unknown sale":      func(b *sale.Batch) { b.SaleID, b.Orders[0].SaleID = "none", "none" },
		"malformed sale":    func(b *sale.Batch) { b.SaleID, b.Orders[0].SaleID = "a b", "a b" },
		"two sales":         func(b *sale.Batch) { b.Orders[0].SaleID = r.newSale(t, 1, 1) },
		"batch id":          func(b *sale.Batch) { b.ID = 0 },
		"no orders":         func(b *sale.Batch) { b.Orders = nil },
		"order id":          func(b *sale.Batch) { b.Orders[0].ID = -1 },
		"no user":           func(b *sale.Batch) { b.Orders[0].UserID = "" },
		"long user":         func(b *sale.Batch) { b.Orders[0].UserID = long },
		"long key":          func(b *sale.Batch) { b.Orders[0].RequestKey = long },
		"no units":          func(b *sale.Batch) { b.Orders[0].Quantity = 0 },
		"many units":        func(b *sale.Batch) { b.Orders[0].Quantity = sale.MaxQuantity + 1 },
		"negative amount":   func(b *sale.Batch) { b.Orders[0].AmountCents = -1 },
		"amount of another": func(b *sale.Batch) { b.Orders[0].AmountCents++ },
	} {
		good, bad := batch(order(id, "good", name, 1)), batch(order(id, "bad", name, 1))
		spoil(&bad)
		_, err := r.Apply(context.Background(), []sale.Batch{good, bad})
		require.Error(t, err, name)
		require.True(t, Poison(err), "%s: %v", name, err)
	}
	r.requireUnits(t, id, 100, 0)
	require.Zero(t, r.count(t, "SELECT COUNT(*) FROM orders WHERE sale_id = ?", id), "nothing of a refused call stays")
	r.checkInvariants(t, id)
}

// testApplyConcurrently has eight workers bring overlapping batches of overlapping
// users and keys, in orders of their own, for a stock that runs out.
func testApplyConcurrently(t *testing.T, r *rig) {
	const workers, batches, calls = 8, 60, 30
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	sales := []string{r.newSale(t, 40, 3), r.newSale(t, 1000, 2)}
	all := make([]sale.Batch, batches)
	for i := range all {
		id := sales[random.IntN(2)]
		var orders []sale.Order
		for range 1 + random.IntN(6) {
			orders = append(orders, order(id, fmt.Sprint("user-", random.IntN(25)), fmt.Sprint("key-", random.IntN(4)), 1+random.IntN(2)))
		}
		all[i] = batch(orders...)
	}
	var wg sync.WaitGroup
	totals := make([]Applied, workers)
	for w := range workers {
		random := rand.New(rand.NewPCG(seed, uint64(w+2)))
		wg.Go(func() {
			bring := func(batches []sale.Batch) {
				applied, err := r.Apply(context.Background(), batches)
				if err != nil {
					t.Errorf("worker %d: %v", w, err)
				}
				totals[w].Batches += applied.Batches
				totals[w].Orders += applied.Orders
				totals[w].Cancelled += applied.Cancelled
			}
			for range calls {
				var some []sale.Batch
				for range 1 + random.IntN(5) {
					some = append(some, all[random.IntN(batches)])
				}
				bring(some)
			}
			bring(all)
		})
	}
	wg.Wait()
	var sum Applied
	orders := 0
	for w := range totals {
		sum.Batches += totals[w].Batches
		sum.Orders += totals[w].Orders
		sum.Cancelled += totals[w].Cancelled
	}
	for i := range all {
		orders += len(all[i].Orders)
	}
	require.Equal(t, batches, sum.Batches, "each batch was applied once")
	require.Equal(t, orders, sum.Orders+sum.Cancelled, "no order is lost or doubled")
	for _, id := range sales {
		r.checkInvariants(t, id)
	}
	r.requireUnits(t, sales[0], 0, 40)
}

// holdLock takes a sale's lock until release is called.
func (r *rig) holdLock(t *testing.T, saleID string) (release func()) {
	tx, err := r.pools[0].Begin()
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback() })
	var available int
	require.NoError(t, tx.QueryRow("SELECT available FROM inventory WHERE sale_id = ? FOR UPDATE", saleID).Scan(&available))
	return func() { require.NoError(t, tx.Commit()) }
}

// lockWaiters are the connections that ask for the lock of a sale, which holdLock has:
// the statement is seen until it gets it. (innodb_trx would tell of the wait itself,
// but shows an old copy for as long as it is read more often than every 100 ms.)
const lockWaiters = " FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'UPDATE inventory %'"

// waitForLock returns when n workers ask for the lock.
func (r *rig) waitForLock(t *testing.T, n int64) {
	require.Eventually(t, func() bool {
		var have int64
		// MySQL can't show the list while a statement in it holds what utf8mb3 can't.
		err := r.pools[0].QueryRow("SELECT COUNT(*)" + lockWaiters).Scan(&have)
		return err == nil && have == n
	}, 20*time.Second, 10*time.Millisecond, "%d wait for the sale's lock", n)
}

// TestLookAfterTheLock: two workers bring two orders of one user whose limit is one.
// Both have inserted theirs, and neither sees the other's, when they ask for the
// sale's lock; who gets it second must find out.
func TestLookAfterTheLock(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		if r.engine == &sqliteEngine {
			return // one writer: there is no second transaction
		}
		ctx := context.Background()
		registry := prometheus.NewRegistry()
		m, err := newMetrics(registry, r.pools[0])
		require.NoError(t, err)
		r.metrics = m
		id := r.newSale(t, 10, 1)
		release := r.holdLock(t, id)
		orders := []sale.Order{order(id, "ann", "k1", 1), order(id, "ann", "k2", 1)}
		var wg sync.WaitGroup
		var applied [2]Applied
		for i := range orders {
			wg.Go(func() {
				var err error
				if applied[i], err = r.Apply(ctx, []sale.Batch{batch(orders[i])}); err != nil {
					t.Error(err)
				}
			})
		}
		r.waitForLock(t, 2) // their orders inserted
		release()
		wg.Wait()

		require.Equal(t, 1, applied[0].Orders+applied[1].Orders)
		require.Equal(t, 1, applied[0].Cancelled+applied[1].Cancelled)
		require.EqualValues(t, 1, testutil.ToFloat64(m.retries.WithLabelValues(retryUncommon)), "the second went the careful way")
		r.requireUnits(t, id, 9, 1)
		r.checkInvariants(t, id)
	})
}

// TestConnectionLost: a worker's connection dies with everything inserted and nothing
// committed.
func TestConnectionLost(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		if r.engine == &sqliteEngine {
			return // no connection to lose
		}
		id := r.newSale(t, 10, 1)
		release := r.holdLock(t, id)
		b := batch(order(id, "ann", "k1", 1), order(id, "bob", "k1", 1))
		lost := make(chan error, 1)
		go func() {
			_, err := r.Apply(context.Background(), []sale.Batch{b})
			lost <- err
		}()
		r.waitForLock(t, 1)
		var waiter int64
		require.Eventually(t, func() bool { return r.pools[0].QueryRow("SELECT id"+lockWaiters).Scan(&waiter) == nil },
			20*time.Second, 10*time.Millisecond)
		r.exec(t, fmt.Sprint("KILL ", waiter))
		err := <-lost
		require.Error(t, err)
		require.False(t, Poison(err), "%v", err)
		release()

		require.Zero(t, r.count(t, "SELECT COUNT(*) FROM orders WHERE sale_id = ?", id), "nothing of it stays")
		r.checkInvariants(t, id)
		require.Equal(t, Applied{Batches: 1, Orders: 2}, r.apply(t, b))
		r.checkInvariants(t, id)
	})
}

// TestOthersAreQuicker: however many of the batches somebody else brings meanwhile, one by
// one and each just in time, the rest is applied.
func TestOthersAreQuicker(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, mariadbOptions(t))
	saleID := r.newSale(t, 100, 2)
	var batches []sale.Batch
	for i := range 3 * maxAttempts {
		batches = append(batches, batch(order(saleID, fmt.Sprint("u", i), "k", 1)))
	}
	other, brought := r.another(t), 0
	const quicker = 2 * maxAttempts
	pool := beginner{r.pools[0], func() {
		if brought < quicker {
			_, err := other.Apply(ctx, batches[brought:brought+1])
			require.NoError(t, err)
			brought++
		}
	}}
	r.writes.ConnPool, r.writes.Statement.ConnPool = pool, pool
	applied, err := r.Apply(ctx, batches)
	require.NoError(t, err)
	require.Equal(t, quicker, brought)
	require.Equal(t, Applied{Batches: len(batches) - quicker, Skipped: quicker, Orders: len(batches) - quicker}, applied)
	require.Equal(t, int64(len(batches)), r.count(t, "SELECT COUNT(*) FROM orders WHERE sale_id = ?", saleID))
}

// beginner does something before each transaction.
type beginner struct {
	*sql.DB
	before func()
}

func (b beginner) BeginTx(ctx context.Context, o *sql.TxOptions) (gorm.ConnPool, error) {
	b.before()
	return b.DB.BeginTx(ctx, o)
}
