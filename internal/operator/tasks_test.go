package operator_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// eachService runs f on the service itself and through its client, on both pairs of stores.
func eachService(t *testing.T, f func(t *testing.T, p *port, s operator.Service)) {
	storetest.Each(t, func(t *testing.T, stores *storetest.Stores) {
		p := newPortOn(t, stores)
		p.server.Serve(p.admin)
		t.Run("admin", func(t *testing.T) { f(t, p, p.admin) })
		t.Run("client", func(t *testing.T) { f(t, p, p.client) })
	})
}

func refused(t *testing.T, code sale.Code, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code, sale.CodeOf(err), err.Error())
}

// moveTo makes a batch one of another sale.
func moveTo(b *sale.Batch, saleID string) {
	b.SaleID = saleID
	for i := range b.Orders {
		b.Orders[i].SaleID = saleID
	}
}

func TestTasks(t *testing.T) {
	ctx := context.Background()
	eachService(t, func(t *testing.T, p *port, s operator.Service) {
		p.Exec("UPDATE stock_sync_tasks SET state = 'DONE'")
		sl := p.LoadedSale(1, 9)
		b := p.Batch(sl, 0, "ann", "bob")
		require.Equal(t, 1, p.Apply(b).Cancelled, "bob is refused: there is one unit")
		only := func(state ledger.TaskState) operator.TaskView {
			t.Helper()
			tasks, err := s.Tasks(ctx, state)
			require.NoError(t, err)
			require.Len(t, tasks, 1)
			return tasks[0]
		}
		task := only("")
		require.Equal(t, b.Orders[1].ID, task.OrderID)
		require.Equal(t, b.ID, task.BatchID)
		require.Equal(t, "bob", task.UserID)
		require.Equal(t, ledger.TaskOpen, task.State)
		require.WithinDuration(t, time.Now(), task.CreatedAt, time.Minute)

		require.NoError(t, p.Ledger.TaskFailed(ctx, task.ID, "a fault", time.Now(), 1))
		require.Equal(t, "a fault", only(ledger.TaskStuck).LastError)
		require.Equal(t, ledger.TaskStuck, only("").State, "what waits for a person is not finished")
		c, err := s.RetryTask(ctx, task.ID)
		require.NoError(t, err)
		require.True(t, c.Changed)
		require.Zero(t, only(ledger.TaskOpen).Tries)

		_, err = s.AbandonTask(ctx, task.ID, operator.Decision{By: "ann", Reason: " "})
		refused(t, sale.CodeInvalid, err)
		for _, changed := range []bool{true, false} {
			c, err := s.AbandonTask(ctx, task.ID, operator.Decision{By: "ann", Reason: "broken"})
			require.NoError(t, err)
			require.Equal(t, changed, c.Changed)
		}
		abandoned := only(ledger.TaskAbandoned)
		require.Equal(t, operator.Decision{By: "ann", Reason: "broken"}, abandoned.Abandoned.Decision)
		tasks, err := s.Tasks(ctx, "")
		require.NoError(t, err)
		require.Empty(t, tasks)
		_, err = s.RetryTask(ctx, task.ID)
		require.NoError(t, err)
		require.Nil(t, only(ledger.TaskOpen).Abandoned)

		require.NoError(t, p.Ledger.TasksDone(ctx, task.ID))
		_, err = s.RetryTask(ctx, task.ID)
		refused(t, sale.CodeConflict, err)
		_, err = s.AbandonTask(ctx, task.ID, operator.Decision{Reason: "too late"})
		refused(t, sale.CodeConflict, err)
		_, err = s.RetryTask(ctx, 1<<40)
		refused(t, sale.CodeNotFound, err)
	})
}

func TestDeadBatches(t *testing.T) {
	ctx := context.Background()
	eachService(t, func(t *testing.T, p *port, s operator.Service) {
		p.Exec("DELETE FROM dead_batches")
		bury := func(b *sale.Batch, body []byte) int64 {
			t.Helper()
			d := ledger.DeadBatch{MessageID: "m" + b.ID.String(), BatchID: b.ID, SaleID: b.SaleID, Body: body, Error: "a fault of its own"}
			require.NoError(t, p.Ledger.AddDeadBatch(ctx, &d))
			dead, err := s.DeadBatches(ctx)
			require.NoError(t, err)
			require.Equal(t, d.MessageID, dead[0].MessageID)
			return dead[0].ID
		}
		encode := func(b *sale.Batch) []byte {
			t.Helper()
			body, err := bus.Encode(b)
			require.NoError(t, err)
			return body
		}
		t.Run("one whose cause is mended is applied and settled, once", func(t *testing.T) {
			sl := p.LoadedSale(10, 2)
			b := p.Batch(sl, 0, "a", "b")
			p.Confirm(sl, b)
			id := bury(b, encode(b))
			for _, changed := range []bool{true, false} {
				c, err := s.ReplayDeadBatch(ctx, id, operator.Replay{Decision: operator.Decision{By: "ann", Reason: "the sale is there now"}})
				require.NoError(t, err)
				require.Equal(t, changed, c.Changed, c.Message)
				require.Empty(t, c.Warnings)
			}
			d, err := s.DeadBatch(ctx, id)
			require.NoError(t, err)
			require.Equal(t, ledger.StateReplayed, d.State)
			require.Equal(t, "ann", d.Closed.By)
			o, err := p.Ledger.Order(ctx, b.Orders[0].ID)
			require.NoError(t, err)
			require.Equal(t, sale.PendingPayment, o.Status)
			require.Zero(t, p.Snapshot(sl.ID).Batches, "it is settled in Redis")
			owed, err := p.Ledger.Owed(ctx, sl.ID, time.Now().Add(time.Hour), 10)
			require.NoError(t, err)
			require.Empty(t, owed)
		})
		t.Run("one that was applied meanwhile is closed", func(t *testing.T) {
			sl := p.LoadedSale(10, 2)
			b := p.Batch(sl, 0, "a")
			p.Confirm(sl, b)
			p.Apply(b)
			c, err := s.ReplayDeadBatch(ctx, bury(b, encode(b)), operator.Replay{})
			require.NoError(t, err)
			require.Contains(t, c.Message, "already")
			inv, err := p.Ledger.Inventory(ctx, sl.ID)
			require.NoError(t, err)
			require.Equal(t, int64(1), inv.Locked)
		})
		t.Run("one that was never promised is voided", func(t *testing.T) {
			sl := p.LoadedSale(10, 2)
			b := p.Batch(sl, 0, "a")
			p.Reserve(sl, b, time.Hour)
			id := bury(b, encode(b))
			c, err := s.ReplayDeadBatch(ctx, id, operator.Replay{})
			require.NoError(t, err)
			require.Contains(t, c.Message, "never promised")
			require.Equal(t, int64(10), p.Snapshot(sl.ID).Stock)
			d, err := s.DeadBatch(ctx, id)
			require.NoError(t, err)
			require.Equal(t, ledger.StateVoided, d.State)
			consumed, err := p.Ledger.Consumed(ctx, []sale.ID{b.ID})
			require.NoError(t, err)
			require.Empty(t, consumed)
		})
		t.Run("one that fails still stays dead", func(t *testing.T) {
			sl := p.LoadedSale(10, 2)
			b := p.Batch(sl, 0, "a")
			p.Confirm(sl, b)
			b.Orders[0].AmountCents++
			id := bury(b, encode(b))
			_, err := s.ReplayDeadBatch(ctx, id, operator.Replay{})
			refused(t, sale.CodeConflict, err)
			require.Contains(t, err.Error(), "fails still")
			d, err := s.DeadBatch(ctx, id)
			require.NoError(t, err)
			require.Equal(t, ledger.StateDead, d.State)
		})
		t.Run("a mended body is applied, if it is what Redis has reserved", func(t *testing.T) {
			sl := p.LoadedSale(10, 2)
			b := p.Batch(sl, 0, "a", "b")
			p.Confirm(sl, b)
			id := bury(b, []byte("{"))
			_, err := s.ReplayDeadBatch(ctx, id, operator.Replay{})
			refused(t, sale.CodeConflict, err)
			stranger := p.Batch(sl, 0, "c")
			for name, change := range map[string]func(*sale.Batch){
				"another batch":         func(b *sale.Batch) { b.ID++ },
				"an order less":         func(b *sale.Batch) { b.Orders = b.Orders[:1] },
				"an order more":         func(b *sale.Batch) { b.Orders = append(b.Orders, stranger.Orders[0]) },
				"another user":          func(b *sale.Batch) { b.Orders[0].UserID = "z" },
				"another key":           func(b *sale.Batch) { b.Orders[0].RequestKey = "z" },
				"another quantity":      func(b *sale.Batch) { b.Orders[0].Quantity++ },
				"a sale it is not of":   func(b *sale.Batch) { moveTo(b, p.Sale(5, 5).ID) },
				"a sale that is not it": func(b *sale.Batch) { moveTo(b, "nothing") },
			} {
				wrong := *b
				wrong.Orders = append([]sale.Order(nil), b.Orders...)
				change(&wrong)
				_, err := s.ReplayDeadBatch(ctx, id, operator.Replay{Body: encode(&wrong)})
				refused(t, sale.CodeInvalid, fmt.Errorf("%s: %w", name, err))
			}
			_, err = s.ReplayDeadBatch(ctx, id, operator.Replay{Body: json.RawMessage(`{"v":1}`)})
			refused(t, sale.CodeInvalid, err)
			require.Equal(t, int64(8), p.Snapshot(sl.ID).Stock, "a refusal changes nothing")
			consumed, err := p.Ledger.Consumed(ctx, []sale.ID{b.ID})
			require.NoError(t, err)
			require.Empty(t, consumed)

			c, err := s.ReplayDeadBatch(ctx, id, operator.Replay{Body: encode(b)})
			require.NoError(t, err)
			require.True(t, c.Changed)
			require.Zero(t, p.Snapshot(sl.ID).Batches)
			d, err := s.DeadBatch(ctx, id)
			require.NoError(t, err)
			require.Equal(t, "{", d.Body, "what came is kept")
			report, err := s.Audit(ctx, sl.ID)
			require.NoError(t, err)
			require.True(t, report.OK, "%+v", report.Breaches)
		})
		_, err := s.DeadBatch(ctx, 1<<40)
		refused(t, sale.CodeNotFound, err)
		_, err = s.ReplayDeadBatch(ctx, 1<<40, operator.Replay{})
		refused(t, sale.CodeNotFound, err)
	})
}

func TestReports(t *testing.T) {
	ctx := context.Background()
	eachService(t, func(t *testing.T, p *port, s operator.Service) {
		sl := p.LoadedSale(10, 2)
		began := time.Now().UTC().Truncate(time.Millisecond)
		stored := ledger.ReconcileReport{SaleID: sl.ID, Trigger: "schedule", Holder: "me", Found: 1, Left: 1, StartedAt: began, FinishedAt: began.Add(time.Second),
			Kinds: []ledger.KindCount{{Kind: "STOCK_DRIFT", Found: 1, Left: 1, Units: 3}},
			Items: []ledger.ReconcileItem{{Kind: "STOCK_DRIFT", OrderID: 7, Units: 3, Outcome: ledger.ItemLeft, Detail: "what", Plan: "how", Why: "why"}}}
		require.NoError(t, p.Ledger.AddReconcileReport(ctx, &stored))
		list, err := s.Reports(ctx, sl.ID, 0)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, stored.ID, list[0].ID)
		one, err := s.Report(ctx, stored.ID)
		require.NoError(t, err)
		require.Equal(t, stored.Items, one.Items)
		require.Equal(t, stored.Kinds, one.Kinds)
		_, err = s.Report(ctx, 1<<40)
		refused(t, sale.CodeNotFound, err)
		_, err = s.Reports(ctx, "", -1)
		refused(t, sale.CodeInvalid, err)
	})
}
