package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/enginetest"
	"flashgate/internal/ledger"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// tools is a folder with a config, and the stores that the config names, to plant things in.
type tools struct {
	*storetest.Stores
	t      *testing.T
	config string
	real   bool
}

// onEachEngine runs commands on embedded engines that nobody runs, and on the real ones.
func onEachEngine(t *testing.T, f func(t *testing.T, x *tools)) {
	t.Run("embedded", func(t *testing.T) {
		inFolder(t)
		x := &tools{t: t, config: embedded}
		x.must("sale", "list") // makes the folder
		x.Stores = storetest.Open(t, ledger.Options{Driver: ledger.DriverSQLite, DSN: "data/ledger.db"},
			stock.Options{Addresses: []string{miniredis.RunT(t).Addr()}}) // commands have a Redis of their own
		f(t, x)
	})
	t.Run("real", func(t *testing.T) {
		inFolder(t)
		dsn, redis := enginetest.MariaDB(t), enginetest.Redis(t)
		t.Setenv("FLASHGATE_MYSQL_DSN", dsn)
		t.Setenv("FLASHGATE_ADMIN_TOKEN", "a-token-of-the-operators")
		t.Setenv("FLASHGATE_JWT_SECRET", strings.Repeat("s", 32))
		require.NoError(t, os.WriteFile("configs/test.yaml", fmt.Appendf(nil, `
engines: real
listen: 127.0.0.1:0
operators_listen: 127.0.0.1:0
operators_token: {env: FLASHGATE_ADMIN_TOKEN}
jwt: {secret: {env: FLASHGATE_JWT_SECRET}}
redis: {addresses: ["%s"]}
rocketmq: {name_servers: ["%s"]}
mysql: {dsn: {env: FLASHGATE_MYSQL_DSN}}
`, strings.Join(redis, `", "`), enginetest.RocketMQ(t)), 0o600))
		x := &tools{t: t, config: "--config=configs/test.yaml", real: true}
		x.Stores = storetest.Open(t, ledger.Options{Driver: ledger.DriverMySQL, DSN: dsn},
			stock.Options{Addresses: redis, Cluster: true, WaitReplicas: 1})
		f(t, x)
	})
}

func (x *tools) must(args ...string) string {
	x.t.Helper()
	code, out, errout := command(append(args, x.config)...)
	require.Zero(x.t, code, "%v: %s%s", args, out, errout)
	return out
}

func (x *tools) fails(says string, args ...string) {
	x.t.Helper()
	code, out, errout := command(append(args, x.config)...)
	require.Equal(x.t, 1, code, out)
	require.Contains(x.t, errout, says)
}

// sell makes a sale and promises a batch of it. Embedded, the commands load the sale by
// themselves, and take the promise from the dead batch.
func (x *tools) sell(total int64, users ...string) (*sale.Sale, *sale.Batch) {
	sl := x.Sale(total, 9)
	if !x.real {
		return sl, x.Batch(sl, 0, users...)
	}
	var err error
	sl.Epoch, err = x.Ledger.NextEpoch(context.Background(), sl.ID)
	require.NoError(x.t, err)
	loaded, err := x.Stock.Load(context.Background(), sl, stock.LoadSource{})
	require.NoError(x.t, err)
	require.True(x.t, loaded)
	b := x.Batch(sl, 0, users...)
	x.Confirm(sl, b)
	return sl, b
}

func TestDeadBatchCommands(t *testing.T) {
	ctx := context.Background()
	onEachEngine(t, func(t *testing.T, x *tools) {
		require.Contains(t, x.must("dead", "list"), "no dead batches")
		sl, b := x.sell(10, "ann", "bob")
		good := b.Orders[0].AmountCents
		b.Orders[0].AmountCents = 1
		body, err := bus.Encode(b)
		require.NoError(t, err)
		require.NoError(t, x.Ledger.AddDeadBatch(ctx, &ledger.DeadBatch{MessageID: "m", BatchID: b.ID, SaleID: sl.ID, Body: body, Error: "the amount is wrong"}))
		dead, err := x.Ledger.DeadBatches(ctx, 1)
		require.NoError(t, err)
		id := fmt.Sprint(dead[0].ID)

		list := x.must("dead", "list")
		require.Contains(t, list, "DEAD")
		require.Contains(t, list, b.ID.String())
		require.Contains(t, x.must("dead", "list", "--json"), `"state": "DEAD"`)
		require.Contains(t, x.must("dead", "show", id), "the amount is wrong")
		var view operator.DeadBatchView
		require.NoError(t, json.Unmarshal([]byte(x.must("dead", "show", id, "--json")), &view))
		require.Equal(t, string(body), view.Body)
		x.fails("fails still", "dead", "replay", id)
		x.fails("NOT_FOUND", "dead", "show", "999999")
		x.fails("its number", "dead", "show", "x")
		x.fails("nothing.json", "dead", "replay", id, "--body", "nothing.json")

		text := x.must("dead", "show", id, "--body")
		require.NoError(t, os.WriteFile("wrong.json", []byte("{"), 0o600))
		x.fails("not JSON", "dead", "replay", id, "--body", "wrong.json")
		// Two orders in one: what was promised to bob is missing.
		require.NoError(t, os.WriteFile("less.json", []byte(text[:strings.LastIndex(text, ",\n    {")]+"\n]}"), 0o600))
		x.fails("is not in it", "dead", "replay", id, "--body", "less.json")
		mended := strings.Replace(text, `"amount_cents": 1,`, fmt.Sprintf(`"amount_cents": %d,`, good), 1)
		require.NotEqual(t, text, mended)
		require.NoError(t, os.WriteFile("mended.json", []byte(mended), 0o600))
		require.Contains(t, x.must("dead", "replay", id, "--body", "mended.json", "--reason", "priced by hand"), "2 orders")
		require.Contains(t, x.must("dead", "replay", id), "REPLAYED already")
		shown := x.must("dead", "show", id)
		require.Contains(t, shown, "priced by hand")
		require.Contains(t, shown, "REPLAYED")
		orders, err := x.Ledger.OrdersByID(ctx, []sale.ID{b.Orders[0].ID, b.Orders[1].ID})
		require.NoError(t, err)
		require.Len(t, orders, 2)
		owed, err := x.Ledger.Owed(ctx, sl.ID, time.Now().Add(time.Hour), 10)
		require.NoError(t, err)
		require.Empty(t, owed, "settled in Redis")
		require.Contains(t, x.must("audit"), "no invariant is broken")
	})
}

func TestTaskCommands(t *testing.T) {
	ctx := context.Background()
	onEachEngine(t, func(t *testing.T, x *tools) {
		require.Contains(t, x.must("task", "list"), "no tasks")
		sl, b := x.sell(2, "ann", "bob")
		// While Redis sold them, the ledger came to have fewer.
		x.Exec("UPDATE sales SET total = 1 WHERE id = ?", sl.ID)
		x.Exec("UPDATE inventory SET total = 1, available = 1 WHERE sale_id = ?", sl.ID)
		require.Equal(t, 1, x.Apply(b).Cancelled)
		tasks, err := x.Ledger.TasksOf(ctx, []sale.ID{b.Orders[1].ID})
		require.NoError(t, err)
		task := tasks[b.Orders[1].ID]
		id := fmt.Sprint(task.ID)
		require.NoError(t, x.Ledger.TaskFailed(ctx, task.ID, "WRONGTYPE", time.Now(), 1))

		list := x.must("task", "list")
		for _, word := range []string{"STUCK", "WRONGTYPE", task.Order.ID.String(), "bob"} {
			require.Contains(t, list, word)
		}
		require.Contains(t, x.must("task", "list", "--state", "open"), "no tasks")
		x.fails("want OPEN, STUCK", "task", "list", "--state", "lost")
		x.fails("NOT_FOUND", "task", "retry", "999999")
		x.fails("reason", "task", "abandon", id)
		x.fails("say why", "task", "abandon", id, "--reason", " ")
		require.Contains(t, x.must("task", "abandon", id, "--reason", "broken in the warehouse", "--by", "eve"), "abandoned")
		require.Contains(t, x.must("task", "abandon", id, "--reason", "again"), "already")
		require.Contains(t, x.must("task", "list", "--state", "ABANDONED"), "abandoned by eve: broken in the warehouse")
		require.Contains(t, x.must("task", "list"), "no tasks")
		require.Contains(t, x.must("task", "retry", id), "due now")
		require.Contains(t, x.must("task", "list", "--json"), `"state": "OPEN"`)
	})
}

func TestReportCommands(t *testing.T) {
	onEachEngine(t, func(t *testing.T, x *tools) {
		require.Contains(t, x.must("reconcile", "report"), "no reports")
		sl, b := x.sell(10, "ann")
		if x.real {
			x.Apply(b)
			x.Settle(b)
			x.MoveStock(sl.ID, 3)
		} else {
			x.Apply(b)
			x.Exec("UPDATE inventory SET locked = locked + 1, available = available - 1 WHERE sale_id = ?", sl.ID)
		}
		_, dry, _ := command("reconcile", "--once", "--dry-run", "--sale", sl.ID, x.config)
		require.Contains(t, dry, "afresh from the", "a dry run says what would be done")
		require.Contains(t, x.must("reconcile", "--once", "--sale", sl.ID), "1 repaired")
		list := x.must("reconcile", "report")
		require.Contains(t, list, sl.ID)
		require.Contains(t, list, "once")
		require.Contains(t, x.must("reconcile", "report", "--sale", "another"), "no reports")
		var reports struct{ Reports []ledger.ReconcileReport }
		require.NoError(t, json.Unmarshal([]byte(x.must("reconcile", "report", "--sale", sl.ID, "--json")), &reports))
		require.Len(t, reports.Reports, 2, "and the dry run")
		id := fmt.Sprint(reports.Reports[0].ID)
		one := x.must("reconcile", "report", id)
		for _, word := range []string{"report " + id, "REPAIRED", "_DRIFT", "1 found, 1 repaired, 0 left", "WHAT MENDS IT"} {
			require.Contains(t, one, word)
		}
		var report ledger.ReconcileReport
		require.NoError(t, json.Unmarshal([]byte(x.must("reconcile", "report", id, "--json")), &report))
		require.Len(t, report.Items, 1)
		x.fails("NOT_FOUND", "reconcile", "report", "999999")
		x.fails("limit", "reconcile", "report", "--limit", "100000")
	})
}

func TestToolsTeach(t *testing.T) {
	for _, args := range [][]string{{"task"}, {"dead"}, {"task", "abandon", "--help"}, {"dead", "replay", "--help"}, {"reconcile", "report", "--help"}} {
		code, out, _ := command(args...)
		require.Zero(t, code)
		require.Greater(t, strings.Count(out, "\n"), 8, "%v", args)
	}
	code, _, errout := command("task", "retri", "1")
	require.Equal(t, 1, code)
	require.Contains(t, errout, "retri")
}
