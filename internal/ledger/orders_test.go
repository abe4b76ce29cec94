package ledger

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func testOrders(t *testing.T, r *rig) {
	ctx := context.Background()
	one, two := r.newSale(t, 100, 9), r.newSale(t, 2, 9)
	user := "reader-" + one
	var orders []sale.Order
	for _, key := range []string{"a", "b", "c", "d", "e"} {
		orders = append(orders, order(one, user, key, 1))
	}
	other, refused := order(two, user, "a", 2), order(two, user, "b", 1)
	r.apply(t, batch(orders...), batch(other, refused), batch(order(one, "else", "a", 1)))

	ids := func(orders []Order) (ids []sale.ID) {
		for i := range orders {
			ids = append(ids, orders[i].ID)
		}
		return ids
	}
	got, err := r.OrdersOf(ctx, user, one, 3)
	require.NoError(t, err)
	require.Equal(t, []sale.ID{orders[4].ID, orders[3].ID, orders[2].ID}, ids(got), "newest first")
	got, err = r.OrdersOf(ctx, user, "", 100)
	require.NoError(t, err)
	require.Equal(t, []sale.ID{refused.ID, other.ID, orders[4].ID, orders[3].ID, orders[2].ID, orders[1].ID, orders[0].ID}, ids(got))
	got, err = r.OrdersOf(ctx, "nobody", "", 100)
	require.NoError(t, err)
	require.Empty(t, got)

	_, err = r.Order(ctx, 1)
	requireCode(t, sale.CodeOrderNotFound, err)
	_, err = r.OrderByKey(ctx, one, user, "z")
	requireCode(t, sale.CodeOrderNotFound, err)
	found, err := r.OrderByKey(ctx, two, user, "b")
	require.NoError(t, err)
	require.Equal(t, refused.ID, found.ID, "a cancelled order that is no duplicate still has its key")

	var walked []sale.ID
	var sizes []int
	require.NoError(t, r.EachOrder(ctx, one, 0, 4, func(slice []Order) error {
		walked = append(walked, ids(slice)...)
		sizes = append(sizes, len(slice))
		return nil
	}))
	require.Equal(t, []int{4, 2}, sizes)
	require.True(t, slices.IsSorted(walked))
	require.NoError(t, r.EachOrder(ctx, one, walked[3], 2, func(slice []Order) error {
		require.Equal(t, walked[4:], ids(slice))
		return nil
	}))
	stop := errors.New("stop")
	require.ErrorIs(t, r.EachOrder(ctx, one, 0, 1, func([]Order) error { return stop }), stop)

	units, err := r.CountUnits(ctx, two)
	require.NoError(t, err)
	require.Equal(t, map[sale.OrderStatus]int64{sale.PendingPayment: 2, sale.Cancelled: 1}, units)
	units, err = r.CountUnits(ctx, "none")
	require.NoError(t, err)
	require.Empty(t, units)
}

func testBatches(t *testing.T, r *rig) {
	ctx := context.Background()
	r.exec(t, "UPDATE consumed_batches SET settled_at = consumed_at WHERE settled_at IS NULL")
	id := r.newSale(t, 3, 9)
	b1, b2 := batch(order(id, "ann", "a", 1), order(id, "ann", "b", 2)), batch(order(id, "bob", "", 1))
	r.apply(t, b1)
	r.apply(t, b2) // stock refused

	later := time.Now().Add(time.Minute)
	owed, err := r.Owed(ctx, id, later, 10)
	require.NoError(t, err)
	require.Len(t, owed, 2)
	require.Equal(t, id, owed[0].SaleID)
	require.WithinDuration(t, time.Now(), owed[0].ConsumedAt, time.Minute)
	owed, err = r.Owed(ctx, id, later, 1)
	require.NoError(t, err)
	require.Len(t, owed, 1)
	owed, err = r.Owed(ctx, id, time.Now().Add(-time.Hour), 10)
	require.NoError(t, err)
	require.Empty(t, owed, "not before its time")
	owed, err = r.Owed(ctx, "another", later, 10)
	require.NoError(t, err)
	require.Empty(t, owed, "each sale owes its own")
	owing, err := r.Owing(ctx, later)
	require.NoError(t, err)
	require.Len(t, owing, 1)
	require.Equal(t, id, owing[0].SaleID)
	require.WithinDuration(t, time.Now(), owing[0].Oldest, time.Minute)
	owing, err = r.Owing(ctx, time.Now().Add(-time.Hour))
	require.NoError(t, err)
	require.Empty(t, owing)

	consumed, err := r.Consumed(ctx, []sale.ID{b1.ID, 5, b2.ID})
	require.NoError(t, err)
	require.Equal(t, map[sale.ID]bool{b1.ID: true, b2.ID: true}, consumed)
	consumed, err = r.Consumed(ctx, nil)
	require.NoError(t, err)
	require.Empty(t, consumed)

	active, err := r.ActiveOrders(ctx, []sale.ID{b1.ID, b2.ID, 5})
	require.NoError(t, err)
	require.Len(t, active, 1)
	require.ElementsMatch(t, b1.Orders, active[b1.ID])

	require.NoError(t, r.MarkSettled(ctx, nil))
	require.NoError(t, r.MarkSettled(ctx, []sale.ID{b2.ID, 5, b1.ID, b1.ID}))
	owed, err = r.Owed(ctx, id, later, 10)
	require.NoError(t, err)
	require.Empty(t, owed)
}

func testTasks(t *testing.T, r *rig) {
	ctx := context.Background()
	r.exec(t, "UPDATE stock_sync_tasks SET state = 'DONE'")
	id := r.newSale(t, 1, 9)
	kept, refused := order(id, "ann", "k", 1), order(id, "bob", "k\xff", 2)
	b := batch(kept, refused)
	r.apply(t, b)

	later := time.Now().Add(time.Minute)
	due, err := r.DueTasks(ctx, "", later, 10)
	require.NoError(t, err)
	require.Len(t, due, 1)
	task := due[0]
	require.Equal(t, refused, task.Order)
	require.Equal(t, b.ID, task.BatchID)
	require.Equal(t, TaskOpen, task.State)
	early, err := r.DueTasks(ctx, "", time.Now().Add(-time.Hour), 10)
	require.NoError(t, err)
	require.Empty(t, early)

	next := time.Now().Add(time.Hour).Truncate(time.Millisecond).UTC()
	require.NoError(t, r.TaskFailed(ctx, task.ID, "Redis is away", next, 2))
	due, err = r.DueTasks(ctx, "", later, 10)
	require.NoError(t, err)
	require.Empty(t, due)
	open, err := r.Tasks(ctx, TaskOpen, 10)
	require.NoError(t, err)
	require.Len(t, open, 1)
	require.Equal(t, 1, open[0].Tries)
	require.Equal(t, "Redis is away", open[0].LastErr)
	require.Equal(t, next, open[0].NextTry)

	require.NoError(t, r.TaskFailed(ctx, task.ID, string(make([]byte, 5000))+"\xff", next, 2))
	stuck, err := r.Tasks(ctx, TaskStuck, 10)
	require.NoError(t, err)
	require.Len(t, stuck, 1, "the second of two tries")
	require.Len(t, stuck[0].LastErr, maxTextBytes)

	require.NoError(t, r.RetryTask(ctx, task.ID))
	due, err = r.DueTasks(ctx, "", later, 10)
	require.NoError(t, err)
	require.Len(t, due, 1)
	require.Zero(t, due[0].Tries)

	require.NoError(t, r.PostponeTasks(ctx, []int64{task.ID, 1 << 40}, "Redis is not there", next))
	due, err = r.DueTasks(ctx, "", later, 10)
	require.NoError(t, err)
	require.Empty(t, due)
	open, err = r.Tasks(ctx, TaskOpen, 10)
	require.NoError(t, err)
	require.Zero(t, open[0].Tries, "a try that the task did not fail is not counted")
	require.Equal(t, "Redis is not there", open[0].LastErr)

	why := Decision{Who: "ann", Why: "the shop gave the unit away by hand"}
	for _, changed := range []bool{true, false} {
		did, err := r.AbandonTask(ctx, task.ID, why)
		require.NoError(t, err)
		require.Equal(t, changed, did)
	}
	require.NoError(t, r.TaskFailed(ctx, task.ID, "too late", next, 1))
	abandoned, err := r.Tasks(ctx, TaskAbandoned, 10)
	require.NoError(t, err)
	require.Len(t, abandoned, 1)
	require.WithinDuration(t, time.Now(), abandoned[0].Abandoned.At, time.Minute)
	why.At = abandoned[0].Abandoned.At
	require.Equal(t, &why, abandoned[0].Abandoned)
	counts, err := r.UnfinishedTasks(ctx)
	require.NoError(t, err)
	require.Equal(t, []Unfinished{{TaskAbandoned, 1, abandoned[0].Created}}, counts)
	newest, err := r.NewestTaskBefore(ctx, later)
	require.NoError(t, err)
	require.Equal(t, task.ID, newest)
	bySale, err := r.NewestTasks(ctx, newest-1)
	require.NoError(t, err)
	require.Equal(t, map[string]int64{id: newest}, bySale)
	bySale, err = r.NewestTasks(ctx, newest)
	require.NoError(t, err)
	require.Empty(t, bySale)
	newest, err = r.NewestTaskBefore(ctx, time.Now().Add(-time.Hour))
	require.NoError(t, err)
	require.Zero(t, newest)
	require.NoError(t, r.RetryTask(ctx, task.ID), "a person may think better of it")
	open, err = r.Tasks(ctx, TaskOpen, 10)
	require.NoError(t, err)
	require.Len(t, open, 1)
	require.Nil(t, open[0].Abandoned)

	require.NoError(t, r.TasksDone(ctx, task.ID))
	require.NoError(t, r.TasksDone(ctx, task.ID))
	_, err = r.AbandonTask(ctx, task.ID, why)
	requireCode(t, sale.CodeConflict, err)
	_, err = r.AbandonTask(ctx, 1<<40, why)
	requireCode(t, sale.CodeNotFound, err)
	require.NoError(t, r.TaskFailed(ctx, task.ID, "too late", next, 1))
	done, err := r.Tasks(ctx, TaskDone, 1000)
	require.NoError(t, err)
	require.Equal(t, task.ID, done[len(done)-1].ID, "a task that is done stays so")
	requireCode(t, sale.CodeConflict, r.RetryTask(ctx, task.ID))
	requireCode(t, sale.CodeNotFound, r.RetryTask(ctx, 1<<40))
}

func testDeadBatches(t *testing.T, r *rig) {
	ctx := context.Background()
	body := []byte("{\x00\xff'\"")
	add := func(id string, cause string) {
		require.NoError(t, r.AddDeadBatch(ctx, &DeadBatch{MessageID: id, BatchID: 9, SaleID: "s", Body: body, Error: cause}))
	}
	add("m1", "first")
	add("m2", "second")
	add("m1", "once more")
	add("", "no id")
	require.NoError(t, r.AddDeadBatch(ctx, &DeadBatch{SaleID: string(make([]byte, 300)), Error: string(make([]byte, 5000)) + "\xff"}))

	dead, err := r.DeadBatches(ctx, 10)
	require.NoError(t, err)
	require.Len(t, dead, 4, "delivered twice is one row; without an id each is its own")
	first := dead[3]
	require.Equal(t, DeadBatch{ID: first.ID, MessageID: "m1", BatchID: 9, SaleID: "s", Body: body, Error: "once more",
		CreatedAt: first.CreatedAt, State: StateDead}, first)
	require.WithinDuration(t, time.Now(), first.CreatedAt, time.Minute)

	left, err := r.DeadBatchesLeft(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(4), left)
	who := Decision{Who: "ann", Why: "the sale is there now"}
	for _, changed := range []bool{true, false} {
		did, err := r.CloseDeadBatch(ctx, dead[1].ID, StateReplayed, who, []byte("{}"))
		require.NoError(t, err)
		require.Equal(t, changed, did)
	}
	after, err := r.DeadBatches(ctx, 10)
	require.NoError(t, err)
	require.Equal(t, dead[1].ID, after[3].ID)
	require.Equal(t, StateReplayed, after[3].State, "those not replayed come first")
	who.At = after[3].Closed.At
	require.Equal(t, &who, after[3].Closed)
	require.Equal(t, body, after[3].Body, "what came is kept beside what was mended")
	add("m1", "it died again")
	after, err = r.DeadBatches(ctx, 10)
	require.NoError(t, err)
	require.Equal(t, StateDead, after[2].State)
	few, err := r.DeadBatches(ctx, 2)
	require.NoError(t, err)
	require.Len(t, few, 2)
	_, err = r.CloseDeadBatch(ctx, 1<<40, StateReplayed, who, nil)
	requireCode(t, sale.CodeNotFound, err)
}
