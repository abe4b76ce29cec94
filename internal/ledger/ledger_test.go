package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/enginetest"
	"flashgate/internal/sale"
)

// rig is a ledger on one engine, and the means to look at it by plain SQL.
type rig struct {
	*Ledger
	options Options
}

// onEngines runs f on SQLite, MariaDB and, where it can be had, MySQL: each with one
// fresh database that all of f's cases share.
func onEngines(t *testing.T, f func(t *testing.T, r *rig)) {
	engines := []struct {
		name    string
		options func(t *testing.T) (Options, bool)
	}{
		{"sqlite", func(t *testing.T) (Options, bool) { return sqliteOptions(t), true }},
		{"mariadb", func(t *testing.T) (Options, bool) { return mariadbOptions(t), true }},
		{"mysql", func(t *testing.T) (Options, bool) {
			dsn, ok := enginetest.MySQL(t)
			return Options{Driver: DriverMySQL, DSN: dsn}, ok
		}},
	}
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			if options, ok := e.options(t); ok {
				f(t, newRig(t, options))
			}
		})
	}
}

func sqliteOptions(t testing.TB) Options {
	return Options{Driver: DriverSQLite, DSN: filepath.Join(t.TempDir(), "ledger.db")}
}

func mariadbOptions(t testing.TB) Options {
	return Options{Driver: DriverMySQL, DSN: enginetest.MariaDB(t)}
}

func newRig(t testing.TB, options Options) *rig {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := Open(options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	_, err = l.Migrate(context.Background())
	require.NoError(t, err)
	return &rig{l, options}
}

// another is a second process on the same ledger.
func (r *rig) another(t testing.TB) *Ledger {
	l, err := Open(r.options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// count is the single number that a query answers.
func (r *rig) count(t require.TestingT, query string, args ...any) int64 {
	var n sql.NullInt64
	require.NoError(t, r.pools[len(r.pools)-1].QueryRow(query, args...).Scan(&n), query)
	return n.Int64
}

func (r *rig) exec(t require.TestingT, query string, args ...any) {
	_, err := r.pools[0].Exec(query, args...)
	require.NoError(t, err, query)
}

var lastNumber atomic.Int64

// newSale creates a sale of its own, open, with no price to reckon with but 250 cents.
func (r *rig) newSale(t require.TestingT, total int64, limit int) string {
	s := testSale(fmt.Sprintf("sale-%d", lastNumber.Add(1)))
	s.Total, s.PerUserLimit = total, limit
	created, err := r.CreateSale(context.Background(), &s)
	require.NoError(t, err)
	require.True(t, created)
	return s.ID
}

const testPriceCents = 250

func testSale(id string) sale.Sale {
	starts := time.Date(2026, 11, 11, 0, 0, 0, 123_000_000, time.UTC)
	return sale.Sale{
		ID: id, Title: "Téléphone 手机 📱", PriceCents: testPriceCents, Currency: "CNY", Total: 100, PerUserLimit: 2,
		StartsAt: starts, EndsAt: starts.Add(time.Hour), Status: sale.Opened,
	}
}

var testIDs = sale.NewIDs(7, time.Now)

func order(saleID, user, key string, quantity int) sale.Order {
	return sale.Order{ID: testIDs.Next(sale.ShardOf(user)), SaleID: saleID, UserID: user, RequestKey: key,
		Quantity: quantity, AmountCents: int64(quantity) * testPriceCents}
}

func batch(orders ...sale.Order) sale.Batch {
	return sale.Batch{ID: testIDs.Next(0), SaleID: orders[0].SaleID, Epoch: 1, Orders: orders}
}

// checkInvariants holds a sale against invariants 1, 3, 4 (b), 6 and 8, by plain SQL.
func (r *rig) checkInvariants(t require.TestingT, saleID string) {
	const active = "status NOT IN ('CANCELLED', 'REFUNDED')"
	zero := func(invariant, query string, args ...any) {
		require.Zero(t, r.count(t, query, args...), "sale %s: %s", saleID, invariant)
	}
	zero("4b: available + locked + sold = total, none below zero", "SELECT COUNT(*) FROM inventory WHERE sale_id = ?"+
		" AND (available + locked + sold <> total OR available < 0 OR locked < 0 OR sold < 0)", saleID)
	zero("1: units of active orders are those locked",
		"SELECT (SELECT COALESCE(SUM(quantity), 0) FROM orders WHERE sale_id = ? AND "+active+")"+
			" - (SELECT locked + sold FROM inventory WHERE sale_id = ?)", saleID, saleID)
	zero("3: one active order a user and key", "SELECT COUNT(*) FROM (SELECT 1 FROM orders WHERE sale_id = ? AND "+active+
		" GROUP BY user_id, request_key HAVING COUNT(*) > 1) AS doubles", saleID)
	zero("8: the limit", "SELECT COUNT(*) FROM (SELECT 1 FROM orders WHERE sale_id = ? AND "+active+
		" GROUP BY user_id HAVING SUM(quantity) > (SELECT per_user_limit FROM sales WHERE id = ?)) AS overs", saleID, saleID)
	zero("6: a task for each cancelled order, and for no other",
		"SELECT (SELECT COUNT(*) FROM orders WHERE sale_id = ? AND status = 'CANCELLED')"+
			" - (SELECT COUNT(*) FROM stock_sync_tasks AS t JOIN orders AS o ON o.id = t.order_id"+
			" WHERE t.sale_id = ? AND o.status = 'CANCELLED' AND t.quantity = o.quantity AND t.user_id = o.user_id)"+
			" + (SELECT COUNT(*) FROM stock_sync_tasks AS t JOIN orders AS o ON o.id = t.order_id"+
			" WHERE t.sale_id = ? AND o.status <> 'CANCELLED')", saleID, saleID, saleID)
	zero("each cancelled order is in the status log", "SELECT COUNT(*) FROM orders AS o WHERE o.sale_id = ? AND o.status = 'CANCELLED'"+
		" AND (SELECT COUNT(*) FROM order_status_log AS g WHERE g.order_id = o.id AND g.to_status = 'CANCELLED' AND g.reason = o.reason) <> 1", saleID)
	zero("the log of units adds up", "SELECT (SELECT COALESCE(SUM(units), 0) FROM inventory_log WHERE sale_id = ? AND kind = 'LOCK')"+
		" - (SELECT locked FROM inventory WHERE sale_id = ?)", saleID, saleID)
	zero("3: one log row a batch", "SELECT (SELECT COUNT(*) FROM consumed_batches WHERE sale_id = ?)"+
		" - (SELECT COUNT(DISTINCT batch_id) FROM inventory_log WHERE sale_id = ? AND kind = 'LOCK')"+
		" + (SELECT COUNT(*) - COUNT(DISTINCT batch_id) FROM inventory_log WHERE sale_id = ? AND kind = 'LOCK')", saleID, saleID, saleID)
}

// TestConformance is the one suite that every engine passes.
func TestConformance(t *testing.T) {
	cases := []struct {
		name string
		run  func(t *testing.T, r *rig)
	}{
		{"a sale is created once", testCreateSale},
		{"a sale's status", testSetStatus},
		{"sales in order", testSales},
		{"epochs are handed out once", testNextEpoch},
		{"totals move by version", testSetTotal},
		{"apply: the common path", testApplyCommon},
		{"apply: a batch is consumed once", testApplyOnce},
		{"apply: duplicates", testApplyDuplicates},
		{"apply: limits", testApplyLimits},
		{"apply: limit of one buyer", testApplyLimitOfOneBuyer},
		{"apply: stock", testApplyStock},
		{"apply: an order that is there is skipped", testApplyKnownOrder},
		{"apply: several sales", testApplySales},
		{"apply: more rows than placeholders", testApplyLarge},
		{"apply: any bytes, no collation", testApplyBytes},
		{"apply: poison", testApplyPoison},
		{"apply: like the model", testApplyModel},
		{"apply: many at once", testApplyConcurrently},
		{"reading orders", testOrders},
		{"batches are owed until settled", testBatches},
		{"tasks", testTasks},
		{"dead batches", testDeadBatches},
		{"leases", testLeases},
		{"leases: one winner of many", testLeaseRace},
		{"node numbers", testNodes},
		{"access rules", testAccess},
		{"access rules in the order of their ids", testAccessInOrder},
		{"deadlines", testDeadlines},
		{"no table is unused by the schema", testSchema},
	}
	onEngines(t, func(t *testing.T, r *rig) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) { c.run(t, r) })
		}
	})
}

func testSchema(t *testing.T, r *rig) {
	for _, table := range []string{"sales", "inventory", "orders", "order_status_log", "inventory_log", "consumed_batches",
		"stock_sync_tasks", "dead_batches", "reconcile_reports", "reconcile_items", "leases", "nodes",
		"access_rules"} {
		r.count(t, "SELECT COUNT(*) FROM "+table)
	}
	id := r.newSale(t, 5, 1)
	for _, column := range []string{"available", "locked", "sold"} {
		_, err := r.pools[0].Exec("UPDATE inventory SET "+column+" = "+column+" - 6, total = total - 6 WHERE sale_id = ?", id)
		require.Error(t, err, "%s below zero", column)
		require.True(t, Poison(err), "%v", err)
	}
	_, err := r.pools[0].Exec("UPDATE inventory SET available = available - 1 WHERE sale_id = ?", id)
	require.Error(t, err, "a unit vanishes")
}

func testDeadlines(t *testing.T, r *rig) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := r.Sale(ctx, "any")
	require.ErrorIs(t, err, context.Canceled)
	_, err = r.Apply(ctx, []sale.Batch{batch(order(r.newSale(t, 1, 1), "u", "", 1))})
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, Poison(err))
}

func TestMigrate(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		require.NoError(t, r.Ping(ctx))
		applied, err := r.Migrate(ctx)
		require.NoError(t, err)
		require.Empty(t, applied, "a second run finds it done")

		provider, err := r.migrator()
		require.NoError(t, err)
		sources := provider.ListSources()
		last := sources[len(sources)-1].Version

		r.exec(t, "DELETE FROM goose_db_version WHERE version_id >= 7")
		require.ErrorContains(t, r.Ping(ctx), fmt.Sprintf("at version 6 of %d: run flashgate migrate", last))
		r.exec(t, "DROP TABLE goose_db_version")
		require.ErrorContains(t, r.Ping(ctx), "no schema: run flashgate migrate")
		for _, table := range []string{"sales", "inventory", "orders", "order_status_log", "inventory_log", "consumed_batches",
			"stock_sync_tasks", "dead_batches", "reconcile_reports", "reconcile_items", "leases", "nodes",
			"access_rules"} {
			r.exec(t, "DROP TABLE "+table)
		}

		if r.engine == &mysqlEngine { // what a process leaves that died between goose's first two statements
			r.exec(t, "CREATE TABLE goose_db_version (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, version_id BIGINT NOT NULL,"+
				" is_applied BOOLEAN NOT NULL, tstamp DATETIME NULL DEFAULT CURRENT_TIMESTAMP)")
		}

		const runs = 4
		files := make(chan []string, runs)
		for range runs {
			l := r.another(t)
			go func() {
				applied, err := l.Migrate(ctx)
				if err != nil {
					applied = []string{err.Error()}
				}
				files <- applied
			}()
		}
		var all []string
		for range runs {
			all = append(all, <-files...)
		}
		require.Len(t, all, len(sources), "each file was applied by one of four at once: %v", all)
		require.NoError(t, r.Ping(ctx))
		require.EqualValues(t, len(sources)+1, r.count(t, "SELECT COUNT(*) FROM goose_db_version"))
	})
}

func TestOpen(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		want    string
	}{
		"driver":           {Options{Driver: "oracle"}, `driver "oracle"`},
		"mysql DSN":        {Options{Driver: DriverMySQL, DSN: "root:secret@nowhere"}, "mysql DSN"},
		"mysql database":   {Options{Driver: DriverMySQL, DSN: "root:secret@tcp(127.0.0.1:1)/"}, "no database named"},
		"sqlite file":      {Options{Driver: DriverSQLite}, "want a file"},
		"sqlite directory": {Options{Driver: DriverSQLite, DSN: "/nowhere/at/all/ledger.db"}, "/nowhere/at/all/ledger.db"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(c.options)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

// TestAway: daemons start in any order, and say what is wrong.
func TestAway(t *testing.T) {
	l, err := Open(Options{Driver: DriverMySQL, DSN: "u:p@tcp(127.0.0.1:1)/flashgate", Timeout: time.Second})
	require.NoError(t, err, "MySQL may be away when a daemon starts")
	defer l.Close()
	ctx := context.Background()
	require.Error(t, l.Ping(ctx))
	_, err = l.Apply(ctx, []sale.Batch{batch(order("s", "u", "", 1))})
	require.Error(t, err)
	require.False(t, Poison(err), "an engine that is away is no fault of the data")
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
}

func TestSlowQueriesAreLoggedWithoutValues(t *testing.T) {
	var log bytes.Buffer
	options := sqliteOptions(t)
	options.SlowQuery = time.Nanosecond
	options.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r := newRig(t, options)
	log.Reset()
	_, err := r.OrdersOf(context.Background(), "a-private-name", "", 1)
	require.NoError(t, err)
	require.Contains(t, log.String(), "slow ledger query")
	require.Contains(t, log.String(), "FROM orders")
	require.NotContains(t, log.String(), "a-private-name")
	require.Equal(t, 1, strings.Count(log.String(), "\n"))
}
