package reconciler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// TestASaleThatIsNotLoadedStarvesNoOther: with more to settle than one round takes, all of
// it older than what another sale owes.
func TestASaleThatIsNotLoadedStarvesNoOther(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		gone, alive := s.Sale(10, 5), s.LoadedSale(10, 5)
		rows := make([]string, 0, maxSettleBatches+500)
		for i := range maxSettleBatches + 500 {
			rows = append(rows, fmt.Sprintf("(%d, '%s', '2026-01-01 00:00:00.000')", i+1, gone.ID))
		}
		s.Exec("INSERT INTO consumed_batches (batch_id, sale_id, consumed_at) VALUES " + strings.Join(rows, ", "))
		b := s.Batch(alive, 0, "a")
		s.Confirm(alive, b)
		s.Apply(b)
		r := newReconciler(s, func(o *Options) { o.Lister = brokenBus })
		r.Round(ctx)
		require.Zero(t, s.Snapshot(alive.ID).Batches)
		owing, err := s.Ledger.Owing(ctx, time.Now())
		require.NoError(t, err)
		require.Len(t, owing, 1)
		require.Equal(t, gone.ID, owing[0].SaleID)
		require.EqualValues(t, maxSettleBatches, testutil.ToFloat64(r.metrics.owed))
		require.Greater(t, testutil.ToFloat64(r.metrics.owedOldest), time.Hour.Seconds())
	})
}

// refusal leaves one task: bob is refused by the ledger's guard.
func refusal(s *storetest.Stores, sl *sale.Sale) *sale.Batch {
	s.T.Helper()
	b := s.Batch(sl, old, "ann", "bob")
	s.Apply(b)
	return b
}

// taskOf is the one task of a sale.
func taskOf(t *testing.T, s *storetest.Stores, b *sale.Batch) ledger.Task {
	t.Helper()
	tasks, err := s.Ledger.TasksOf(context.Background(), []sale.ID{b.Orders[1].ID})
	require.NoError(t, err)
	require.Len(t, tasks, 1)
	return tasks[b.Orders[1].ID]
}

func TestTasksOfASaleThatRedisHasNotWaitWithoutATry(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		gone, alive := s.Sale(1, 5), s.LoadedSale(1, 5)
		waits, runs := refusal(s, gone), refusal(s, alive)
		r := newReconciler(s, func(o *Options) { o.Lister = brokenBus })
		r.Round(ctx)
		require.Equal(t, ledger.TaskDone, taskOf(t, s, runs).State)
		task := taskOf(t, s, waits)
		require.Equal(t, ledger.TaskOpen, task.State)
		require.Zero(t, task.Tries, "Redis is away: no fault of the task")
		require.NotEmpty(t, task.LastErr)
		require.Greater(t, time.Until(task.NextTry), time.Second)
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.waitingTasks.WithLabelValues("OPEN")))
		require.Positive(t, testutil.ToFloat64(r.metrics.oldestTask.WithLabelValues("OPEN")))
	})
}

func TestATaskThatFailsForGoodWaitsForAnOperator(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(1, 5)
		b := refusal(s, sl)
		s.Settle(b)
		buyers := "fg:{" + sl.ID + "}:buyers"
		require.NoError(t, s.Redis.Do(ctx, s.Redis.B().Del().Key(buyers).Build()).Error())
		require.NoError(t, s.Redis.Do(ctx, s.Redis.B().Set().Key(buyers).Value("no hash").Build()).Error())
		r := newReconciler(s)
		for try := 1; try <= r.o.TaskTries; try++ {
			s.Exec("UPDATE stock_sync_tasks SET next_try = '2020-01-01 00:00:00.000' WHERE sale_id = ?", sl.ID)
			r.Round(ctx)
			require.Equal(t, try, taskOf(t, s, b).Tries)
		}
		require.Equal(t, ledger.TaskStuck, taskOf(t, s, b).State)
		require.NoError(t, r.countTasks(ctx))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.waitingTasks.WithLabelValues("STUCK")), "the alert")

		require.NoError(t, s.Redis.Do(ctx, s.Redis.B().Del().Key(buyers).Build()).Error())
		require.NoError(t, s.Ledger.RetryTask(ctx, taskOf(t, s, b).ID))
		r.Round(ctx)
		require.Equal(t, ledger.TaskDone, taskOf(t, s, b).State)
	})
}

func TestPausesOfATaskGrowWithJitterToABound(t *testing.T) {
	r := newReconciler(storetest.Embedded(t), func(o *Options) { o.TaskBackoff = time.Second })
	for tries, want := range map[int]time.Duration{0: time.Second, 3: 8 * time.Second, 50: maxTaskPauseSeconds * time.Second} {
		seen := map[time.Duration]bool{}
		for range 100 {
			pause := r.taskPause(tries)
			require.InDelta(t, want.Seconds(), pause.Seconds(), want.Seconds()/4)
			seen[pause] = true
		}
		require.Greater(t, len(seen), 10)
	}
}

// TestWhatIsAbandonedIsLeftAndSaid: neither rounds nor reconciles give it back, and the
// audit names who decided so.
func TestWhatIsAbandonedIsLeftAndSaid(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(2, 1)
		// The ledger refuses bob's second order; Redis, which had forgotten the first, holds it.
		first, second := s.Batch(sl, old, "bob"), s.Batch(sl, old, "ann", "bob")
		second.Orders[1].RequestKey = "other"
		s.Apply(first)
		s.Confirm(sl, second)
		require.Equal(t, 1, s.Apply(second).Cancelled)
		s.Settle(second)
		task := taskOf(t, s, second)
		_, err := s.Ledger.AbandonTask(ctx, task.ID, ledger.Decision{Who: "eve", Why: "the unit broke"})
		require.NoError(t, err)
		s.Settle(first)
		held := s.Snapshot(sl.ID)
		// In flight no more.
		s.Exec("UPDATE consumed_batches SET consumed_at = '2026-01-01 00:00:00.000', settled_at = '2026-01-01 00:00:00.000' WHERE sale_id = ?", sl.ID)

		r := newReconciler(s)
		r.Round(ctx)
		report, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, report.Found, "%+v", report)
		require.Contains(t, report.Sales[0].Note, "1 units stay held")
		require.Equal(t, held.Held, s.Snapshot(sl.ID).Held)
		a, err := (&audit.Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Minute}).Audit(ctx, sl.ID)
		require.NoError(t, err)
		require.True(t, a.OK, "%+v", a.Breaches)
		require.Len(t, a.Accepted, 1)
		require.Equal(t, int64(1), a.Sales[0].Accepted)
		accepted := a.Accepted[0]
		require.Equal(t, second.Orders[1].ID, accepted.OrderID)
		require.Equal(t, "eve", accepted.By)
		require.Contains(t, accepted.String(), "the unit broke")

		require.NoError(t, s.Ledger.RetryTask(ctx, task.ID), "thought better of")
		r.Round(ctx)
		require.Equal(t, held.Held-1, s.Snapshot(sl.ID).Held)
		audited(t, s, sl.ID)
	})
}
